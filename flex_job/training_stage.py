"""The stage of a job that trains: settings that the data choose, then one motion model or one for each half-set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flex_job.candidates import candidate_gains, sample_size
from flex_job.checkpoint import Checkpoint
from flex_job.choose import FEWEST, LADDERS, Choice, choose, is_open
from flex_job.fourier import low_pass
from flex_job.independent import agreement, half_stack, with_latents_of_all
from flex_job.latent_calibration import calibrated, told
from flex_job.model import FlexModel
from flex_job.pose_corrections import PoseCorrections
from flex_job.pose_refinement import refine_poses
from flex_job.problems import InputProblems
from flex_job.train import Trainer, train
from flex_job.volume import Volume
from job_specs.parameter import settled
from job_specs.parameters import TrainParameters

if TYPE_CHECKING:
    from flex_job.refine import Refinement

__all__ = ["chosen_settings", "half_trainer", "train_models"]

AGREED_FSC = 0.8
"""Two models of the motion start from a map up to where the rigid half-maps agree by this (RELION makes phases random
from there on): beyond, the consensus may hold detail that came into both halves from one of them."""


def chosen_settings(run: Refinement) -> TrainParameters:
    """The settings that were asked for, those that the data are to choose filled in. Together."""
    asked = run.parameters.train
    if not is_open(asked):
        return asked
    if len(run.consensus) < FEWEST:
        chosen = settled(asked)
        taken = (f"{name} {getattr(chosen, name):g}" for name in LADDERS if not getattr(asked, name))
        run.events.message(
            f"{len(run.consensus)} particles are too few to choose settings by ({FEWEST} are needed); the usual "
            f"{', '.join(taken)} will do"
        )
        return chosen
    if run.is_due("choose"):
        gains_of = candidate_gains(run)
        with run.stage("choose", []) as results:
            results.update(choose(asked, gains_of).record())
    choice = run.group.first_does(lambda: Choice.of(run.manifest.results("choose")))
    chosen = choice.applied(asked, sample_size(len(run.consensus)) / len(run.consensus))
    run.events.message(f"{choice} of the sample, {chosen.epochs} of all particles")
    return chosen


def train_models(run: Refinement, paths: Sequence[Path]) -> None:
    """Train one model, or one for each half-set, and write them to `paths`. Together."""
    independent, checkpoint = run.parameters.train.independent_halves, run.checkpoint("train")
    whole = run.trainer(None if independent else checkpoint)
    start = _agreed_map(run, whole) if independent else None
    with run.stage("train", [path.name for path in paths]) as results:
        if start is None:
            with run.events.part(0.0, 0.7 if _refines_poses(run) else 0.95):
                model = train(whole, run.consensus.latents)
            with run.events.part(0.7, 0.95):
                models = [_with_refined_poses(run, whole, model)]
        else:
            models = _train_halves(run, whole, start, checkpoint)
            agreed = agreement(models[0], models[1], run.parameters.run.seed)
            run.events.message(str(agreed))
            results["agreement"] = agreed.record()
        with run.events.part(0.95, 1.0, "uncertainty of the latents"):
            found = [calibrated(whole, model) for model in models]
        results["latent_noise_factor"] = max(factor for _, factor in found)
        run.events.message(told(results["latent_noise_factor"]))
        if run.group.is_first:
            for (model, _), path in zip(found, paths, strict=True):
                model.save(path)


def half_trainer(
    run: Refinement, half: int, start: Volume | None = None, checkpoint: Checkpoint | None = None
) -> Trainer:
    """A training, not begun, on the particles of half-set `half` (1 or 2), from the map `start` or the consensus."""
    return run.trainer(checkpoint, half_stack(run.training_particles[0], half, run.parameters.run.seed), start)


def _agreed_map(run: Refinement, whole: Trainer) -> Volume:
    """The consensus map up to where the rigid half-maps agree well: beyond, it may hold what they were made to
    share."""
    curves = run.half_maps("rigid", None)
    limit_A = max(curves.resolution_A(AGREED_FSC), 2 * whole.map.pixel_size_A)
    if np.isinf(limit_A):
        raise InputProblems(
            [
                f"--independent_halves: the half-maps agree nowhere by an FSC of {AGREED_FSC}; expected a "
                "consensus of better images or more of them; leave the option out"
            ]
        )
    run.events.message(f"both motion models start from the consensus map at {limit_A:.1f} A")
    return low_pass(whole.map, 1 / limit_A)


def _train_halves(run: Refinement, whole: Trainer, start: Volume, checkpoint: Checkpoint) -> list[FlexModel]:
    """A model of the particles of each half-set, then both with latents of all."""
    places = [np.flatnonzero(whole.stack.halves == half) for half in (1, 2)]
    models = []
    for half, own in zip((1, 2), places, strict=True):
        trainer = half_trainer(run, half, start, checkpoint.part(f"half{half}"))
        given = run.consensus.latents
        with run.events.part(0.4 * (half - 1), 0.4 * half, f"half-set {half}"):
            model = train(trainer, None if given is None else given[own])
            models.append(_with_refined_poses(run, trainer, model, own))
    found = [model.corrections for model in models if model.corrections is not None]
    corrections = PoseCorrections.joined(found, places) if found else None
    models = [replace(model, corrections=corrections) for model in models]
    whole.stack = run.corrected(whole.stack, models[0])
    with run.events.part(0.8, 0.95, "latents of the other half-set"):
        return [with_latents_of_all(whole, model, own) for model, own in zip(models, places, strict=True)]


def _refines_poses(run: Refinement) -> bool:
    return run.parameters.train.refine_poses or run.parameters.train.refine_scale


def _with_refined_poses(
    run: Refinement, trainer: Trainer, model: FlexModel, own: NDArray[np.int64] | None = None
) -> FlexModel:
    """The model with refined poses and contrasts, if asked for, of its particles, which are `own` of the job's."""
    p, contrast = run.parameters.train, run.training_particles[1].contrast
    if not _refines_poses(run):
        return model
    relative = contrast if own is None else contrast[own]
    return refine_poses(trainer, model, relative, poses=p.refine_poses, scale=p.refine_scale)
