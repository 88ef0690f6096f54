"""From conformations to recorded images: exact projection, CTF on a padded box, noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.ctf import ctf, ctf_parameters, frequencies, odd_phase
from flex_job.simulation.motion import Conformations
from flex_job.simulation.particles import Recording
from flex_job.simulation.project import oversampled_box, project_beads

__all__ = ["amplitude_scale", "noise_images", "noise_power", "recorded_images", "signal_images"]

BATCH = 250
CALIBRATION_IMAGES = 1000


def signal_images(
    conformations: Conformations, latents: NDArray[np.float64], particles: Consensus, index: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Noise-free images (b, box, box) of the particles at `index`, all of one optics group.

    The image is band-limited to its pixels. The CTF is applied in a box twice as wide, so that what it carries over
    an image's edge is lost and does not come in again at the other side. A pixel's value is the map, as mass per
    voxel of `particles.map`, summed along z. Raises ValueError for several groups or premultiplied data.
    """
    groups = np.unique(particles.optics_index[index])
    if len(groups) != 1:
        raise ValueError(f"particles of {len(groups)} optics groups in one call; expected one")
    optics = particles.optics[groups[0]]
    if optics.premultiplied:
        raise ValueError(
            f"optics group {optics.name!r}: CTF-premultiplied images are not simulated; expected plain ones"
        )
    padded = 2 * optics.box
    fine = oversampled_box(padded)
    magnification = np.array(optics.magnification)
    in_view = particles.rotations[index].copy()
    in_view[:, :2] = magnification.T @ in_view[:, :2]  # where the centres of the beads land
    images = project_beads(
        conformations.beads,
        conformations.positions(latents[index]),
        in_view,
        -particles.origins_A[index],
        fine,
        optics.pixel_size_A * padded / fine,
        particles.map.pixel_size_A**2,
    )
    parameters = ctf_parameters(particles)
    transfer = ctf(parameters, index, padded, optics.pixel_size_A)
    transfer = transfer * _bead_shape(magnification, conformations.beads.sigma_A, padded, optics.pixel_size_A)
    phase = odd_phase(parameters, index, padded, optics.pixel_size_A)
    spectrum = _cut_spectrum(torch.fft.rfft2(torch.from_numpy(images)), padded) * transfer
    if phase is not None:
        spectrum = spectrum * torch.polar(torch.ones_like(phase), phase)
    first = padded // 2 - optics.box // 2
    inside = slice(first, first + optics.box)
    return torch.fft.irfft2(spectrum, s=(padded, padded))[:, inside, inside].numpy()


def _cut_spectrum(spectrum: torch.Tensor, box: int) -> torch.Tensor:
    """The rfft2 of images (b, fine, fine // 2 + 1) cut to the frequencies below Nyquist of a grid of `box` pixels."""
    half = box // 2
    kept = torch.zeros((len(spectrum), box, half + 1), dtype=spectrum.dtype)
    kept[:, :half, :half] = spectrum[:, :half, :half]
    kept[:, -half + 1 :, :half] = spectrum[:, -half + 1 :, :half]
    return kept * (box / spectrum.shape[1]) ** 2


def _bead_shape(magnification: NDArray[np.float64], sigma_A: float, box: int, pixel_size_A: float) -> torch.Tensor:
    """What the transform of a round bead lacks to that of one stretched by the magnification matrix M: at k the slice
    has the bead's transform at M k.
    """
    ky, kx = (axis.double() for axis in frequencies(box, pixel_size_A))
    qx = magnification[0, 0] * kx + magnification[0, 1] * ky
    qy = magnification[1, 0] * kx + magnification[1, 1] * ky
    return torch.exp(2 * np.pi**2 * sigma_A**2 * (kx**2 + ky**2 - qx**2 - qy**2)).float()


def noise_power(kind: str, box: int, pixel_size_A: float) -> NDArray[np.float64]:
    """Power spectrum (box, box // 2 + 1), in rfft2 order, of the noise, with mean 1 over the full transform.

    Coloured noise has five times as much power at low frequencies as at high ones, falling at about 1/30 A.
    """
    k = np.hypot(np.fft.fftfreq(box, pixel_size_A)[:, None], np.fft.fftfreq(box, pixel_size_A)[None])
    power = np.ones_like(k) if kind == "white" else 0.4 + 1.6 / (1 + (30.0 * k) ** 2)
    return (power / power.mean())[:, : box // 2 + 1]


def noise_images(kind: str, count: int, box: int, pixel_size_A: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise (count, box, box) of variance 1, with the spectrum of `noise_power`."""
    white = rng.standard_normal((count, box, box), dtype=np.float32)
    if kind == "white":
        return white
    amplitude = torch.from_numpy(np.sqrt(noise_power(kind, box, pixel_size_A)).astype(np.float32))
    return torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(white)) * amplitude, s=(box, box)).numpy()


def amplitude_scale(
    conformations: Conformations, latents: NDArray[np.float64], particles: Consensus, snr: float, seed: int
) -> float:
    """Factor on the beads' amplitudes that brings the signal's variance over all pixels to `snr`.

    Measured on a thousand random particles. Noise-only data (snr 0) keep the scale of snr 0.1 for their maps.
    """
    rng = np.random.default_rng([seed, 3])
    chosen = np.sort(rng.permutation(len(particles))[:CALIBRATION_IMAGES])
    total = squares = 0.0
    pixels = 0
    for group in np.unique(particles.optics_index[chosen]):
        members = chosen[particles.optics_index[chosen] == group]
        for start in range(0, len(members), BATCH):
            signal = signal_images(conformations, latents, particles, members[start : start + BATCH]).astype(np.float64)
            total, squares, pixels = total + signal.sum(), squares + (signal**2).sum(), pixels + signal.size
    variance = squares / pixels - (total / pixels) ** 2
    return float(np.sqrt((snr or 0.1) / variance))


def recorded_images(
    conformations: Conformations,
    latents: NDArray[np.float64],
    particles: Consensus,
    index: NDArray[np.integer],
    recording: Recording,
    seed: int,
) -> NDArray[np.float32]:
    """Signal and noise (b, box, box) of the particles at `index`, of one optics group, `conformations` scaled already.

    The noise depends on the seed and on the first particle of the batch only.
    """
    optics = particles.optics[particles.optics_index[index[0]]]
    rng = np.random.default_rng([seed, 4, int(index[0])])
    images = noise_images(recording.noise, len(index), optics.box, optics.pixel_size_A, rng)
    if recording.snr > 0:
        images = images + signal_images(conformations, latents, particles, index)
    return -images if recording.inverted else images
