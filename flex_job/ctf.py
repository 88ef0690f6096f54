"""Contrast transfer function and odd aberration phases, batched over particles, for the training loop.

Convention (RELION 3.1.3 behaviour, tested in tests/hosts/test_relion_conventions.py): at frequency k (1/A) of the
image, with M the optics group's magnification matrix and q = M k,

    gamma = -pi lambda dz(q) |q|^2 + (pi/2) Cs lambda^3 |q|^4 - phase_shift - asin(Q0) + even_zernikes(q)
    CTF   = -sin(gamma) exp(-B |q|^2 / 4) scale                                     so that CTF(0) = +Q0 scale
    odd   = -2 pi Cs lambda^2 |q|^2 (tilt . q) + odd_zernikes(q)

and the image's transform is CTF exp(i odd) times the slice of the map. Zernike polynomials are evaluated at q in
1/A (not scaled to a unit disc). Phase-flipped and premultiplied data carry no sign: |CTF|. Premultiplied images have
had the CTF applied to them a second time, signal and noise: their signal is the slice times `ctf()**2` and their
noise power is proportional to `ctf()**2` (RELION back-projects them without another CTF factor, weight CTF^2).
Where odd Zernikes and beam tilt are both given they add, as in RELION 4 and 5; RELION 3.1 lets the tilt replace
coefficients 4 and 5 of `rlnOddZernike`, which its own programs write as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.consensus import Consensus

__all__ = [
    "CtfParameters",
    "ctf",
    "ctf_at",
    "ctf_parameters",
    "electron_wavelength",
    "frequencies",
    "odd_phase",
    "odd_phase_at",
]

Index = Sequence[int] | NDArray[np.integer] | torch.Tensor


@dataclass(frozen=True)
class CtfParameters:
    """CTF parameters: float64 tensors per particle (n,), tables per optics group (g,) pointed at by `optics_index`."""

    defocus_u_A: torch.Tensor
    defocus_v_A: torch.Tensor
    defocus_angle_rad: torch.Tensor
    phase_shift_rad: torch.Tensor
    bfactor_A2: torch.Tensor
    scale: torch.Tensor
    optics_index: torch.Tensor
    wavelength_A: torch.Tensor
    spherical_aberration_A: torch.Tensor
    amplitude_contrast: torch.Tensor
    magnification: torch.Tensor  # (g, 2, 2)
    beam_tilt_rad: torch.Tensor  # (g, 2) xy
    unsigned: torch.Tensor  # (g,) bool: phase-flipped or premultiplied
    premultiplied: torch.Tensor  # (g,) bool
    even_zernike: tuple[tuple[float, ...], ...]
    odd_zernike: tuple[tuple[float, ...], ...]

    def __len__(self) -> int:
        return len(self.optics_index)

    def select(self, index: Index) -> CtfParameters:
        """The particles at `index`, in that order; the tables of optics groups stay whole."""
        chosen = torch.as_tensor(index)
        return replace(
            self,
            defocus_u_A=self.defocus_u_A[chosen],
            defocus_v_A=self.defocus_v_A[chosen],
            defocus_angle_rad=self.defocus_angle_rad[chosen],
            phase_shift_rad=self.phase_shift_rad[chosen],
            bfactor_A2=self.bfactor_A2[chosen],
            scale=self.scale[chosen],
            optics_index=self.optics_index[chosen],
        )


def electron_wavelength(voltage_kV: float) -> float:
    """Relativistic wavelength in angstroms, with RELION's constants."""
    volts = voltage_kV * 1e3
    return 12.2643247 / math.sqrt(volts * (1.0 + 0.978466e-6 * volts))


def ctf_parameters(consensus: Consensus) -> CtfParameters:
    """Gather the CTF parameters of all particles of `consensus`."""
    groups = consensus.optics

    def particles(values: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float64))

    def table(values: Sequence[object], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)

    return CtfParameters(
        defocus_u_A=particles(consensus.defocus_u_A),
        defocus_v_A=particles(consensus.defocus_v_A),
        defocus_angle_rad=particles(consensus.defocus_angle_rad),
        phase_shift_rad=particles(consensus.phase_shift_rad),
        bfactor_A2=particles(consensus.ctf_bfactor_A2),
        scale=particles(consensus.ctf_scale),
        optics_index=torch.from_numpy(np.array(consensus.optics_index, dtype=np.int64)),
        wavelength_A=table([electron_wavelength(group.voltage_kV) for group in groups]),
        spherical_aberration_A=table([group.spherical_aberration_mm * 1e7 for group in groups]),
        amplitude_contrast=table([group.amplitude_contrast for group in groups]),
        magnification=table([group.magnification for group in groups]),
        beam_tilt_rad=table([group.beam_tilt_mrad for group in groups]) * 1e-3,
        unsigned=table([group.phase_flipped or group.premultiplied for group in groups], torch.bool),
        premultiplied=table([group.premultiplied for group in groups], torch.bool),
        even_zernike=tuple(group.even_zernike for group in groups),
        odd_zernike=tuple(group.odd_zernike for group in groups),
    )


def frequencies(box: int, pixel_size_A: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(ky, kx), each (box, box // 2 + 1) float32 in 1/A, in the order of torch.fft.rfft2 (not centred)."""
    ky, kx = (each.view(box, box // 2 + 1).to(torch.float32) for each in _half_plane(box))
    return ky / (box * pixel_size_A), kx / (box * pixel_size_A)


def ctf(
    parameters: CtfParameters, index: Index, box: int, pixel_size_A: float | NDArray[np.floating] | torch.Tensor
) -> torch.Tensor:
    """The CTF of particles `index` (b,): float32 (b, box, box // 2 + 1) in rfft2 order. See `ctf_at`."""
    extent = box * torch.as_tensor(pixel_size_A, dtype=torch.float64)
    return ctf_at(parameters, index, *_half_plane(box), extent).view(-1, box, box // 2 + 1)


def ctf_at(
    parameters: CtfParameters,
    index: Index,
    ky: torch.Tensor,
    kx: torch.Tensor,
    extent_A: float | NDArray[np.floating] | torch.Tensor,
) -> torch.Tensor:
    """The CTF of particles `index` (b,) at ky, kx (m,) waves per box: float32 (b, m) on the device of these.

    `extent_A`, the box's edge, is one number or one per particle (b,). Signed, except for phase-flipped and
    premultiplied data, where it is |CTF|. See the module's text for the convention and for premultiplied data.
    """
    chosen, extent = _batch(parameters, index, extent_A)
    group, device = chosen.optics_index, ky.device
    wavelength = chosen.wavelength_A[group]
    # Both |M k|^2 and the astigmatic defocus term are quadratic forms in the wave numbers, three numbers per particle,
    # so that the whole batch is two small matrix products. These are prepared in float64, in the host's memory.
    magnification = chosen.magnification[group] / extent[:, None, None]
    axis = chosen.defocus_angle_rad
    direction = torch.stack([axis.cos(), axis.sin()], dim=1)
    astigmatism = torch.einsum("b,bi,bj->bij", chosen.defocus_u_A - chosen.defocus_v_A, direction, direction)
    astigmatism = astigmatism + chosen.defocus_v_A[:, None, None] * torch.eye(2, dtype=torch.float64)
    transposed = magnification.transpose(1, 2)
    phase = chosen.phase_shift_rad + torch.asin(chosen.amplitude_contrast[group])
    spherical = 0.5 * math.pi * chosen.spherical_aberration_A[group] * wavelength**3
    x, y = kx.to(torch.float32), ky.to(torch.float32)
    basis = torch.stack([x * x, x * y, y * y])
    q2 = _quadratic(transposed @ magnification).to(device) @ basis
    defocus = transposed @ astigmatism @ magnification * (-math.pi * wavelength[:, None, None])
    gamma = _quadratic(defocus).to(device) @ basis
    gamma.addcmul_(q2 * _column(spherical, device), q2)
    gamma -= _column(phase, device)
    _add_zernikes(gamma, chosen.even_zernike, _even_term, chosen, extent, ky, kx)
    value = gamma.sin_().neg_()
    if chosen.bfactor_A2.any():
        value *= torch.exp(q2 * _column(-0.25 * chosen.bfactor_A2, device))
    unsigned = chosen.unsigned[group]
    if unsigned.any():
        value = torch.where(unsigned.to(device)[:, None], value.abs(), value)
    return value.mul_(_column(chosen.scale, device))


def odd_phase(
    parameters: CtfParameters, index: Index, box: int, pixel_size_A: float | NDArray[np.floating] | torch.Tensor
) -> torch.Tensor | None:
    """Phase of beam tilt and odd Zernikes: float32 (b, box, box // 2 + 1) in rfft2 order. See `odd_phase_at`."""
    extent = box * torch.as_tensor(pixel_size_A, dtype=torch.float64)
    phase = odd_phase_at(parameters, index, *_half_plane(box), extent)
    return None if phase is None else phase.view(-1, box, box // 2 + 1)


def odd_phase_at(
    parameters: CtfParameters,
    index: Index,
    ky: torch.Tensor,
    kx: torch.Tensor,
    extent_A: float | NDArray[np.floating] | torch.Tensor,
) -> torch.Tensor | None:
    """Phase of beam tilt and odd Zernikes in radians at ky, kx (m,) waves per box, float32 (b, m), or None when no
    group has any.

    An image is the CTF-affected projection with its transform times exp(+i phase): multiply the image's transform
    by exp(-i phase) to correct it. Sign as in RELION 3.1.3, tested in tests/hosts/test_relion_conventions.py.
    """
    if not parameters.beam_tilt_rad.any() and not any(any(row) for row in parameters.odd_zernike):
        return None
    chosen, extent = _batch(parameters, index, extent_A)
    phase = torch.zeros(len(chosen), len(kx), dtype=torch.float32, device=kx.device)
    strength = -2.0 * math.pi * chosen.spherical_aberration_A * chosen.wavelength_A**2
    tilts = (strength[:, None] * chosen.beam_tilt_rad).tolist()  # (g, 2): coefficients of |q|^2 qx and |q|^2 qy
    _add_zernikes(phase, tuple(tuple(tilt) for tilt in tilts), _tilt_term, chosen, extent, ky, kx)
    _add_zernikes(phase, chosen.odd_zernike, _odd_term, chosen, extent, ky, kx)
    return phase


def _batch(
    parameters: CtfParameters, index: Index, extent_A: float | NDArray[np.floating] | torch.Tensor
) -> tuple[CtfParameters, torch.Tensor]:
    """The chosen particles and the edges of their boxes (b,) float64."""
    chosen = parameters.select(index)
    return chosen, torch.as_tensor(extent_A, dtype=torch.float64).expand(len(chosen))


@lru_cache(maxsize=8)
def _half_plane(box: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ky, kx (box * (box // 2 + 1),) float64 in waves per box, of the rfft2 half plane."""
    ky = torch.fft.fftfreq(box, 1 / box, dtype=torch.float64)
    kx = torch.arange(box // 2 + 1, dtype=torch.float64)
    y, x = torch.meshgrid(ky, kx, indexing="ij")
    return y.reshape(-1), x.reshape(-1)


def _column(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(b,) as float32 (b, 1) on a device."""
    return values[:, None].to(device, torch.float32)


def _quadratic(form: torch.Tensor) -> torch.Tensor:
    """Coefficients (b, 3) of kx^2, kx ky, ky^2 in the symmetric forms k^T form k, form (b, 2, 2)."""
    return torch.stack([form[:, 0, 0], form[:, 0, 1] + form[:, 1, 0], form[:, 1, 1]], dim=1).to(torch.float32)


Term = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def _add_zernikes(
    total: torch.Tensor,
    coefficients: tuple[tuple[float, ...], ...],
    term: Term,
    chosen: CtfParameters,
    extent: torch.Tensor,
    ky: torch.Tensor,
    kx: torch.Tensor,
) -> None:
    """Add sum_i c_i term_i(q) to `total` (b, m), once per optics group and box edge that have coefficients."""
    for number, row in enumerate(coefficients):
        members = chosen.optics_index == number
        if not any(row) or not members.any():
            continue
        for size in torch.unique(extent[members]).tolist():
            ((xx, xy), (yx, yy)) = (chosen.magnification[number] / size).tolist()
            x, y = kx.double(), ky.double()
            qx, qy = xx * x + xy * y, yx * x + yy * y
            phase = sum(c * term(i, qx, qy) for i, c in enumerate(row) if c)
            total[(members & (extent == size)).to(total.device)] += phase.to(torch.float32)  # type: ignore[union-attr]


def _tilt_term(i: int, qx: torch.Tensor, qy: torch.Tensor) -> torch.Tensor:
    """|q|^2 qx for 0, |q|^2 qy for 1."""
    return (qx * qx + qy * qy) * (qx, qy)[i]


def _even_term(i: int, qx: torch.Tensor, qy: torch.Tensor) -> torch.Tensor:
    """RELION's i-th even Zernike: n = 0, 2, 2, 2, 4, ... with m from -n to n in steps of 2."""
    half = math.isqrt(i)
    return _zernike(2 * (i - half * half - half), 2 * half, qx, qy)


def _odd_term(i: int, qx: torch.Tensor, qy: torch.Tensor) -> torch.Tensor:
    """RELION's i-th odd Zernike: n = 1, 1, 3, 3, 3, 3, 5, ... with m from -n to n in steps of 2."""
    half = (math.isqrt(1 + 4 * i) - 1) // 2
    n = 2 * half + 1
    return _zernike(2 * (i - half * half - half) - n, n, qx, qy)


def _zernike(m: int, n: int, qx: torch.Tensor, qy: torch.Tensor) -> torch.Tensor:
    """Z_n^m = R_n^|m|(|q|) cos(m phi) for m >= 0, sin(|m| phi) for m < 0; not normalised."""
    radius, angle, order = torch.hypot(qx, qy), torch.atan2(qy, qx), abs(m)
    radial = torch.zeros_like(radius)
    for k in range((n - order) // 2 + 1):
        denominator = math.factorial(k) * math.factorial((n + order) // 2 - k) * math.factorial((n - order) // 2 - k)
        radial += (-1) ** k * math.factorial(n - k) / denominator * radius ** (n - 2 * k)
    return radial * (torch.cos(order * angle) if m >= 0 else torch.sin(order * angle))
