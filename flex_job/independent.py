"""Two motion models, each trained on one half-set, and how well they agree on every particle.

With one model for all particles the half-maps share it, and with it whatever it got wrong. Trained on one half-set
each, from a consensus map that holds only the detail that the halves agree on anyway, two models share nothing else.
What they say of the same particle can then be compared: each infers the latents of the other's particles, with flow
and map frozen, and the difference of the two displacements is the error of one, times the square root of two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.consensus import random_halves
from flex_job.latents import inferred
from flex_job.mesh.tetmesh import vertex_weights
from flex_job.model import FlexModel
from flex_job.particles import ParticleStack
from flex_job.train import Trainer

__all__ = ["Agreement", "agreement", "agreement_sentence", "half_stack", "with_latents_of_all"]

SAMPLE = 2000  # particles that two models are compared on


def half_stack(stack: ParticleStack, half: int, seed: int) -> ParticleStack:
    """The particles of half-set `half` (1 or 2), themselves divided at random: a training's map is filtered by the
    agreement of two halves, which must not be the other half-set."""
    mine = stack.select(np.flatnonzero(stack.halves == half))
    return replace(mine, halves=random_halves(len(mine), (seed, half, 5)))


def with_latents_of_all(whole: Trainer, model: FlexModel, own: NDArray[np.int64]) -> FlexModel:
    """`model`, trained on the particles `own` of the stack of `whole`, with latents of all: those of the others are
    inferred with flow and map frozen. `whole` only lends its levels. Together."""
    stack, group, k = whole.stack, whole.group, model.latents.shape[1]
    latents = np.zeros((len(stack), k), np.float32)
    covariance = np.zeros((len(stack), k, k), np.float32)
    latents[own], covariance[own] = model.latents, model.covariance
    others = np.setdiff1d(np.arange(len(stack)), own)
    p, flow = whole.parameters, model.flow.to(whole.device)
    levels = [whole.levels.level(model.map, band) for band in (p.band_start, p.band_end)]
    finest = levels[-1].model.band
    for batch in stack.batches(group.checked(group.batches(others, whole.micro_batch), whole.events), finest):
        z = torch.zeros(len(batch), k, device=whole.device)
        z, posterior = inferred(levels, flow, batch, whole.vertices, z)
        latents[batch.index], covariance[batch.index] = z.cpu().numpy(), posterior.cpu().numpy()
    for rows in (latents, covariance):
        theirs = np.zeros_like(rows)
        theirs[others] = rows[others]
        group.complete_(torch.from_numpy(theirs), group.own(np.arange(len(stack))))
        rows[others] = theirs[others]
    return replace(model, flow=flow.cpu(), latents=latents, covariance=covariance)


@dataclass(frozen=True)
class Agreement:
    """`error_A` (V,): root mean square difference of the two displacements over the particles, at each vertex, divided
    by the square root of two: the error of one. `motion_A` (V,): their root mean square displacement from the mean.
    `mean_error_A` and `mean_motion_A` are the same over the molecule, by density, and `correlation` that of the two
    displacements from their means."""

    error_A: NDArray[np.float64]
    motion_A: NDArray[np.float64]
    mean_error_A: float
    mean_motion_A: float
    correlation: float

    def record(self) -> dict[str, float]:
        """What a report tells."""
        return {name: getattr(self, name) for name in ("mean_error_A", "mean_motion_A", "correlation")}

    def __str__(self) -> str:
        return agreement_sentence(**self.record())


def agreement_sentence(mean_error_A: float, mean_motion_A: float, correlation: float) -> str:
    """From an agreement's `record`."""
    return (
        f"Two motion models, each trained on one half-set, place the density of a particle with an error of "
        f"{mean_error_A:.2f} A each (root mean square; the motion is {mean_motion_A:.2f} A) and correlate by "
        f"{correlation:.2f}."
    )


def agreement(first: FlexModel, second: FlexModel, seed: int = 0) -> Agreement:
    """Of two models of one mesh with latents of the same particles, on a sample of these."""
    sample = np.sort(np.random.default_rng((seed, 6)).permutation(len(first.latents))[:SAMPLE])
    ours, theirs = (model.displacement(model.latents[sample]).astype(np.float64) for model in (first, second))
    weight = vertex_weights(first.mesh)
    difference = ((ours - theirs) ** 2).sum(-1).mean(0) / 2
    ours, theirs = ours - ours.mean(0), theirs - theirs.mean(0)
    squares = [(each**2).sum(-1).mean(0) for each in (ours, theirs)]
    common = weight @ (ours * theirs).sum(-1).mean(0)
    power = np.sqrt(np.prod([weight @ square for square in squares]))
    motion = 0.5 * (squares[0] + squares[1])
    return Agreement(
        error_A=np.sqrt(difference),
        motion_A=np.sqrt(motion),
        mean_error_A=float(np.sqrt(weight @ difference)),
        mean_motion_A=float(np.sqrt(weight @ motion)),
        correlation=float(common / power) if power > 0 else 0.0,
    )
