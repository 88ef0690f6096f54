"""The operator's kernels against plain torch, in one run: ns per voxel and core, and ratios. Run by `make bench`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
from scipy.spatial import Delaunay
from scipy.spatial.transform import Rotation

from flex_job.mesh import TetMesh
from flex_job.operator import VoxelDomain, adjoint, derivative, project, reference, voxel_domain
from flex_job.volume import Volume

BOX, RADIUS, IMAGES, REFERENCE_IMAGES = 128, 29, 64, 16


def ball_mesh(rng: np.random.Generator) -> TetMesh:
    """About 900 vertices in a ball that holds about 100,000 voxels of 1 A."""
    directions = rng.normal(size=(900, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = directions * 1.3 * RADIUS * rng.uniform(size=(900, 1)) ** (1 / 3)
    cells = Delaunay(points).simplices.astype(np.int32)
    corners = points[cells]
    volume = np.linalg.det(corners[:, 1:] - corners[:, :1])
    cells[volume < 0] = cells[volume < 0][:, [1, 0, 2, 3]]
    cells = cells[np.abs(volume) > 1e-3 * np.median(np.abs(volume))]
    ones = np.ones(len(cells), np.float32)
    return TetMesh(points, cells, ones, np.ones(len(points), np.float32), np.zeros(len(cells), np.int32))


def fastest(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


Projector = Callable[[VoxelDomain, torch.Tensor, torch.Tensor, int], torch.Tensor]


def scatter_by_pixel(domain: VoxelDomain, values: torch.Tensor, q: torch.Tensor, box: int) -> torch.Tensor:
    """The same projection as the formula reads, one scatter_add for each of the sixteen pixels of a footprint."""
    vertices, weights = domain.weights()
    corners, shares = torch.from_numpy(vertices).long(), torch.from_numpy(weights).to(q)
    p = torch.zeros(len(q), len(values), 2)
    for k in range(4):
        p = p + shares[:, k, None] * q[:, corners[:, k]]
    whole = p.detach().floor()
    images = torch.zeros(len(q), box * box)
    for j in range(-1, 3):
        for i in range(-1, 3):
            x, y = whole[..., 0] + i, whole[..., 1] + j
            kernel = b_spline(p[..., 0] - x) * b_spline(p[..., 1] - y)
            images = images.scatter_add(1, (y * box + x).long(), values * kernel)
    return images.view(len(q), box, box)


def b_spline(t: torch.Tensor) -> torch.Tensor:
    """Cubic B-spline at distance t."""
    a = t.abs()
    return torch.where(a < 1, 2 / 3 - a**2 + a**3 / 2, (2 - a).clamp(min=0) ** 3 / 6)


def forward_and_adjoint(project: Projector, domain: VoxelDomain, values: torch.Tensor, q: torch.Tensor) -> None:
    values, q = values.clone().requires_grad_(), q.clone().requires_grad_()
    project(domain, values, q, BOX).square().sum().backward()


def main() -> None:
    cores = min(2, len(os.sched_getaffinity(0)))
    numba.set_num_threads(cores)
    torch.set_num_threads(cores)
    rng = np.random.default_rng(0)
    mesh = ball_mesh(rng)
    index = np.indices((BOX,) * 3) - BOX // 2
    domain = voxel_domain(mesh, Volume(((index**2).sum(0) < RADIUS**2).astype(np.float32), 1.0))
    rotations = Rotation.random(IMAGES, random_state=1).as_matrix()[:, :2]
    moved = mesh.vertices_A + 0.5 * rng.normal(size=(IMAGES, *mesh.vertices_A.shape))
    q = (np.einsum("bij,bvj->bvi", rotations, moved) + BOX // 2).astype(np.float32)
    values = rng.normal(size=len(domain)).astype(np.float32)
    images = project(domain, values, q, BOX)
    dq = rng.normal(size=(IMAGES, 4, *q.shape[1:])).astype(np.float32)
    print(f"{len(domain)} voxels, {len(domain.vertices)} cells, {BOX} px, {IMAGES} images, {cores} cores")

    unit = 1e9 * cores / IMAGES / len(domain)
    kernels: dict[str, Callable[[], object]] = {
        "forward": lambda: project(domain, values, q, BOX),
        "adjoint to map": lambda: adjoint(domain, images, q),
        "adjoint to map and mesh": lambda: adjoint(domain, images, q, values),
        "derivative, K = 1": lambda: derivative(domain, values, q, dq[:, :1], BOX),
        "derivative, K = 4": lambda: derivative(domain, values, q, dq, BOX),
    }
    seconds = {name: fastest(call) for name, call in kernels.items()}
    for name, value in seconds.items():
        print(f"{name:22}{value * unit:8.1f} ns per voxel and core")

    some_values, some_q = torch.from_numpy(values), torch.from_numpy(q[:REFERENCE_IMAGES])
    ours = seconds["forward"] + seconds["adjoint to map and mesh"]
    scale = IMAGES / REFERENCE_IMAGES
    written: dict[str, Projector] = {
        "plain torch, a scatter_add per pixel": scatter_by_pixel,
        "plain torch, one index_add (the tests' reference)": reference.project,
    }
    for name, call in written.items():
        forward = scale * fastest(lambda call=call: call(domain, some_values, some_q, BOX), 2)  # type: ignore[misc]
        both = scale * fastest(lambda call=call: forward_and_adjoint(call, domain, some_values, some_q), 2)  # type: ignore[misc]
        print(f"{name}: forward {forward * unit:.0f}, forward and adjoint {both * unit:.0f} ns per voxel and core")
        print(f"    ratio, forward: {forward / seconds['forward']:.0f}; forward and adjoint: {both / ours:.0f}")


if __name__ == "__main__":
    main()
