"""Gains of candidate trainings on a sample of a job's particles, for `choose`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.choose import LADDERS, Tried
from flex_job.held_out import held_out
from flex_job.job_inputs import JobInputs
from flex_job.train import train
from flex_job.validation.compare import compare
from flex_job.validation.sides import Side
from job_specs.parameters import TrainParameters

__all__ = ["candidate_gains", "sample_size"]

FEWEST, MOST = 2000, 5000  # particles in the sample, a quarter of all between these
HELD_OUT = 0.2
BAND = 0.8  # of Nyquist: candidates of any band are compared in this one


def sample_size(n: int) -> int:
    """Particles that candidates are trained and tested on, of `n`."""
    return min(max(n // 4, FEWEST), MOST, n)


def candidate_gains(run: JobInputs) -> Callable[[TrainParameters], NDArray[np.float64]]:
    """What `choose` asks: trains on a sample of the job's particles, the same for all candidates, and gives the gain of
    each held-out one. Gains that were found before an interruption are taken from the stage's checkpoint. Together."""
    whole, asked = run.training_particles[0], run.parameters.train
    seed = run.parameters.run.seed
    free = np.flatnonzero(~held_out(len(whole), asked.held_out, seed))  # the verdict's particles have no say here
    order = np.random.default_rng((seed, 7)).permutation(free)
    stack = whole.select(np.sort(order[: sample_size(len(whole))]))
    checkpoint = run.checkpoint("choose")
    kept = checkpoint.part("gains")
    state = kept.load(run.group)
    known: dict[tuple[float, ...], NDArray[np.float64]] = {}
    if state:
        known = {tuple(key): gains.numpy() for key, gains in zip(state["candidates"], state["gains"], strict=True)}
    rigid: list[Side] = []  # the same for all
    most = sum(len(ladder) for name, ladder in LADDERS.items() if not getattr(asked, name))

    def gains(parameters: TrainParameters) -> NDArray[np.float64]:
        key = tuple(float(getattr(parameters, name)) for name in LADDERS)
        if key not in known:
            of_candidate = checkpoint.part("candidate", f"{key}")
            candidate = replace(parameters, held_out=HELD_OUT)
            number = len(known)
            with run.events.part(number / most, (number + 1) / most, f"candidate {number + 1}", at_least=True):
                with run.events.part(0.0, 0.7):
                    model = train(run.trainer(of_candidate, stack, parameters=candidate))
                judge = run.trainer(None, stack, parameters=replace(candidate, band_end=asked.band_end or BAND))
                with run.events.part(0.7, 1.0):
                    compared = compare(judge, model, *rigid)
            rigid[:] = [compared.rigid]
            known[key] = compared.gain.flex
            tried = Tried.of(key, known[key], known[key])
            best = max(float(each.mean()) for each in known.values())
            run.events.progress(len(known) / most, gain_nats=best)
            run.events.message(f"tried {tried}: {tried.gain:.2f} nats per held-out particle")
            if run.group.is_first:
                found = [torch.from_numpy(values.copy()) for values in known.values()]
                kept.save({"candidates": [list(each) for each in known], "gains": found})
                of_candidate.clear()
        return known[key]

    return gains
