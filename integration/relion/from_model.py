"""Jobs that start from a trained model: what they share, and half-maps through its motion."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.manifest import file_hash, recorded
from flex_job.model import FlexModel
from flex_job.problems import InputProblems
from flex_job.refine import MODELS, Refinement
from integration.common.particle_formats import particle_format
from integration.relion.consensus import checked_consensus
from integration.relion.flags import INPUT_FLAGS
from integration.relion.request import Request
from integration.relion.write import write_fsc_star
from job_specs.parameter import check
from job_specs.parameters import PrepParameters

__all__ = ["load_model", "reconstruct", "told"]


def reconstruct(request: Request, problems: list[str], events: Events, group: Group) -> None:
    """Half-maps, with and without the motion of a trained model, its FSCs and report.

    Particles, map and mask that are not given are those that the model was trained on, prepared in the same way.
    Particles with flexLatent columns bring their own latents, so that a selection of them can be reconstructed.
    """
    model, found = load_model(request)
    trained = told(found, _as_trained, request, model) if model is not None else None
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


def told(found: list[str], check: Any, *arguments: Any) -> Any:
    """The result of `check`, or None with its problems added to `found`."""
    try:
        return check(*arguments)
    except InputProblems as error:
        found += error.messages
    except ValueError as error:
        found.append(str(error))
    return None


def load_model(request: Request) -> tuple[FlexModel | None, list[str]]:
    """The trained model of `request` and what is wrong with its file; a file that is not there has been told of."""
    found: list[str] = []
    path = request.inputs.get("model")
    model = told(found, FlexModel.load, path) if path is not None and path.is_file() else None
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
