"""How much better the motion explains each particle than a rigid map does: a number to select particles by.

Each particle is compared with the half-maps of the other half-set, flex and rigid, filtered by their FSC. Its latents
are fitted to one random half of its Fourier coefficients and the likelihood is taken on the other half, then the halves
change places: a motion that only follows noise loses. What remains of the particle's own noise is in the flow, which
all particles share (with independent halves not even there), and in the place that the latents start from, which only
matters to second order. Unlike in a validation neither model corrects poses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.fourier import fourier_resize
from flex_job.fsc import fsc, shell_index
from flex_job.latents import gauss_newton
from flex_job.levels import Level
from flex_job.model import FlexModel
from flex_job.particles import Batch
from flex_job.train import Trainer
from flex_job.volume import Volume

__all__ = ["filtered_by_fsc", "likelihood_gains", "told_gains"]

Halves = Sequence[Volume]


def likelihood_gains(trainer: Trainer, models: Sequence[FlexModel], rigid: Halves, flex: Halves) -> NDArray[np.float64]:
    """Log-likelihood (n,) in nats of each particle of `trainer` under the motion less that under the rigid map, in the
    training's final band. `rigid` and `flex` are both half-maps; `models` the one model or one for each half-set, with
    latents of all particles. Together."""
    stack, group = trainer.stack, trainer.group
    band = trainer.parameters.band_end
    gains = torch.zeros(len(stack), dtype=torch.float64)
    rigid, flex = (filtered_by_fsc(halves, stack.box) for halves in (rigid, flex))
    for half in (1, 2):
        other = 2 - half
        still, moving = (trainer.levels.level(maps[other], band) for maps in (rigid, flex))
        model = models[other % len(models)]
        flow = model.flow.to(trainer.device)
        m = len(moving.model.band)
        seen = torch.from_numpy(np.random.default_rng((trainer.seed, 9)).random(m) < 0.5).to(trainer.device)
        indices = group.batches(np.flatnonzero(stack.halves == half), trainer.micro_batch)
        batches = stack.batches(group.checked(indices, trainer.events), moving.model.band)
        for number, batch in enumerate(batches):
            trainer.events.progress(0.5 * (half - 1 + number / len(indices)), f"half-set {half}")
            start = torch.from_numpy(model.latents[batch.index]).to(trainer.device)
            at_rest = _residual(still, batch, trainer.vertices)
            for part in (seen, ~seen):
                z, _, _ = gauss_newton(moving.model, moving.values, flow, batch.only(part), trainer.vertices, start)
                with torch.no_grad():
                    moved = _residual(moving, batch, trainer.vertices + flow(z))
                gains[batch.index] += (_loss(at_rest, ~part) - _loss(moved, ~part)).cpu()
        flow.cpu()
    group.complete_(gains, group.own(np.arange(len(stack))))
    return gains.numpy()


def filtered_by_fsc(halves: Halves, box: int) -> list[Volume]:
    """Both half-maps at `box`, each filtered by the FSC of the two: the part of its power that is signal."""
    small = [fourier_resize(half, box) for half in halves]
    curve = np.clip(fsc(small[0].data, small[1].data), 0, 1)
    weight = np.append(curve, np.zeros(box))[shell_index(box)]
    return [
        Volume(
            np.fft.irfftn(np.fft.rfftn(half.data) * weight, s=(box,) * 3, axes=(0, 1, 2)).astype(np.float32),
            half.pixel_size_A,
        )
        for half in small
    ]


def told_gains(gains: NDArray[np.floating]) -> str:
    """What they come to, in a sentence."""
    return (
        f"the motion explains coefficients that the latents were not fitted to better than the rigid map by "
        f"{gains.mean():.2g} nats per particle, {(gains > 0).mean():.0%} of the particles gain"
    )


def _residual(level: Level, batch: Batch, vertices_A: torch.Tensor) -> torch.Tensor:
    return batch.data - batch.transfer * level.model.transform(level.values, level.model.positions(batch, vertices_A))


def _loss(residual: torch.Tensor, measured: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood (b,) of the coefficients that are `measured` (m,)."""
    return 0.5 * torch.view_as_real(residual * measured).square().sum((1, 2)).double()
