"""Convection in three dimensions, Fourier grids, and what is made of them: frames and motion amplitudes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.band import Band
from flex_job.flow import FlowGenerator
from flex_job.fourier import centred_window, fourier_resize, low_pass
from flex_job.generate import frames, latent_path, support
from flex_job.imaging import ImageModel
from flex_job.model import FlexModel
from flex_job.motion import motion_amplitude, motion_error, motion_uncertainty
from flex_job.operator import VoxelDomain, make_operator, rigid_domain, voxel_domain
from flex_job.operator.convect import convect
from flex_job.particles import Batch
from flex_job.volume import Volume

BOX, PIXEL_A = 24, 3.0


def relative(found: NDArray | torch.Tensor, expected: NDArray | torch.Tensor) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def everywhere(box: int = BOX, pixel_size_A: float = PIXEL_A) -> Volume:
    return Volume(np.ones((box,) * 3, np.float32), pixel_size_A)


def ball(box: int, radius: float) -> Volume:
    z, y, x = np.indices((box,) * 3) - box // 2
    return Volume((x**2 + y**2 + z**2 <= radius**2).astype(np.float32), PIXEL_A)


def band_limited(box: int, of_nyquist: float, seed: int = 0) -> NDArray[np.float32]:
    """Random, with no power at or above a fraction of Nyquist."""
    noise = np.random.default_rng(seed).normal(size=(box,) * 3)
    k = np.abs(np.fft.fftfreq(box))
    inside = np.maximum(np.maximum(k[:, None, None], k[None, :, None]), k) < 0.5 * of_nyquist
    return np.fft.ifftn(np.fft.fftn(noise) * inside).real.astype(np.float32)


# -- convection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("oversampling", [1, 2])
def test_mass_is_conserved_under_any_flow(mesh_of, oversampling: int) -> None:
    rng = np.random.default_rng(0)
    mesh = mesh_of((3, 3, 3), 40.0)
    domain = voxel_domain(mesh, ball(BOX, 6))
    values = rng.uniform(size=len(domain)).astype(np.float32)
    moved = convect(
        domain, values, mesh.vertices_A + 3 * rng.normal(size=mesh.vertices_A.shape), oversampling=oversampling
    )
    assert moved.box == BOX and moved.pixel_size_A == PIXEL_A and moved.data.dtype == np.float32
    assert float(moved.data.sum(dtype=np.float64)) == pytest.approx(float(values.sum(dtype=np.float64)), rel=1e-5)


def ball_limited(volume: NDArray, of_nyquist: float = 1.0) -> NDArray[np.float64]:
    """What is below a fraction of Nyquist in every direction."""
    box = len(volume)
    k = np.fft.fftfreq(box)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
    return np.fft.ifftn(np.fft.fftn(volume) * (radius < 0.5 * of_nyquist)).real


@pytest.mark.parametrize("oversampling, limit", [(1, 0.05), (2, 4e-3)])
def test_at_rest_the_density_is_as_it_was(mesh_of, oversampling: int, limit: float) -> None:
    """Random density, up to the spline's own error, which falls with the fineness of the grid."""
    mesh = mesh_of((3, 3, 3), 60.0)
    domain = voxel_domain(mesh, ball(BOX, 8))
    density = ball_limited(np.random.default_rng(0).normal(size=(BOX,) * 3), 0.7) * ball(BOX, 8).data
    moved = convect(domain, domain.gather(density), mesh.vertices_A, oversampling=oversampling)
    assert relative(ball_limited(moved.data, 0.7), ball_limited(density, 0.7)) < limit


@pytest.mark.parametrize("oversampling, limit", [(1, 4e-3), (2, 2e-4)])
def test_translation_by_whole_voxels_is_a_roll(oversampling: int, limit: float) -> None:
    box, shift = 32, np.array([2, -3, 1])  # voxels, xyz
    density = gaussian(box, np.array([1.3, 0.4, -2.2]), 2.2 * np.eye(3))
    domain, vertices = rigid_domain(everywhere(box))
    moved = convect(domain, domain.gather(density), vertices + shift * PIXEL_A, oversampling=oversampling)
    assert relative(moved.data, np.roll(density, shift[::-1], axis=(0, 1, 2))) < limit
    assert relative(moved.data, np.roll(density, -shift[::-1], axis=(0, 1, 2))) > 0.3
    assert relative(moved.data, np.roll(density, shift, axis=(0, 1, 2))) > 0.3  # negative control: zyx for xyz


def gaussian(box: int, centre: NDArray, spread: NDArray) -> NDArray[np.float64]:
    """Mass 1 around `centre` (xyz, voxels from the box centre) with covariance `spread` (3, 3), voxels squared."""
    z, y, x = np.indices((box,) * 3) - box // 2
    away = np.stack([x, y, z], axis=-1) - centre
    exponent = np.einsum("...i,ij,...j->...", away, np.linalg.inv(spread), away)
    return np.exp(-exponent / 2) / np.sqrt((2 * np.pi) ** 3 * np.linalg.det(spread))


@pytest.mark.parametrize("oversampling, limit", [(1, 0.02), (2, 3e-3)])
def test_a_rotated_blob_matches_its_closed_form(oversampling: int, limit: float) -> None:
    """An ellipsoid off the axis, turned about the box centre."""
    box, rotation = 32, Rotation.from_rotvec([0.5, -0.7, 0.4]).as_matrix()
    centre, spread = np.array([3.0, -2.0, 1.0]), np.diag([5.0, 3.0, 2.2])
    domain, vertices = rigid_domain(everywhere(box))
    values = domain.gather(gaussian(box, centre, spread))
    moved = convect(domain, values, vertices @ rotation.T, oversampling=oversampling).data
    expected = gaussian(box, rotation @ centre, rotation @ spread @ rotation.T)
    assert relative(moved, expected) < limit
    transposed = gaussian(box, rotation.T @ centre, rotation.T @ spread @ rotation)
    assert relative(moved, transposed) > 0.3  # negative control


def test_uniform_stretch_conserves_mass_and_thins_density() -> None:
    box, stretch = 32, np.diag([1.1, 1.0, 0.95])
    domain, vertices = rigid_domain(everywhere(box))
    spread = 4.0 * np.eye(3)
    moved = convect(domain, domain.gather(gaussian(box, np.zeros(3), spread)), vertices @ stretch, oversampling=2).data
    assert relative(moved, gaussian(box, np.zeros(3), stretch @ spread @ stretch)) < 2e-3
    assert relative(moved, gaussian(box, np.zeros(3), spread)) > 0.05


def test_projection_of_the_convected_volume_is_the_projection_through_the_flow(phantom_of, mesh_of) -> None:
    """Two ways to the same image: move in 3-D and project rigidly, or move and project at once."""
    density = phantom_of(BOX, 1.5)
    rng = np.random.default_rng(0)
    mesh = mesh_of((3, 2, 2), 54.0)
    wave = np.sin(mesh.vertices_A / 20 + rng.uniform(0, 6, 3)) @ rng.normal(size=(3, 3))
    vertices = mesh.vertices_A + 3.0 * wave
    domain = voxel_domain(mesh, Volume(density.data > 1e-4 * density.data.max(), PIXEL_A))
    values = domain.gather(density.data)
    moved = convect(domain, values, vertices, oversampling=2)
    whole, corners = rigid_domain(everywhere())
    projections = torch.from_numpy(Rotation.random(3, random_state=1).as_matrix()[:, :2] / PIXEL_A).float()
    origins = torch.tensor([[0.3, -1.2], [0.0, 0.7], [-2.0, 0.4]])
    poses = Batch(np.arange(3), torch.zeros(0), torch.zeros(0), projections, origins)
    band = Band.below(0.6 * BOX / 2)

    def images(of: VoxelDomain, points: NDArray, voxels: NDArray) -> torch.Tensor:
        operator = make_operator(of)
        model = ImageModel(operator, BOX, band, stack_box=BOX, stack_pixel_size_A=PIXEL_A, oversampling=2)
        q = model.positions(poses, torch.from_numpy(points.astype(np.float32)))
        return model.transform(torch.from_numpy(voxels), q)

    at_once = images(domain, vertices, values)
    in_turn = images(whole, corners, whole.gather(moved.data))
    at_rest = images(domain, mesh.vertices_A, values)
    assert relative(at_once, in_turn) < 5e-3
    assert relative(at_rest, in_turn) > 0.1  # negative control: the motion does show


def test_voxels_that_leave_the_box_drop() -> None:
    domain, vertices = rigid_domain(ball(BOX, 3))
    values = np.ones(len(domain), np.float32)
    gone = convect(domain, values, vertices + [BOX * PIXEL_A, 0, 0], oversampling=1)
    assert np.abs(gone.data).max() == 0
    astray = convect(domain, values, np.full_like(vertices, np.nan), oversampling=1)
    assert np.abs(astray.data).max() == 0


# -- Fourier grids -----------------------------------------------------------------------------------------------


def wave_volume(box: int, pixel_size_A: float) -> NDArray[np.float64]:
    """A few low waves of an extent of 72 A, sampled about voxel box // 2."""
    z, y, x = (np.indices((box,) * 3) - box // 2) * pixel_size_A / 72.0
    return 0.7 + np.cos(2 * np.pi * (2 * x - y + 3 * z)) + 0.5 * np.sin(2 * np.pi * (4 * z + x)) - np.cos(8 * np.pi * y)


@pytest.mark.parametrize("box", [12, 13, 18, 24, 25, 36, 47])
@pytest.mark.parametrize("start", [24, 25])
def test_resize_is_exact_for_what_both_grids_hold(start: int, box: int) -> None:
    """The sampled waves themselves, about the same origin: any box, odd or even, smaller or larger."""
    volume = Volume(wave_volume(start, 72 / start).astype(np.float32), 72 / start)
    resized = fourier_resize(volume, box)
    assert resized.box == box and resized.pixel_size_A == pytest.approx(72 / box)
    assert resized.data.dtype == np.float32
    assert np.abs(resized.data - wave_volume(box, 72 / box)).max() < 1e-4


def test_resize_and_back_keeps_the_band_and_the_mean() -> None:
    volume = Volume(band_limited(24, 0.6), 2.0)
    assert fourier_resize(volume, 24) is volume
    for box in (16, 20, 31):
        there = fourier_resize(volume, box)
        assert float(there.data.mean()) == pytest.approx(float(volume.data.mean()), abs=1e-6)
        back = fourier_resize(there, 24)
        assert relative(back.data, volume.data) < 1e-5
        assert back.pixel_size_A == pytest.approx(2.0)


def test_resize_of_random_density_is_a_projection() -> None:
    """Cropping twice is cropping once, and what it removes is orthogonal to what it keeps."""
    noise = Volume(np.random.default_rng(0).normal(size=(20,) * 3).astype(np.float32), 2.0)
    once = fourier_resize(fourier_resize(noise, 14), 20)
    twice = fourier_resize(fourier_resize(once, 14), 20)
    assert relative(twice.data, once.data) < 1e-5
    assert abs(np.vdot(noise.data - once.data, once.data)) < 1e-4 * np.vdot(once.data, once.data)


@pytest.mark.parametrize("box", [24, 25])
def test_low_pass_keeps_what_is_below_and_drops_what_is_above(box: int) -> None:
    volume = Volume(np.random.default_rng(0).normal(size=(box,) * 3).astype(np.float32), 2.0)
    cut = 0.15  # 1/A; Nyquist is 0.25
    filtered = low_pass(volume, cut)
    k = np.fft.fftfreq(box, 2.0)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
    before, after = np.fft.fftn(volume.data), np.fft.fftn(filtered.data)
    below, above = radius <= 0.9 * cut, radius >= 1.1 * cut
    assert np.abs(after - before)[below].max() < 1e-4 * np.abs(before).max()
    assert np.abs(after[above]).max() < 1e-4 * np.abs(before).max()
    at = np.abs(radius - cut) < 0.002 * cut
    assert not at.any() or np.abs(after[at] / before[at] - 0.5).max() < 0.05
    assert filtered.data.mean() == pytest.approx(volume.data.mean(), abs=1e-6)


@pytest.mark.parametrize("n, box", [(8, 12), (9, 12), (12, 8), (13, 8), (12, 9), (9, 13), (10, 10)])
def test_window_keeps_the_centre(n: int, box: int) -> None:
    images = np.random.default_rng(0).normal(size=(2, n, n)).astype(np.float32)
    window = centred_window(images, box)
    assert window.shape == (2, box, box) and window.dtype == np.float32
    offset = np.arange(box) - box // 2 + n // 2
    inside = (offset >= 0) & (offset < n)
    expected = np.zeros_like(window)
    expected[:, np.ix_(inside, inside)[0], np.ix_(inside, inside)[1]] = images[:, offset[inside]][:, :, offset[inside]]
    assert np.array_equal(window, expected)


# -- frames and motion -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_of(mesh_of, phantom_of) -> Callable[[NDArray, NDArray], FlexModel]:
    """A model whose flow moves everything by `z * direction` (angstroms), at the given latents."""

    def build(direction: NDArray, latents: NDArray) -> FlexModel:
        mesh = mesh_of((3, 2, 2), 54.0)
        torch.manual_seed(0)
        flow = FlowGenerator(1, 1, 2, torch.from_numpy(mesh.motion))
        flow.start_straight(torch.from_numpy(np.tile(direction, (1, len(mesh.vertices_A), 1))))
        density = phantom_of(BOX, 1.2)
        support = Volume((density.data > 1e-3 * density.data.max()).astype(np.float32), PIXEL_A)
        latents = latents.astype(np.float32).reshape(-1, 1)
        covariance = np.ones((len(latents), 1, 1), np.float32)
        return FlexModel(mesh, flow, latents, covariance, density, support, np.zeros((0, 1)), ("loss",))

    return build


def test_frames_are_the_density_moved(model_of) -> None:
    model = model_of(np.array([PIXEL_A, 0, 0]), np.zeros(3))
    rest = model.map.data * (model.support.data > 0)
    still, right, left = (volume.data for volume in frames(model, model.map, np.array([[0.0], [1.0], [-2.0]])))
    peak = rest.max()
    assert np.abs(still - rest).max() < 0.01 * peak
    assert np.abs(right - np.roll(rest, 1, axis=2)).max() < 0.01 * peak
    assert np.abs(left - np.roll(rest, -2, axis=2)).max() < 0.01 * peak


def test_frames_of_a_finer_map_move_alike(model_of) -> None:
    """A reconstruction at a larger box of the same extent: the same motion in angstroms, the support resized."""
    model = model_of(np.array([0, PIXEL_A, 0]), np.zeros(3))
    fine = fourier_resize(model.map, 36)
    (moved,) = frames(model, fine, np.array([[2.0]]))
    assert moved.box == 36 and moved.pixel_size_A == pytest.approx(2.0)
    expected = np.roll(fine.data, 3, axis=1)
    assert correlation(moved.data, expected) > 0.99 > correlation(moved.data, fine.data) + 0.1


def correlation(one: NDArray, other: NDArray) -> float:
    return float(np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


def test_latent_path_spans_one_latent_at_the_medians_of_the_others() -> None:
    latents = np.random.default_rng(0).normal(size=(500, 3))
    path = latent_path(latents, 1, 7)
    assert path.shape == (7, 3) and path.dtype == np.float32
    assert path[[0, -1], 1] == pytest.approx(np.percentile(latents[:, 1], [5, 95]), rel=1e-5)
    assert np.abs(np.diff(path[:, 1], 2)).max() < 1e-6
    assert np.abs(path[:, [0, 2]] - np.median(latents, axis=0)[[0, 2]]).max() < 1e-6


def test_motion_amplitude_is_the_spread_over_particles(model_of) -> None:
    """A shift by z * d has the same root mean square everywhere; a shift common to all particles is no motion."""
    latents = np.random.default_rng(0).normal(size=400)
    direction = np.array([3.0, 4.0, 0.0])
    motion = motion_amplitude(model_of(direction, latents + 2.0))
    inside = np.isfinite(motion.volume.data)
    expected = 5.0 * latents.std()
    assert np.abs(motion.volume.data[inside] - expected).max() < 1e-3 * expected
    assert motion.mean_A == pytest.approx(expected, rel=1e-3) and motion.largest_A == pytest.approx(expected, rel=1e-3)
    assert inside.any() and not inside[0, 0, 0]
    still = motion_amplitude(model_of(direction, np.full(50, 1.5)))
    assert still.largest_A < 1e-3


def test_motion_uncertainty_is_the_posteriors_spread(model_of) -> None:
    """Shifts along d with a posterior deviation of s: |d| s everywhere; an error of the flow adds in square."""
    direction = np.array([3.0, 4.0, 0.0])
    model = model_of(direction, np.linspace(-1, 1, 50))
    variances = np.random.default_rng(0).uniform(0.01, 0.09, (50, 1, 1)).astype(np.float32)
    model = replace(model, covariance=variances)
    expected = 5.0 * np.sqrt(variances.mean())
    found = motion_uncertainty(model)
    inside = np.isfinite(found.volume.data)
    assert np.abs(found.volume.data[inside] - expected).max() < 1e-3 * expected
    assert found.mean_A == pytest.approx(expected, rel=1e-3)
    between = np.full(len(model.mesh.vertices_A), 2.0)
    assert motion_error(model, between).mean_A == pytest.approx(2.0, rel=1e-3)
    assert motion_uncertainty(model, between).mean_A == pytest.approx(np.hypot(expected, 2.0), rel=1e-3)
    # negative control: it is not the motion's amplitude, which does not see the posterior
    assert motion_amplitude(model).mean_A == pytest.approx(5.0 * model.latents.std(), rel=1e-3)


def test_support_counts_particles_and_fades_with_distance(model_of) -> None:
    """A heap of particles at 0 and one far off: as many near as there are, one, and none between."""
    latents = np.append(np.zeros(60), 8.0)
    model = replace(model_of(np.array([0.0, 2.0, 0.0]), latents), covariance=np.full((61, 1, 1), 0.04, np.float32))
    found = support(model, np.array([[0.0], [8.0], [4.0], [0.5]]))
    assert found.particles[:2] == pytest.approx([60, 1], rel=1e-6)
    assert found.particles[2] < 1e-6 and found.missing.tolist() == [False, False, True, False]
    blur = 0.04 + 61 ** (-2 / 5)
    assert found.particles[3] == pytest.approx(60 * np.exp(-0.125 / blur), rel=1e-6)
    assert found.displacement_std_A == pytest.approx(2.0 * 0.2, rel=1e-3)


def test_supports_uncertainty_is_that_of_the_particles_there(model_of) -> None:
    latents = np.repeat([-2.0, 2.0], 100)
    model = model_of(np.array([0.0, 0.0, 3.0]), latents)
    variances = np.repeat([0.01, 0.16], 100).astype(np.float32)[:, None, None]
    found = support(replace(model, covariance=variances), np.array([[-2.0], [2.0], [40.0]]))
    assert found.displacement_std_A == pytest.approx([0.3, 1.2, 1.2], rel=1e-2)  # far out: the nearest particles'
    assert np.isfinite(found.particles).all() and found.missing.tolist() == [False, False, True]


def test_support_does_not_shrink_with_the_sharpness_of_many_latents(model_of) -> None:
    """Well-placed particles in four dimensions are near the middle of their cloud, and not four deviations away."""
    model = model_of(np.array([1.0, 0.0, 0.0]), np.zeros(3))
    flow = FlowGenerator(4, 1, 2, torch.from_numpy(model.mesh.motion))
    latents = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    sharp = np.broadcast_to(1e-4 * np.eye(4, dtype=np.float32), (3000, 4, 4))
    found = support(replace(model, flow=flow, latents=latents, covariance=sharp), np.array([[0.0] * 4, [2.0] * 4]))
    assert found.particles[0] > 10 and found.missing.tolist() == [False, True]
