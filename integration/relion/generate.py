"""The job `generate`: maps, atomic models and pictures along a trained motion, from what a user gave it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.atomic_model import AtomicModel, read_atomic_model
from flex_job.events import Events
from flex_job.half_maps import map_files
from flex_job.latent_paths import LatentSeries, latent_series, listed
from flex_job.manifest import recorded
from flex_job.map_model import model_problem
from flex_job.model import FlexModel
from flex_job.model_series import ModelSeries
from flex_job.problems import InputProblems
from flex_job.series import FramesWriter
from flex_job.volume import Volume, read_volume
from integration.relion.from_model import load_model, told
from integration.relion.request import Request
from integration.relion.write import read_latents

__all__ = ["generate"]

MOST_FRAMES = 10_000
LARGEST_LATENT = 1000.0  # farther out no mesh is whole


def generate(request: Request, problems: list[str], events: Events) -> None:
    """frame_000.mrc, ... at the rows of --latents, or along a path; latents.csv says which is where; and what else is
    asked for. Raises InputProblems with everything that is wrong, before any frame is made."""
    wanted = request.parameters.generate
    model, found = load_model(request)
    density, series, atoms = None, None, None
    if model is not None:
        density = told(found, _density, request, model)
        if not wanted.latents or Path(wanted.latents).is_file():
            series = told(found, _series, request, model)
    if wanted.atomic_model and density is not None and Path(wanted.atomic_model).is_file():
        atoms = told(found, _atoms, wanted.atomic_model, density)
    found += _mismatches(request, series)
    start = told(found, _start, request, model, series) if model is not None and series is not None else None
    if problems or found or model is None or density is None or series is None:
        raise InputProblems([*problems, *found])
    placed = None if atoms is None else ModelSeries(model, atoms, start, wanted.rigid_residues)
    FramesWriter(request.folder, model, density, series, wanted, events, placed).write()


def _series(request: Request, model: FlexModel) -> LatentSeries:
    """Latents (frames, K) that were asked for. Raises InputProblems when they do not fit the model."""
    wanted, dims = request.parameters.generate, model.latents.shape[1]
    if not wanted.latents:
        seed = request.parameters.run.seed
        return latent_series(model, wanted.path, max(wanted.frames, 2), wanted.path_clusters, seed)
    latents = wanted.latents
    points = read_latents(latents)
    if points.shape[1] != dims:
        raise InputProblems(
            [f"{latents}: {points.shape[1]} latent columns; expected {dims}, flexLatent1 to flexLatent{dims}"]
        )
    if len(points) > MOST_FRAMES:
        raise InputProblems(
            [f"{latents}: {len(points)} rows; expected at most {MOST_FRAMES}, for a map is made of each; give fewer"]
        )
    _check_size(points, latents)
    return listed(points)


def _check_size(points: NDArray[np.floating], where: str) -> None:
    largest = float(np.abs(points).max())
    if largest > LARGEST_LATENT:
        raise InputProblems(
            [
                f"{where}: latents of up to {largest:g}; expected at most {LARGEST_LATENT:g} in size, the particles' "
                "are of size one; take them from the particles.star of the model's job"
            ]
        )


def _density(request: Request, model: FlexModel) -> Volume:
    """The map to move: the one given, else the combined map beside the model, or the mean of its half-maps, else the
    model's own; with the origin of the consensus map's header where it has none."""
    given, beside = request.inputs.get("map"), request.inputs["model"].parent
    if not request.parameters.generate.sharpened:
        return _mean_of_halves(given, [beside / name for name in map_files("flex")[:2]], model)
    path = given if given is not None else beside / map_files("flex")[-1]
    if not path.is_file():
        return Volume(model.map.data, model.map.pixel_size_A, _consensus_corner(beside))
    density = _fitting(path, model)
    return density if given is not None else Volume(density.data, density.pixel_size_A, _consensus_corner(beside))


def _mean_of_halves(given: Path | None, paths: Sequence[Path], model: FlexModel) -> Volume:
    if given is not None:
        raise InputProblems([f"sharpened: no was given with the map {given}; expected one of them: a map is as it is"])
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputProblems(
            [
                f"sharpened: no was given, and there is no {', no '.join(missing)}; expected the half-maps beside the "
                "model, which refine and reconstruct write; give a map to move"
            ]
        )
    one, other = (_fitting(path, model) for path in paths)
    if one.box != other.box:
        raise InputProblems(
            [f"{paths[0]}: {one.box} px a side, and {paths[1].name} has {other.box}; expected the same"]
        )
    corner = _consensus_corner(paths[0].parent)
    return Volume(0.5 * (one.data + other.data), one.pixel_size_A, corner)


def _fitting(path: Path, model: FlexModel) -> Volume:
    density = read_volume(path)
    extent, expected = density.box * density.pixel_size_A, model.map.box * model.map.pixel_size_A
    if abs(extent - expected) > 0.01 * expected:
        raise InputProblems(
            [f"{path}: {extent:.1f} A across; expected {expected:.1f} A, the extent of the model's map"]
        )
    return density


def _consensus_corner(folder: Path) -> tuple[float, float, float]:
    """The origin in the header of the consensus map that the model's job was given: ours begin at zero."""
    try:
        return read_volume(recorded(folder)["read"]["map"]).corner_A
    except (KeyError, TypeError, ValueError):
        return 0.0, 0.0, 0.0


def _atoms(path: str, density: Volume) -> AtomicModel:
    problem = model_problem(path, density)
    if problem is not None:
        raise InputProblems([f"atomic_model: {problem}"])
    return read_atomic_model(path, density)


def _mismatches(request: Request, series: LatentSeries | None) -> list[str]:
    """Parameters that do not fit together."""
    wanted, found = request.parameters.generate, []
    given = [name for name, is_given in _places(request).items() if is_given]
    if len(given) == 2:
        found.append("model_frame and model_latents were both given; expected one of them: where the model was built")
    if given and not wanted.atomic_model:
        found.append(f"{' and '.join(given)} given without atomic_model; expected the model that was built there")
    if wanted.atomic_model and Path(wanted.atomic_model).resolve().parent == request.folder.resolve():
        found.append(
            f"atomic_model: {wanted.atomic_model} is in this job's own folder, whose files are written anew; "
            "expected a file elsewhere; copy it"
        )
    if series is not None and wanted.model_frame >= len(series.points):
        count = len(series.points)
        found.append(f"model_frame: {wanted.model_frame} was given; expected 0 to {count - 1}, for there are {count}")
    return found


def _places(request: Request) -> dict[str, bool]:
    wanted = request.parameters.generate
    return {"model_frame": wanted.model_frame >= 0, "model_latents": bool(wanted.model_latents.strip())}


def _start(request: Request, model: FlexModel, series: LatentSeries) -> NDArray[np.float64] | None:
    """The mesh's vertices (V, 3) in the frame that the atomic model was built in; None for the canonical one."""
    wanted, dims = request.parameters.generate, model.latents.shape[1]
    if wanted.model_latents.strip():
        try:
            z = np.array([float(text) for text in wanted.model_latents.split(",")])
        except ValueError:
            z = np.full(1, np.nan)
        if len(z) != dims or not np.isfinite(z).all():
            raise InputProblems(
                [f"model_latents: {wanted.model_latents!r} was given; expected {dims} numbers separated by commas"]
            )
        _check_size(z, "model_latents")
    elif 0 <= wanted.model_frame < len(series.points):
        z = series.points[wanted.model_frame]
    else:
        return None
    return np.asarray(model.mesh.vertices_A + model.displacement(z[None])[0], dtype=np.float64)
