"""The chain: mask, mesh, particles, training, reconstruction, report, in one job directory, resumable by stage.

Nothing here computes: each stage is one call into the module whose name says what it does. All ranks of a job go
through all stages; the first decides which are due, does alone what is not shared out, and writes the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flex_job.band import Band
from flex_job.cache_parts import is_intact
from flex_job.calibration import Calibration
from flex_job.checkpoint import Checkpoint
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.fourier import fourier_resize
from flex_job.fsc import FscCurves
from flex_job.half_maps import half_map_curves, map_files, write_half_maps
from flex_job.lock import FolderLock
from flex_job.manifest import Manifest, key_of, versions
from flex_job.mask import automatic_mask
from flex_job.memory import MemoryPlan
from flex_job.mesh import TetMesh, build_mesh, draw_mesh
from flex_job.model import FlexModel
from flex_job.particles import ParticleStack
from flex_job.prep import prepare, restore
from flex_job.problems import InputProblems
from flex_job.reconstruct import reconstruct
from flex_job.resources import job_sizes, plan_job
from flex_job.run_report import write_run_report
from flex_job.settings import StageSettings, check_settings
from flex_job.train import Trainer, train
from flex_job.volume import Volume, read_volume, write_volume
from job_specs.parameters import RefineParameters

__all__ = ["RefineResult", "Refinement", "refine"]


@dataclass(frozen=True)
class RefineResult:
    """What the host writes back: the model with its latents, FSC curves without and with motion, a summary."""

    model: FlexModel
    rigid: FscCurves
    flex: FscCurves
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

    def _checkpoint(self, stage: str) -> Checkpoint:
        key = key_of(stage, getattr(self.settings, stage))
        return Checkpoint(self.folder / f"checkpoint_{stage}.pt", key, self.events.message)

    def _is_due(self, stage: str) -> bool:
        """Whether a stage has to run: one look at the disk, by the first rank, so that all do the same. Raises
        InputProblems where that would throw work away."""

        def look() -> bool:
            check_settings(self.manifest, self.settings, stage, self.events.message)
            complete = self.manifest.is_complete(stage, getattr(self.settings, stage))
            self._tell_damage(self.manifest)
            return not complete

        return self.group.first_does(look)

    @contextmanager
    def _stage(self, stage: str, outputs: Iterable[str]) -> Iterator[dict[str, Any]]:
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
        if self._is_due("mesh"):
            with self._stage("mesh", ["mesh.npz", "mesh.png", "mask.mrc"]):
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
        checkpoint, length = self._checkpoint(stage), 4 * len(Band.below(box / 2))
        if self._is_due(stage) or not is_intact(cache, checkpoint, len(self.consensus), length, self.group):
            with self._stage(stage, [record.name]):
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

    @cached_property
    def model(self) -> FlexModel:
        """The trained model; written as flex_model.pt."""
        path = self.folder / "flex_model.pt"
        mesh = self.mesh
        if self._is_due("train"):
            plan = self.memory_plan(mesh)
            stack, calibration = self.training_particles
            with self._stage("train", [path.name]):
                box = self.training_box
                density = fourier_resize(self.consensus.map, box)
                trainer = Trainer(
                    stack,
                    mesh,
                    Volume(density.data * np.float32(calibration.gain), density.pixel_size_A),
                    fourier_resize(self.mask, box),
                    self.parameters.train,
                    self.events,
                    seed=self.parameters.run.seed,
                    checkpoint=self._checkpoint("train"),
                    group=self.group,
                    tf32=self.parameters.run.tf32,
                    micro_batch=plan.micro_batch,
                    start_batch=plan.start_batch,
                )
                model = train(trainer, self.consensus.latents)
                if self.group.is_first:
                    model.save(path)
        return FlexModel.load(path)

    def use_model(self, model: FlexModel) -> None:
        """Take a model that was trained elsewhere instead of training one."""
        self.model = model

    def half_maps(self, kind: str, model: FlexModel | None) -> FscCurves:
        """Reconstruct both halves, flex or rigid; write them and their combined map."""
        p, seed = self.parameters.reconstruct, self.parameters.run.seed
        if self._is_due(kind):
            known: FlexModel | None = vars(self).get("model")  # trained or given, not made for the plan's sake
            plan = self.memory_plan(known.mesh if known else None)
            stack, support = self.full_particles, fourier_resize(self.mask, self.full_box)
            checkpoint = self._checkpoint(kind)
            with self._stage(kind, map_files(kind)) as results:
                halves = reconstruct(
                    stack,
                    support,
                    model,
                    p,
                    self.events,
                    checkpoint=checkpoint,
                    group=self.group,
                    tf32=self.parameters.run.tf32,
                    batch_size=plan.solver_batch,
                )
                results.update(
                    self.group.first_does(
                        lambda: write_half_maps(self.folder, kind, halves, self.mask, seed, p.bfactor)
                    )
                )
            if self.group.is_first:
                checkpoint.clear()
        return self.group.first_does(lambda: half_map_curves(self.folder, kind, self.mask, seed))

    # -- report --------------------------------------------------------------------------------------------------

    def report(self, rigid: FscCurves, flex: FscCurves) -> tuple[str, ...]:
        """logfile.pdf and report.html; returns the lines that sum the run up."""
        model = self.model
        self.group.check_stop(self.events)
        if self._is_due("report"):
            if self._is_due("prep"):  # the report reads its record
                self.training_particles  # noqa: B018
            with self._stage("report", ["logfile.pdf", "report.html"]) as results:
                results["summary"] = self.group.first_does(
                    lambda: write_run_report(
                        self.manifest, self.consensus, self.parameters, self.mask, model, rigid, flex
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
    model = run.model
    rigid = run.half_maps("rigid", None)
    flex = run.half_maps("flex", model)
    summary = run.report(rigid, flex)
    run.clean()
    return RefineResult(model, rigid, flex, summary)
