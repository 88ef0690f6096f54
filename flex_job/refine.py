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

from flex_job.calibration import Calibration
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.fourier import fourier_resize
from flex_job.fsc import FscCurves, compare_half_maps
from flex_job.manifest import Manifest, file_hash, key_of, stacks_hash, versions
from flex_job.mask import automatic_mask
from flex_job.memory import MemoryPlan
from flex_job.mesh import TetMesh, build_mesh, draw_mesh
from flex_job.model import FlexModel
from flex_job.particles import ParticleStack
from flex_job.prep import prepare, restore
from flex_job.problems import InputProblems
from flex_job.reconstruct import HalfMaps, reconstruct
from flex_job.resources import job_sizes, plan_job
from flex_job.run_report import write_run_report
from flex_job.sharpen import combine, guinier_fit
from flex_job.train import Trainer, train
from flex_job.volume import Volume, read_volume, write_volume
from job_specs.parameters import RefineParameters

__all__ = ["RefineResult", "Refinement", "refine"]

HALF_MAPS = "{}_half{}_class001_unfil.mrc"


@dataclass(frozen=True)
class RefineResult:
    """What the host writes back: the model with its latents, FSC curves without and with motion, a summary."""

    model: FlexModel
    rigid: FscCurves
    flex: FscCurves
    summary: tuple[str, ...]


class Refinement:
    """A job directory and its stages. Stages that a manifest calls complete for the same inputs and parameters, and
    whose files exist, are not run again.

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
    ) -> None:
        self.consensus, self.parameters, self.folder, self.events = consensus, parameters, folder, events
        self.group = group or Group()
        self._plan: MemoryPlan | None = None
        self.cache_folder = Path(parameters.prep.scratch or folder) / (
            f"flex_cache_{key_of(str(folder.resolve()))}" if parameters.prep.scratch else "cache"
        )
        self.manifest = Manifest(folder)
        self.inputs_key = self.group.first_does(self._open)

    def _open(self) -> str:
        """Clear what a restart wants cleared and describe the run in the manifest; returns the key of its inputs."""
        consensus, run = self.consensus, self.parameters.run
        if run.restart:
            (self.folder / "manifest.json").unlink(missing_ok=True)
            for leftover in self.folder.glob("checkpoint_*"):
                leftover.unlink()
            self.manifest = Manifest(self.folder)
        inputs = {str(path): file_hash(path) for path in consensus.source_files}
        inputs[f"{len(consensus.stack_paths)} image stacks"] = stacks_hash(consensus.stack_paths)
        self.manifest.describe(
            inputs=inputs,
            parameters=asdict(self.parameters),
            versions=versions(),
            seed=run.seed,
            particles=len(consensus),
            processes=self.group.size,
        )
        return key_of(inputs, run.seed)

    def _is_due(self, name: str, key: str, *files: Path) -> bool:
        """Whether a stage has to run: one look at the disk, by the first rank, so that all do the same."""
        return self.group.first_does(
            lambda: not (self.manifest.is_complete(name, key) and all(path.exists() for path in files))
        )

    @contextmanager
    def _stage(self, name: str, key: str, outputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """A stage of all ranks; when it ends the files that the first wrote are there for the others."""
        if self.group.is_first:
            with self.manifest.stage(name, key, outputs) as results:
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
    def mesh_key(self) -> str:
        p = self.parameters.mesh
        extra = [file_hash(Path(name)) for name in (p.zero_motion_mask, p.segmentation, p.mesh) if name]
        return key_of("mesh", self.inputs_key, asdict(p), extra)

    @cached_property
    def mesh(self) -> TetMesh:
        """The mesh over the mask; written as mesh.npz with a picture."""
        path = self.folder / "mesh.npz"
        if self._is_due("mesh", self.mesh_key):
            with self._stage("mesh", self.mesh_key, ["mesh.npz", "mesh.png", "mask.mrc"]):
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

    def _prepared(self, name: str, box: int, calibration: Calibration | None) -> tuple[ParticleStack, Calibration]:
        p = self.parameters.mesh  # the calibration sees the map through the mask
        mask = [p.mask_lowpass, p.mask_threshold, p.mask_dilate, p.mask_soft]
        key = key_of(name, box, self.inputs_key, asdict(self.parameters.prep), mask)
        cache = self.cache_folder / f"{name}.f16"
        record = self.folder / f"{name}.npz"
        if self._is_due(name, key, cache):
            with self._stage(name, key, [record.name]):
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
    def train_key(self) -> str:
        prep = asdict(self.parameters.prep)
        return key_of("train", self.mesh_key, self.training_box, prep, asdict(self.parameters.train))

    @cached_property
    def model(self) -> FlexModel:
        """The trained model; written as flex_model.pt."""
        path = self.folder / "flex_model.pt"
        if self._is_due("train", self.train_key):
            mesh = self.mesh
            plan = self.memory_plan(mesh)
            stack, calibration = self.training_particles
            with self._stage("train", self.train_key, [path.name]):
                box = self.training_box
                density = fourier_resize(self.consensus.map, box)
                checkpoint = self.folder / f"checkpoint_train_{self.train_key}.pt"
                trainer = Trainer(
                    stack,
                    mesh,
                    Volume(density.data * np.float32(calibration.gain), density.pixel_size_A),
                    fourier_resize(self.mask, box),
                    self.parameters.train,
                    self.events,
                    seed=self.parameters.run.seed,
                    checkpoint=checkpoint,
                    group=self.group,
                    tf32=self.parameters.run.tf32,
                    micro_batch=plan.micro_batch,
                    start_batch=plan.start_batch,
                )
                model = train(trainer, self.consensus.latents)
                if self.group.is_first:
                    model.save(path)
                    checkpoint.unlink(missing_ok=True)
        return FlexModel.load(path)

    def use_model(self, model: FlexModel, key: str) -> None:
        """Take a model trained elsewhere instead of training one; `key` identifies it, so that stages know it again."""
        self.model, self.train_key = model, key

    def half_maps(self, kind: str, model: FlexModel | None) -> FscCurves:
        """Reconstruct both halves, flex or rigid; write them and their combined map."""
        p = self.parameters.reconstruct
        key = key_of(kind, self.train_key if model else self.inputs_key, self.full_box, self.mesh_key, asdict(p))
        names = [HALF_MAPS.format(kind, half) for half in (1, 2)]
        if self._is_due(kind, key):
            known: FlexModel | None = vars(self).get("model")  # trained or given, not made for the plan's sake
            plan = self.memory_plan(known.mesh if known else None)
            stack, support = self.full_particles, fourier_resize(self.mask, self.full_box)
            with self._stage(kind, key, [*names, f"{kind}_class001.mrc"]) as results:
                checkpoint = self.folder / f"checkpoint_{kind}_{key}.pt"
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
                results.update(self.group.first_does(lambda: self._write_half_maps(kind, names, halves)))
                if self.group.is_first:
                    for leftover in self.folder.glob(f"checkpoint_{kind}_{key}*"):
                        leftover.unlink()
        return self.group.first_does(lambda: self._curves(names))

    def _write_half_maps(self, kind: str, names: list[str], halves: HalfMaps) -> dict[str, Any]:
        """Both maps, and both combined; returns what the report needs to know of them."""
        for name, volume in zip(names, halves.maps, strict=True):
            write_volume(self.folder / name, volume.data, volume.pixel_size_A)
        curves = self._curves(names)
        first, second = (volume.data for volume in halves.maps)
        fit = guinier_fit(first, second, curves)
        combined, bfactor = combine(first, second, curves, self.parameters.reconstruct.bfactor or fit.bfactor_A2)
        write_volume(self.folder / f"{kind}_class001.mrc", combined, halves.maps[0].pixel_size_A)
        return {
            "iterations": list(halves.iterations),
            "converged": halves.converged,
            "bfactor_A2": bfactor,
            "sharpening": fit.reason,
        }

    def _curves(self, names: list[str]) -> FscCurves:
        first, second = (read_volume(self.folder / name) for name in names)
        mask = np.clip(fourier_resize(self.mask, first.box).data, 0, 1)
        return compare_half_maps(first.data, second.data, mask, first.pixel_size_A, self.parameters.run.seed)

    # -- report --------------------------------------------------------------------------------------------------

    def report(self, rigid: FscCurves, flex: FscCurves) -> tuple[str, ...]:
        """logfile.pdf and report.html; returns the lines that sum the run up."""
        model = self.model
        return self.group.first_does(lambda: self._report(model, rigid, flex))

    def _report(self, model: FlexModel, rigid: FscCurves, flex: FscCurves) -> tuple[str, ...]:
        stages = self.manifest.record["stages"]
        key = key_of("report", self.train_key, *(stages[name]["key"] for name in ("rigid", "flex")))
        if not self.manifest.is_complete("report", key):
            with self.manifest.stage("report", key, ["logfile.pdf", "report.html"]) as results:
                results["summary"] = write_run_report(
                    self.manifest, self.consensus, self.parameters, self.mask, model, rigid, flex
                )
        return tuple(self.manifest.results("report")["summary"])

    def clean(self) -> None:
        """Drop the particle caches; they are made again where a later run needs them."""
        self.group.barrier()  # of the last to read them
        if self.group.is_first:
            shutil.rmtree(self.cache_folder, ignore_errors=True)


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
