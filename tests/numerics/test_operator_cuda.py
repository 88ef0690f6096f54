"""What only concerns the GPU backend: patches, blocks, groups of images, precision, and that the kernels compile.

On a machine with a GPU the kernels run there, elsewhere in Triton's interpreter. Run as a program, this file compiles
all kernels ahead of time, which needs no GPU, and prints what they use as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if __name__ != "__main__":
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
    pytest.importorskip("triton")

from flex_job.operator.cuda import ONE_WARP, TABLES, CudaOperator  # noqa: E402
from flex_job.operator.domain import VoxelDomain, rigid_domain, voxel_domain  # noqa: E402
from flex_job.operator.reference import ReferenceOperator  # noqa: E402
from flex_job.volume import Volume  # noqa: E402

PIXEL_A = 3.0
# float64 in the interpreter and on GPUs alike; float32 as three tf32 products, relative to the largest number.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    """A domain at random poses in images of `box` pixels; tensors in float64."""

    domain: VoxelDomain
    box: int
    values: torch.Tensor
    q: torch.Tensor
    dq: torch.Tensor
    images: torch.Tensor

    def to(self, dtype: torch.dtype) -> Case:
        tensors = (t.to(DEVICE, dtype) for t in (self.values, self.q, self.dq, self.images))
        return Case(self.domain, self.box, *tensors)


def ball(box: int, radius: float) -> Volume:
    z, y, x = np.indices((box,) * 3) - box // 2
    return Volume((x**2 + y**2 + z**2 <= radius**2).astype(np.float32), PIXEL_A)


def make_case(
    domain: VoxelDomain, vertices_A: np.ndarray, box: int, *, spacing: float = 1.0, wobble_px: float = 0.7,
    batch: int = 2, directions: int = 2,
) -> Case:  # fmt: skip
    """`spacing` is the size of a voxel in pixels of the images."""
    rng = np.random.default_rng(0)
    rotations = Rotation.random(batch, random_state=1).as_matrix()[:, :2]
    q = spacing * np.einsum("bac,vc->bva", rotations, vertices_A / domain.pixel_size_A) + box // 2 + 0.3
    q += wobble_px * rng.normal(size=q.shape)
    draws = (rng.normal(size=s) for s in ((batch, directions, *q.shape[1:]), (batch, box, box), len(domain)))
    dq, images, values = (torch.from_numpy(draw) for draw in draws)
    return Case(domain, box, values, torch.from_numpy(q), dq, images)


@pytest.fixture(scope="module")
def case_of(mesh_of):
    """`case_of(name, **arguments)`: situations that the kernels must get right."""
    mesh = mesh_of((2, 2, 2), 2.2 * 2.5 * PIXEL_A)
    domain = voxel_domain(mesh, ball(12, 2.5))

    def build(name: str, **arguments) -> Case:
        if name == "rigid":
            rigid, vertices = rigid_domain(ball(12, 2.5))
            return make_case(rigid, vertices, 16, wobble_px=0, **arguments)
        if name == "oversampled":
            return make_case(domain, mesh.vertices_A, 24, spacing=2, **arguments)
        if name == "spread":  # a block covers more than one patch in both directions
            return make_case(domain, mesh.vertices_A, 48, spacing=7, wobble_px=3, **arguments)
        case = make_case(domain, mesh.vertices_A, 16, **arguments)
        if name == "leaving":
            case.q[0] += torch.tensor([6.0, -2.0])
            case.q[-1, :, 1] -= 7
        return case

    return build


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference in units of the largest expected number."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float((found - expected).abs().max() / expected.abs().max())


def check(case: Case, dtype: torch.dtype, tolerance: float | None = None, **settings: object) -> None:
    """All three kernels against the reference."""
    c, limit = case.to(dtype), tolerance or TOLERANCE[dtype]
    operator, expected = CudaOperator(c.domain, DEVICE, **settings), ReferenceOperator(c.domain, DEVICE)
    images, slopes = operator.derivative(c.values, c.q, c.dq, c.box)
    expected_images, expected_slopes = expected.derivative(c.values, c.q, c.dq, c.box)
    assert distance(images, expected_images) < limit and distance(slopes, expected_slopes) < limit
    assert distance(operator.project(c.values, c.q, c.box), expected_images) < limit
    to_values, to_q = operator.adjoint(c.images, c.q, c.values)
    expected_values, expected_q = expected.adjoint(c.images, c.q, c.values)
    assert to_q is not None and expected_q is not None
    assert distance(to_values, expected_values) < limit and distance(to_q, expected_q) < limit
    alone, nothing = operator.adjoint(c.images, c.q)
    assert nothing is None and distance(alone, expected_values) < limit


@pytest.mark.parametrize("name", ["plain", "oversampled", "spread", "leaving", "rigid"])
def test_all_kernels_agree_with_the_reference(case_of, name: str) -> None:
    check(case_of(name), torch.float64)


def test_in_float32_too(case_of) -> None:
    check(case_of("leaving"), torch.float32)


@pytest.mark.parametrize(("batch", "directions", "programs"), [(1, 1, 64), (5, 3, 1), (3, 1, 6)])
def test_any_batch_number_of_directions_and_groups_of_images(
    case_of, monkeypatch: pytest.MonkeyPatch, batch: int, directions: int, programs: int
) -> None:
    """One program may hold one image of the batch, all of them, or every second one."""
    monkeypatch.setattr("flex_job.operator.cuda.PROGRAMS_PER_PROCESSOR", programs)
    check(case_of("plain", batch=batch, directions=directions), torch.float32)


def test_large_weights_far_from_the_origin_lose_no_more_than_positions_do(mesh_of) -> None:
    """Voxels well outside their cell, as in slivers, 400 pixels from the origin, where float32 resolves 3e-5 pixels."""
    mesh = mesh_of((1, 1, 1), 1.0 * PIXEL_A)
    domain = voxel_domain(mesh, ball(12, 2.5))
    assert np.abs(domain.weights()[1]).max() > 3
    assert np.abs(domain.weights()[1].sum(axis=1) - 1).max() < 1e-14
    c = make_case(domain, mesh.vertices_A, 800, wobble_px=0.1).to(torch.float32)
    expected = ReferenceOperator(domain, DEVICE).project(c.values.double(), c.q.double(), c.box)
    assert distance(CudaOperator(domain, DEVICE).project(c.values, c.q, c.box).double(), expected) < 3e-5


def test_other_sizes_of_blocks_and_patches(case_of) -> None:
    check(case_of("oversampled"), torch.float64, block=64, patch=32)


def test_the_cases_are_what_they_are_named_after(case_of) -> None:
    """The blocks of "spread" cover more than a patch, "leaving" loses some voxels and not all; else they test nothing;
    and a transposed image is far from the right one."""
    c = case_of("spread").to(torch.float64)
    one = torch.zeros_like(c.values)
    one[CudaOperator(c.domain, DEVICE)._order[:32]] = 1.0
    touched = ReferenceOperator(c.domain, DEVICE).project(one, c.q, c.box)[0] > 0
    assert touched.any(0).sum() > 17 and touched.any(1).sum() > 17
    c = case_of("leaving").to(torch.float64)
    kept = ReferenceOperator(c.domain, DEVICE).project(torch.ones_like(c.values), c.q, c.box).sum((1, 2)) / len(
        c.values
    )
    assert ((kept > 0.1) & (kept < 0.95)).all()
    images = CudaOperator(c.domain, DEVICE).project(c.values, c.q, c.box)
    assert distance(images.mT, images) > 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e30])
def test_positions_that_are_not_finite_give_nothing(case_of, bad: float) -> None:
    """One image of the batch is lost, the other is as without it; directions of lost voxels may be anything."""
    c = case_of("plain").to(torch.float32)
    operator = CudaOperator(c.domain, DEVICE)
    expected, expected_slopes = operator.derivative(c.values, c.q, c.dq, c.box)
    expected_values, _ = operator.adjoint(c.images[1:], c.q[1:])
    c.q[0], c.dq[0] = bad, bad
    images, slopes = operator.derivative(c.values, c.q, c.dq, c.box)
    to_values, to_q = operator.adjoint(c.images, c.q, c.values)
    assert to_q is not None and not images[0].any() and not slopes[0].any() and not to_q[0].any()
    assert torch.equal(images[1], expected[1]) and torch.equal(slopes[1], expected_slopes[1])
    assert distance(to_values, expected_values) < 1e-6


def test_float32_survives_tensor_cores_that_cut_mantissas(case_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies in full float32; here its factors are cut to ten bits, as the hardware does."""
    if DEVICE == "cuda":
        check(case_of("plain"), torch.float32, precision="tf32", tolerance=2e-3)
        return
    from triton.runtime import interpreter

    full = interpreter.InterpreterBuilder.create_dot

    def cut(self, a, b, *rest):
        def short(factor):
            return interpreter.TensorHandle((factor.data.view(np.int32) & -0x2000).view(np.float32), factor.dtype)

        return full(self, short(a), short(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", cut)
    check(case_of("plain"), torch.float32)
    check(case_of("plain"), torch.float32, precision="tf32", tolerance=2e-3)
    with pytest.raises(AssertionError):  # negative control: one tf32 product is not float32
        check(case_of("plain"), torch.float32, precision="tf32")


def test_leaves_of_autograd_and_strided_arguments_are_taken(case_of) -> None:
    c = case_of("plain").to(torch.float32)
    operator = CudaOperator(c.domain, DEVICE)
    strided = c.q.mT.contiguous().mT
    found = operator.project(c.values.clone().requires_grad_(), strided.requires_grad_(), c.box)
    assert torch.equal(found, operator.project(c.values, c.q, c.box)) and not found.requires_grad
    images = c.images.mT.contiguous().mT
    assert torch.equal(operator.adjoint(images, c.q)[0], operator.adjoint(c.images, c.q)[0])


def test_workspace_is_the_corners_and_no_array_of_images_times_voxels(case_of) -> None:
    operator = CudaOperator(case_of("plain").domain, DEVICE)
    cells = len(operator.domain.vertices)
    many = 10_000  # more images than programs: from here on only they grow
    assert operator.workspace_bytes(many + 1) - operator.workspace_bytes(many) == 4 * 8 * cells
    more = operator.workspace_bytes(many, 3, gradient=True) - operator.workspace_bytes(many)
    assert more == 4 * 8 * cells * many * 4


def test_shapes_that_do_not_fit_are_refused_before_a_kernel_reads_past_them(case_of) -> None:
    c = case_of("plain").to(torch.float32)
    operator = CudaOperator(c.domain, DEVICE)
    with pytest.raises(ValueError, match=rf"expected \({len(c.domain)},\)"):
        operator.project(c.values[:-1], c.q, c.box)
    with pytest.raises(ValueError, match=rf"expected \(b, {c.domain.n_vertices}, 2\)"):
        operator.project(c.values, c.q[:, 1:], c.box)
    with pytest.raises(ValueError, match="1 images and vertices of 2"):
        operator.adjoint(c.images[:1], c.q)


def test_what_is_missing_is_named(case_of, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = case_of("plain").domain
    with pytest.raises(ValueError, match="'half': expected one of float32, tf32"):
        CudaOperator(domain, DEVICE, precision="half")
    if DEVICE == "cpu":
        with pytest.raises(RuntimeError, match="no GPU"):
            CudaOperator(domain, "cuda")
        monkeypatch.setattr("flex_job.operator.cuda_kernels.project_kernel", object())
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
            CudaOperator(domain, "cpu")
    monkeypatch.setitem(sys.modules, "flex_job.operator.cuda_kernels", None)
    monkeypatch.delattr("flex_job.operator.cuda_kernels")
    with pytest.raises(RuntimeError, match="needs Triton"):
        CudaOperator(domain, DEVICE)


# -- compiled ahead of time, without a GPU -----------------------------------------------------------------------


def test_the_kernels_compile_for_gpus_without_spilling_registers(tmp_path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment.update(TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert len(report) == 16
    for name, use in report.items():
        assert ("corners" in name or "vertices" in name) != use["tensor cores"], (name, use)
        assert use["shared"] <= 12 * 1024, (name, use)  # so that 16 warps fit a processor
        if "float64" not in name:
            assert use["stack"] == 0 and use["registers"] < 250, (name, use)


def compile_all() -> dict[str, dict[str, object]]:
    """Registers, stack and shared memory of every kernel for Ampere and Hopper."""
    import triton

    from flex_job.operator import cuda_kernels

    integers = {"vertices", "meeting", "first", "cell", "rank", "cells"}
    scalars = {"n", "n_cells", "n_vertices", "batch", "directions", "box", "groups"}
    tables = {"BLOCK": TABLES["BLOCK"]}
    blocks = {"BLOCK": 32, "P": 16}
    kernels: list[tuple[str, dict[str, object]]] = [
        ("project_kernel", blocks),
        ("adjoint_kernel", {**blocks, "WITH_Q": True}),
        ("adjoint_kernel", {**blocks, "WITH_Q": False}),
        ("derivative_kernel", blocks),
        ("corners_kernel", tables),
        ("vertices_kernel", tables),
    ]
    report: dict[str, dict[str, object]] = {}
    for capability, precision, count in ((80, "float32", 6), (90, "float32", 6), (90, "tf32", 2), (90, "float64", 2)):
        for name, constants in kernels[:count]:
            kernel = getattr(cuda_kernels, name)
            number = "*fp64" if precision == "float64" else "*fp32"
            signature = {a: "i32" if a in scalars else "*i32" if a in integers else number for a in kernel.arg_names}
            if "P" in constants:
                constants = {**constants, "PRECISION": precision}
            signature.update(dict.fromkeys(constants, "constexpr"))
            aligned = {
                (i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names) if signature[a][0] == "*"
            }
            source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
            options = ONE_WARP if "P" in constants else {"num_warps": TABLES["num_warps"]}
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            with_q = " with q" if constants.get("WITH_Q") else ""
            report[f"{name}{with_q}, sm_{capability}, {precision}"] = {
                **resources(compiled.asm["cubin"]),
                "shared": compiled.metadata.shared,
                "tensor cores": "mma.sync" in compiled.asm["ptx"],
            }
    return report


def resources(binary: bytes) -> dict[str, object]:
    """Registers per thread and bytes of stack (where spilled registers go), by NVIDIA's cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: re.search(rf"{name}:(\d+)", text) for key, name in (("registers", "REG"), ("stack", "STACK"))}
    return {key: int(match[1]) for key, match in found.items() if match}


if __name__ == "__main__":
    if "triton" in sys.modules:
        sys.exit("importing the operator imported Triton: it must work without")
    try:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.knobs import nvidia
    except ImportError as error:
        print(f"this version of Triton is not known here: {error}", file=sys.stderr)
        sys.exit(3)
    print(json.dumps(compile_all(), indent=1))
