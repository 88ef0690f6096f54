"""The chain: mask, mesh, particles, training, reconstruction, report, in one job directory, resumable by stage.

Nothing here computes: each stage is one call into the module whose name says what it does. All ranks of a job go
through all stages; the first decides which are due, does alone what is not shared out, and writes the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.choose import FEWEST, is_open
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.files import written_aside
from flex_job.fourier import fourier_resize
from flex_job.fsc import FscCurves
from flex_job.half_maps import half_map_curves, map_files, read_halves, write_half_maps
from flex_job.independent import agreement
from flex_job.job_inputs import JobInputs
from flex_job.likelihood_gain import likelihood_gains, told_gains
from flex_job.model import FlexModel
from flex_job.particles import ParticleStack
from flex_job.reconstruct import reconstruct
from flex_job.resolution import Resolution, resolution_files, write_resolution
from flex_job.run_report import report_files, write_run_report
from flex_job.train import Trainer
from flex_job.training_stage import chosen_settings, half_trainer, train_models
from flex_job.validation import Verdict, validate, write_verdict
from job_specs.parameters import RefineParameters

__all__ = ["GAINS", "MODELS", "RefineResult", "Refinement", "refine"]

VALIDATION, GAINS = "validation.json", "likelihood_gain.npy"
MODELS = ("flex_model.pt", "flex_model_half2.pt")


@dataclass(frozen=True)
class RefineResult:
    """What the host writes back: the model with its latents, FSC curves without and with motion, what each particle
    gains by the motion (n,) in nats, a summary."""

    model: FlexModel
    rigid: FscCurves
    flex: FscCurves
    resolution: Resolution
    gains: NDArray[np.float64]
    summary: tuple[str, ...]


class Refinement(JobInputs):
    """A job directory, the inputs of its stages, and the stages: see `JobFolder` for what is run and what is not."""

    def planned(self, last: str) -> list[str]:
        """The stages of `refine` in order, up to the `last` that is wanted, those that are complete included."""
        train, halves = self.parameters.train, ["rigid", "flex"]
        if self.full_box != self.training_box:
            halves.insert(0, "prep_full")
        if train.independent_halves:  # they start from where the rigid half-maps agree
            training = [*halves[:-1], "train"]
            halves = halves[-1:]
        else:
            training = ["train"]
        if is_open(train) and len(self.consensus) >= FEWEST:
            training.insert(0, "choose")
        test = ["validate"] if train.held_out else []
        stages = ["mesh", "prep", *training, *test, *halves, "resolution", "gain", "report"]
        return stages[: stages.index(last) + 1]

    @cached_property
    def models(self) -> tuple[FlexModel, ...]:
        """The trained model, written as flex_model.pt; or one for each half-set (`independent_halves`), with latents of
        all particles in both, that of half-set 2 as flex_model_half2.pt."""
        self.mesh  # noqa: B018  it is an output of its own
        self.settle(chosen_settings(self))
        paths = [self.folder / name for name in MODELS[: 2 if self.parameters.train.independent_halves else 1]]
        if self.is_due("train"):
            train_models(self, paths)
        return tuple(FlexModel.load(path) for path in paths)

    @property
    def model(self) -> FlexModel:
        """The trained model; of two, that of half-set 1."""
        return self.models[0]

    def use_model(self, *models: FlexModel) -> None:
        """Take a model that was trained elsewhere, or one for each half-set, instead of training."""
        self.models = models

    def corrected(self, stack: ParticleStack, model: FlexModel) -> ParticleStack:
        """The job's particles with the poses and contrasts that the model's training refined, if it did."""
        if model.corrections is None:
            return stack
        return model.corrections.applied(stack, self.training_particles[1].contrast)

    def trained(self) -> tuple[Trainer, FlexModel]:
        """A training as that of the model was, and the model with the latents of its particles."""
        model, stack = self.model, self.training_particles[0]
        if not self.parameters.train.independent_halves:
            return self.trainer(), model
        own = np.flatnonzero(stack.halves == 1)
        of_own = replace(model, latents=model.latents[own], covariance=model.covariance[own])
        return half_trainer(self, 1), of_own

    def validation(self, nulls: int = 0) -> Verdict | None:
        """Whether the images support the motion (see `flex_job.validation`), with so many null experiments; written as
        validation.json. None where no particle was kept aside to tell."""
        if not self.parameters.train.held_out:
            return None
        self.models  # noqa: B018  made before, and not in, this stage
        if self.is_due("validate"):
            trainer, model = self.trained()
            with self.stage("validate", [VALIDATION]) as results:
                verdict = validate(self, trainer, model, nulls)
                results.update(verdict.record())
                self.events.progress(1.0, gain_nats=verdict.gain.mean)
                if self.group.is_first:
                    write_verdict(self.folder / VALIDATION, verdict)
        return self.group.first_does(lambda: Verdict.of(self.manifest.results("validate")))

    def half_maps(self, kind: str, models: Sequence[FlexModel] | None) -> FscCurves:
        """Reconstruct both halves, flex (through one model, or one each) or rigid; write them and both combined."""
        p = self.parameters.reconstruct
        if self.is_due(kind):
            known: Sequence[FlexModel] | None = vars(self).get("models")  # trained or given, not for the plan alone
            plan = self.memory_plan(known[0].mesh if known else None)
            stack, support = self.full_particles, fourier_resize(self.mask, self.full_box)
            if models is not None:
                stack = self.corrected(stack, models[0])
            checkpoint = self.checkpoint(kind)
            with self.stage(kind, map_files(kind)) as results:
                halves = reconstruct(
                    stack,
                    support,
                    models,
                    p,
                    self.events,
                    checkpoint=checkpoint,
                    group=self.group,
                    tf32=self.parameters.run.tf32,
                    batch_size=plan.solver_batch,
                )
                written = self.group.first_does(
                    lambda: write_half_maps(self.folder, kind, halves, self.mask, p.bfactor)
                )
                results.update(written)
                self.events.progress(1.0, **{f"{kind}_A": written["resolution_A"]})
            if self.group.is_first:
                checkpoint.clear()
        return self.group.first_does(lambda: half_map_curves(self.folder, kind, self.mask))

    @property
    def likelihood_gains(self) -> NDArray[np.float64]:
        """(n,) nats by which the motion explains each particle better than the rigid map: see `likelihood_gain`."""
        path = self.folder / GAINS
        if self.is_due("gain"):
            models, trainer = self.models, self.trainer()
            trainer.stack = self.corrected(trainer.stack, models[0])
            with self.stage("gain", [GAINS]) as results:
                rigid, flex = (read_halves(self.folder, kind) for kind in ("rigid", "flex"))
                gains = likelihood_gains(trainer, models, rigid, flex)
                self.events.message(told_gains(gains))
                self.events.progress(1.0, gain_nats=float(gains.mean()))
                results["mean_nats"] = float(gains.mean())
                if self.group.is_first:
                    with written_aside(path) as file:
                        np.save(file, gains)
        return self.group.first_does(lambda: np.load(path, allow_pickle=False))

    def resolution(self, rigid: FscCurves, flex: FscCurves) -> Resolution:
        """Local resolution, FSC in the user's masks and with an atomic model, of the half-maps of both kinds."""
        p = self.parameters.resolution
        if self.is_due("resolution"):
            with self.stage("resolution", resolution_files(p)) as results:
                found = self.group.first_does(
                    lambda: write_resolution(self.folder, rigid, flex, self.mask, self.consensus.map, p)
                )
                results.update(found.record())
        return self.group.first_does(lambda: Resolution.of(self.manifest.results("resolution")))

    def report(self, rigid: FscCurves, flex: FscCurves, gains: NDArray[np.float64] | None = None) -> tuple[str, ...]:
        """logfile.pdf and report.html; returns the lines that sum the run up. `gains` are the particles' (n,), nats."""
        model = self.model
        self.group.check_stop(self.events)
        if self.is_due("report"):
            if self.is_due("prep"):  # the report reads its record
                self.training_particles  # noqa: B018
            between_A = agreement(*self.models, self.parameters.run.seed).error_A if len(self.models) == 2 else None
            with self.stage("report", report_files(len(self.models))) as results:
                results["summary"] = self.group.first_does(
                    lambda: write_run_report(
                        self.manifest, self.consensus, self.parameters, self.mask, model, rigid, flex, between_A, gains
                    )
                )
        return self.group.first_does(lambda: tuple(self.manifest.results("report")["summary"]))


def refine(
    consensus: Consensus, parameters: RefineParameters, folder: Path, events: Events, group: Group | None = None
) -> RefineResult:
    """All stages, by all ranks of `group`, with the same result on each. Raises InputProblems for bad input and
    StopRequested when the host asks for a stop."""
    run = Refinement(consensus, parameters, folder, events, group)
    events.plan(run.planned("report"))
    models = run.models
    run.validation()
    rigid = run.half_maps("rigid", None)
    flex = run.half_maps("flex", models)
    resolution = run.resolution(rigid, flex)
    gains = run.likelihood_gains
    summary = run.report(rigid, flex, gains)
    run.clean()
    return RefineResult(models[0], rigid, flex, resolution, gains, summary)
