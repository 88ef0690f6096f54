"""What a finished job directory says of itself: the report's data gathered, and the lines that sum the run up."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from flex_job.atomic_model import read_atomic_model
from flex_job.calibration import Calibration
from flex_job.choose import Choice
from flex_job.consensus import Consensus
from flex_job.fsc import FscCurves
from flex_job.generate import frames, latent_path
from flex_job.independent import agreement_sentence
from flex_job.latent_calibration import told
from flex_job.manifest import Manifest, versions
from flex_job.mean_image import side_views
from flex_job.model import FlexModel
from flex_job.motion import Motion, motion_amplitude, motion_error, motion_uncertainty
from flex_job.problems import InputProblems
from flex_job.report import MeanImages, ReportData, Stage, write_report
from flex_job.report.moving import moving_surface
from flex_job.resolution import KINDS, Resolution, locres_file
from flex_job.subsets import divide
from flex_job.validation import Verdict
from flex_job.volume import Volume, read_volume, write_volume
from job_specs.parameter import settled
from job_specs.parameters import RefineParameters

__all__ = ["REPORT_FILES", "report_files", "summary_lines", "write_run_report"]

FRAMES = 7
CLUSTERS = 5
IMAGES, FEWEST_AVERAGED, MOST_AVERAGED = 5, 8, 100
MOTION, UNCERTAINTY, ERROR = "motion_amplitude.mrc", "motion_uncertainty.mrc", "motion_error.mrc"
REPORT_FILES = ("logfile.pdf", "report.html", MOTION, UNCERTAINTY)
"""Those of every run; ERROR is there too where there are two motion models."""


def report_files(models: int) -> tuple[str, ...]:
    """Names of all that `write_run_report` writes of so many motion models."""
    return (*REPORT_FILES, ERROR) if models > 1 else REPORT_FILES


def write_run_report(
    manifest: Manifest,
    consensus: Consensus,
    parameters: RefineParameters,
    mask: Volume,
    model: FlexModel,
    rigid: FscCurves,
    flex: FscCurves,
    between_A: NDArray[np.floating] | None = None,
    gains: NDArray[np.floating] | None = None,
) -> tuple[str, ...]:
    """`report_files` beside the manifest, of complete stages; returns the lines of the summary. `between_A` (V,) is the
    error of the motion model at each vertex, where there are two to tell."""
    folder = manifest.path.parent
    motion = motion_amplitude(model, parameters.run.seed)
    uncertainty = motion_uncertainty(model, between_A, parameters.run.seed)
    maps = {MOTION: motion, UNCERTAINTY: uncertainty}
    if between_A is not None:
        maps[ERROR] = motion_error(model, between_A)
    for name, found in maps.items():
        write_volume(folder / name, np.nan_to_num(found.volume.data), found.volume.pixel_size_A)
    summary = summary_lines(rigid, flex, motion.mean_A, motion.largest_A, consensus.map.pixel_size_A)
    path = latent_path(model.latents, 0, FRAMES)
    flex_map = read_volume(folder / "flex_class001.mrc")
    kept = {kind: manifest.results(kind) for kind in ("rigid", "flex")}
    asked = bool(parameters.resolution.locres_sampling)
    local = {kind: read_volume(folder / locres_file(kind)) if asked else None for kind in KINDS}
    notes = [
        f"{kind}: the solver stopped at max_iterations before its tolerance; more iterations may improve the maps"
        for kind in kept
        if not kept[kind]["converged"]
    ]
    if not kept["flex"]["bfactor_A2"]:
        notes.append(f"the maps are not sharpened: {kept['flex']['sharpening']}")
    built = parameters.resolution.model_fsc
    atoms = read_atomic_model(built, consensus.map) if built else None
    sign = int(Calibration.load(folder / "prep.npz").sign)
    if sign < 0:
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
        gains=gains,
        cluster_centres=_cluster_centres(model),
        images=_mean_images(consensus, model, sign),
        moving=moving_surface(model, flex_map, mask, atoms),
        motion_A=motion.volume,
        rigid=rigid,
        flex=flex,
        rigid_map=read_volume(folder / "rigid_class001.mrc"),
        flex_map=flex_map,
        resolution=Resolution.of(manifest.results("resolution")),
        rigid_locres=local["rigid"],
        flex_locres=local["flex"],
        rigid_bfactor_A2=kept["rigid"]["bfactor_A2"],
        flex_bfactor_A2=kept["flex"]["bfactor_A2"],
        frames=list(frames(model, model.map, path)),
        frame_latents=path[:, 0],
        training_limit_A=2 * model.map.pixel_size_A / settled(parameters.train).band_end,
        learning=dict(zip(model.history_names, model.history.T, strict=True)),
        parameters=asdict(parameters),
        versions=versions(),
        motion_mean_A=motion.mean_A,
        choice=_choice(manifest),
        independent_halves=between_A is not None,
        verdict=_verdict(manifest),
        findings=[*_agreement(manifest), *_uncertainty(manifest, uncertainty, between_A is not None)],
        notes=notes,
    )
    write_report(data, folder)
    return summary


def _mean_images(consensus: Consensus, model: FlexModel, sign: int) -> MeanImages | None:
    """Of the side that shows most of the motion along latent 1; None where hardly any particle is seen from there."""
    points = latent_path(model.latents, 0, IMAGES)
    low, high = model.displacement(points[[0, -1]])
    sides = side_views(consensus, high - low, sign)
    count = min(len(sides.index) // IMAGES, MOST_AVERAGED)
    if count < FEWEST_AVERAGED:
        return None
    means = [sides.mean(model.latents[:, :1], point[:1], count) for point in points]
    return MeanImages(np.stack(means), points[:, 0], count, sides.pixel_size_A)


def _cluster_centres(model: FlexModel) -> NDArray[np.floating] | None:
    """Latents (CLUSTERS, K) of the most central particle of each cluster; None where too few differ."""
    latents = model.latents.astype(np.float64)
    try:
        return latents[divide(latents, model.latent_std.astype(np.float64), CLUSTERS).central]
    except InputProblems:
        return None


def _choice(manifest: Manifest) -> Choice | None:
    """The settings that the data chose, where they were asked."""
    found = manifest.record["stages"].get("choose", {}).get("results")
    return Choice.of(found) if found else None


def _verdict(manifest: Manifest) -> Verdict | None:
    """Whether the images support the motion, where that was asked."""
    found = manifest.record["stages"].get("validate", {}).get("results")
    return Verdict.of(found) if found else None


def _agreement(manifest: Manifest) -> list[str]:
    """How well two models of the motion agree, where there are two."""
    agreed = manifest.record["stages"].get("train", {}).get("results", {}).get("agreement")
    return [agreement_sentence(**agreed)] if agreed else []


def _uncertainty(manifest: Manifest, found: Motion, between_models: bool) -> list[str]:
    """How well a single particle's latents and displacement are known, a sentence each."""
    factor = manifest.record["stages"].get("train", {}).get("results", {}).get("latent_noise_factor")
    also = ", and the difference of the two motion models," if between_models else ""
    sentence = (
        f"The noise of its images{also} leaves a single particle's displacement uncertain by {found.mean_A:.1f} Å on "
        f"average over the molecule and by {found.largest_A:.1f} Å where it is least known ({UNCERTAINTY})."
    )
    return [sentence] if factor is None else [told(factor), sentence]


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
