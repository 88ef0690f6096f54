"""Laws of the local resolution."""

from __future__ import annotations

import numpy as np
import pytest

from flex_job.local_resolution import COARSEST_A, local_resolution
from flex_job.volume import Volume

BOX, PIXEL = 40, 4.0
RNG = np.random.default_rng(5)


def low_passed(volume: np.ndarray, to_A: float) -> np.ndarray:
    box = len(volume)
    k = np.fft.fftfreq(box, PIXEL)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.fft.rfftfreq(box, PIXEL) ** 2)
    return np.fft.irfftn(np.fft.rfftn(volume) * (radius <= 1 / to_A), s=volume.shape, axes=(0, 1, 2))


def sphere(radius: float, box: int = BOX) -> np.ndarray:
    axis = np.arange(box) - box // 2
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2)
    return np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)


def halves(signal: np.ndarray, noise: float) -> tuple[Volume, Volume]:
    shape = signal.shape
    return tuple(Volume((signal + noise * RNG.standard_normal(shape)).astype(np.float32), PIXEL) for _ in range(2))  # type: ignore[return-value]


SIGNAL = RNG.standard_normal((BOX,) * 3) + 0.5
MASK = Volume(sphere(14), PIXEL)


def test_maps_that_agree_reach_nyquist_everywhere():
    volume = Volume(SIGNAL.astype(np.float32), PIXEL)
    found = local_resolution(volume, volume, MASK)
    assert found.inside == pytest.approx(2 * PIXEL, rel=1e-5)
    assert found.record()["spheres"] == found.spheres > 10


def test_noise_has_no_resolution():
    assert np.median(local_resolution(*halves(0 * SIGNAL, 1.0), MASK).inside) > 0.9 * COARSEST_A


def test_resolution_follows_the_band_limit_of_a_uniform_signal():
    """Finer than the limit by up to what a sphere's own transform spreads."""
    limits = (10.0, 14.0, 20.0)
    found = [np.median(local_resolution(*halves(low_passed(SIGNAL, limit), 0.3), MASK).inside) for limit in limits]
    for limit, middle in zip(limits, found, strict=True):
        assert 0.7 * limit < middle < 1.02 * limit
    assert found[0] < found[1] < found[2]


def test_halves_of_a_molecule_of_different_resolution_are_told_apart_in_their_place():
    fine, coarse = low_passed(SIGNAL, 9.0), low_passed(SIGNAL, 24.0)
    left = np.arange(BOX)[None, None, :] < BOX // 2  # along x
    found = local_resolution(*halves(np.where(left, fine, coarse), 0.2), MASK).volume.data
    assert np.median(found[12:28, 12:28, 8:13]) < 8.6
    assert np.median(found[12:28, 12:28, 27:32]) > 11
    swapped = local_resolution(*halves(np.where(left, coarse, fine), 0.2), MASK).volume.data
    assert np.median(swapped[12:28, 12:28, 8:13]) > 11  # negative control


def test_scale_and_offset_free_and_the_same_for_the_same_input():
    first, second = halves(low_passed(SIGNAL, 12.0), 0.3)
    found = local_resolution(first, second, MASK)
    scaled = local_resolution(Volume(7 * first.data, PIXEL), Volume(0.1 * second.data, PIXEL), MASK)
    assert np.abs(found.volume.data - scaled.volume.data).max() < 0.02
    assert np.array_equal(found.volume.data, local_resolution(first, second, MASK).volume.data)


def test_only_spheres_that_reach_the_molecule_are_looked_at_and_what_they_give_is_the_same():
    first, second = halves(low_passed(SIGNAL, 12.0), 0.3)
    all_, few = (local_resolution(first, second, Volume(sphere(r), PIXEL)) for r in (40, 6))
    assert few.spheres < 0.6 * all_.spheres
    inside = sphere(6) > 0.5
    assert np.abs(few.volume.data - all_.volume.data)[inside].max() < 1e-4


def test_spheres_without_density_have_no_say():
    """Maps that a solver left at 0 outside its support."""
    support = sphere(8)
    first, second = (Volume(half.data * support, PIXEL) for half in halves(low_passed(SIGNAL, 12.0), 0.1))
    found = local_resolution(first, second, MASK)
    assert np.isfinite(found.volume.data).all()
    assert found.volume.data[support > 0.5].max() < 11
    empty = Volume(np.zeros((BOX,) * 3, np.float32), PIXEL)
    assert not local_resolution(empty, empty, MASK).volume.data.any()


def test_odd_boxes_and_distances_that_the_box_cannot_hold():
    signal = RNG.standard_normal((23,) * 3)
    found = local_resolution(*halves(signal, 0.1), Volume(sphere(8, 23), PIXEL), sampling_A=200.0)
    assert found.sampling_A == 23
    assert 2 * PIXEL < np.median(found.inside) < 12


def test_bad_input_says_what_was_expected():
    first, second = halves(SIGNAL, 0.1)
    with pytest.raises(ValueError, match="expected one box"):
        local_resolution(first, second, Volume(sphere(5, 20), PIXEL))
    with pytest.raises(ValueError, match=r"no voxel above 0\.5"):
        local_resolution(first, second, Volume(np.zeros((BOX,) * 3, np.float32), PIXEL))
