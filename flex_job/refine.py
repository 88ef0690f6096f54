"""The chain: mask, mesh, particles, training, reconstruction, report, in one job directory, resumable by stage.

Nothing here computes: each stage is one call into the module whose name says what it does. All ranks of a job go
through all stages; the first decides which are due, does alone what is not shared out, and writes the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flex_job.band import Band
from flex_job.cache_parts import is_intact
from flex_job.calibration import Calibration
from flex_job.candidates import candidate_gains, sample_size
from flex_job.checkpoint import Checkpoint
from flex_job.choose import FEWEST, LADDERS, Choice, choose, is_open
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.files import written_aside
from flex_job.fourier import fourier_resize, low_pass
from flex_job.fsc import FscCurves
from flex_job.half_maps import half_map_curves, map_files, read_halves, write_half_maps
from flex_job.independent import agreement, half_stack, with_latents_of_all
from flex_job.latent_calibration import calibrated, told
from flex_job.likelihood_gain import likelihood_gains, told_gains
from flex_job.lock import FolderLock
from flex_job.manifest import Manifest, key_of, versions
from flex_job.mask import automatic_mask
from flex_job.memory import MemoryPlan
from flex_job.mesh import TetMesh, build_mesh, draw_mesh
from flex_job.model import FlexModel
from flex_job.particles import ParticleStack
from flex_job.pose_corrections import PoseCorrections
from flex_job.pose_refinement import refine_poses
from flex_job.prep import prepare, restore
from flex_job.problems import InputProblems
from flex_job.reconstruct import reconstruct
from flex_job.resolution import Resolution, resolution_files, write_resolution
from flex_job.resources import job_sizes, plan_job
from flex_job.run_report import report_files, write_run_report
from flex_job.settings import StageSettings, check_settings
from flex_job.train import Trainer, train
from flex_job.validation import Verdict, validate, write_verdict
from flex_job.volume import Volume, read_volume, write_volume
from job_specs.parameter import settled
from job_specs.parameters import RefineParameters, TrainParameters

__all__ = ["MODELS", "RefineResult", "Refinement", "refine"]

VALIDATION, GAINS = "validation.json", "likelihood_gain.npy"
MODELS = ("flex_model.pt", "flex_model_half2.pt")
AGREED_FSC = 0.8
"""Two models of the motion start from a map up to where the rigid half-maps agree by this (RELION makes phases random
from there on): beyond, the consensus may hold detail that came into both halves from one of them."""


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


class Refinement:
    """A job directory and its stages. Stages that a manifest calls complete for the same settings (see `settings`),
    and whose files are what they wrote, are not run again; one that was interrupted goes on from its checkpoint. The
    directory is this job's alone while this object lives: FolderInUse is raised where another run has it.

    Every method and property is to be used by all ranks of `group` (one by default) in the same order. `folder` and
    scratch must be the same disk for all.
    """

    def __init__(
        self,
        consensus: Consensus,
        parameters: RefineParameters,
        folder: Path,
        events: Events,
        group: Group | None = None,
        model_key: str = "",
    ) -> None:
        """`model_key` identifies a model that was trained elsewhere, which `use_model` then brings."""
        self.consensus, self.parameters, self.folder, self.events = consensus, parameters, folder, events
        self.group = group or Group()
        self._plan: MemoryPlan | None = None
        self.settings = StageSettings(consensus, parameters, self.training_box, self.full_box)
        self.settings.model = model_key
        self._lock = FolderLock(folder)
        self.group.first_does(self._take_lock)
        if not self.group.is_first:
            self._lock.join()
        self.cache_folder = Path(parameters.prep.scratch or folder) / (
            f"flex_cache_{key_of(str(folder.resolve()))}" if parameters.prep.scratch else "cache"
        )
        self.manifest = self.group.first_does(self._open)

    def _take_lock(self) -> None:
        self._lock.take()
        if not self._lock.works:
            self.events.message(
                f"{self.folder}: this file system has no locks; a second run in this folder would not be noticed"
            )

    def _open(self) -> Manifest:
        """Clear what a restart wants cleared, look for what has changed, and describe the run in the manifest."""
        manifest = Manifest(self.folder)
        self._tell_damage(manifest)
        run, now = self.parameters.run, key_of(self.settings.flex, asdict(self.parameters.mesh))
        # Continue and requeueing repeat the command: a restart that was interrupted goes on, it does not begin again.
        if run.restart and manifest.record.get("restarting") != now:
            self._throw_away(manifest)
            manifest.record["restarting"] = now
        for stage in ("prep", "mesh") if self.settings.model else ("train", "prep", "mesh"):
            check_settings(manifest, self.settings, stage, self.events.message)
        manifest.describe(
            inputs={str(path): self.settings.inputs.get(f"input {path.name}") for path in self.consensus.source_files},
            parameters=asdict(self.parameters),
            versions=versions(),
            seed=run.seed,
            particles=len(self.consensus),
            processes=self.group.size,
        )
        return manifest

    def _tell_damage(self, manifest: Manifest) -> None:
        while manifest.damage:
            self.events.message(manifest.damage.pop(0))

    def _throw_away(self, manifest: Manifest) -> None:
        manifest.forget()
        for pattern in ("checkpoint_*", "*.damaged"):
            for leftover in self.folder.glob(pattern):
                leftover.unlink()
        shutil.rmtree(self.cache_folder, ignore_errors=True)

    def checkpoint(self, stage: str) -> Checkpoint:
        """That of a stage, of its present settings."""
        key = key_of(stage, getattr(self.settings, stage))
        return Checkpoint(self.folder / f"checkpoint_{stage}.pt", key, self.events.message)

    def is_due(self, stage: str) -> bool:
        """Whether a stage has to run: one look at the disk, by the first rank, so that all do the same. Raises
        InputProblems where that would throw work away."""

        def look() -> bool:
            check_settings(self.manifest, self.settings, stage, self.events.message)
            complete = self.manifest.is_complete(stage, getattr(self.settings, stage))
            self._tell_damage(self.manifest)
            return not complete

        return self.group.first_does(look)

    @contextmanager
    def stage(self, stage: str, outputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """A stage of all ranks; when it ends the files that the first wrote are there for the others."""
        if self.group.is_first:
            with self.manifest.stage(stage, getattr(self.settings, stage), outputs) as results:
                yield results
        else:
            yield {}
        self.group.barrier()

    # -- stages --------------------------------------------------------------------------------------------------

    @property
    def training_box(self) -> int:
        """Even, and never above the consensus map's."""
        full = self.consensus.map.box // 2 * 2
        wanted = self.parameters.prep.training_box or full
        return min(full, wanted // 2 * 2)

    @property
    def full_box(self) -> int:
        full = self.consensus.map.box // 2 * 2
        return min(full, (self.parameters.reconstruct.reconstruct_box or full) // 2 * 2)

    @cached_property
    def mask(self) -> Volume:
        """The soft mask at the consensus box: given, or made from the map; written as mask.mrc."""
        if self.consensus.mask is not None:
            mask = self.consensus.mask
        else:
            p = self.parameters.mesh
            mask = automatic_mask(
                self.consensus.map, p.mask_lowpass, p.mask_threshold or None, p.mask_dilate, p.mask_soft
            )
        if self.group.is_first:
            write_volume(self.folder / "mask.mrc", mask.data, mask.pixel_size_A)
        return mask

    @cached_property
    def mesh(self) -> TetMesh:
        """The mesh over the mask; written as mesh.npz with a picture."""
        path = self.folder / "mesh.npz"
        if self.is_due("mesh"):
            with self.stage("mesh", ["mesh.npz", "mesh.png", "mask.mrc"]):
                self.group.first_does(lambda: self._write_mesh(path))
        return TetMesh.load(path)

    def _write_mesh(self, path: Path) -> None:
        p = self.parameters.mesh
        zero = read_volume(p.zero_motion_mask) if p.zero_motion_mask else None
        segments = read_volume(p.segmentation) if p.segmentation else None
        try:
            mesh = build_mesh(self.consensus.map, self.mask, p, zero, segments, self.events)
        except ValueError as error:
            raise InputProblems([str(error)]) from None
        mesh.save(path)
        draw_mesh(mesh, self.consensus.map, self.folder / "mesh.png", self.mask)

    def _prepared(self, stage: str, box: int, calibration: Calibration | None) -> tuple[ParticleStack, Calibration]:
        cache, record = self.cache_folder / f"{stage}.f16", self.folder / f"{stage}.npz"
        checkpoint, length = self.checkpoint(stage), 4 * len(Band.below(box / 2))
        if self.is_due(stage) or not is_intact(cache, checkpoint, len(self.consensus), length, self.group):
            with self.stage(stage, [record.name]):
                prepare(
                    self.consensus,
                    self.mask,
                    box,
                    self.parameters.prep,
                    cache,
                    record,
                    self.events,
                    seed=self.parameters.run.seed,
                    calibration=calibration,
                    group=self.group,
                    checkpoint=checkpoint,
                )
        return restore(self.consensus, box, cache, record)

    @cached_property
    def training_particles(self) -> tuple[ParticleStack, Calibration]:
        """Particles at the training box."""
        return self._prepared("prep", self.training_box, None)

    @cached_property
    def full_particles(self) -> ParticleStack:
        """Particles at the box of the reconstruction."""
        if self.full_box == self.training_box:
            return self.training_particles[0]
        return self._prepared("prep_full", self.full_box, self.training_particles[1])[0]

    def memory_plan(self, mesh: TetMesh | None) -> MemoryPlan:
        """What fits where, said once, before the first particle is read; without a mesh that of the rigid half-maps."""
        if self._plan is None:
            sizes = job_sizes(
                self.consensus,
                self.mask,
                mesh,
                self.parameters,
                training_box=self.training_box,
                full_box=self.full_box,
                device=str(self.group.device),
            )
            self._plan = plan_job(sizes, self.cache_folder, self.group)
            for line in self._plan.lines():
                self.events.message(line)
        return self._plan

    def trainer(
        self,
        checkpoint: Checkpoint | None = None,
        stack: ParticleStack | None = None,
        density: Volume | None = None,
        parameters: TrainParameters | None = None,
    ) -> Trainer:
        """A training that has not begun: of the job's particles, consensus map and parameters, or of those given (the
        map in the particles' units of density)."""
        plan, (own, calibration), box = self.memory_plan(self.mesh), self.training_particles, self.training_box
        if density is None:
            resized = fourier_resize(self.consensus.map, box)
            density = Volume(resized.data * np.float32(calibration.gain), resized.pixel_size_A)
        return Trainer(
            stack or own,
            self.mesh,
            density,
            fourier_resize(self.mask, box),
            parameters or self.parameters.train,
            self.events,
            seed=self.parameters.run.seed,
            checkpoint=checkpoint,
            group=self.group,
            tf32=self.parameters.run.tf32,
            micro_batch=plan.micro_batch,
            start_batch=plan.start_batch,
        )

    @cached_property
    def models(self) -> tuple[FlexModel, ...]:
        """The trained model, written as flex_model.pt; or one for each half-set (`independent_halves`), with latents of
        all particles in both, that of half-set 2 as flex_model_half2.pt."""
        independent = self.parameters.train.independent_halves
        paths = [self.folder / name for name in MODELS[: 2 if independent else 1]]
        self.mesh  # noqa: B018  it is an output of its own
        self._choose()
        if self.is_due("train"):
            checkpoint = self.checkpoint("train")
            whole = self.trainer(None if independent else checkpoint)
            start = self._agreed_map(whole) if independent else None
            with self.stage("train", [path.name for path in paths]) as results:
                if start is None:
                    models = [self._with_refined_poses(whole, train(whole, self.consensus.latents))]
                else:
                    models = self._train_halves(whole, start, checkpoint)
                    agreed = agreement(models[0], models[1], self.parameters.run.seed)
                    self.events.message(str(agreed))
                    results["agreement"] = agreed.record()
                found = [calibrated(whole, model) for model in models]
                models = [model for model, _ in found]
                results["latent_noise_factor"] = max(factor for _, factor in found)
                self.events.message(told(results["latent_noise_factor"]))
                if self.group.is_first:
                    for model, path in zip(models, paths, strict=True):
                        model.save(path)
        return tuple(FlexModel.load(path) for path in paths)

    def _choose(self) -> None:
        """Fill in what the data are to choose; later stages see the choice."""
        asked = self.parameters.train
        if not is_open(asked):
            return
        if len(self.consensus) < FEWEST:
            chosen = settled(asked)
            taken = (f"{name} {getattr(chosen, name):g}" for name in LADDERS if not getattr(asked, name))
            self.events.message(
                f"{len(self.consensus)} particles are too few to choose settings by ({FEWEST} are needed); the usual "
                f"{', '.join(taken)} will do"
            )
        else:
            if self.is_due("choose"):
                gains_of = candidate_gains(self)
                with self.stage("choose", []) as results:
                    results.update(choose(asked, gains_of).record())
            choice = self.group.first_does(lambda: Choice.of(self.manifest.results("choose")))
            chosen = choice.applied(asked, sample_size(len(self.consensus)) / len(self.consensus))
            self.events.message(f"{choice} of the sample, {chosen.epochs} of all particles")
        self.parameters, self._plan = replace(self.parameters, train=chosen), None
        if self.group.is_first:
            self.manifest.describe(parameters=asdict(self.parameters))

    @property
    def model(self) -> FlexModel:
        """The trained model; of two, that of half-set 1."""
        return self.models[0]

    def _agreed_map(self, whole: Trainer) -> Volume:
        """The consensus map up to where the rigid half-maps agree well: beyond, it may hold what they were made to
        share."""
        curves = self.half_maps("rigid", None)
        limit_A = max(curves.resolution_A(AGREED_FSC), 2 * whole.map.pixel_size_A)
        if np.isinf(limit_A):
            raise InputProblems(
                [
                    f"--independent_halves: the half-maps agree nowhere by an FSC of {AGREED_FSC}; expected a "
                    "consensus of better images or more of them; leave the option out"
                ]
            )
        self.events.message(f"both motion models start from the consensus map at {limit_A:.1f} A")
        return low_pass(whole.map, 1 / limit_A)

    def _train_halves(self, whole: Trainer, start: Volume, checkpoint: Checkpoint) -> list[FlexModel]:
        """A model of the particles of each half-set, then both with latents of all."""
        places = [np.flatnonzero(whole.stack.halves == half) for half in (1, 2)]
        models = []
        for half, own in zip((1, 2), places, strict=True):
            trainer = self._half_trainer(half, whole.stack, start, checkpoint.part(f"half{half}"))
            given = self.consensus.latents
            model = train(trainer, None if given is None else given[own])
            models.append(self._with_refined_poses(trainer, model, own))
        found = [model.corrections for model in models if model.corrections is not None]
        corrections = PoseCorrections.joined(found, places) if found else None
        models = [replace(model, corrections=corrections) for model in models]
        whole.stack = self.corrected(whole.stack, models[0])
        return [with_latents_of_all(whole, model, own) for model, own in zip(models, places, strict=True)]

    def _with_refined_poses(
        self, trainer: Trainer, model: FlexModel, own: NDArray[np.int64] | None = None
    ) -> FlexModel:
        """The model with refined poses and contrasts, if asked for, of its particles, which are `own` of the job's."""
        p, contrast = self.parameters.train, self.training_particles[1].contrast
        if not (p.refine_poses or p.refine_scale):
            return model
        relative = contrast if own is None else contrast[own]
        return refine_poses(trainer, model, relative, poses=p.refine_poses, scale=p.refine_scale)

    def corrected(self, stack: ParticleStack, model: FlexModel) -> ParticleStack:
        """The job's particles with the poses and contrasts that the model's training refined, if it did."""
        if model.corrections is None:
            return stack
        return model.corrections.applied(stack, self.training_particles[1].contrast)

    def _half_trainer(
        self, half: int, stack: ParticleStack, start: Volume | None, checkpoint: Checkpoint | None
    ) -> Trainer:
        return self.trainer(checkpoint, half_stack(stack, half, self.parameters.run.seed), start)

    def trained(self) -> tuple[Trainer, FlexModel]:
        """A training as that of the model was, and the model with the latents of its particles."""
        model, stack = self.model, self.training_particles[0]
        if not self.parameters.train.independent_halves:
            return self.trainer(), model
        own = np.flatnonzero(stack.halves == 1)
        of_own = replace(model, latents=model.latents[own], covariance=model.covariance[own])
        return self._half_trainer(1, stack, None, None), of_own

    def use_model(self, *models: FlexModel) -> None:
        """Take a model that was trained elsewhere, or one for each half-set, instead of training."""
        self.models = models

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
                results.update(
                    self.group.first_does(lambda: write_half_maps(self.folder, kind, halves, self.mask, p.bfactor))
                )
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
            with self.stage("gain", [GAINS]):
                rigid, flex = (read_halves(self.folder, kind) for kind in ("rigid", "flex"))
                gains = likelihood_gains(trainer, models, rigid, flex)
                self.events.message(told_gains(gains))
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

    # -- report --------------------------------------------------------------------------------------------------

    def report(self, rigid: FscCurves, flex: FscCurves) -> tuple[str, ...]:
        """logfile.pdf and report.html; returns the lines that sum the run up."""
        model = self.model
        self.group.check_stop(self.events)
        if self.is_due("report"):
            if self.is_due("prep"):  # the report reads its record
                self.training_particles  # noqa: B018
            between_A = agreement(*self.models, self.parameters.run.seed).error_A if len(self.models) == 2 else None
            with self.stage("report", report_files(len(self.models))) as results:
                results["summary"] = self.group.first_does(
                    lambda: write_run_report(
                        self.manifest, self.consensus, self.parameters, self.mask, model, rigid, flex, between_A
                    )
                )
        return self.group.first_does(lambda: tuple(self.manifest.results("report")["summary"]))

    def clean(self) -> None:
        """The end of a job: drop checkpoints and particle caches; a later run that needs caches makes them."""
        self.group.barrier()  # of the last to read them
        if self.group.is_first:
            shutil.rmtree(self.cache_folder, ignore_errors=True)
            for leftover in self.folder.glob("checkpoint_*.pt"):
                leftover.unlink()
            self.manifest.describe(restarting=None)


def refine(
    consensus: Consensus, parameters: RefineParameters, folder: Path, events: Events, group: Group | None = None
) -> RefineResult:
    """All stages, by all ranks of `group`, with the same result on each. Raises InputProblems for bad input and
    StopRequested when the host asks for a stop."""
    run = Refinement(consensus, parameters, folder, events, group)
    models = run.models
    run.validation()
    rigid = run.half_maps("rigid", None)
    flex = run.half_maps("flex", models)
    resolution = run.resolution(rigid, flex)
    gains = run.likelihood_gains
    summary = run.report(rigid, flex)
    run.clean()
    return RefineResult(models[0], rigid, flex, resolution, gains, summary)
