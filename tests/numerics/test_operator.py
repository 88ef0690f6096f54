"""Laws of convect-and-project: conservation, adjoint, derivatives, and Gaussians in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job import operator
from flex_job.fourier import fourier_resize
from flex_job.imaging import ImageModel
from flex_job.operator import VoxelDomain, reference, rigid_domain, voxel_domain
from flex_job.volume import Volume

BOX, PIXEL_A = 16, 3.0
PRECISION = {np.float64: 1e-12, np.float32: 1e-5}


def ball(box: int, radius: float) -> Volume:
    z, y, x = np.indices((box,) * 3) - box // 2
    return Volume((x**2 + y**2 + z**2 <= radius**2).astype(np.float32), PIXEL_A)


@dataclass(frozen=True)
class Case:
    """A domain, its mesh's vertices at random poses with random displacements, random values and images."""

    domain: VoxelDomain
    values: NDArray[np.float64]
    q: NDArray[np.float64]
    dq: NDArray[np.float64]
    images: NDArray[np.float64]

    def to(self, dtype: type) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        return tuple(array.astype(dtype) for array in (self.values, self.q, self.dq, self.images))  # type: ignore


def make_case(mesh_of, *, counts=(2, 2, 2), radius=4.0, wobble_px=0.7, shift_px=0.0, batch=3) -> Case:
    rng = np.random.default_rng(0)
    mesh = mesh_of(counts, 2.2 * radius * PIXEL_A)
    domain = voxel_domain(mesh, ball(BOX, radius))
    rotations = Rotation.random(batch, random_state=1).as_matrix()[:, :2]
    q = np.einsum("bac,vc->bva", rotations, mesh.vertices_A / PIXEL_A)
    q += BOX // 2 + shift_px + wobble_px * rng.normal(size=q.shape)
    dq = rng.normal(size=(batch, 2, *q.shape[1:]))
    return Case(domain, rng.normal(size=len(domain)), q, dq, rng.normal(size=(batch, BOX, BOX)))


@pytest.fixture(scope="module")
def case(mesh_of) -> Case:
    return make_case(mesh_of)


@pytest.fixture(scope="module")
def leaving(mesh_of) -> Case:
    """About half the voxels are outside the image, on all sides."""
    case = make_case(mesh_of, batch=4)
    case.q[0, :, 0] += 8
    case.q[1, :, 1] -= 8
    case.q[2] = 8 + 3 * (case.q[2] - 8)
    case.q[3] += 500
    return case


def relative(found: NDArray, expected: NDArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# -- conservation, linearity, adjoint ----------------------------------------------------------------------------


def test_every_voxel_deposits_its_whole_mass_under_any_flow(case: Case) -> None:
    images = operator.project(case.domain, case.values, case.q, BOX)
    assert np.abs(images.sum((1, 2)) - case.values.sum()).max() < 1e-10 * np.abs(case.values).sum()
    one = np.zeros(len(case.domain))
    one[7] = 1.0
    weights = operator.project(case.domain, one, case.q, BOX)
    assert weights.min() >= 0 and (weights > 0).sum((1, 2)).max() <= 16
    assert np.abs(weights.sum((1, 2)) - 1).max() < 1e-12


def test_centre_of_mass_moves_with_the_vertices(case: Case) -> None:
    images = operator.project(case.domain, np.ones(len(case.domain)), case.q, BOX)
    row, column = np.indices((BOX, BOX))
    centre = np.stack([(images * axis).sum((1, 2)) for axis in (column, row)], axis=1) / len(case.domain)
    vertices, weights = case.domain.weights()
    expected = np.einsum("nk,bnkc->bc", weights, case.q[:, vertices]) / len(case.domain)
    assert np.abs(centre - expected).max() < 1e-10
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
    assert len(np.unique(case.domain.flat_index)) == len(case.domain) == int(ball(BOX, 4).data.sum())
    volume = case.domain.scatter(case.values)
    assert np.array_equal(case.domain.gather(volume), case.values.astype(np.float32))
    assert np.count_nonzero(volume) == len(case.domain)


def test_a_subset_is_the_domain_with_the_other_voxels_empty(case: Case) -> None:
    keep = np.random.default_rng(1).uniform(size=len(case.domain)) < 0.3
    keep[: case.domain.start[1]] = False  # and one cell loses all its voxels
    part = case.domain.subset(keep)
    assert len(part) == keep.sum() and len(part.vertices) < len(case.domain.vertices)
    found = operator.project(part, case.values[keep], case.q, BOX)
    assert relative(found, operator.project(case.domain, case.values * keep, case.q, BOX)) < 1e-12


@pytest.mark.parametrize("which", ["case", "leaving"])
def test_adjoint_to_values(which: str, request: pytest.FixtureRequest) -> None:
    c: Case = request.getfixturevalue(which)
    image = operator.project(c.domain, c.values, c.q, BOX)
    gathered, nothing = operator.adjoint(c.domain, c.images, c.q)
    assert gathered is not None and nothing is None
    left, right = np.vdot(image, c.images), np.vdot(c.values, gathered)
    assert abs(left - right) < 1e-12 * np.linalg.norm(image) * np.linalg.norm(c.images)


@pytest.mark.parametrize("which", ["case", "leaving"])
def test_adjoint_to_vertices_is_the_transpose_of_the_derivative(which: str, request: pytest.FixtureRequest) -> None:
    c: Case = request.getfixturevalue(which)
    _, slopes = operator.derivative(c.domain, c.values, c.q, c.dq, BOX)
    to_values, gradient = operator.adjoint(c.domain, c.images, c.q, c.values)
    assert gradient is not None
    alone, _ = operator.adjoint(c.domain, c.images, c.q)
    np.testing.assert_allclose(to_values, alone, atol=1e-12 * np.abs(alone).max())
    left = np.einsum("bkyx,byx->bk", slopes, c.images)
    right = np.einsum("bkvc,bvc->bk", c.dq, gradient)
    assert np.abs(left - right).max() < 1e-11 * np.linalg.norm(left)


# -- kernels against the reference -------------------------------------------------------------------------------


def test_reference_passes_gradcheck(mesh_of) -> None:
    domain = voxel_domain(mesh_of((1, 1, 1), 18.0), ball(BOX, 1.5))
    rng = np.random.default_rng(3)
    q = torch.from_numpy(8 + 2.5 * rng.normal(size=(2, domain.n_vertices, 2))).requires_grad_()
    values = torch.from_numpy(rng.normal(size=len(domain))).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, p: reference.project(domain, v, p, BOX), (values, q), eps=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("which", ["case", "leaving"])
def test_kernels_agree_with_the_reference(which: str, dtype: type, request: pytest.FixtureRequest) -> None:
    c: Case = request.getfixturevalue(which)
    values, q, dq, images = c.to(dtype)
    v = torch.from_numpy(c.values).requires_grad_()
    p = torch.from_numpy(c.q).requires_grad_()
    expected = reference.project(c.domain, v, p, BOX)
    grad_v, grad_p = torch.autograd.grad(expected, (v, p), torch.from_numpy(c.images))
    expected_slopes = torch.stack(
        [
            torch.func.jvp(
                lambda at: reference.project(c.domain, torch.from_numpy(c.values), at, BOX),
                (torch.from_numpy(c.q),),
                (torch.from_numpy(c.dq[:, k]),),
            )[1]
            for k in range(c.dq.shape[1])
        ],
        dim=1,
    )
    found = operator.project(c.domain, values, q, BOX)
    again, slopes = operator.derivative(c.domain, values, q, dq, BOX)
    found_v, found_p = operator.adjoint(c.domain, images, q, values)
    assert found_v is not None and found_p is not None
    limit = PRECISION[dtype]
    assert found.dtype == slopes.dtype == found_v.dtype == found_p.dtype == dtype
    assert relative(found, expected.detach().numpy()) < limit
    assert relative(again, expected.detach().numpy()) < limit
    assert relative(slopes, expected_slopes.numpy()) < limit
    assert relative(found_v, grad_v.numpy()) < limit
    assert relative(found_p, grad_p.numpy()) < limit


def test_forward_mode_equals_finite_differences_at_second_order(case: Case) -> None:
    _, slopes = operator.derivative(case.domain, case.values, case.q, case.dq, BOX)
    errors = []
    for step in (4e-3, 2e-3, 1e-3):
        ahead = operator.project(case.domain, case.values, case.q + step * case.dq[:, 0], BOX)
        behind = operator.project(case.domain, case.values, case.q - step * case.dq[:, 0], BOX)
        errors.append(relative((ahead - behind) / (2 * step), slopes[:, 0]))
    assert errors[-1] < 1e-4
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.abs(rates - 2).max() < 0.3


def test_voxels_that_leave_the_image_drop_in_all_kernels_alike(leaving: Case) -> None:
    c = leaving
    inside = reference.project(c.domain, torch.ones(len(c.domain), dtype=torch.float64), torch.from_numpy(c.q), BOX)
    kept = inside.sum((1, 2)).numpy() / len(c.domain)
    assert ((kept[:3] > 0.02) & (kept[:3] < 0.9)).all() and kept[3] == 0  # else the case tests nothing
    images, slopes = operator.derivative(c.domain, c.values, c.q, c.dq, BOX)
    assert not images[3].any() and not slopes[3].any()
    gathered, gradient = operator.adjoint(c.domain, c.images[3:], c.q[3:], c.values)
    assert gathered is not None and gradient is not None
    assert not gathered.any() and not gradient.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_positions_that_are_not_finite_deposit_nothing(case: Case, bad: float, dtype: type) -> None:
    """A flow that diverges must not write outside the image's memory."""
    values, q, dq, images = case.to(dtype)
    q[:] = bad
    assert not operator.project(case.domain, values, q, BOX).any()
    image, slopes = operator.derivative(case.domain, values, q, dq, BOX)
    assert not image.any() and not slopes.any()
    gathered, gradient = operator.adjoint(case.domain, images, q, values)
    assert gathered is not None and gradient is not None
    assert not gathered.any() and not gradient.any()


# -- from voxels to images ---------------------------------------------------------------------------------------


def test_a_fine_mesh_at_rest_is_the_rigid_domain(mesh_of) -> None:
    support = ball(BOX, 5)
    mesh = mesh_of((4, 4, 4), 36.0)
    density = np.random.default_rng(0).normal(size=(BOX,) * 3)
    rotations = Rotation.random(3, random_state=2).as_matrix()[:, :2] / PIXEL_A
    images = []
    for domain, vertices in ((voxel_domain(mesh, support), mesh.vertices_A), rigid_domain(support)):
        q = np.einsum("bac,vc->bva", rotations, vertices) + BOX // 2
        values = density.reshape(-1)[domain.flat_index]
        images.append(operator.project(domain, values, q, BOX))
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
        self.domain, self.vertices = rigid_domain(Volume(np.ones((self.box,) * 3, np.float32), PIXEL_A))
        density = gaussians(self.box, self.centres_px, self.weights, self.sigma_px)
        self.values = density.reshape(-1)[self.domain.flat_index]
        self.ky, self.kx = np.fft.fftfreq(self.box)[:, None], np.arange(self.box // 2 + 1) / self.box
        self.of_nyquist = 2 * np.hypot(self.ky, self.kx)

    def exact(self) -> NDArray[np.complex128]:
        """Origin at the image's pixel (0, 0); unit-variance coefficients: an orthonormal transform."""
        place = np.einsum("bac,mc->bma", self.rotations[:, :2], self.centres_px) - self.origins_px[:, None]
        phase = np.exp(-2j * np.pi * (self.kx * place[..., 0, None, None] + self.ky * place[..., 1, None, None]))
        envelope = np.exp(-2 * np.pi**2 * self.sigma_px**2 * (self.kx**2 + self.ky**2))
        return np.einsum("m,bmyx->byx", self.weights, phase) * envelope / self.box

    def found(self, oversampling: int, *, transpose: bool = False, flip: bool = False) -> NDArray[np.complex128]:
        model = ImageModel(
            self.domain, self.box, stack_box=self.box, stack_pixel_size_A=PIXEL_A, oversampling=oversampling
        )
        rotations = np.swapaxes(self.rotations, 1, 2) if transpose else self.rotations
        origins = -self.origins_px if flip else self.origins_px
        projections = torch.from_numpy(rotations[:, :2] / PIXEL_A)
        q = model.positions(projections, torch.from_numpy(origins), torch.from_numpy(self.vertices.astype(float)))
        return model.transform(self.values, q).numpy()

    def error(self, found: NDArray[np.complex128], low: float, high: float) -> float:
        ring = (self.of_nyquist >= low) & (self.of_nyquist < high)
        return relative(found[:, ring], self.exact()[:, ring])


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
    rotations = torch.from_numpy(Rotation.random(3, random_state=4).as_matrix()[:, :2].astype(np.float32))
    k = np.fft.fftfreq(box)
    found = []
    for n in (full_box, box):
        pixel = PIXEL_A * full_box / n
        density = phantom_of(full_box, 2.5)
        coarse = fourier_resize(density, n)
        domain, vertices = rigid_domain(Volume(np.ones((n,) * 3, np.float32), pixel))
        model = ImageModel(domain, n, stack_box=full_box, stack_pixel_size_A=PIXEL_A, oversampling=2)
        q = model.positions(rotations / pixel, torch.zeros(3, 2), torch.from_numpy(vertices))
        found.append(model.transform(domain.gather(coarse.data), q).numpy())
    inner = (np.abs(k)[:, None] < 0.25) & (np.arange(box // 2 + 1) / box < 0.25)
    rows = np.r_[: box // 2, full_box - box // 2 : full_box]
    large = found[0][:, rows, : box // 2 + 1]
    assert relative(found[1][:, inner], large[:, inner]) < 2e-3


def test_gradient_is_the_transpose_of_transform(case: Case) -> None:
    """For the real inner product over the whole plane, with an oversampled grid, to values and to vertices."""
    rng = np.random.default_rng(5)
    model = ImageModel(case.domain, BOX, stack_box=BOX, stack_pixel_size_A=PIXEL_A, oversampling=2)
    q = torch.from_numpy(2 * case.q)
    residual = torch.fft.rfft2(torch.from_numpy(rng.normal(size=(3, BOX, BOX))))
    image, slopes = model.derivative(case.values, q, torch.from_numpy(case.dq))
    to_values, to_q = model.gradient(residual, q, case.values)
    assert to_values is not None and to_q is not None
    twice = torch.full((BOX // 2 + 1,), 2.0)
    twice[0] = twice[-1] = 1
    left = ((residual.conj() * image).real * twice).sum()
    assert abs(float(left) - np.vdot(case.values, to_values)) < 1e-11 * float(residual.abs().max() * image.abs().sum())
    left = ((residual.conj()[:, None] * slopes).real * twice).sum((-1, -2))
    right = torch.einsum("bkvc,bvc->bk", torch.from_numpy(case.dq), to_q)
    assert float((left - right).abs().max()) < 1e-10 * float(left.abs().max())


def test_an_odd_box_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="even"):
        ImageModel(case.domain, 15, stack_box=15, stack_pixel_size_A=PIXEL_A)
    with pytest.raises(ValueError, match="empty"):
        rigid_domain(Volume(np.zeros((8, 8, 8), np.float32), PIXEL_A))
