"""The maps of a simulated consensus refinement: average density, noisy half-maps, mask."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from flex_job.mask import lowpass, soft_mask
from flex_job.simulation.motion import Conformations
from flex_job.simulation.project import mean_density
from flex_job.volume import Volume

__all__ = ["ConsensusMaps", "consensus_maps", "population"]

CONFORMATIONS_AVERAGED = 64
MASK_LOWPASS_A = 15.0
MASK_LEVEL = 0.04  # of the low-passed average's maximum: an arm smeared over its whole range is still inside
MASK_EDGE_PX = 3.0
HALF_FSC_AT_RESOLUTION = 1.0 / 7.0


@dataclass(frozen=True)
class ConsensusMaps:
    """`exact` is the average density, `half_maps` that plus independent white noise, `filtered` the mean of the two
    halves with the filter RELION would apply, `mask` soft around the average.
    """

    exact: Volume
    half_maps: tuple[Volume, Volume]
    filtered: Volume
    mask: Volume


def population(conformations: Conformations, fixed_latent: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Latents (m, k) that stand evenly for all particles: a quasi-random sequence, all combinations of the levels, or
    the one fixed latent.
    """
    if fixed_latent is not None:
        return np.atleast_2d(np.asarray(fixed_latent, dtype=np.float64))
    if conformations.latent_dims == 0:
        return np.zeros((1, 0))
    if conformations.levels:
        return np.array(list(product(conformations.levels, repeat=conformations.latent_dims)))
    sequence = qmc.Halton(conformations.latent_dims, scramble=False)
    sequence.fast_forward(1)  # its first point is the corner of the range
    return 2.0 * sequence.random(CONFORMATIONS_AVERAGED) - 1.0


def consensus_maps(
    conformations: Conformations,
    latents: NDArray[np.float64],
    box: int,
    pixel_size_A: float,
    resolution_A: float,
    seed: int = 0,
) -> ConsensusMaps:
    """Maps of a consensus refinement that did everything right but the motion; no images are reconstructed.

    The noise of the half-maps is white, at the level where their FSC falls to 1/7 at `resolution_A`.
    """
    exact = mean_density(conformations, latents, box, pixel_size_A)
    spectrum = np.fft.rfftn(exact.data.astype(np.float64))
    axis = np.fft.fftfreq(box, pixel_size_A)
    k = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + np.fft.rfftfreq(box, pixel_size_A) ** 2)
    shell = np.rint(k * box * pixel_size_A).astype(int)
    power = np.bincount(shell.ravel(), (np.abs(spectrum) ** 2).ravel()) / np.bincount(shell.ravel())
    at_limit = power[min(round(box * pixel_size_A / resolution_A), box // 2)]
    noise_power = at_limit * (1 / HALF_FSC_AT_RESOLUTION - 1)
    rng = np.random.default_rng([seed, 5])
    halves = [
        exact.data + np.sqrt(noise_power / box**3) * rng.standard_normal(exact.data.shape, dtype=np.float32)
        for _ in range(2)
    ]
    fsc = power / (power + noise_power)
    weight = np.sqrt(2 * fsc / (1 + fsc))[shell]
    filtered = np.fft.irfftn(np.fft.rfftn(halves[0] + halves[1]) / 2 * weight, s=exact.data.shape, axes=(0, 1, 2))
    smooth = lowpass(exact, MASK_LOWPASS_A)
    mask = soft_mask(smooth > MASK_LEVEL * smooth.max(), MASK_EDGE_PX)

    def volume(data: NDArray[np.floating]) -> Volume:
        return Volume(data.astype(np.float32), exact.pixel_size_A)

    return ConsensusMaps(exact, (volume(halves[0]), volume(halves[1])), volume(filtered), volume(mask))
