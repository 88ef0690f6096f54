"""Are the latents as uncertain as their posterior says? Asked of the images themselves, without a truth.

The posterior covariance S = (J^T J + I)^-1 takes images for linear in the latents around the optimum. Where noise
carries the optimum far they are not, and the truth lies outside the stated interval too often. So the latents of a
sample of the particles are inferred from two random halves of their Fourier coefficients, in which the noise is
independent. With S right, the difference of the two has the covariance (S_1 - S_2)^2 + (S_1 - S_1^2) + (S_2 - S_2^2):
the first term is what the prior draws the halves apart, the others are the noise. The factor c on the noise is found
with which 68 % of the differences lie within one standard deviation, and the posterior takes it over as
S + (c - 1) (S - S^2), which leaves a latent that the images say nothing of at the prior.

What the two halves share is not seen: errors of flow and map that the same particle meets in both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.latents import inferred
from flex_job.model import FlexModel
from flex_job.train import Trainer

__all__ = ["calibrated", "noise_factor", "told", "widened"]

SAMPLE = 1500  # particles: the factor is then known to 5 %
INSIDE = 0.6827  # of a normal distribution within one standard deviation
LARGEST = 100.0

Floats = NDArray[np.floating]


def calibrated(whole: Trainer, model: FlexModel) -> tuple[FlexModel, float]:
    """`model` with the posterior covariances of its latents calibrated, and the factor on the noise's variance. `whole`
    lends its particles and levels. The factor is at least one: no interval gets narrower. Together."""
    stack, group, dims = whole.stack, whole.group, model.latents.shape[1]
    sample = np.random.default_rng((whole.seed, 7)).permutation(len(stack))[:SAMPLE]
    p, flow = whole.parameters, model.flow.to(whole.device)
    levels = [whole.levels.level(model.map, band) for band in (p.band_start, p.band_end)]
    band = levels[-1].model.band
    half = torch.from_numpy(np.random.default_rng((whole.seed, 8)).random(len(band)) < 0.5).to(whole.device)
    found = torch.zeros(len(stack), 2, dims, 1 + dims, dtype=torch.float64)  # of each half: latents, covariance
    indices = group.checked(group.batches(np.sort(sample), whole.micro_batch), whole.events)
    for number, batch in enumerate(stack.batches(indices, band)):
        whole.events.progress(number * whole.micro_batch * group.size / len(sample))
        for row, seen in enumerate((half, ~half)):
            zero = torch.zeros(len(batch), dims, device=whole.device)
            z, covariance = inferred(levels, flow, batch.only(seen), whole.vertices, zero)
            found[batch.index, row] = torch.cat([z[..., None], covariance], dim=2).double().cpu()
    flow.cpu()
    group.complete_(found, group.own(np.arange(len(stack))))
    first, second = found[np.sort(sample)].numpy().swapaxes(0, 1)
    factor = max(1.0, noise_factor(first[..., 0], second[..., 0], first[..., 1:], second[..., 1:]))
    return replace(model, covariance=widened(model.covariance, factor)), factor


def told(factor: float) -> str:
    """The factor in a sentence."""
    asked = "Inferred from two halves of each image's Fourier coefficients, the latents differ by"
    if factor == 1:
        return f"{asked} no more than their stated uncertainty."
    return (
        f"{asked} {np.sqrt(factor):.2f} times what the curvature of the likelihood tells, and their stated uncertainty "
        "was widened by as much."
    )


def noise_factor(z: Floats, other_z: Floats, covariance: Floats, other_covariance: Floats) -> float:
    """The factor on the variance of the noise with which 68 % of the differences of two inferences of the same latents
    z (n, K), with posterior covariances (n, K, K) and independent noise, lie within their standard deviation. 68 % and
    not the mean square: a few latents in a false optimum must not widen the intervals of all."""
    square = np.square(z - other_z)
    apart = np.square(covariance - other_covariance).sum(axis=2)  # diagonals of products of symmetric matrices
    noise = np.zeros_like(apart)
    for each in (covariance, other_covariance):
        noise += np.diagonal(each, axis1=1, axis2=2) - np.square(each).sum(axis=2)
    low, high = 1 / LARGEST, LARGEST
    for _ in range(50):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if (square <= apart + middle * noise).mean() >= INSIDE else (middle, high)
    return float(high)


def widened(covariance: Floats, factor: float) -> NDArray[np.float32]:
    """Posterior covariances (n, K, K) with the noise's variance times `factor`."""
    return (covariance + (factor - 1) * (covariance - covariance @ covariance)).astype(np.float32)
