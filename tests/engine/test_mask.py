"""Masks: made automatically, given a soft edge, checked."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from flex_job.mask import automatic_mask, check_mask, lowpass, soft_mask
from flex_job.volume import Volume


def ball(box: int = 48, radius: float = 10, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    z, y, x = np.indices((box, box, box)) - box // 2
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= radius**2


def density(binary: np.ndarray, noise: float = 0.0, seed: int = 0) -> Volume:
    clean = ndimage.gaussian_filter(binary.astype(np.float32), 1.0)
    noisy = clean + noise * np.random.default_rng(seed).normal(size=binary.shape)
    return Volume(noisy.astype(np.float32), 2.0)


def test_soft_edge_falls_as_a_raised_cosine_of_the_distance() -> None:
    mask = soft_mask(ball(radius=10), 6)
    line = mask[24, 24, 24:]
    assert line[:11] == pytest.approx(1)
    assert line[10:17] == pytest.approx(0.5 + 0.5 * np.cos(np.pi * np.arange(7) / 6), abs=1e-6)
    assert line[17:] == pytest.approx(0)
    assert mask.dtype == np.float32


def test_no_soft_edge_gives_the_binary_mask_back() -> None:
    assert np.array_equal(soft_mask(ball(), 0), ball().astype(np.float32))


def test_soft_edge_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        soft_mask(np.zeros((4, 4, 4), dtype=bool), 3)


def test_lowpass_halves_the_amplitude_at_its_resolution() -> None:
    box, period_px = 48, 8
    wave = np.cos(2 * np.pi * np.arange(box) / period_px).astype(np.float32)
    volume = Volume(np.broadcast_to(wave, (box, box, box)).copy(), 2.0)
    filtered = lowpass(volume, period_px * 2.0)
    inner = slice(8, -8)
    assert filtered[24, 24, inner] == pytest.approx(0.5 * wave[inner], abs=0.02)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_automatic_mask_holds_the_molecule_and_little_else(noise: float) -> None:
    binary = ball(radius=11)
    mask = automatic_mask(density(binary, noise))
    assert mask.data[binary].min() > 0.9
    grown = ball(radius=11 + 9)
    assert mask.data[~grown].max() == 0
    assert check_mask(mask, density(binary)) == []


def test_automatic_mask_keeps_a_smeared_arm_and_drops_specks() -> None:
    body, arm, speck = ball(radius=9), ball(radius=5, centre=(13, 0, 0)), ball(radius=1, centre=(0, -20, 0))
    volume = ndimage.gaussian_filter(body + 0.35 * arm + 1.0 * speck, 1.0).astype(np.float32)
    mask = automatic_mask(Volume(volume, 2.0), dilate_A=0, soft_A=0)
    assert mask.data[arm].mean() > 0.9
    assert mask.data[speck].max() == 0


def test_automatic_mask_fills_holes_and_dilates() -> None:
    shell = ball(radius=14) & ~ball(radius=9)
    tight = automatic_mask(density(shell), dilate_A=0, soft_A=0)
    assert tight.data[24, 24, 24] == 1
    wide = automatic_mask(density(shell), dilate_A=6, soft_A=0)
    assert wide.data[24, 24].sum() >= tight.data[24, 24].sum() + 2 * 3


def test_threshold_above_the_map_says_the_range() -> None:
    with pytest.raises(ValueError, match=r"threshold 50 .*range there is .* to .*mask_threshold"):
        automatic_mask(density(ball()), threshold=50.0)


def test_a_map_without_contrast_has_no_automatic_mask() -> None:
    with pytest.raises(ValueError, match="no voxel"):
        automatic_mask(Volume(np.zeros((24, 24, 24), dtype=np.float32), 2.0))


def test_check_mask_names_every_problem() -> None:
    reference = density(ball())
    assert check_mask(Volume(soft_mask(ball(), 3), 2.0), reference) == []
    other = check_mask(Volume(soft_mask(ball(box=32), 3), 1.0), reference)
    assert len(other) == 2 and "32 px" in other[0] and "48 px" in other[0] and "pixel size" in other[1]
    assert "empty" in check_mask(Volume(np.zeros((48, 48, 48), np.float32), 2.0), reference)[0]
    assert "0 to 1" in check_mask(Volume(5 * reference.data, 2.0), reference)[0]
    assert "90 %" in check_mask(Volume(np.ones((48, 48, 48), np.float32), 2.0), reference)[0]
    broken = soft_mask(ball(), 3)
    broken[0, 0, 0] = np.nan
    assert "not finite" in check_mask(Volume(broken, 2.0), reference)[0]
