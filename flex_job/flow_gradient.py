"""Gradient of the objective with respect to the flow (paper, equation of the objective: data term plus rigidity).

The operator stays outside automatic differentiation: it gives the data term's gradient with respect to the moved
vertices itself, and the inner product of the moved vertices with that has the same gradient for the flow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.flow import FlowGenerator
from flex_job.levels import Level
from flex_job.particles import Batch
from flex_job.rigidity import Rigidity

__all__ = ["FlowObjective"]

RIGIDITY_SAMPLE = 8  # latents of a minibatch that the rigidity prior is evaluated at


@dataclass(frozen=True)
class FlowObjective:
    """Data term plus `weight` times rigidity, for a flow that moves `vertices` (V, 3)."""

    flow: FlowGenerator
    vertices: torch.Tensor
    rigidity: Rigidity
    weight: float

    def add_gradient(
        self, level: Level, batch: Batch, whole: NDArray[np.int64], z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds to `grad` of the flow's parameters this rank's part: that of its particles `batch`, at latents `z`
        (b, K), of the minibatch of the particles `whole`.

        Returns its parts of the data term (summed over coefficients) and of the rigidity (mean per particle).
        """
        u = self.flow(z)
        q = level.model.positions(batch, self.vertices + u)
        fixed = q.detach()
        residual = batch.transfer * level.model.transform(level.values, fixed) - batch.data
        _, gradient = level.model.gradient(batch.transfer * residual, fixed, level.values)
        assert gradient is not None
        surrogate = (q * gradient).sum() / len(whole)
        sample = whole[:: max(1, len(whole) // RIGIDITY_SAMPLE)][:RIGIDITY_SAMPLE]
        chosen = torch.from_numpy(np.isin(batch.index, sample)).to(u.device)
        stiffness = torch.zeros((), device=u.device)
        if chosen.any():
            stiffness = self.rigidity.energy(u[chosen]) * (chosen.sum() / len(sample))
            surrogate = surrogate + self.weight * stiffness
        surrogate.backward()
        return 0.5 * torch.view_as_real(residual).square().sum(), stiffness.detach()
