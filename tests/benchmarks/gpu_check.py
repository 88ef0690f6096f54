"""The GPU's kernels: agreement with the CPU's, time per voxel and image, and how much of the device that is.

Run by hand on a machine with a GPU, some minutes. `--tiny` runs all of it on a few hundred voxels, without a GPU in
Triton's interpreter, where times mean nothing; `--sweep` also times other sizes of blocks and patches.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from synthetic import Scene, scene  # noqa: E402

from flex_job.operator import Operator, make_operator  # noqa: E402
from flex_job.operator.cuda import CudaOperator  # noqa: E402

PATCH = 16
# What bounds the kernels by design: instructions of one lane per voxel and image, counted in the loop over images of
# the code compiled for sm_90, in float32 with blocks and patches as they are by default, one patch for each block.
INSTRUCTIONS = {
    "forward": 551,
    "adjoint to map": 601,
    "adjoint to map and mesh": 1310,
    "derivative, K = 1": 756 + 280,
    "derivative, K = 5": 756 + 5 * 280,
}


@dataclass(frozen=True)
class Problem:
    """`box` pixels of voxels, images `oversampling` times finer, and how many of them make one call."""

    name: str
    box: int
    radius_px: float
    vertices: int
    oversampling: int
    images: int


PROBLEMS = [
    Problem("training: 128 px", 128, 29, 900, 1, 512),
    Problem("half-maps: 380 px, oversampled", 380, 106, 1601, 2, 32),
]
TINY = [Problem("tiny", 24, 4, 30, 1, 3), Problem("tiny, oversampled", 24, 4, 30, 2, 2)]


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best; numbers per second."""

    copied_bytes: float
    tensor_flops: float
    fma_flops: float
    atomics: float


@triton.jit
def _add_patches(images, places, pitch, P: tl.constexpr):
    """Add one to a patch of P x P pixels: what is left of the forward kernel without its arithmetic."""
    along = tl.arange(0, P)
    to = images + tl.load(places + tl.program_id(0)) + along[:, None] * pitch + along[None, :]
    tl.atomic_add(to, tl.full((P, P), 1.0, tl.float32), sem="relaxed")


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of some calls after one that compiles."""
    call()
    times = []
    for _ in range(repeats):
        synchronize()
        began = time.perf_counter()
        call()
        synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure_ceilings(tiny: bool) -> Ceilings:
    size, edge, patches, box, repeats = (1 << 12, 64, 32, 64, 1) if tiny else (1 << 28, 8192, 1 << 20, 2048, 10)
    source = torch.ones(size, device=DEVICE)
    target = torch.empty_like(source)
    copied = seconds(lambda: target.copy_(source), repeats)
    matrix = torch.randn(edge, edge, device=DEVICE)
    before, multiplied = torch.backends.cuda.matmul.allow_tf32, []
    for allowed in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        multiplied.append(seconds(lambda: matrix @ matrix, repeats))
    torch.backends.cuda.matmul.allow_tf32 = before
    image = torch.zeros(box * box, device=DEVICE)
    corners = torch.randint(0, box - PATCH, (2, patches), device=DEVICE, dtype=torch.int32)
    places = corners[0] * box + corners[1]
    added = seconds(lambda: _add_patches[(patches,)](image, places, box, P=PATCH, num_warps=1), repeats)
    flops = 2.0 * edge**3
    return Ceilings(8.0 * size / copied, flops / multiplied[0], flops / multiplied[1], PATCH**2 * patches / added)


def kernels(operator: Operator, at: Scene, images: torch.Tensor) -> dict[str, tuple[Callable[[], object], int, int]]:
    """The call, its matrix products per block of voxels, and its passes over images."""
    one, few = at.dq[:, :1].contiguous(), at.dq[:, :5].contiguous()
    return {
        "forward": (lambda: operator.project(at.values, at.q, at.box), 1, 1),
        "adjoint to map": (lambda: operator.adjoint(images, at.q), 1, 1),
        "adjoint to map and mesh": (lambda: operator.adjoint(images, at.q, at.values), 2, 1),
        "derivative, K = 1": (lambda: operator.derivative(at.values, at.q, one, at.box), 3, 2),
        "derivative, K = 5": (lambda: operator.derivative(at.values, at.q, few, at.box), 11, 6),
    }


def build(problem: Problem) -> Scene:
    """On the device; q and images in pixels of the finer grid."""
    at = scene(problem.box, problem.radius_px, problem.vertices, problem.images, 5)
    factor = problem.oversampling
    q, dq = at.q * factor, at.dq * factor
    return Scene(at.domain, at.box * factor, *(tensor.to(DEVICE) for tensor in (at.values, q, dq)))


def differences(operator: Operator, at: Scene, images: torch.Tensor, expected: list[torch.Tensor]) -> dict[str, float]:
    """Largest difference of each result from `expected`, relative to the largest number."""
    found = results(operator, at, images)
    names = ("images", "slopes", "to values", "to vertices")
    return {
        name: float((f.double().cpu() - e).abs().max() / e.abs().max())
        for name, f, e in zip(names, found, expected, strict=True)
    }


def results(operator: Operator, at: Scene, images: torch.Tensor) -> list[torch.Tensor]:
    to_values, to_q = operator.adjoint(images, at.q, at.values)
    assert to_q is not None
    return [*operator.derivative(at.values, at.q, at.dq, at.box), to_values, to_q]


def check(operator: CudaOperator, at: Scene) -> None:
    """Two images against the CPU's kernels in float64, whose float32 is the yardstick for ours."""
    two = Scene(at.domain, at.box, at.values, at.q[:2], at.dq[:2, :2].contiguous())
    on_cpu = Scene(at.domain, at.box, two.values.cpu(), two.q.cpu(), two.dq.cpu())
    images = torch.randn(2, at.box, at.box, generator=torch.Generator().manual_seed(0))
    cpu = make_operator(at.domain, "cpu")
    expected = results(cpu, on_cpu.to(torch.float64), images.double())
    usual = differences(cpu, on_cpu, images, expected)
    images = images.to(DEVICE)
    errors = differences(operator, two, images, expected)
    print("    difference from float64 (the CPU's float32):", end=" ")
    print(", ".join(f"{name} {error:.1e} ({usual[name]:.1e})" for name, error in errors.items()))
    for name, error in errors.items():
        if error > (3e-3 if operator.precision == "tf32" else 5 * usual[name] + 1e-6):
            print(f"    ERROR: {name} differs by more than it should")
    once, again = (operator.adjoint(images, two.q)[0] for _ in range(2))
    if not torch.equal(once, again):
        print("    ERROR: the gradient to the values is not reproducible")


def report(problem: Problem, at: Scene, ceilings: Ceilings, settings: dict[str, object], repeats: int) -> None:
    operator = CudaOperator(at.domain, DEVICE, **settings)  # type: ignore[arg-type]
    print("  " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    check(operator, at)
    images = torch.randn(len(at.q), at.box, at.box, device=DEVICE)
    pairs = len(at.q) * len(at.domain)
    products = 3 if operator.precision == "float32" else 1
    for name, (call, dots, passes) in kernels(operator, at, images).items():
        took = seconds(call, repeats)
        # At least: images once each, corners of the cells, and the voxels' tables once per group of images.
        moved = 4.0 * (passes * images.numel() + passes * 16 * len(at.q) * len(at.domain.vertices) + 8 * len(at.domain))
        flops = 2.0 * operator.patch**2 * dots * products * pairs
        print(
            f"    {name:24}{1e12 * took / pairs:9.1f} ps per voxel and image, {len(at.q) / took:10.0f} images/s;"
            f" copy bandwidth {100 * moved / took / ceilings.copied_bytes:4.0f} %,"
            f" tensor cores {100 * flops / took / ceilings.tensor_flops:4.0f} %",
            end="",
        )
        if settings == {"precision": "float32"}:
            issued = INSTRUCTIONS[name] * pairs / took / (ceilings.fma_flops / 2)
            print(f", instructions {100 * issued:4.0f} %", end="")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    asked = parser.parse_args()
    if DEVICE == "cpu" and not asked.tiny:
        parser.error("torch finds no GPU here; --tiny runs the same in Triton's interpreter")
    print(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else 'interpreter'}, torch {torch.__version__}", end=", ")
    print(f"triton {triton.__version__}")
    ceilings = measure_ceilings(asked.tiny)
    print(
        f"copy {ceilings.copied_bytes / 1e9:.0f} GB/s, tf32 {ceilings.tensor_flops / 1e12:.1f} TFLOP/s, float32 "
        f"{ceilings.fma_flops / 1e12:.1f} TFLOP/s, atomic additions in patches {ceilings.atomics / 1e9:.1f} G/s"
    )
    settings: list[dict[str, object]] = [{"precision": "float32"}, {"precision": "tf32"}]
    if asked.sweep:
        sizes = [(block, patch) for block in (16, 32, 64) for patch in (16, 32) if (block, patch) != (32, 16)]
        settings += [{"precision": "float32", "block": block, "patch": patch} for block, patch in sizes]
    for problem in TINY if asked.tiny else PROBLEMS:
        at = build(problem)
        print(f"{problem.name}: {len(at.domain)} voxels, {len(at.domain.vertices)} cells, {len(at.q)} images, ", end="")
        print(f"{at.box} px; workspace {CudaOperator(at.domain, DEVICE).workspace_bytes(len(at.q), 5) / 1e6:.1f} MB")
        for setting in settings:
            report(problem, at, ceilings, setting, 1 if asked.tiny else 10)


if __name__ == "__main__":
    main()
