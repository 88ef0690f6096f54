"""Laws of convect-and-project, for all backends: conservation, adjoint, derivatives, and Gaussians in closed form."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.band import Band
from flex_job.fourier import fourier_resize
from flex_job.imaging import ImageModel
from flex_job.operator import Operator, VoxelDomain, make_operator, rigid_domain, voxel_domain
from flex_job.operator.reference import ReferenceOperator
from flex_job.particles import Batch
from flex_job.volume import Volume

BOX, PIXEL_A = 16, 3.0
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-5}
GPU = "cuda" if torch.cuda.is_available() else "cpu"
if GPU == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, which torch does now and then


def make_cuda(domain: VoxelDomain) -> Operator:
    """On a GPU if there is one, else in Triton's interpreter."""
    pytest.importorskip("triton")
    return pytest.importorskip("flex_job.operator.cuda").CudaOperator(domain, GPU)


MAKE: dict[str, Callable[[VoxelDomain], Operator]] = {
    "reference": ReferenceOperator,
    "cpu": make_operator,
    "cuda": make_cuda,
}


def ball(box: int, radius: float) -> Volume:
    z, y, x = np.indices((box,) * 3) - box // 2
    return Volume((x**2 + y**2 + z**2 <= radius**2).astype(np.float32), PIXEL_A)


@dataclass(frozen=True)
class Case:
    """A domain, its mesh's vertices at random poses with random displacements, random values and images."""

    domain: VoxelDomain
    values: torch.Tensor
    q: torch.Tensor
    dq: torch.Tensor
    images: torch.Tensor

    def to(self, *target: torch.dtype | torch.device) -> Case:
        tensors = [self.values, self.q, self.dq, self.images]
        for each in target:
            tensors = [tensor.to(each) for tensor in tensors]
        return Case(self.domain, *tensors)


def make_case(mesh_of, *, counts=(2, 2, 2), radius=3.0, wobble_px=0.7, batch=3) -> Case:
    rng = np.random.default_rng(0)
    mesh = mesh_of(counts, 2.2 * radius * PIXEL_A)
    domain = voxel_domain(mesh, ball(BOX, radius))
    rotations = Rotation.random(batch, random_state=1).as_matrix()[:, :2]
    q = np.einsum("bac,vc->bva", rotations, mesh.vertices_A / PIXEL_A)
    q += BOX // 2 + wobble_px * rng.normal(size=q.shape)
    dq = rng.normal(size=(batch, 2, *q.shape[1:]))
    images = rng.normal(size=(batch, BOX, BOX))
    return Case(domain, *(torch.from_numpy(array) for array in (rng.normal(size=len(domain)), q, dq, images)))


@pytest.fixture(scope="module")
def case(mesh_of) -> Case:
    return make_case(mesh_of)


@pytest.fixture(scope="module")
def leaving(mesh_of) -> Case:
    """About half the voxels are outside the image, on all sides."""
    case = make_case(mesh_of, batch=4)
    case.q[0, :, 0] += 7
    case.q[1, :, 1] -= 7
    case.q[2] = 8 + 4 * (case.q[2] - 8)
    case.q[3] += 500
    return case


@pytest.fixture(scope="module", params=["case", "leaving"])
def any_case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=list(MAKE))
def backend(request: pytest.FixtureRequest) -> Callable[[VoxelDomain], Operator]:
    return MAKE[request.param]


def relative(found: torch.Tensor | NDArray, expected: torch.Tensor | NDArray) -> float:
    found, expected = (torch.as_tensor(x).cpu() for x in (found, expected))
    return float((found - expected).norm() / expected.norm())


# -- conservation, linearity, adjoint ----------------------------------------------------------------------------


def test_every_voxel_deposits_its_whole_mass_under_any_flow(backend, case: Case) -> None:
    operator = backend(case.domain)
    c = case.to(operator.device)
    images = operator.project(c.values, c.q, BOX)
    assert (images.sum((1, 2)) - c.values.sum()).abs().max() < 1e-10 * c.values.abs().sum()
    one = torch.zeros_like(c.values)
    one[7] = 1.0
    weights = operator.project(one, c.q, BOX)
    assert weights.min() >= 0 and (weights > 0).sum((1, 2)).max() <= 16
    assert (weights.sum((1, 2)) - 1).abs().max() < 1e-12


def test_centre_of_mass_moves_with_the_vertices(backend, case: Case) -> None:
    operator = backend(case.domain)
    c = case.to(operator.device)
    images = operator.project(torch.ones_like(c.values), c.q, BOX).cpu().numpy()
    row, column = np.indices((BOX, BOX))
    centre = np.stack([(images * axis).sum((1, 2)) for axis in (column, row)], axis=1) / len(case.domain)
    vertices, weights = case.domain.weights()
    expected = np.einsum("nk,bnkc->bc", weights, case.q.numpy()[:, vertices]) / len(case.domain)
    assert np.abs(centre - expected).max() < 1e-6  # weights are kept in float32 by some
    assert np.abs(centre - expected[:, ::-1]).max() > 0.1  # negative control: x and y exchanged


def test_barycentric_weights_of_all_voxels_sum_to_one_and_find_their_place(mesh_of) -> None:
    mesh = mesh_of((2, 3, 2), 40.0)
    domain = voxel_domain(mesh, ball(BOX, 5))
    vertices, weights = domain.weights()
    assert np.abs(weights.sum(1) - 1).max() < 1e-6
    place = np.einsum("nk,nkc->nc", weights, mesh.vertices_A[vertices])
    z, y, x = np.unravel_index(domain.flat_index, (BOX,) * 3)
    assert np.abs(place - PIXEL_A * (np.stack([x, y, z], axis=1) - BOX // 2)).max() < 1e-4


def test_scatter_undoes_gather(case: Case) -> None:
    assert len(np.unique(case.domain.flat_index)) == len(case.domain) == int(ball(BOX, 3).data.sum())
    values = case.values.numpy()
    volume = case.domain.scatter(values)
    assert np.array_equal(case.domain.gather(volume), values.astype(np.float32))
    assert np.count_nonzero(volume) == len(case.domain)


def test_a_subset_is_the_domain_with_the_other_voxels_empty(backend, case: Case) -> None:
    keep = np.random.default_rng(1).uniform(size=len(case.domain)) < 0.3
    keep[: case.domain.start[1]] = False  # and one cell loses all its voxels
    part = case.domain.subset(keep)
    assert len(part) == keep.sum() and len(part.vertices) < len(case.domain.vertices)
    whole, few = backend(case.domain), backend(part)
    c = case.to(whole.device)
    found = few.project(c.values[keep], c.q, BOX)
    assert relative(found, whole.project(c.values * torch.from_numpy(keep).to(c.values), c.q, BOX)) < 1e-12


def test_adjoint_to_values(backend, any_case: Case) -> None:
    operator = backend(any_case.domain)
    c = any_case.to(operator.device)
    image = operator.project(c.values, c.q, BOX)
    gathered, nothing = operator.adjoint(c.images, c.q)
    assert nothing is None
    gap = (image * c.images).sum() - (c.values * gathered).sum()
    assert gap.abs() < 1e-12 * image.norm() * c.images.norm()


def test_adjoint_to_vertices_is_the_transpose_of_the_derivative(backend, any_case: Case) -> None:
    operator = backend(any_case.domain)
    c = any_case.to(operator.device)
    _, slopes = operator.derivative(c.values, c.q, c.dq, BOX)
    to_values, gradient = operator.adjoint(c.images, c.q, c.values)
    assert gradient is not None
    alone, _ = operator.adjoint(c.images, c.q)
    assert (to_values - alone).abs().max() < 1e-12 * alone.abs().max()
    left, right = (slopes * c.images[:, None]).sum((-1, -2)), (c.dq * gradient[:, None]).sum((-1, -2))
    assert (left - right).abs().max() < 1e-11 * left.norm()


def test_slopes_are_linear_in_the_direction(backend, case: Case) -> None:
    operator = backend(case.domain)
    c = case.to(operator.device)
    mixed = 2 * c.dq[:, :1] - 3 * c.dq[:, 1:]
    (image, slopes), (again, slope) = (operator.derivative(c.values, c.q, dq, BOX) for dq in (c.dq, mixed))
    assert relative(slope[:, 0], 2 * slopes[:, 0] - 3 * slopes[:, 1]) < 1e-12
    assert relative(again, image) < 1e-14


# -- backends against the reference ------------------------------------------------------------------------------


def test_reference_passes_gradcheck(mesh_of) -> None:
    domain = voxel_domain(mesh_of((1, 1, 1), 18.0), ball(BOX, 1.5))
    operator = ReferenceOperator(domain)
    rng = np.random.default_rng(3)
    q = torch.from_numpy(8 + 2.5 * rng.normal(size=(2, domain.n_vertices, 2))).requires_grad_()
    values = torch.from_numpy(rng.normal(size=len(domain))).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, p: operator.project(v, p, BOX), (values, q), eps=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", [MAKE["cpu"], MAKE["cuda"]], ids=["cpu", "cuda"])
def test_backends_agree_with_the_reference(backend, any_case: Case, dtype: torch.dtype) -> None:
    expected = all_of(ReferenceOperator(any_case.domain), any_case)
    operator = backend(any_case.domain)
    found = all_of(operator, any_case.to(dtype, operator.device))
    for name, tensor in found.items():
        assert tensor.dtype == dtype, name
        assert relative(tensor, expected[name]) < PRECISION[dtype], name


def all_of(operator: Operator, case: Case) -> dict[str, torch.Tensor]:
    images = operator.project(case.values, case.q, BOX)
    again, slopes = operator.derivative(case.values, case.q, case.dq, BOX)
    alone, _ = operator.adjoint(case.images, case.q)
    to_values, to_q = operator.adjoint(case.images, case.q, case.values)
    assert to_q is not None
    return {"images": images, "again": again, "slopes": slopes, "alone": alone, "values": to_values, "q": to_q}


def test_forward_mode_equals_finite_differences_at_second_order(backend, case: Case) -> None:
    operator = backend(case.domain)
    c = case.to(operator.device)
    _, slopes = operator.derivative(c.values, c.q, c.dq, BOX)
    errors = []
    for step in (4e-3, 2e-3, 1e-3):
        ahead = operator.project(c.values, c.q + step * c.dq[:, 0], BOX)
        behind = operator.project(c.values, c.q - step * c.dq[:, 0], BOX)
        errors.append(relative((ahead - behind) / (2 * step), slopes[:, 0]))
    assert errors[-1] < 1e-4
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(rates - 2).max() < 0.3


def test_voxels_that_leave_the_image_drop_in_all_kernels_alike(backend, leaving: Case) -> None:
    operator = backend(leaving.domain)
    c = leaving.to(operator.device)
    kept = operator.project(torch.ones_like(c.values), c.q, BOX).sum((1, 2)) / len(c.domain)
    assert ((kept[:3] > 0.02) & (kept[:3] < 0.9)).all() and kept[3] == 0  # else the case tests nothing
    images, slopes = operator.derivative(c.values, c.q, c.dq, BOX)
    assert not images[3].any() and not slopes[3].any()
    gathered, gradient = operator.adjoint(c.images[3:], c.q[3:], c.values)
    assert gradient is not None
    assert not gathered.any() and not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_positions_that_are_not_finite_give_nothing(backend, mesh_of, dtype: torch.dtype) -> None:
    """A flow that diverges must not write outside the image's memory, nor spoil the other images."""
    c = make_case(mesh_of, radius=2.0, batch=7)
    operator = backend(c.domain)
    c = c.to(dtype, operator.device)
    good, q = [0, 6], c.q.clone()
    for image, bad in enumerate((np.nan, np.inf, -np.inf, 1e30, -1e30), start=1):
        q[image] = bad
    found, expected = all_of(operator, Case(c.domain, c.values, q, c.dq, c.images)), all_of(operator, c)
    for name in ("images", "again", "slopes", "q"):
        assert not found[name][1:6].any() and found[name][good].isfinite().all()
        assert relative(found[name][good], expected[name][good]) < 1e-6, name
    others, _ = operator.adjoint(c.images[good], c.q[good])
    assert relative(found["values"], others) < 1e-5 and relative(found["alone"], others) < 1e-5


@pytest.mark.parametrize("batch", [1, 7, 8, 9, 17])
@pytest.mark.parametrize("backend", [MAKE["cpu"], MAKE["cuda"]], ids=["cpu", "cuda"])
def test_a_batch_of_any_size_is_its_images_one_by_one(backend, mesh_of, batch: int) -> None:
    c = make_case(mesh_of, radius=1.0, batch=batch)
    operator = backend(c.domain)
    c = c.to(operator.device)
    found, expected = all_of(operator, c), all_of(ReferenceOperator(c.domain, operator.device), c)
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape and relative(tensor, expected[name]) < 1e-12, name


@pytest.mark.parametrize("backend", [MAKE["cpu"], MAKE["cuda"]], ids=["cpu", "cuda"])
def test_any_memory_layout_and_requires_grad_are_taken(backend, case: Case) -> None:
    """q comes as the transpose of a product; so do its directions."""
    operator = backend(case.domain)
    c = case.to(operator.device)
    q = c.q.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    dq = c.dq.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    images = c.images.transpose(1, 2).contiguous().transpose(1, 2)
    assert not q.is_contiguous() and not dq.is_contiguous() and not images.is_contiguous()
    found, expected = all_of(operator, Case(c.domain, c.values, q, dq, images)), all_of(operator, c)
    for name, tensor in found.items():
        assert not tensor.requires_grad and relative(tensor, expected[name]) < 1e-14, name


# -- from voxels to images ---------------------------------------------------------------------------------------


def test_a_fine_mesh_at_rest_is_the_rigid_domain(backend, mesh_of) -> None:
    support = ball(BOX, 5)
    mesh = mesh_of((4, 4, 4), 36.0)
    density = np.random.default_rng(0).normal(size=(BOX,) * 3)
    rotations = Rotation.random(2, random_state=2).as_matrix()[:, :2] / PIXEL_A
    images = []
    for domain, vertices in ((voxel_domain(mesh, support), mesh.vertices_A), rigid_domain(support)):
        operator = backend(domain)
        q = torch.from_numpy(np.einsum("bac,vc->bva", rotations, vertices) + BOX // 2)
        values = torch.from_numpy(density.reshape(-1)[domain.flat_index])
        images.append(operator.project(values.to(operator.device), q.to(operator.device), BOX))
    assert relative(images[0], images[1]) < 1e-5


def gaussians(box: int, centres_px: NDArray, weights: NDArray, sigma_px: float) -> NDArray[np.float64]:
    """Density per voxel (z, y, x), band-limited: the closed-form transform on the grid, brought back."""
    k = np.fft.fftfreq(box)
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    envelope = np.exp(-2 * np.pi**2 * sigma_px**2 * (kx**2 + ky**2 + kz**2))
    places = zip(weights, centres_px, strict=True)
    waves = [w * np.exp(-2j * np.pi * (kx * x + ky * y + kz * z)) for w, (x, y, z) in places]
    return np.fft.fftshift(np.fft.ifftn(envelope * sum(waves)).real)


class GaussianImages:
    """Images of Gaussians at general poses and shifts by ImageModel, and their closed form."""

    box, sigma_px = 32, 0.7
    centres_px = np.array([[-3.3, -0.4, 0.6], [-1.2, 0.9, -1.1], [0.4, -1.2, 0.9], [1.9, 0.2, 3.0], [3.6, 2.1, -0.7]])
    weights = np.array([1.0, 1.4, 0.8, 1.2, 1.0])

    def __init__(self) -> None:
        self.rotations = Rotation.random(4, random_state=1).as_matrix()
        self.origins_px = np.random.default_rng(0).uniform(-2, 2, (4, 2))
        domain, self.vertices = rigid_domain(Volume(np.ones((self.box,) * 3, np.float32), PIXEL_A))
        self.operator = make_operator(domain)
        density = gaussians(self.box, self.centres_px, self.weights, self.sigma_px)
        self.values = torch.from_numpy(density.reshape(-1)[domain.flat_index])
        self.band = Band.below(self.box / 2)
        self.ky, self.kx = self.band.ky.numpy() / self.box, self.band.kx.numpy() / self.box
        self.of_nyquist = 2 * np.hypot(self.ky, self.kx)

    def exact(self) -> NDArray[np.complex128]:
        """Origin at the image's pixel box // 2; an orthonormal transform, times sqrt(2) as a half plane's."""
        place = np.einsum("bac,mc->bma", self.rotations[:, :2], self.centres_px) - self.origins_px[:, None]
        phase = np.exp(-2j * np.pi * (self.kx * place[..., 0, None] + self.ky * place[..., 1, None]))
        envelope = np.exp(-2 * np.pi**2 * self.sigma_px**2 * (self.kx**2 + self.ky**2))
        return np.einsum("m,bmk->bk", self.weights, phase) * envelope / self.box * np.sqrt(2)

    def found(self, oversampling: int, *, transpose: bool = False, flip: bool = False) -> NDArray[np.complex128]:
        model = ImageModel(
            self.operator, self.box, self.band, stack_box=self.box, stack_pixel_size_A=PIXEL_A,
            oversampling=oversampling,
        )  # fmt: skip
        rotations = np.swapaxes(self.rotations, 1, 2) if transpose else self.rotations
        origins = -self.origins_px if flip else self.origins_px
        q = model.positions(poses(rotations[:, :2] / PIXEL_A, origins), torch.from_numpy(self.vertices.astype(float)))
        return model.transform(self.values, q).numpy()

    def error(self, found: NDArray[np.complex128], low: float, high: float) -> float:
        ring = (self.of_nyquist >= low) & (self.of_nyquist < high)
        return relative(found[:, ring], self.exact()[:, ring])


def poses(projections: NDArray, origins_px: NDArray) -> Batch:
    """A batch without data."""
    nothing = torch.zeros(0)
    index = np.arange(len(projections))
    return Batch(index, nothing, nothing, torch.from_numpy(projections), torch.from_numpy(origins_px))


@pytest.fixture(scope="module")
def images() -> GaussianImages:
    return GaussianImages()


def test_projected_gaussians_match_the_closed_form(images: GaussianImages) -> None:
    assert images.error(images.found(1), 0.05, 0.5) < 2e-3
    assert images.error(images.found(2), 0.05, 0.5) < 1e-3


@pytest.mark.parametrize("control", ["transpose", "flip"])
def test_negative_controls_of_pose_and_shift(images: GaussianImages, control: str) -> None:
    assert images.error(images.found(1, **{control: True}), 0.05, 0.5) > 0.5


def test_oversampling_improves_the_operator_at_every_frequency(images: GaussianImages) -> None:
    """The table of the design: relative errors at fractions of Nyquist, same voxels, two grids of the image."""
    table = {0.25: (1e-3, 1e-3), 0.5: (0.01, 2e-3), 0.66: (0.03, 3e-3), 0.78: (0.08, 6e-3), 0.88: (0.2, 0.02)}
    same, fine = images.found(1), images.found(2)
    for at, limits in table.items():
        errors = [images.error(found, at - 0.06, at + 0.06) for found in (same, fine)]
        assert errors[0] < limits[0] and errors[1] < limits[1], (at, errors)
        if at >= 0.5:
            assert errors[1] < errors[0] / 2, (at, errors)


def test_larger_voxels_predict_the_same_coefficients(phantom_of) -> None:
    """A domain cropped in Fourier space gives the low frequencies of the full domain's images."""
    full_box, box = 32, 24
    rotations = Rotation.random(3, random_state=4).as_matrix()[:, :2].astype(np.float32)
    batch = poses(rotations / np.float32(PIXEL_A), np.array([[0, 0], [1.3, 0.4], [-2.0, 0.7]], np.float32))
    band = Band.below(0.25 * box)
    found = []
    for n in (full_box, box):
        coarse = fourier_resize(phantom_of(full_box, 2.5), n)
        domain, vertices = rigid_domain(Volume(np.ones((n,) * 3, np.float32), PIXEL_A * full_box / n))
        model = ImageModel(
            make_operator(domain), n, band, stack_box=full_box, stack_pixel_size_A=PIXEL_A, oversampling=2
        )
        q = model.positions(batch, torch.from_numpy(vertices))
        found.append(model.transform(torch.from_numpy(domain.gather(coarse.data)), q))
    assert relative(found[1], found[0]) < 4e-3


def test_gradient_is_the_transpose_of_transform(backend, case: Case) -> None:
    """For the real inner product of packed coefficients, with an oversampled grid, to values and to vertices.

    Up to the rounding of the model's factors, which are float32.
    """
    rng = np.random.default_rng(5)
    operator, band = backend(case.domain), Band.below(BOX / 2)
    c = case.to(operator.device)
    model = ImageModel(operator, BOX, band, stack_box=BOX, stack_pixel_size_A=PIXEL_A, oversampling=2)
    residual = torch.from_numpy(rng.normal(size=(3, len(band), 2))).to(operator.device)
    image, slopes = model.derivative(c.values, 2 * c.q, c.dq)
    to_values, to_q = model.gradient(torch.view_as_complex(residual), 2 * c.q, c.values)
    assert to_q is not None
    left = (residual * torch.view_as_real(image)).sum()
    assert abs(left - (c.values * to_values).sum()) < 1e-8 * residual.norm() * image.abs().norm()
    left = (residual[:, None] * torch.view_as_real(slopes)).sum((-1, -2))
    right = (c.dq * to_q[:, None]).sum((-1, -2))
    assert (left - right).abs().max() < 1e-6 * left.abs().max()


def test_an_odd_box_a_band_beyond_nyquist_and_an_empty_support_are_refused(case: Case) -> None:
    operator = ReferenceOperator(case.domain)
    with pytest.raises(ValueError, match="even"):
        ImageModel(operator, 15, Band.below(7), stack_box=15, stack_pixel_size_A=PIXEL_A)
    with pytest.raises(ValueError, match="16 pixels carry"):
        ImageModel(operator, 16, Band.below(9), stack_box=16, stack_pixel_size_A=PIXEL_A)
    with pytest.raises(ValueError, match="empty"):
        rigid_domain(Volume(np.zeros((8, 8, 8), np.float32), PIXEL_A))
