"""The operator's kernels: ns per voxel and core, against plain and compiled torch, against this machine's limits.

Run by `make bench`. Two to three minutes on two cores, most of it plain torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import ceilings
import torch
from clock import cores, fastest, use_threads
from synthetic import Scene, scene

from flex_job.operator import Operator, VoxelDomain, make_operator
from flex_job.operator.reference import ReferenceOperator

BOX, RADIUS, VERTICES, IMAGES, TORCH_IMAGES = 128, 29, 900, 64, 8
# Accesses to the four rows of a footprint, per voxel: (additions to an image, reads of an image).
ROWS = {
    "forward": (1, 0),
    "adjoint to map": (0, 1),
    "adjoint to map and mesh": (0, 1),
    "derivative, K = 1": (2, 0),
    "derivative, K = 4": (5, 0),
}


def kernels(operator: Operator, at: Scene, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    return {
        "forward": lambda: operator.project(at.values, at.q, at.box),
        "adjoint to map": lambda: operator.adjoint(images, at.q),
        "adjoint to map and mesh": lambda: operator.adjoint(images, at.q, at.values),
        "derivative, K = 1": lambda: operator.derivative(at.values, at.q, at.dq[:, :1].contiguous(), at.box),
        "derivative, K = 4": lambda: operator.derivative(at.values, at.q, at.dq, at.box),
    }


# -- the same in torch ------------------------------------------------------------------------------------------------

Projector = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def scatter_by_pixel(domain: VoxelDomain, box: int) -> Projector:
    """The projection as the formula reads, one scatter_add for each of the sixteen pixels of a footprint."""
    vertices, weights = (torch.from_numpy(table) for table in domain.weights())
    corners, shares = vertices.long(), weights.float()

    def project(values: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
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

    return project


def b_spline(t: torch.Tensor) -> torch.Tensor:
    """Cubic B-spline at distance t."""
    a = t.abs()
    return torch.where(a < 1, 2 / 3 - a**2 + a**3 / 2, (2 - a).clamp(min=0) ** 3 / 6)


def forward_and_adjoint(project: Projector, values: torch.Tensor, q: torch.Tensor) -> None:
    values, q = values.clone().requires_grad_(), q.clone().requires_grad_()
    project(values, q).square().sum().backward()


def in_torch(domain: VoxelDomain) -> dict[str, Projector]:
    by_pixel, reference = scatter_by_pixel(domain, BOX), ReferenceOperator(domain)
    found: dict[str, Projector] = {
        "torch, a scatter_add per pixel": by_pixel,
        "torch, one index_add": lambda values, q: reference.project(values, q, BOX),
    }
    if shutil.which(os.environ.get("CXX", "g++")):
        torch.compiler.reset()
        found["torch.compile of a scatter_add per pixel"] = torch.compile(by_pixel, dynamic=False)
    else:
        print("torch.compile is left out: it needs a C++ compiler (g++, or CXX)")
    return found


# -- figures ----------------------------------------------------------------------------------------------------------


def print_kernels(at: Scene, threads: int) -> dict[str, float]:
    """Times on so many threads beside the ceilings on as many; returns ns per voxel and core."""
    limits = ceilings.measure(threads)
    use_threads(threads)
    operator = make_operator(at.domain)
    unit = 1e9 * threads / len(at.q) / len(at.domain)
    images = operator.project(at.values, at.q, at.box)
    found = {name: unit * fastest(call) for name, call in kernels(operator, at, images).items()}
    print(f"\n{threads} threads: copy {limits.copy_GBps:.1f} GB/s, {limits.gflops:.0f} GFLOP/s (matrix product)")
    print(f"{'':26}{'ns per voxel and core':>22}{'row accesses alone':>20}{'% of that limit':>17}")
    for name, value in found.items():
        added, read = ROWS[name]
        least = added * limits.update_ns + read * limits.read_ns
        print(f"{name:26}{value:22.1f}{least:20.1f}{100 * least / value:17.0f}")
    return found


def print_torch(at: Scene, ours: dict[str, float], threads: int) -> None:
    use_threads(threads)
    some = at.first(TORCH_IMAGES)
    unit = 1e9 * threads / TORCH_IMAGES / len(at.domain)
    both = ours["forward"] + ours["adjoint to map and mesh"]
    print(f"\n{'':44}{'forward':>9}{'ratio':>7}{'and adjoint':>13}{'ratio':>7}")
    for name, project in in_torch(at.domain).items():
        forward = unit * fastest(lambda: project(some.values, some.q), 2)  # noqa: B023
        whole = unit * fastest(lambda: forward_and_adjoint(project, some.values, some.q), 2)  # noqa: B023
        print(f"{name:44}{forward:9.0f}{forward / ours['forward']:7.0f}{whole:13.0f}{whole / both:7.0f}", flush=True)


def print_agreement(at: Scene) -> None:
    """Root mean square difference over root mean square: float32 to float64, and float64 to plain torch in float64."""
    some = at.first(4)
    operator, reference = make_operator(at.domain), ReferenceOperator(at.domain)
    images = operator.project(some.values, some.q, BOX)

    def results(of: Operator, dtype: torch.dtype) -> list[torch.Tensor]:
        s = some.to(dtype)
        to_values, to_q = of.adjoint(images.to(dtype), s.q, s.values)
        assert to_q is not None
        return [of.project(s.values, s.q, BOX), to_values, to_q, of.derivative(s.values, s.q, s.dq, BOX)[1]]

    kinds = results(operator, torch.float32), results(operator, torch.float64), results(reference, torch.float64)
    print("\nrelative difference (rms)     float32 - float64    float64 - torch float64")
    for name, a, b, c in zip(("forward", "to map", "to mesh", "derivative"), *kinds, strict=True):
        print(f"{name:26}{(a - b).norm() / b.norm():21.1e}{(b - c).norm() / c.norm():27.1e}")


def main() -> None:
    at = scene(BOX, RADIUS, VERTICES, IMAGES, 4)
    print(f"{len(at.domain)} voxels, {len(at.domain.vertices)} cells, {BOX} px, {IMAGES} images, float32")
    for threads in sorted({1, cores()}):
        print_torch(at, print_kernels(at, threads), threads)
    print_agreement(at)


if __name__ == "__main__":
    main()
