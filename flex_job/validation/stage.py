"""The stage of a job that asks whether its motion is real, and what it leaves: validation.json."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flex_job.files import written_aside
from flex_job.model import FlexModel
from flex_job.train import Trainer, train
from flex_job.turned_flow import TurnedFlow
from flex_job.validation.compare import Comparison, compare
from flex_job.validation.null import simulate_rigid
from flex_job.validation.verdict import Estimate, Verdict, estimate, judge

if TYPE_CHECKING:
    from flex_job.job_inputs import JobInputs

__all__ = ["validate", "write_verdict"]

NULL_COST = 5.0  # of a training on a simulation and its test, in those of the test alone; for who waits


def validate(run: JobInputs, trainer: Trainer, model: FlexModel, nulls: int) -> Verdict:
    """The model of a job against no motion; then `nulls` times the same training and test on particles simulated
    without motion. Together."""
    alone = 1 / (1 + NULL_COST * nulls)
    with run.events.part(0.0, alone):
        compared = compare(trainer, model)
    gain, shuffled = estimate(compared.gain.flex), estimate(compared.gain.shuffled)
    verdict = judge(gain, shuffled)
    run.events.message(str(verdict))
    if not nulls:
        return verdict
    with run.events.part(alone, 1.0):
        return judge(gain, shuffled, _nulls(run, trainer, compared, nulls))


def _nulls(run: JobInputs, template: Trainer, compared: Comparison, count: int) -> list[Estimate]:
    """What trainings on rigid simulations gain; those that are done are kept in the stage's checkpoint."""
    checkpoint, group = run.checkpoint("validate"), run.group
    kept = checkpoint.part("nulls")
    state = kept.load(group)
    done = [Estimate(*values) for values in state["nulls"]] if state else []
    density, path = compared.rigid.map, run.cache_folder / "null.f16"
    pose_errors = TurnedFlow(None, template.mesh, compared.flex.flow.root)  # that are left beside the motion
    for number in range(len(done), count):
        level = template.levels.level(density, template.parameters.band_end)
        simulate = partial(
            simulate_rigid,
            template.stack,
            level,
            pose_errors,
            path,
            seed=number,
            batch_size=template.micro_batch,
        )
        label = f"simulation {number + 1} of {count}"
        with run.events.part(number / count, (number + 1) / count, label):
            stack = group.first_does(simulate)
            trainer = run.trainer(checkpoint.part("null", str(number)), stack, density)
            with run.events.part(0.0, 0.8):
                null = train(trainer)
            with run.events.part(0.8, 1.0):
                done.append(estimate(compare(trainer, null).gain.flex))
        run.events.message(f"simulation {number + 1} of {count} without motion: a gain of {done[-1]}")
        if group.is_first:
            kept.save({"nulls": [[null.mean, null.low, null.high, null.particles] for null in done]})
    return done


def write_verdict(path: Path, verdict: Verdict) -> None:
    """As JSON."""
    with written_aside(path) as file:
        file.write(f"{json.dumps(verdict.record(), indent=2)}\n".encode())
