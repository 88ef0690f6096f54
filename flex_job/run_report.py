"""What a finished job directory says of itself: the report's data gathered, and the lines that sum the run up."""

from __future__ import annotations

from dataclasses import asdict

from flex_job.calibration import Calibration
from flex_job.consensus import Consensus
from flex_job.fsc import FscCurves
from flex_job.generate import frames, latent_path
from flex_job.manifest import Manifest, versions
from flex_job.model import FlexModel
from flex_job.motion import motion_amplitude
from flex_job.report import ReportData, Stage, write_report
from flex_job.volume import Volume, read_volume
from job_specs.parameters import RefineParameters

__all__ = ["summary_lines", "write_run_report"]

FRAMES = 7


def write_run_report(
    manifest: Manifest,
    consensus: Consensus,
    parameters: RefineParameters,
    mask: Volume,
    model: FlexModel,
    rigid: FscCurves,
    flex: FscCurves,
) -> tuple[str, ...]:
    """logfile.pdf and report.html beside the manifest, of complete stages; returns the lines of the summary."""
    folder = manifest.path.parent
    motion = motion_amplitude(model, parameters.run.seed)
    summary = summary_lines(rigid, flex, motion.mean_A, motion.largest_A, consensus.map.pixel_size_A)
    path = latent_path(model.latents, 0, FRAMES)
    kept = {kind: manifest.results(kind) for kind in ("rigid", "flex")}
    notes = [
        f"{kind}: the solver stopped at max_iterations before its tolerance; more iterations may improve the maps"
        for kind in kept
        if not kept[kind]["converged"]
    ]
    if not kept["flex"]["bfactor_A2"]:
        notes.append(f"the maps are not sharpened: {kept['flex']['sharpening']}")
    if Calibration.load(folder / "prep.npz").sign < 0:
        notes.append("the particles are darker than the background; their contrast was inverted")
    data = ReportData(
        title="Flexible refinement",
        job_folder=str(folder),
        particles=tuple(int((consensus.halves == half).sum()) for half in (1, 2)),  # type: ignore[arg-type]
        stages=[
            Stage(name, stage["seconds"], stage["peak_MiB"])
            for name, stage in manifest.record["stages"].items()
            if "seconds" in stage  # it is over
        ],
        consensus_map=consensus.map,
        mask=mask,
        mesh=model.mesh,
        latents=model.latents,
        latent_std=model.latent_std,
        motion_A=motion.volume,
        rigid=rigid,
        flex=flex,
        rigid_map=read_volume(folder / "rigid_class001.mrc"),
        flex_map=read_volume(folder / "flex_class001.mrc"),
        rigid_bfactor_A2=kept["rigid"]["bfactor_A2"],
        flex_bfactor_A2=kept["flex"]["bfactor_A2"],
        frames=list(frames(model, model.map, path)),
        frame_latents=path[:, 0],
        training_limit_A=2 * model.map.pixel_size_A / parameters.train.band_end,
        learning=dict(zip(model.history_names, model.history.T, strict=True)),
        parameters=asdict(parameters),
        versions=versions(),
        motion_mean_A=motion.mean_A,
        notes=notes,
    )
    write_report(data, folder)
    return summary


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
