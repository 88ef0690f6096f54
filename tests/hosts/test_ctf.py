"""Laws of the CTF that need no host: closed forms, symmetry, independence of batch and box."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flex_job.consensus import Consensus, OpticsGroup
from flex_job.ctf import ctf, ctf_parameters, electron_wavelength, frequencies, odd_phase
from flex_job.volume import Volume

BOX = 24


@pytest.fixture
def consensus() -> Consensus:
    """Six particles in two optics groups with all there is: astigmatism, phase shift, B-factor, scale, aberrations."""
    rng = np.random.default_rng(3)
    count = 6
    defocus = rng.uniform(5e3, 2e4, count)
    plain = OpticsGroup("plain", BOX, 2.0, 300.0, 2.7, 0.1)
    other = OpticsGroup(
        "aberrated",
        BOX,
        1.5,
        200.0,
        0.01,
        0.07,
        beam_tilt_mrad=(4.0, -7.0),
        odd_zernike=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        even_zernike=(0.1, 1.0, 2.0, 3.0, 4.0),
        magnification=((1.05, 0.02), (-0.03, 0.97)),
    )
    return Consensus(
        rotations=np.tile(np.eye(3), (count, 1, 1)),
        origins_A=np.zeros((count, 2)),
        halves=np.array([1, 2] * 3, dtype=np.int8),
        optics_index=np.array([0, 1, 0, 1, 0, 1], dtype=np.int32),
        optics=(plain, other),
        defocus_u_A=defocus + 800.0,
        defocus_v_A=defocus - 800.0,
        defocus_angle_rad=rng.uniform(0, np.pi, count),
        phase_shift_rad=rng.uniform(0, 2.0, count),
        ctf_bfactor_A2=rng.uniform(0, 80.0, count),
        ctf_scale=rng.uniform(0.5, 1.5, count),
        stack_paths=(Path("none.mrcs"),),
        stack_index=np.zeros(count, dtype=np.int32),
        image_index=np.arange(count),
        map=Volume(np.zeros((BOX, BOX, BOX), dtype=np.float32), 2.0),
    )


def test_wavelength_is_de_broglies() -> None:
    """Relativistic h / p from CODATA constants; RELION's constants agree to five digits."""
    h, m, e, c = 6.62607015e-34, 9.1093837e-31, 1.602176634e-19, 299792458.0
    for kilovolts in (100.0, 200.0, 300.0):
        energy = e * kilovolts * 1e3
        exact = h / np.sqrt(2 * m * energy * (1 + energy / (2 * m * c**2))) * 1e10
        assert electron_wavelength(kilovolts) == pytest.approx(exact, rel=1e-5)


def test_round_lens_has_the_textbook_ctf(consensus: Consensus) -> None:
    """sin(pi lambda dz k^2 - pi/2 Cs lambda^3 k^4 + asin(Q0)): +Q0 in the middle, and underfocus is positive."""
    defocus = consensus.defocus_u_A
    zero = np.zeros(len(consensus))
    round_lens = replace(
        consensus, defocus_v_A=defocus, phase_shift_rad=zero, ctf_bfactor_A2=zero, ctf_scale=zero + 1.0
    )
    value = ctf(ctf_parameters(round_lens), [0], BOX, 2.0)[0]
    ky, kx = frequencies(BOX, 2.0)
    k2 = (kx**2 + ky**2).double()
    wavelength = electron_wavelength(300.0)
    gamma = np.pi * wavelength * defocus[0] * k2 - np.pi / 2 * 2.7e7 * wavelength**3 * k2**2 + np.arcsin(0.1)
    assert torch.allclose(value, gamma.sin().float(), atol=2e-4)
    assert value[0, 0] == pytest.approx(0.1, abs=1e-6)


def test_frequencies_are_rfft2s() -> None:
    ky, kx = frequencies(5, 2.0)
    assert torch.allclose(ky[:, 0], torch.tensor([0.0, 0.1, 0.2, -0.2, -0.1]))
    assert torch.allclose(kx[0], torch.tensor([0.0, 0.1, 0.2]))


@pytest.mark.parametrize("box", [12, 16])
def test_a_smaller_box_of_larger_pixels_has_the_same_values(consensus: Consensus, box: int) -> None:
    """Fourier cropping keeps k: the CTF of the training box is the corner of the full one."""
    parameters = ctf_parameters(consensus)
    index = np.arange(6)
    pixels = np.array([group.pixel_size_A for group in consensus.optics])[consensus.optics_index]
    for function in (ctf, odd_phase):
        large, small = (function(parameters, index, b, pixels * BOX / b) for b in (BOX, box))
        assert large is not None and small is not None
        rows = np.r_[: box // 2, -box // 2 + 1 : 0]
        expected = large[:, rows][..., : box // 2]
        found = small[:, np.r_[: box // 2, box // 2 + 1 : box]][..., : box // 2]
        assert torch.allclose(found, expected, atol=2e-4), function.__name__


def test_batches_do_not_matter(consensus: Consensus) -> None:
    parameters = ctf_parameters(consensus)
    pixels = np.array([2.0, 1.5] * 3)
    together = ctf(parameters, np.arange(6), BOX, pixels)
    phases = odd_phase(parameters, np.arange(6), BOX, pixels)
    assert phases is not None and not phases[0].any() and phases[1].any()
    for order in ([5, 0, 3], [1]):
        assert torch.allclose(ctf(parameters, order, BOX, pixels[order]), together[order], atol=1e-4)
        again = odd_phase(parameters, torch.tensor(order), BOX, pixels[order])
        assert again is not None and torch.allclose(again, phases[order], atol=1e-4)
        chosen = parameters.select(np.array(order))
        assert torch.allclose(ctf(chosen, np.arange(len(order)), BOX, pixels[order]), together[order], atol=1e-4)


def test_even_is_even_and_odd_is_odd(consensus: Consensus) -> None:
    """CTF(-k) = CTF(k), phase(-k) = -phase(k), so corrected images stay real. Rows of kx = 0 hold both k and -k."""
    parameters = ctf_parameters(consensus)
    even = ctf(parameters, [1], BOX, 1.5)[0, :, 0]
    odd = odd_phase(parameters, [1], BOX, 1.5)
    assert odd is not None
    ahead = slice(1, BOX // 2)
    mirrored = [-1 - i for i in range(BOX // 2 - 1)]
    assert torch.allclose(even[ahead], even[mirrored], atol=1e-5)
    assert torch.allclose(odd[0, ahead, 0], -odd[0, mirrored, 0], atol=1e-5)
    assert odd[0, ahead, 0].abs().max() > 1e-3


def test_beam_tilt_is_coma(consensus: Consensus) -> None:
    """-2 pi Cs lambda^2 |k|^2 (tilt . k)."""
    tilted = replace(consensus, optics=(replace(consensus.optics[0], beam_tilt_mrad=(2.0, -3.0)), consensus.optics[0]))
    phase = odd_phase(ctf_parameters(tilted), [0], BOX, 2.0)
    ky, kx = frequencies(BOX, 2.0)
    expected = -2 * np.pi * 2.7e7 * electron_wavelength(300.0) ** 2 * (kx**2 + ky**2) * (2e-3 * kx - 3e-3 * ky)
    assert phase is not None
    assert torch.allclose(phase[0], expected, atol=1e-5)


def test_no_aberration_has_no_phase(consensus: Consensus) -> None:
    plain = replace(consensus, optics=(consensus.optics[0],), optics_index=np.zeros(6, dtype=np.int32))
    assert odd_phase(ctf_parameters(plain), np.arange(6), BOX, 2.0) is None


@pytest.mark.parametrize("flag", ["phase_flipped", "premultiplied"])
def test_unsigned_data_have_the_absolute_value(consensus: Consensus, flag: str) -> None:
    flags: dict[str, Any] = {flag: True}
    flipped = replace(consensus, optics=(consensus.optics[0], replace(consensus.optics[1], **flags)))
    signed, unsigned = (ctf(ctf_parameters(c), np.arange(6), BOX, 2.0) for c in (consensus, flipped))
    assert torch.equal(unsigned[::2], signed[::2]) and torch.equal(unsigned[1::2], signed[1::2].abs())
    assert (signed[1::2] < 0).any()
