"""What the stages of a job work on: boxes, mask, mesh, prepared particles, and how much of them fits into memory."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from flex_job.band import Band
from flex_job.cache_parts import is_intact
from flex_job.calibration import Calibration
from flex_job.checkpoint import Checkpoint
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.fourier import fourier_resize
from flex_job.job_folder import JobFolder
from flex_job.mask import automatic_mask
from flex_job.memory import MemoryPlan
from flex_job.mesh import TetMesh, build_mesh, draw_mesh
from flex_job.particles import ParticleStack
from flex_job.prep import prepare, restore
from flex_job.problems import InputProblems
from flex_job.resources import job_sizes, plan_job
from flex_job.settings import StageSettings
from flex_job.train import Trainer
from flex_job.volume import Volume, read_volume, write_volume
from job_specs.parameters import RefineParameters, TrainParameters

__all__ = ["JobInputs"]


class JobInputs(JobFolder):
    """A job directory whose stages have inputs in common. Each is made when it is first asked for, or found on disk."""

    def __init__(
        self,
        consensus: Consensus,
        parameters: RefineParameters,
        folder: Path,
        events: Events,
        group: Group | None = None,
        model_key: str = "",
    ) -> None:
        """`model_key` identifies a model that was trained elsewhere."""
        self.consensus, self.parameters = consensus, parameters
        self._plan: MemoryPlan | None = None
        settings = StageSettings(consensus, parameters, self.training_box, self.full_box)
        settings.model = model_key
        super().__init__(settings, folder, events, group)

    def settle(self, chosen: TrainParameters) -> None:
        """Go on with settings of the training that the data chose; what fits into memory is asked anew."""
        if chosen == self.parameters.train:
            return
        self.parameters, self._plan = replace(self.parameters, train=chosen), None
        if self.group.is_first:
            self.manifest.describe(parameters=asdict(self.parameters))

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
