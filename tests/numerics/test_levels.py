"""Frequency marching: coarse grids predict what the full one does, in the band that they are made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from flex_job.band import Band
from flex_job.fourier import fourier_resize, low_pass
from flex_job.imaging import ImageModel
from flex_job.latents import gauss_newton
from flex_job.levels import FAINT, Level, Levels, band_limit, march_box
from flex_job.operator import MASK_LEVEL, make_operator, voxel_domain
from flex_job.volume import Volume
from job_specs.parameters import TrainParameters

BOX, FRACTION = 48, 0.4
# Blobs that fade before the band ends: where a low-pass cuts into a density, ripples reach beyond the box and are lost.
WORLD = {"count": 12, "box": BOX, "scale": 300.0, "noise": 1.0, "motion_A": 12.0, "sigma_px": 2.0}


@pytest.fixture(scope="module")
def world(world_of: Callable):  # type: ignore[no-untyped-def]
    return world_of(**WORLD)


def everywhere(box: int, pixel_size_A: float) -> Volume:
    return Volume(np.ones((box,) * 3, np.float32), pixel_size_A)


def levels_of(world, mask: Volume | None = None) -> Levels:  # type: ignore[no-untyped-def]
    mask = mask or everywhere(BOX, world.stack.pixel_size_A)
    return Levels(world.stack, world.mesh, mask, torch.device("cpu"), tf32=False)


@pytest.fixture(scope="module")
def levels(world) -> Levels:  # type: ignore[no-untyped-def]
    return levels_of(world)


@pytest.fixture(scope="module")
def full(world) -> Level:  # type: ignore[no-untyped-def]
    """The same band by the full grid, rendered twice as fine: next to exact there."""
    stack = world.stack
    domain = voxel_domain(world.mesh, everywhere(BOX, stack.pixel_size_A))
    model = ImageModel(
        make_operator(domain),
        BOX,
        stack.band(FRACTION),
        stack_box=BOX,
        stack_pixel_size_A=stack.pixel_size_A,
        oversampling=2,
    )
    band_limited = low_pass(world.density, FRACTION / (2 * stack.pixel_size_A))
    return Level(model, torch.from_numpy(domain.gather(band_limited.data)))


def whole_level(levels: Levels, density: Volume, fraction: float) -> Level:
    """The density at all voxels of the mask, on the model that the canonical map is solved for with."""
    return Level(levels.model(fraction), torch.from_numpy(levels.values(density, fraction)))


def predicted(world, level: Level, sign: float = 1.0) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Coefficients of all particles, moved as they are (or, for a control, backwards)."""
    batch = world.stack.batch(np.arange(len(world.stack)), level.model.band)
    with torch.no_grad():
        points = world.vertices + world.flow(torch.from_numpy(sign * world.latents))
    return level.model.transform(level.values, level.model.positions(batch, points))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


# -- which band, which box ---------------------------------------------------------------------------------------


def test_band_limit_rises_by_a_factor_and_stays() -> None:
    parameters = replace(TrainParameters(), epochs=10, band_start=0.2, band_end=0.9, band_epochs=0.5)
    limits = [band_limit(parameters, epoch) for epoch in range(10)]
    assert limits[0] == 0.2 and limits[5:] == [0.9] * 5
    np.testing.assert_allclose(np.diff(np.log(limits))[:5], np.log(4.5) / 5)
    assert band_limit(parameters, 1000) == 0.9


@pytest.mark.parametrize("band_epochs, epochs", [(0.0, 10), (0.5, 1), (1.0, 3)])
def test_band_limit_stays_between_its_ends(band_epochs: float, epochs: int) -> None:
    """Even where it has no epoch to rise in."""
    parameters = replace(TrainParameters(), epochs=epochs, band_start=0.3, band_end=0.6, band_epochs=band_epochs)
    limits = np.array([band_limit(parameters, epoch) for epoch in range(epochs + 2)])
    assert limits[0] == 0.3 and (np.diff(limits) >= 0).all() and limits[-1] == pytest.approx(0.6)


@pytest.mark.parametrize("full_box", [48, 60, 64, 128, 336])
def test_box_is_the_smallest_that_carries_the_band(world, full_box: int) -> None:  # type: ignore[no-untyped-def]
    levels = Levels(replace(world.stack, box=full_box), world.mesh, world.support, torch.device("cpu"), tf32=False)
    fractions = np.linspace(0.05, 1.0, 39)
    boxes = np.array([march_box(levels.stack.box, float(fraction)) for fraction in fractions])
    assert (np.diff(boxes) >= 0).all() and boxes[-1] == full_box and boxes[0] < 32
    for fraction, box in zip(fractions, boxes, strict=True):
        used = fraction * full_box  # twice the band limit in waves per box
        assert box == full_box or (box % 8 == 0 and 16 <= box < full_box)
        assert used <= 0.8 * box + 1e-4 or box == full_box, fraction
        smaller = 8 * ((box - 1) // 8)
        assert smaller < 16 or used > 0.8 * smaller, fraction
    # 0.4 / 0.8 of 48 is a little more than 24 in floating point
    assert full_box != 48 or march_box(levels.stack.box, 0.4) == 24


# -- the same coefficients ---------------------------------------------------------------------------------------


def test_a_coarse_level_predicts_the_coefficients_of_the_full_one(world, levels: Levels, full: Level) -> None:  # type: ignore[no-untyped-def]
    """Half the box, an eighth of the voxels. What is left is the spline's error near 0.8 of the coarse Nyquist, 8 % at
    the most (see test_oversampling_improves_the_operator_at_every_frequency), and, of the motion, the voxels' size."""
    coarse = whole_level(levels, world.density, FRACTION)
    assert coarse.model.box == BOX // 2 and len(coarse.values) == (BOX // 2) ** 3
    band = coarse.model.band
    assert len(band) == len(full.model.band) == len(world.stack.band(FRACTION))
    found, expected = predicted(world, coarse), predicted(world, full)
    assert relative(found, expected) < 0.01
    low = len(Band.below(band.limit / 2))
    assert relative(found[:, :low], expected[:, :low]) < 3e-3
    for shell in range(1, int(band.limit) + 1):
        at = band.shells == shell
        assert relative(found[:, at], expected[:, at]) < 0.08, shell
    # Negative controls: the motion turned round, and the density mirrored.
    assert relative(predicted(world, coarse, sign=-1.0), expected) > 0.2
    mirrored = Volume(np.ascontiguousarray(world.density.data[:, :, ::-1]), world.density.pixel_size_A)
    assert relative(predicted(world, whole_level(levels, mirrored, FRACTION)), expected) > 0.2


def test_latents_found_on_a_coarse_level_are_those_of_the_full_grid(world, levels: Levels, full: Level) -> None:  # type: ignore[no-untyped-def]
    found = []
    for level in (levels.level(world.density, FRACTION), full):
        batch = world.stack.batch(np.arange(len(world.stack)), level.model.band)
        z = torch.zeros(len(batch), 1)
        for _ in range(4):
            z, covariance, _ = gauss_newton(level.model, level.values, world.flow, batch, world.vertices, z)
        found.append((z, covariance[:, :, 0].sqrt()))
    (coarse, _), (fine, sigma) = found
    assert float(fine.abs().mean()) > 5 * float(sigma.mean())
    assert float(((coarse - fine) / sigma).abs().max()) < 0.5


# -- voxels ------------------------------------------------------------------------------------------------------


def test_the_model_has_all_voxels_of_the_mask_and_a_level_drops_the_faint_ones(world, full: Level) -> None:  # type: ignore[no-untyped-def]
    levels = levels_of(world, world.support)
    whole = whole_level(levels, world.density, FRACTION)
    part = levels.level(world.density, FRACTION)
    resized = fourier_resize(world.support, whole.model.box)
    assert len(whole.values) == len(whole.model.domain) == int((resized.data > MASK_LEVEL).sum())
    assert 0 < len(part.values) == len(part.model.domain) < len(whole.values)
    assert float(part.values.abs().min()) > FAINT * float(whole.values.abs().max())
    kept = np.isin(whole.model.domain.flat_index, part.model.domain.flat_index)
    assert float(whole.values[torch.from_numpy(~kept)].abs().max()) <= FAINT * float(whole.values.abs().max())
    # in the same order, so that one can stand in for the other
    assert np.array_equal(whole.model.domain.flat_index[kept], part.model.domain.flat_index)
    assert torch.equal(whole.values[torch.from_numpy(kept)], part.values)
    # They are left out of what inference predicts, where they make little difference, and of nothing else.
    assert 0 < relative(predicted(world, part), predicted(world, whole)) < 0.05


def test_the_highest_level_is_the_stacks_own_grid(world) -> None:  # type: ignore[no-untyped-def]
    levels = levels_of(world, world.support)
    level = whole_level(levels, world.density, 1.0)
    assert level.model.box == BOX and len(level.model.band) == len(world.stack.band())
    assert np.array_equal(level.model.domain.flat_index, world.domain.flat_index)
    torch.testing.assert_close(level.values, world.values, atol=0.02 * float(world.values.max()), rtol=0)
    assert levels.domain(BOX) is level.model.domain  # found once: the search for voxels' cells takes long
