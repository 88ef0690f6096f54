"""Reading particle images from MRC stacks: only the slices wanted, in few large reads, from several files at once.

Stacks may be a few of 100 GB or tens of thousands of small ones, and lie on network file systems where each request
costs a millisecond: so the images of a call are read in the order of file and place, neighbours in one request, and
by several threads once requests are seen to wait. No file stays open between calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.consensus import PIXEL_SIZES_A, Consensus
from flex_job.records import read_into
from flex_job.stack_header import StackHeader, open_stack, parse_header, read_header

__all__ = ["ImageReader", "read_header", "stack_problems"]

READERS = 8  # threads of one call, and so the files open at once; they wait for the file system, not for the processor
SLOW_S = 2e-4  # a request that waits as long comes from a disk or network; below, threads cost more than they save
GAP_BYTES = 1 << 17  # between two images wanted that are read along: cheaper than a request of its own
RUN_BYTES = 1 << 20  # of one request: enough for any network, and small enough to stay in the processor's cache
HALF_PIECE = 1 << 15  # float16 values converted in one go
CHECKED_IMAGES = 64
TOLD_STACKS = 5

In = TypeVar("In")
Out = TypeVar("Out")


def stack_problems(
    stack_paths: Sequence[Path],
    stack_index: NDArray[np.integer],
    image_index: NDArray[np.integer],
    boxes: NDArray[np.integer],
) -> list[str]:
    """What is wrong with the stacks that particles point at; `boxes` (n,) is the box each particle should have.

    A problem that many stacks share is told for the first few, with the number of the others.
    """
    order = np.argsort(stack_index, kind="stable")
    starts = np.searchsorted(stack_index[order], np.arange(len(stack_paths) + 1))
    used = [int(number) for number in np.flatnonzero(np.diff(starts))]

    def problems_of(number: int) -> list[str]:
        members = order[starts[number] : starts[number + 1]]
        try:
            header = read_header(stack_paths[number])
        except ValueError as error:
            return [str(error)]
        return _header_problems(stack_paths[number], header, image_index[members], boxes[members])

    problems = [problem for found in _in_threads(problems_of, used) for problem in found]
    if len(problems) > TOLD_STACKS:
        problems[TOLD_STACKS:] = [f"... and {len(problems) - TOLD_STACKS} more problems with image stacks like these"]
    return problems


def _header_problems(
    path: Path, header: StackHeader, numbers: NDArray[np.integer], boxes: NDArray[np.integer]
) -> list[str]:
    problems = []
    if header.length_problem:
        problems.append(f"{path}: {header.length_problem}")
    for box in set(boxes.tolist()):
        if (header.height, header.width) != (box, box):
            problems.append(
                f"{path}: images of {header.height} x {header.width} pixels; expected {box} x {box} as the optics "
                "group says; correct the box in the particle list or extract the particles again"
            )
    for wrong in (numbers.min(), numbers.max()):
        if not 0 <= wrong < header.count:
            problems.append(
                f"{path}: particle image number {wrong + 1} is asked for, the stack holds {header.count} "
                "(numbers start at 1); the particle list and the stack do not belong together"
            )
            break
    return problems


def _in_threads(function: Callable[[In], Out], items: Sequence[In]) -> Iterable[Out]:
    """`function` of each item, in their order, in several threads where there are several."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(READERS, len(items)), thread_name_prefix="images") as pool:
        return list(pool.map(function, items))


class ImageReader:
    """Reads particle images by particle number. Threads may share one; headers are parsed once per file."""

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus
        self._headers: dict[int, StackHeader] = {}
        self._slow = False

    def read(self, index: NDArray[np.integer] | Sequence[int]) -> NDArray[np.float32]:
        """Images of the particles at `index`, in that order: float32 (b, box, box), rows y, as they are on disk.

        Raises ValueError when the particles are of several optics groups, or when a stack does not hold an image.
        """
        particles = np.asarray(index, dtype=np.int64)
        groups = np.unique(self._consensus.optics_index[particles])
        if len(groups) > 1:
            raise ValueError(f"particles of {len(groups)} optics groups in one call; read each group by itself")
        if not len(groups):
            return np.zeros((0, 0, 0), dtype=np.float32)
        box = self._consensus.optics[groups[0]].box
        stacks = self._consensus.stack_index[particles]
        numbers = self._consensus.image_index[particles]
        images = np.empty((len(particles), box, box), dtype=np.float32)

        def read_share(rows: NDArray[np.int64]) -> int:
            parts = _runs(np.diff(stacks[rows]) != 0)
            return sum(
                self._read_stack(int(stacks[rows[part.start]]), rows[part], numbers[rows[part]], images)
                for part in parts
            )

        # ascending order in each file: kind to spinning and networked storage
        rows = np.lexsort((numbers, stacks))
        if self._slow:
            _in_threads(read_share, np.array_split(rows, min(READERS, len(rows))))
        else:
            began, busy = time.perf_counter(), time.thread_time()
            requests = read_share(rows)
            waited = (time.perf_counter() - began) - (time.thread_time() - busy)
            self._slow = waited / requests > SLOW_S
        return images

    def check(self, sample: int = CHECKED_IMAGES, seed: int = 0) -> list[str]:
        """Problems of the stacks and pixel sizes, and values that are not finite in a seeded sample of images."""
        consensus = self._consensus
        problems = self.optics_problems()
        boxes = np.array([group.box for group in consensus.optics])[consensus.optics_index]
        found = stack_problems(consensus.stack_paths, consensus.stack_index, consensus.image_index, boxes)
        if found:
            return problems + found
        chosen = np.sort(np.random.default_rng(seed).permutation(len(consensus))[:sample])
        finite = _in_threads(lambda number: bool(np.isfinite(self.read([number])).all()), chosen.tolist())
        broken = chosen[~np.array(finite, dtype=bool)]
        if len(broken):
            names = ", ".join(self._name(number) for number in broken[:3])
            problems.append(
                f"{len(broken)} of {len(chosen)} sampled images hold values that are not finite (NaN or infinite), "
                f"such as {names}; remove these particles or extract them again"
            )
        return problems

    def optics_problems(self) -> list[str]:
        """Optics groups whose pixel size makes no sense."""
        low, high = PIXEL_SIZES_A
        return [
            f"optics group {group.name}: pixel size {group.pixel_size_A:g} A; expected a positive number, {low:g} to "
            f"{high:g}; correct it in the particle list"
            for group in self._consensus.optics
            if group.pixel_size_A < low or group.pixel_size_A > high
        ]

    def _name(self, particle: int) -> str:
        path = self._consensus.stack_paths[self._consensus.stack_index[particle]]
        return f"{self._consensus.image_index[particle] + 1}@{path}"

    def _read_stack(
        self, stack: int, rows: NDArray[np.int64], numbers: NDArray[np.int64], images: NDArray[np.float32]
    ) -> int:
        """Fill `rows` of `images` with the images `numbers` (ascending) of one file; returns how many requests."""
        path = self._consensus.stack_paths[stack]
        descriptor = open_stack(path)
        try:
            header = self._headers.get(stack) or parse_header(descriptor, path)
            self._headers[stack] = header
            box = images.shape[1]
            if (header.height, header.width) != (box, box):
                raise ValueError(f"{path}: images of {header.height} x {header.width} pixels, expected {box} x {box}")
            for wrong in (numbers[0], numbers[-1]):
                if not 0 <= wrong < header.count:
                    raise ValueError(f"{path}: no image {wrong + 1}, the stack holds {header.count}")
            size = header.image_bytes
            apart = (np.diff(numbers) - 1) * size > GAP_BYTES
            # where a run grows beyond its length: by place, so that it needs no loop
            full = np.diff(numbers * size // RUN_BYTES) != 0
            runs = _runs(apart | full)
            for part in runs:
                first, last = int(numbers[part.start]), int(numbers[part.stop - 1])
                raw = _read_at(descriptor, header.offset_bytes + first * size, (last - first + 1) * size)
                if len(raw) < (last - first + 1) * size:
                    held = first + len(raw) // size
                    raise ValueError(f"{path}: truncated, image {held + 1} is not whole; copy the stack again")
                block = raw.view(header.dtype).reshape(-1, box, box)
                for row, number in zip(rows[part].tolist(), (numbers[part] - first).tolist(), strict=True):
                    _convert(block[number], images[row])
            return 1 + len(runs)
        finally:
            os.close(descriptor)


def _runs(after: NDArray[np.bool_]) -> list[slice]:
    """Slices of the n items that are cut after the places where `after` (n - 1,) holds."""
    ends = [0, *(np.flatnonzero(after) + 1).tolist(), len(after) + 1]
    return [slice(*pair) for pair in pairwise(ends)]


def _read_at(descriptor: int, offset: int, count: int) -> NDArray[np.uint8]:
    """`count` bytes at `offset`, fewer at the end of the file."""
    buffer = bytearray(count)
    return np.frombuffer(buffer, np.uint8)[: read_into(descriptor, memoryview(buffer), offset)]


def _convert(image: NDArray[np.generic], into: NDArray[np.float32]) -> None:
    """Copy an image of any type. Float16 goes through torch, which takes a tenth of numpy's time; pieces that small it
    converts in the thread that asks, where larger ones would start threads in each reader."""
    if image.dtype != np.dtype(np.float16):
        into[...] = image
        return
    source, flat = image.reshape(-1), into.reshape(-1)
    for start in range(0, len(flat), HALF_PIECE):
        piece = slice(start, start + HALF_PIECE)
        torch.from_numpy(flat[piece]).copy_(torch.from_numpy(source[piece]))
