"""Gains of candidate trainings on a sample of a job's particles, for `choose`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.train import train
from flex_job.validation.compare import compare
from flex_job.validation.sides import Side
from job_specs.parameters import TrainParameters

if TYPE_CHECKING:
    from flex_job.refine import Refinement

__all__ = ["candidate_gains"]

SAMPLE = 5000  # particles


def candidate_gains(run: Refinement) -> Callable[[TrainParameters], NDArray[np.float64]]:
    """What `choose` asks: trains on a sample of the job's particles, the same for all candidates, and gives the gain of
    each held-out one. Gains that were found before an interruption are taken from the stage's checkpoint. Together."""
    whole = run.training_particles[0]
    order = np.random.default_rng((run.parameters.run.seed, 7)).permutation(len(whole))
    stack = whole.select(np.sort(order[:SAMPLE]))
    checkpoint = run.checkpoint("choose")
    kept = checkpoint.part("gains")
    state = kept.load(run.group)
    known: dict[tuple[int, float], NDArray[np.float64]] = {}
    if state:
        known = {(int(k), float(r)): g.numpy() for (k, r), g in zip(state["candidates"], state["gains"], strict=True)}
    rigid: list[Side] = []  # the same for all

    def gains(parameters: TrainParameters) -> NDArray[np.float64]:
        key = parameters.latent_dims, parameters.rigidity
        if key not in known:
            of_candidate = checkpoint.part("candidate", f"{key}")
            trainer = run.trainer(of_candidate, stack, parameters=parameters)
            compared = compare(trainer, train(trainer), *rigid)
            rigid[:] = [compared.rigid]
            known[key] = compared.gain.flex
            run.events.message(
                f"tried {key[0]} latents with rigidity {key[1]:g}: {known[key].mean():.2f} nats per held-out particle"
            )
            if run.group.is_first:
                found = [torch.from_numpy(values.copy()) for values in known.values()]
                kept.save({"candidates": [list(each) for each in known], "gains": found})
                of_candidate.clear()
        return known[key]

    return gains
