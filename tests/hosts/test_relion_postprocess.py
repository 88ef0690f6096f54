"""Our FSC, its correction and the sharpened map against RELION's own `relion_postprocess` on the same half-maps.

RELION draws random phases once, by a seed. Two of its own corrected curves differ by up to 0.05 in a shell, so that
what can agree in every shell is ours, which draws none, and the mean of several of RELION's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import starfile

from flex_job.fsc import FscCurves, compare_half_maps, corrected_for_mask, randomised_masked
from flex_job.sharpen import combine, guinier_fit
from flex_job.volume import read_volume, write_volume

pytestmark = pytest.mark.relion

BOX, PIXEL = 80, 1.6
DRAWS = 24
CORRECTED = "rlnFourierShellCorrelationCorrected"


@dataclass(frozen=True)
class Case:
    folder: Path
    half1: np.ndarray
    half2: np.ndarray
    mask: np.ndarray
    curves: FscCurves
    relion: dict
    sharpened: np.ndarray


def half_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A blob of structure whose amplitudes fall off with B = 300 A^2, white noise, and a tight mask with rough rim."""
    rng = np.random.default_rng(12)
    k = np.fft.fftfreq(BOX, PIXEL)
    k2 = k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.fft.rfftfreq(BOX, PIXEL) ** 2

    def filtered(bfactor: float) -> np.ndarray:
        white = rng.standard_normal((BOX,) * 3)
        return np.fft.irfftn(np.fft.rfftn(white) * np.exp(-bfactor / 4 * k2), s=white.shape, axes=(0, 1, 2))

    axis = np.arange(BOX) - BOX // 2
    radius = np.sqrt((axis[:, None, None] / 1.3) ** 2 + axis[None, :, None] ** 2 + (axis / 0.8) ** 2)
    rough = filtered(400.0)

    mask = np.clip((20 - radius - 3 * rough / rough.std()) / 2 + 0.5, 0, 1)
    signal = filtered(300.0) * np.exp(-((radius / 20) ** 4))
    noise = 0.03 * rng.standard_normal((2, *signal.shape))
    return (signal + noise[0]).astype(np.float32), (signal + noise[1]).astype(np.float32), mask.astype(np.float32)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, relion_program: Callable[[str], Path]) -> Case:
    executable = str(relion_program("relion_postprocess"))
    folder: Path = tmp_path_factory.mktemp("postprocess")
    half1, half2, mask = half_maps()
    for name, data in (("half1", half1), ("half2", half2), ("mask", mask)):
        write_volume(folder / f"{name}.mrc", data, PIXEL)
    curves = compare_half_maps(half1, half2, mask, PIXEL)
    command = [executable, "--i", "half1.mrc", "--i2", "half2.mrc", "--mask", "mask.mrc", "--o", "out/postprocess"]
    command += ["--angpix", str(PIXEL), "--auto_bfac", "--autob_lowres", "10", "--force_mask"]
    command += ["--autob_highres", f"{curves.resolution_A():.4f}"]
    (folder / "out").mkdir()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (folder / "out/postprocess.star").exists(), done.stdout + done.stderr
    tables = starfile.read(folder / "out/postprocess.star", always_dict=True)
    return Case(folder, half1, half2, mask, curves, tables, read_volume(folder / "out/postprocess.mrc").data)


def curve(case: Case, column: str) -> np.ndarray:
    return case.relion["fsc"][column].to_numpy(float)


def test_unmasked_and_masked_curves_agree(case):
    assert np.abs(curve(case, "rlnFourierShellCorrelationUnmaskedMaps") - case.curves.unmasked).max() < 2e-5
    assert np.abs(curve(case, "rlnFourierShellCorrelationMaskedMaps") - case.curves.masked).max() < 2e-5


@pytest.fixture(scope="module")
def draws(case: Case, relion_program: Callable[[str], Path]) -> np.ndarray:
    """RELION's corrected curves for several seeds, (seeds, shells)."""
    curves = []
    for seed in range(DRAWS):
        command = f"{relion_program('relion_postprocess')} --i half1.mrc --i2 half2.mrc --mask mask.mrc --force_mask"
        command += f" --o draws/{seed} --angpix {PIXEL} --random_seed {seed}"
        (case.folder / "draws").mkdir(exist_ok=True)
        done = subprocess.run(command.split(), cwd=case.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        table = starfile.read(case.folder / f"draws/{seed}.star", always_dict=True)["fsc"]
        curves.append(table[CORRECTED].to_numpy(float))
    return np.array(curves)


def test_corrected_curve_is_the_mean_of_relions_draws_in_every_shell(case, draws):
    assert 5 < case.curves.randomised_from < BOX // 2 - 8
    assert np.abs(draws.mean(axis=0) - case.curves.corrected).max() < 0.01


def test_one_draw_of_relion_is_as_far_from_ours_as_chance_takes_it(case, draws):
    """In shells where a draw matters; RELION's differ among themselves by the same, so no single one could be met."""
    spread = draws.std(axis=0, ddof=1)
    assert spread.max() > 0.01
    random = slice(case.curves.randomised_from + 2, None)
    off = np.abs(draws - case.curves.corrected)[:, random]
    assert (off < 5 * spread[random] + 1e-3).all()


def test_the_first_random_shell_matters(case, draws):
    """Negative control: one shell earlier is not RELION's rule, and the mean of its draws tells."""
    start = case.curves.randomised_from
    wrong = randomised_masked(case.half1, case.half2, case.mask, start - 1)
    assert np.abs(draws.mean(axis=0) - corrected_for_mask(case.curves.masked, wrong, start)).max() > 0.015


def test_correction_is_what_makes_it_agree(case):
    """Negative control: the mask lifts the curve, and the uncorrected one does not pass for RELION's."""
    tail = slice(case.curves.randomised_from + 4, None)
    difference = curve(case, "rlnFourierShellCorrelationCorrected") - case.curves.masked
    assert np.abs(difference[tail]).max() > 0.1


def test_randomisation_starts_at_the_same_shell(case):
    assert case.relion["general"]["rlnRandomiseFrom"] == pytest.approx(
        BOX * PIXEL / case.curves.randomised_from, rel=1e-4
    )


def test_final_resolution_agrees_within_a_shell(case):
    """RELION reports the last shell above 0.143, we interpolate to the crossing: at most one shell finer."""
    relion = float(case.relion["general"]["rlnFinalResolution"])
    ours = case.curves.resolution_A(0.143)
    assert BOX * PIXEL / (BOX * PIXEL / relion + 1.5) <= ours <= relion + 1e-3


def with_relion_curve(case: Case) -> FscCurves:
    """Our curves with RELION's corrected one in place, so that its random draw does not stand between the maps."""
    return replace(case.curves, corrected=curve(case, "rlnFourierShellCorrelationCorrected"))


def bfactor(case: Case) -> float:
    return float(case.relion["general"]["rlnBfactorUsedForSharpening"])


def test_bfactor_agrees(case):
    assert bfactor(case) < -100
    assert guinier_fit(case.half1, case.half2, with_relion_curve(case)).bfactor_A2 == pytest.approx(
        bfactor(case), abs=5
    )
    assert guinier_fit(case.half1, case.half2, case.curves).bfactor_A2 == pytest.approx(bfactor(case), abs=20)


def test_sharpened_map_is_relions(case):
    combined, applied = combine(case.half1, case.half2, with_relion_curve(case), bfactor=bfactor(case))
    assert applied == bfactor(case)
    assert np.linalg.norm(combined - case.sharpened) / np.linalg.norm(case.sharpened) < 2e-3


def test_wrong_bfactor_sign_fails(case):
    """Negative control: dampening instead of sharpening is far from RELION's map."""
    wrong, _ = combine(case.half1, case.half2, with_relion_curve(case), bfactor=-bfactor(case))
    assert np.linalg.norm(wrong - case.sharpened) / np.linalg.norm(case.sharpened) > 0.3
