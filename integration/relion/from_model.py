"""Jobs that start from a trained model: half-maps through its motion, and volumes along it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.files import written_aside
from flex_job.generate import Support, frames, latent_path, support
from flex_job.manifest import file_hash, recorded
from flex_job.model import FlexModel
from flex_job.problems import InputProblems
from flex_job.refine import MODELS, Refinement
from flex_job.volume import Volume, read_volume, write_volume
from integration.common.particle_formats import particle_format
from integration.relion.consensus import checked_consensus
from integration.relion.flags import INPUT_FLAGS
from integration.relion.request import Request
from integration.relion.write import read_latents, write_fsc_star
from job_specs.parameter import check
from job_specs.parameters import PrepParameters

__all__ = ["generate", "reconstruct"]

MOST_FRAMES = 10_000
LARGEST_LATENT = 1000.0  # farther out no mesh is whole
TOLD_FRAMES = 10


def reconstruct(request: Request, problems: list[str], events: Events, group: Group) -> None:
    """Half-maps, with and without the motion of a trained model, its FSCs and report.

    Particles, map and mask that are not given are those that the model was trained on, prepared in the same way.
    Particles with flexLatent columns bring their own latents, so that a selection of them can be reconstructed.
    """
    model, found = _load(request)
    trained = _told(found, _as_trained, request, model) if model is not None else None
    if model is None or trained is None:
        raise InputProblems([*problems, *found])
    request = trained
    columns = _latent_columns(request.inputs.get("particles"), model.latents.shape[1])
    consensus = checked_consensus(request, [*problems, *found], columns, events)
    model_key = file_hash(request.inputs["model"])
    run = Refinement(consensus, request.parameters, request.folder, events, group, model_key)
    run.use_model(*[_with_latents_of(consensus, each) for each in (model, *_of_half_2(request, model))])
    rigid = run.half_maps("rigid", None)
    flex = run.half_maps("flex", run.models)
    resolution = run.resolution(rigid, flex)
    if group.is_first:
        write_fsc_star(request.folder / "fsc.star", rigid, flex, resolution)
    for line in (*run.report(rigid, flex), f"report: {request.folder / 'report.html'}"):
        events.message(line)
    run.clean()


def _of_half_2(request: Request, model: FlexModel) -> list[FlexModel]:
    """The model of half-set 2 beside that of half-set 1, where each has its own."""
    path = request.inputs["model"].with_name(MODELS[1])
    record = recorded(path.parent)
    if not record.get("parameters", {}).get("train", {}).get("independent_halves") or not path.is_file():
        return []
    return [FlexModel.load(path)]


def generate(request: Request, problems: list[str], events: Events) -> None:
    """frame_000.mrc, ... at the rows of --latents, or along each latent in turn; latents.csv says which is where."""
    folder, wanted = request.folder, request.parameters.generate
    model, found = _load(request)
    density, points = None, None
    if model is not None:
        density = _told(found, _density, request, model)
        if not wanted.latents or Path(wanted.latents).is_file():
            points = _told(found, _points, wanted.latents, wanted.frames, model)
    if problems or found or model is None or density is None or points is None:
        raise InputProblems([*problems, *found])
    names = [f"frame_{number:03d}.mrc" for number in range(len(points))]
    supported = support(model, points)
    for row, (name, frame) in enumerate(zip(names, frames(model, density, points), strict=True)):
        events.check_stop()
        write_volume(folder / name, frame.data, frame.pixel_size_A)
        near, std_A = supported.particles[row], supported.displacement_std_A[row]
        events.message(
            f"{name} of {len(names)}: {near:.3g} particles near, displacements of one known to {std_A:.2g} A"
        )
    without = [name for name, missing in zip(names, supported.missing, strict=True) if missing]
    if without:
        events.message(
            f"warning: {len(without)} of {len(names)} frames have no particle near and are extrapolated "
            f"({', '.join(without[:TOLD_FRAMES])}{', ...' if len(without) > TOLD_FRAMES else ''}): no image shows them"
        )
    for stale in folder.glob("frame_*.mrc"):  # of an earlier run with more rows
        if stale.name not in names:
            stale.unlink()
    _write_points(folder / "latents.csv", names, points, supported)


def _told(found: list[str], check: Any, *arguments: Any) -> Any:
    """The result of `check`, or None with its problems added to `found`."""
    try:
        return check(*arguments)
    except InputProblems as error:
        found += error.messages
    except ValueError as error:
        found.append(str(error))
    return None


def _load(request: Request) -> tuple[FlexModel | None, list[str]]:
    found: list[str] = []
    path = request.inputs.get("model")
    model = _told(found, FlexModel.load, path) if path is not None and path.is_file() else None
    return model, found


def _as_trained(request: Request, model: FlexModel) -> Request:
    """The request with what it leaves open taken from the model's job: input files, and how particles are prepared."""
    folder = request.inputs["model"].parent
    record = recorded(folder)
    try:
        trained_on = {kind: Path(path) for kind, path in record.get("read", {}).items()}
        prep = PrepParameters(**record.get("parameters", {}).get("prep", {}))
        wrong = check(prep)
    except (AttributeError, TypeError) as error:
        wrong = [str(error)]
    if wrong:
        raise InputProblems(
            [
                f"{folder / 'manifest.json'}: does not say how the particles were prepared ({'; '.join(wrong)}); "
                "expected that of the model's job; train the model again, or mend the file"
            ]
        )
    gone = [kind for kind, path in trained_on.items() if kind not in request.inputs and not os.path.isfile(path)]
    if gone:
        raise InputProblems(
            [
                f"the model was trained on {trained_on[kind]}, which is not there; expected the file, or another one "
                f"with --{INPUT_FLAGS[kind]}"
                for kind in gone
                if kind in INPUT_FLAGS
            ]
        )
    if "mask" not in trained_on and (folder / "mask.mrc").is_file():
        trained_on["mask"] = folder / "mask.mrc"
    prep = replace(prep, training_box=model.map.box, scratch=request.parameters.prep.scratch)
    parameters = replace(request.parameters, prep=prep)
    return replace(request, inputs={**trained_on, **request.inputs}, parameters=parameters)


def _latent_columns(particles: Path | None, dims: int) -> Sequence[str]:
    """The columns of latents and their deviations in a particle file of ours; none in any other."""
    if particles is None or not particles.is_file():
        return ()
    return particle_format(particles).latent_columns(particles, dims)


def _with_latents_of(consensus: Consensus, model: FlexModel) -> FlexModel:
    """The model with the particles' own latents. Raises InputProblems when neither file nor model has them."""
    dims = model.latents.shape[1]
    if consensus.latents is not None:
        latents, std = np.split(consensus.latents.astype(np.float32), [dims], axis=1)
        covariance = std[:, :, None] ** 2 * np.eye(dims, dtype=np.float32)
        return replace(model, latents=latents, covariance=covariance, corrections=None)  # the file's poses have them
    if len(consensus) != len(model.latents):
        raise InputProblems(
            [
                f"--in_parts: {len(consensus)} particles without flexLatent columns, and the model was trained on "
                f"{len(model.latents)}; expected the particles.star of the model's job, or a selection of it"
            ]
        )
    return model


def _points(latents: str, count: int, model: FlexModel) -> NDArray[np.floating]:
    """Latents (frames, K) that were asked for. Raises InputProblems when they do not fit the model."""
    dims = model.latents.shape[1]
    if not latents:
        return np.concatenate([latent_path(model.latents, dimension, count) for dimension in range(dims)])
    points = read_latents(latents)
    if points.shape[1] != dims:
        raise InputProblems(
            [f"{latents}: {points.shape[1]} latent columns; expected {dims}, flexLatent1 to flexLatent{dims}"]
        )
    if len(points) > MOST_FRAMES:
        raise InputProblems(
            [f"{latents}: {len(points)} rows; expected at most {MOST_FRAMES}, for a map is made of each; give fewer"]
        )
    largest = float(np.abs(points).max())
    if largest > LARGEST_LATENT:
        raise InputProblems(
            [
                f"{latents}: latents of up to {largest:g}; expected at most {LARGEST_LATENT:g} in size, the particles' "
                "are of size one; take them from the particles.star of the model's job"
            ]
        )
    return points


def _density(request: Request, model: FlexModel) -> Volume:
    """The map to move: the one given, else the combined map beside the model, else the model's own."""
    path = request.inputs.get("map", request.inputs["model"].with_name("flex_class001.mrc"))
    if not path.is_file():
        return model.map
    density = read_volume(path)
    extent, expected = density.box * density.pixel_size_A, model.map.box * model.map.pixel_size_A
    if abs(extent - expected) > 0.01 * expected:
        raise InputProblems(
            [f"{path}: {extent:.1f} A across; expected {expected:.1f} A, the extent of the model's map"]
        )
    return density


def _write_points(path: Path, names: Sequence[str], points: NDArray[np.floating], found: Support) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    latents = [f"flexLatent{k + 1}" for k in range(points.shape[1])]
    table.writerow(["frame", *latents, "particles_near", "displacement_std_A", "supported"])
    numbers = np.column_stack([points, found.particles, found.displacement_std_A]).tolist()
    for name, row, missing in zip(names, numbers, found.missing, strict=True):
        table.writerow([name, *(f"{value:.6g}" for value in row), "no" if missing else "yes"])
    with written_aside(path) as file:
        file.write(text.getvalue().encode())
