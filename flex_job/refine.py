"""The chain: mask, mesh, particles, training, reconstruction, report, in one job directory, resumable by stage.

Nothing here computes: each stage is one call into the module whose name says what it does.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from flex_job.calibration import Calibration
from flex_job.consensus import Consensus
from flex_job.events import Events
from flex_job.fourier import fourier_resize
from flex_job.fsc import FscCurves, compare_half_maps
from flex_job.generate import frames, latent_path
from flex_job.manifest import Manifest, file_hash, key_of, versions
from flex_job.mask import automatic_mask
from flex_job.mesh import TetMesh, build_mesh, draw_mesh
from flex_job.model import FlexModel
from flex_job.motion import motion_amplitude
from flex_job.particles import ParticleStack
from flex_job.prep import prepare, restore
from flex_job.problems import InputProblems
from flex_job.reconstruct import reconstruct
from flex_job.report import ReportData, Stage, write_report
from flex_job.sharpen import combine, guinier_fit
from flex_job.train import HISTORY, Trainer, train
from flex_job.volume import Volume, read_volume, write_volume
from job_specs.parameters import RefineParameters

__all__ = ["RefineResult", "Refinement", "refine"]

REPORT_FRAMES = 7
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
    whose files exist, are not run again."""

    def __init__(self, consensus: Consensus, parameters: RefineParameters, folder: Path, events: Events) -> None:
        self.consensus, self.parameters, self.folder, self.events = consensus, parameters, folder, events
        self.cache_folder = Path(parameters.prep.scratch or folder) / (
            f"flex_cache_{key_of(str(folder.resolve()))}" if parameters.prep.scratch else "cache"
        )
        if parameters.run.restart:
            (folder / "manifest.json").unlink(missing_ok=True)
            for leftover in folder.glob("checkpoint_*"):
                leftover.unlink()
        self.manifest = Manifest(folder)
        inputs = {str(path): file_hash(path) for path in (*consensus.source_files, *consensus.stack_paths)}
        self.manifest.describe(
            inputs=inputs,
            parameters=asdict(parameters),
            versions=versions(),
            seed=parameters.run.seed,
            particles=len(consensus),
        )
        self.inputs_key = key_of(inputs, parameters.run.seed)

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
        if not self.manifest.is_complete("mesh", self.mesh_key):
            with self.manifest.stage("mesh", self.mesh_key, ["mesh.npz", "mesh.png", "mask.mrc"]):
                p = self.parameters.mesh
                zero = read_volume(p.zero_motion_mask) if p.zero_motion_mask else None
                segments = read_volume(p.segmentation) if p.segmentation else None
                try:
                    mesh = build_mesh(self.consensus.map, self.mask, p, zero, segments, self.events)
                except ValueError as error:
                    raise InputProblems([str(error)]) from None
                mesh.save(path)
                draw_mesh(mesh, self.consensus.map, self.folder / "mesh.png", self.mask)
        return TetMesh.load(path)

    def _prepared(self, name: str, box: int, calibration: Calibration | None) -> tuple[ParticleStack, Calibration]:
        p = self.parameters.mesh  # the calibration sees the map through the mask
        mask = [p.mask_lowpass, p.mask_threshold, p.mask_dilate, p.mask_soft]
        key = key_of(name, box, self.inputs_key, asdict(self.parameters.prep), mask)
        cache = self.cache_folder / f"{name}.f16"
        record = self.folder / f"{name}.npz"
        if not (self.manifest.is_complete(name, key) and cache.exists()):
            with self.manifest.stage(name, key, [record.name]):
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

    @cached_property
    def train_key(self) -> str:
        prep = asdict(self.parameters.prep)
        return key_of("train", self.mesh_key, self.training_box, prep, asdict(self.parameters.train))

    @cached_property
    def model(self) -> FlexModel:
        """The trained model; written as flex_model.pt."""
        path = self.folder / "flex_model.pt"
        if not self.manifest.is_complete("train", self.train_key):
            mesh = self.mesh
            stack, calibration = self.training_particles
            with self.manifest.stage("train", self.train_key, [path.name]):
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
                )
                train(trainer, self.consensus.latents).save(path)
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
        if not self.manifest.is_complete(kind, key):
            stack, support = self.full_particles, fourier_resize(self.mask, self.full_box)
            with self.manifest.stage(kind, key, [*names, f"{kind}_class001.mrc"]) as results:
                checkpoint = self.folder / f"checkpoint_{kind}_{key}.pt"
                halves = reconstruct(stack, support, model, p, self.events, checkpoint=checkpoint)
                for name, volume in zip(names, halves.maps, strict=True):
                    write_volume(self.folder / name, volume.data, volume.pixel_size_A)
                curves = self._curves(names)
                first, second = (volume.data for volume in halves.maps)
                fit = guinier_fit(first, second, curves)
                combined, bfactor = combine(first, second, curves, p.bfactor or fit.bfactor_A2)
                write_volume(self.folder / f"{kind}_class001.mrc", combined, stack.pixel_size_A)
                results.update(
                    iterations=list(halves.iterations),
                    converged=halves.converged,
                    bfactor_A2=bfactor,
                    sharpening=fit.reason,
                )
                for leftover in self.folder.glob(f"checkpoint_{kind}_{key}*"):
                    leftover.unlink()
        return self._curves(names)

    def _curves(self, names: list[str]) -> FscCurves:
        first, second = (read_volume(self.folder / name) for name in names)
        mask = np.clip(fourier_resize(self.mask, first.box).data, 0, 1)
        return compare_half_maps(first.data, second.data, mask, first.pixel_size_A, self.parameters.run.seed)

    # -- report --------------------------------------------------------------------------------------------------

    def report(self, rigid: FscCurves, flex: FscCurves) -> tuple[str, ...]:
        """logfile.pdf and report.html; returns the lines that sum the run up."""
        stages = self.manifest.record["stages"]
        key = key_of("report", self.train_key, *(stages[name]["key"] for name in ("rigid", "flex")))
        if not self.manifest.is_complete("report", key):
            with self.manifest.stage("report", key, ["logfile.pdf", "report.html"]) as results:
                results["summary"] = self._write_report(rigid, flex)
        return tuple(self.manifest.results("report")["summary"])

    def _write_report(self, rigid: FscCurves, flex: FscCurves) -> tuple[str, ...]:
        model = self.model
        motion = motion_amplitude(model, self.seed)
        summary = summary_lines(rigid, flex, motion.mean_A, motion.largest_A, self.consensus.map.pixel_size_A)
        path = latent_path(model.latents, 0, REPORT_FRAMES)
        stages = self.manifest.record["stages"]
        kept = {kind: self.manifest.results(kind) for kind in ("rigid", "flex")}
        history = dict(zip(HISTORY, model.history.T, strict=True))
        notes = [
            f"{kind}: the solver stopped at max_iterations before its tolerance; more iterations may improve the maps"
            for kind in kept
            if not kept[kind]["converged"]
        ]
        if not kept["flex"]["bfactor_A2"]:
            notes.append(f"the maps are not sharpened: {kept['flex']['sharpening']}")
        if Calibration.load(self.folder / "prep.npz").sign < 0:
            notes.append("the particles are darker than the background; their contrast was inverted")
        data = ReportData(
            title="Flexible refinement",
            job_folder=str(self.folder),
            particles=tuple(int((self.consensus.halves == half).sum()) for half in (1, 2)),  # type: ignore[arg-type]
            stages=[Stage(name, stage["seconds"], stage["peak_MiB"]) for name, stage in stages.items()],
            consensus_map=self.consensus.map,
            mask=self.mask,
            mesh=model.mesh,
            latents=model.latents,
            latent_std=model.latent_std,
            motion_A=motion.volume,
            rigid=rigid,
            flex=flex,
            rigid_map=read_volume(self.folder / "rigid_class001.mrc"),
            flex_map=read_volume(self.folder / "flex_class001.mrc"),
            rigid_bfactor_A2=kept["rigid"]["bfactor_A2"],
            flex_bfactor_A2=kept["flex"]["bfactor_A2"],
            frames=list(frames(model, model.map, path)),
            frame_latents=path[:, 0],
            training_limit_A=2 * model.map.pixel_size_A / self.parameters.train.band_end,
            learning=history,
            parameters=asdict(self.parameters),
            versions=versions(),
            motion_mean_A=motion.mean_A,
            notes=notes,
        )
        write_report(data, self.folder)
        return summary

    @property
    def seed(self) -> int:
        return self.parameters.run.seed

    def clean(self) -> None:
        """Drop the particle caches; they are made again where a later run needs them."""
        shutil.rmtree(self.cache_folder, ignore_errors=True)


def summary_lines(
    rigid: FscCurves, flex: FscCurves, mean_motion_A: float, largest_motion_A: float, pixel_size_A: float
) -> tuple[str, ...]:
    """Resolution without and with motion, and how far things move, one line each."""
    lines = [
        f"{'':24}{'rigid':>22}{'flex':>22}",
        *(
            f"resolution at FSC {level:<6}{rigid.resolution_text(level):>22}{flex.resolution_text(level):>22}"
            for level in (0.143, 0.5)
        ),
        f"{'mean corrected FSC':24}{rigid.corrected[1:].mean():>22.3f}{flex.corrected[1:].mean():>22.3f}",
        f"motion: {mean_motion_A:.1f} A on average over the molecule, {largest_motion_A:.1f} A where it is largest"
        f" (root mean square over the particles; a voxel is {pixel_size_A:.2f} A)",
    ]
    return tuple(lines)


def refine(consensus: Consensus, parameters: RefineParameters, folder: Path, events: Events) -> RefineResult:
    """All stages. Raises InputProblems for bad input and StopRequested when the host asks for a stop."""
    run = Refinement(consensus, parameters, folder, events)
    model = run.model
    rigid = run.half_maps("rigid", None)
    flex = run.half_maps("flex", model)
    summary = run.report(rigid, flex)
    run.clean()
    return RefineResult(model, rigid, flex, summary)
