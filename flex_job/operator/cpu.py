"""The operator on the CPU: compiled kernels, shared out among threads by groups of images and blocks of voxels."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.operator import cpu_kernels
from flex_job.operator.domain import VoxelDomain
from flex_job.operator.lanes import LANES

__all__ = ["CpuOperator"]

SMALL = 200_000
"""Voxels times images that one thread does (half a millisecond) before others are woken."""


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="operator")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has the pool but not its threads

Ranges = list[tuple[int, int]]


def _ranges(count: int, parts: int) -> Ranges:
    return [(count * k // parts, count * (k + 1) // parts) for k in range(parts)]


def _run(job: Callable[[int, int], None], groups: Ranges, blocks: Ranges) -> None:
    """`job(i, j)` for the i-th range of groups and the j-th of blocks: at most one job per thread."""
    jobs = [(i, j) for i in range(len(groups)) for j in range(len(blocks))]
    if len(jobs) == 1:
        job(0, 0)
    else:
        list(_pool(torch.get_num_threads()).map(lambda place: job(*place), jobs))


def _array(tensor: torch.Tensor, like: torch.Tensor) -> NDArray:
    return tensor.detach().to(like.dtype).contiguous().numpy()


def _memory(points: torch.Tensor, like: torch.Tensor) -> tuple[NDArray, tuple[int, ...]]:
    """A tensor of any strides as the stretch of memory it lies in, and its strides: the kernels transpose anyway."""
    points = points.detach().to(like.dtype)
    span = 1 + sum((size - 1) * step for size, step in zip(points.shape, points.stride(), strict=True))
    return points.as_strided((span if points.numel() else 0,), (1,)).numpy(), points.stride()


def _sum(parts: torch.Tensor) -> torch.Tensor:
    # By NumPy: torch would wake its own threads beside ours for it.
    return parts[0] if len(parts) == 1 else torch.from_numpy(np.add.reduce(parts.numpy(), axis=0))


class CpuOperator:
    """The operator of a domain for tensors on the CPU, float32 or float64, with `torch.get_num_threads()` threads."""

    def __init__(self, domain: VoxelDomain, device: torch.device | str = "cpu") -> None:
        self.domain, self.device = domain, torch.device(device)
        # Cells of more voxels than a block are cut into pieces; neighbouring pieces that fit are one block.
        pieces = -(-np.diff(domain.start) // cpu_kernels.BLOCK)
        cell = np.repeat(np.arange(len(pieces)), pieces)
        kth = np.arange(len(cell)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        start = np.append(domain.start[cell] + kth * cpu_kernels.BLOCK, len(domain))
        blocks = [0]
        for piece in range(1, len(cell)):
            if start[piece + 1] - start[blocks[-1]] > cpu_kernels.BLOCK:
                blocks.append(piece)
        used, vertices = np.unique(domain.vertices[cell], return_inverse=True)
        vertices = vertices.reshape(-1, 4)
        self._cells = start, vertices, used, np.array([*blocks, len(cell)])
        self._shares: dict[torch.dtype, NDArray] = {}

    def project(self, values: torch.Tensor, q: torch.Tensor, box: int) -> torch.Tensor:
        """Images (b, box, box) of `values` (n,) with the mesh at `q` (b, V, 2)."""
        groups, blocks = self._grid(len(q))
        images = torch.empty((len(blocks), len(q), box, box), dtype=values.dtype)
        arguments = (_array(values, values), *_memory(q, values), *self._tables(values.dtype))
        out = images.numpy()
        _run(lambda i, j: cpu_kernels.project(*arguments, *groups[i], *blocks[j], out[j]), groups, blocks)
        return _sum(images)

    def adjoint(
        self, images: torch.Tensor, q: torch.Tensor, values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transpose of `project`: to the values (n,), summed over the batch, and, with `values`, to q (b, V, 2)."""
        groups, blocks = self._grid(len(q))
        to_values = torch.zeros((len(groups), len(self.domain)), dtype=images.dtype)
        arguments: tuple = (_array(images, images), *_memory(q, images), *self._tables(images.dtype))
        out = to_values.numpy()
        if values is None:
            _run(lambda i, j: cpu_kernels.adjoint_values(*arguments, *groups[i], *blocks[j], out[i]), groups, blocks)
            return _sum(to_values), None
        arguments = (_array(values, images), *arguments)
        to_q = torch.zeros((len(blocks), *q.shape), dtype=images.dtype)
        out_q = to_q.numpy()
        _run(lambda i, j: cpu_kernels.adjoint(*arguments, *groups[i], *blocks[j], out[i], out_q[j]), groups, blocks)
        return _sum(to_values), _sum(to_q)

    def derivative(
        self, values: torch.Tensor, q: torch.Tensor, dq: torch.Tensor, box: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (b, box, box) and their derivatives (b, k, box, box) along `dq` (b, k, V, 2)."""
        groups, blocks = self._grid(len(q))
        images = torch.empty((len(blocks), len(q), box, box), dtype=values.dtype)
        slopes = torch.empty((len(blocks), len(q), dq.shape[1], box, box), dtype=values.dtype)
        moved = (*_memory(q, values), *_memory(dq, values))
        arguments = (_array(values, values), *moved, *self._tables(values.dtype))
        out, out_k = images.numpy(), slopes.numpy()
        _run(lambda i, j: cpu_kernels.derivative(*arguments, *groups[i], *blocks[j], out[j], out_k[j]), groups, blocks)
        return _sum(images), _sum(slopes)

    def _tables(self, dtype: torch.dtype) -> tuple[NDArray, ...]:
        if dtype not in self._shares:
            domain, shares = self.domain, torch.empty((len(self.domain), 3), dtype=dtype).numpy()
            cpu_kernels.barycentric(domain.local, domain.start, domain.gradients, domain.offsets, shares)
            self._shares[dtype] = shares
        return self._shares[dtype], *self._cells

    def _grid(self, batch: int) -> tuple[Ranges, Ranges]:
        """How threads share the work: ranges of groups of images times ranges of blocks of voxels.

        Only where there are fewer groups than threads, or threads would wait long for the last group, voxels are split
        as well: each part then has images of its own, which are summed; that costs about a tenth of a group.
        """
        groups, threads = max(1, -(-batch // LANES)), torch.get_num_threads()
        if groups * LANES * len(self.domain) < SMALL:
            threads = 1

        def cost(share: int) -> float:
            return -(-groups // share) * (1 / (threads // share) + 0.1)

        share = min(range(1, min(groups, threads) + 1), key=cost)
        blocks = len(self._cells[-1]) - 1
        return _ranges(groups, share), _ranges(blocks, max(1, min(threads // share, blocks)))
