"""Laws of the FSC, its correction for the mask, and the combined map."""

from __future__ import annotations

import numpy as np
import pytest

from flex_job.fsc import (
    FscCurves,
    compare_half_maps,
    fsc,
    fsc_masked,
    randomised_masked,
    resolution_at,
    resolution_text,
    shell_index,
    shell_means,
)
from flex_job.sharpen import combine, fsc_weights, guinier_fit

BOX, PIXEL = 48, 2.0
AT = np.arange(9) / 16  # frequencies of a box of 16 px of 1 A


def radii(box: int = BOX) -> np.ndarray:
    k = np.fft.fftfreq(box, 1 / box)
    return np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.arange(box // 2 + 1) ** 2)


def white(seed: int, box: int = BOX) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((box,) * 3).astype(np.float32)


def filtered(volume: np.ndarray, gain_of_radius) -> np.ndarray:
    box = volume.shape[0]
    return np.fft.irfftn(np.fft.rfftn(volume) * gain_of_radius(radii(box)), s=volume.shape, axes=(0, 1, 2)).astype(
        np.float32
    )


def ball(box: int, radius: float, soft: float) -> np.ndarray:
    axis = np.arange(box) - box // 2
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2)
    return (0.5 + 0.5 * np.cos(np.pi * np.clip((distance - radius) / soft, 0, 1))).astype(np.float32)


def half_maps(noise: float, seed: int = 0, box: int = BOX) -> tuple[np.ndarray, np.ndarray]:
    """A falling spectrum of signal inside a ball, and white noise everywhere."""
    signal = filtered(white(seed, box), lambda k: np.exp(-((k / (0.2 * box)) ** 2))) * ball(box, 0.25 * box, 4)
    return signal + noise * white(seed + 1, box), signal + noise * white(seed + 2, box)


@pytest.mark.parametrize("box", [32, 33])
def test_fsc_counts_each_coefficient_of_the_half_transform_once(box):
    a, b = half_maps(0.2, box=box)
    fa, fb = np.fft.rfftn(a), np.fft.rfftn(b)
    shells = np.rint(radii(box)).astype(int)
    expected = []
    for shell in range(box // 2 + 1):
        inside = shells == shell
        cross = (fa[inside] * fb[inside].conj()).sum().real
        expected.append(cross / np.sqrt((np.abs(fa[inside]) ** 2).sum() * (np.abs(fb[inside]) ** 2).sum()))
    assert np.abs(fsc(a, b) - expected).max() < 1e-5


def test_fsc_is_one_with_itself_symmetric_and_blind_to_any_radial_filter():
    a, b = half_maps(0.3)
    assert np.abs(fsc(a, a) - 1).max() < 1e-5
    assert np.abs(fsc(a, -a) + 1).max() < 1e-5
    assert np.abs(fsc(a, b) - fsc(b, a)).max() < 1e-6
    # a filter that is constant within a shell changes nothing (one that varies within it does, a little)
    assert np.abs(fsc(3 * a, filtered(b, lambda k: np.exp(-np.rint(k) / 10))) - fsc(a, b)).max() < 1e-4


def test_independent_noise_correlates_by_chance_only():
    curve = fsc(white(1), white(2))
    pairs = np.bincount(shell_index(BOX).ravel())[: BOX // 2 + 1]
    assert np.abs(curve[3:] * np.sqrt(pairs[3:])).max() < 4.5


def test_signal_to_noise_gives_its_fsc():
    signal, noise1, noise2 = white(3, 64), white(4, 64), white(5, 64)
    curve = fsc(signal + noise1, signal + noise2)  # SNR 1: FSC = SNR / (1 + SNR)
    assert abs(np.mean(curve[8:]) - 0.5) < 0.01


def test_half_a_voxel_of_shift_is_seen():
    """Negative control: a half-map out of register must not pass as the same map."""
    a, _ = half_maps(0.0)
    k = np.fft.fftfreq(BOX)[:, None, None]
    shifted = np.fft.irfftn(np.fft.rfftn(a) * np.exp(-2j * np.pi * k * 0.5), s=a.shape, axes=(0, 1, 2)).astype(
        np.float32
    )
    assert fsc(a, shifted)[18:22].max() < 0.9


def test_shell_without_power_is_zero_not_nan():
    curve = fsc(np.zeros((16,) * 3, np.float32), white(0, 16))
    assert np.array_equal(curve, np.zeros(9))


def phases_drawn(volume: np.ndarray, first_shell: int, rng: np.random.Generator) -> np.ndarray:
    """The map with its amplitudes and, from `first_shell` on, the phases of white noise."""
    noise = np.fft.rfftn(rng.standard_normal(volume.shape))
    transform = np.fft.rfftn(volume)
    drawn = np.abs(transform) * noise / np.abs(noise)
    changed = np.where(radii(len(volume)) < first_shell, transform, drawn)
    return np.fft.irfftn(changed, s=volume.shape, axes=(0, 1, 2)).astype(np.float32)


def test_randomised_curve_is_the_mean_over_draws_of_phases():
    a, b = half_maps(0.2)
    mask, first, rng = ball(BOX, 10, 2), 6, np.random.default_rng(0)
    drawn = [fsc_masked(phases_drawn(a, first, rng), phases_drawn(b, first, rng), mask) for _ in range(60)]
    expected = randomised_masked(a, b, mask, first)
    error = np.std(drawn, axis=0) / np.sqrt(60)
    assert np.abs(np.mean(drawn, axis=0) - expected)[1:].max() < 0.03
    assert (np.abs(np.mean(drawn, axis=0) - expected)[1:] < 4 * error[1:] + 2e-3).all()
    assert expected[1:4].min() > 0.95 and np.abs(expected[14:]).max() < 0.05
    assert np.abs(np.mean(drawn, axis=0) - randomised_masked(a, b, mask, first + 2))[1:].max() > 0.1  # negative control


def test_correction_takes_away_what_a_tight_mask_invents():
    """Pure noise behind a tight, hard mask: the masked FSC lies high, the corrected one must not."""
    noise1, noise2 = white(7), white(8)
    low = filtered(white(9), lambda k: np.exp(-((k / 3) ** 2))) * 40  # something to agree on at low resolution
    mask = np.zeros((BOX,) * 3, np.float32)
    index = np.random.default_rng(2).integers(16, 32, (30, 3))
    mask[tuple(index.T)] = 1
    a, b = low + noise1, low + noise2
    curves = compare_half_maps(a, b, mask, PIXEL)
    beyond = slice(curves.randomised_from + 4, None)
    assert curves.masked[beyond].mean() > 0.3
    assert abs(curves.corrected[beyond].mean()) < 0.2
    assert curves.corrected[beyond].mean() < 0.5 * curves.masked[beyond].mean()


def test_soft_mask_around_the_signal_improves_the_corrected_curve():
    a, b = half_maps(0.15)
    mask = ball(BOX, 14, 6)
    curves = compare_half_maps(a, b, mask, PIXEL)
    assert curves.resolution_A() < curves.resolution_A(curve="unmasked")
    assert np.array_equal(curves.corrected[: curves.randomised_from + 2], curves.masked[: curves.randomised_from + 2])
    assert curves.frequency_per_A[-1] == pytest.approx(1 / (2 * PIXEL))
    assert fsc_masked(a, b, mask) == pytest.approx(curves.masked)


def test_without_a_mask_or_without_a_drop_there_is_nothing_to_correct():
    a, b = half_maps(0.15)
    bare = compare_half_maps(a, b, None, PIXEL)
    assert bare.randomised_from is None and np.array_equal(bare.corrected, bare.unmasked)
    same = compare_half_maps(a, a, ball(BOX, 14, 6), PIXEL)
    assert same.randomised_from is None and np.array_equal(same.corrected, same.masked)


def test_resolution_is_interpolated_between_shells():
    curve = np.array([1, 1, 1, 0.6, 0.4, 0, 0, 0, 0], float)
    assert resolution_at(curve, 0.5, AT) == pytest.approx(16 / 3.5)
    assert resolution_at(curve, 0.6, AT) == pytest.approx(16 / 3)


def test_curves_that_do_not_cross_say_so():
    assert resolution_at(np.ones(9), 0.143, AT) == pytest.approx(2.0)
    assert "better (Nyquist)" in resolution_text(np.ones(9), 0.143, AT)
    assert resolution_at(np.zeros(9), 0.143, AT) == float("inf")
    assert resolution_text(np.zeros(9), 0.143, AT) == "none"
    returns = np.array([1, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])  # the first crossing counts
    assert resolution_at(returns, 0.143, AT) > 8
    assert np.isfinite(resolution_at(np.where(np.arange(9) > 3, np.nan, 1.0), 0.143, AT))


def test_bad_input_says_what_was_expected():
    a = white(0, 16)
    with pytest.raises(ValueError, match="cubic"):
        fsc(a, a[:, :, :8])
    with pytest.raises(ValueError, match="empty"):
        fsc_masked(a, a, np.zeros_like(a))
    with pytest.raises(ValueError, match="expected 0"):
        fsc_masked(a, a, np.full_like(a, 7))
    with pytest.raises(ValueError, match="mask of shape"):
        fsc_masked(a, a, np.ones((8, 8, 8), np.float32))
    with pytest.raises(ValueError, match="pixel size"):
        compare_half_maps(a, a, None, 0.0)
    with pytest.raises(ValueError, match="shells"):
        resolution_at(np.ones(5), 0.5, AT)


def guinier_curves(box: int, pixel: float, to_A: float) -> FscCurves:
    frequency = np.arange(box // 2 + 1) / (box * pixel)
    curve = np.where(frequency <= 1 / to_A, 1.0, 0.0)
    return FscCurves(curve, curve, np.zeros_like(curve), curve, frequency)


@pytest.mark.parametrize("bfactor", [-80.0, -250.0])
def test_bfactor_of_a_map_with_a_known_fall_off_is_found_and_undone(bfactor):
    box, pixel = 64, 1.4
    flat = white(3, box)
    map_ = filtered(flat, lambda k: np.exp(bfactor / 4 * (k / (box * pixel)) ** 2))
    curves = guinier_curves(box, pixel, 3.2)
    fit = guinier_fit(map_, map_, curves)
    assert fit.bfactor_A2 == pytest.approx(bfactor, abs=6)
    assert fit.correlation < -0.9
    combined, applied = combine(map_, map_, curves)
    assert applied == pytest.approx(fit.bfactor_A2)
    amplitude = shell_means(np.fft.rfftn(combined))
    inside = (curves.frequency_per_A > 1 / 10) & (curves.frequency_per_A < 1 / 3.3)
    assert amplitude[inside].std() / amplitude[inside].mean() < 0.05
    assert amplitude[curves.frequency_per_A > 1 / 3.1].max() < 1e-3 * amplitude[inside].mean()


def test_given_bfactor_is_applied_as_it_is():
    a, b = half_maps(0.05)
    curves = compare_half_maps(a, b, None, PIXEL)
    plain, none = combine(a, b, curves, bfactor=0.0)
    sharp, applied = combine(a, b, curves, bfactor=-100.0)
    assert (none, applied) == (0.0, -100.0)
    ratio = shell_means(np.fft.rfftn(sharp)) / np.maximum(shell_means(np.fft.rfftn(plain)), 1e-9)
    expected = np.exp(25 * curves.frequency_per_A**2)
    assert np.abs(ratio / expected - 1)[1:8].max() < 0.02


def test_no_bfactor_is_invented():
    a, b = half_maps(0.3)
    coarse = compare_half_maps(a, b, None, 6.0)  # Nyquist 12 A: no shell beyond 10 A
    assert guinier_fit(a, b, coarse).bfactor_A2 == 0 and "shells" in guinier_fit(a, b, coarse).reason
    rising = filtered(white(3), lambda k: np.exp(k / 8))
    fit = guinier_fit(rising, rising, guinier_curves(BOX, 1.5, 3.2))
    assert fit.bfactor_A2 == 0 and "fall off" in fit.reason


def test_weights_are_zero_beyond_the_first_shell_without_agreement():
    weights = fsc_weights(np.array([-1.0, 1.0, 0.5, -0.1, 0.5]))
    assert weights == pytest.approx([1.0, 1.0, np.sqrt(2 / 3), 0.0, 0.0])


def test_combine_refuses_curves_of_another_box():
    a, b = half_maps(0.1)
    with pytest.raises(ValueError, match="shells"):
        combine(a, b, guinier_curves(32, 2.0, 8.0))
