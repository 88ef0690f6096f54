"""One case: simulate, refine as a user would, reconstruct the ceilings, score. Its record is a JSON file, made once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import starfile
from end_to_end.conftest import environment
from numpy.typing import NDArray
from science.cases import Case, Size
from science.peers import peer_records
from science.scores import agreement, latent_at, map_score, share, state_mask

from flex_job.events import Events
from flex_job.files import written_aside
from flex_job.fsc import fsc
from flex_job.generate import frames
from flex_job.model import FlexModel
from flex_job.motion import motion_amplitude
from flex_job.refine import Refinement
from flex_job.volume import Volume, read_volume
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project
from job_specs.parameter import settled
from job_specs.parameters import RefineParameters, TrainParameters

__all__ = ["record_of"]

STAR, MASK = "Refine3D/job001/run_data.star", "MaskCreate/job002/mask.mrc"
COMMAND = "from integration.local.cli import refine; refine()"
Record = dict[str, Any]


def record_of(case: Case, size: Size) -> Record:
    """The record of a case, from its file where it was run before with as many particles."""
    path = size.results / f"{case.name}.json"
    known: Record = json.loads(path.read_text()) if path.exists() else {}
    if (known.get("particles"), known.get("auto")) != (size.particles, size.auto):
        known = {}
    work = size.results / "work" / case.name
    if not known:
        shutil.rmtree(work, ignore_errors=True)
        known = _run(case, size, work)
        _write(path, known)
    if case.peers and size.peers and "peers" not in known:
        if not (work / STAR).exists():
            simulate_project(work, **case.simulation(size.particles))
        known["peers"] = peer_records(work, size, case.latent_dims, _states(case, work))
        _write(path, known)
    shutil.rmtree(work, ignore_errors=True)
    return known


def _write(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as file:
        file.write(json.dumps(record, indent=1).encode())


def _run(case: Case, size: Size, work: Path) -> Record:
    simulate_project(work, **case.simulation(size.particles))
    job = work / "External/job010"
    seconds = _refine(case, size, work, job)
    true = np.load(work / "truth/truth.npz")["latents"]
    model = FlexModel.load(job / "flex_model.pt")
    maps = {kind: _half_maps(job, kind) for kind in ("rigid", "flex")}
    found = _latents(job)
    moved = motion_amplitude(model)
    verdict = json.loads((job / "validation.json").read_text())
    stages = json.loads((job / "manifest.json").read_text())["stages"]
    record: Record = {
        "case": case.name,
        "particles": size.particles,
        "auto": size.auto,
        "threads": size.threads,
        "seconds": {"all": seconds} | {name: stage["seconds"] for name, stage in stages.items()},
        "peak_MiB": max(stage["peak_MiB"] for stage in stages.values()),
        "verdict": verdict["verdict"],
        "gain": verdict["gain"],
        "moved_A": moved.mean_A,
        "moved_px": moved.mean_A / model.map.pixel_size_A,
        "half_fsc": {kind: float(fsc(*halves)[1:].mean()) for kind, halves in maps.items()},
        "states": [],
    } | agreement(found, true)
    for path, state in _states(case, work) if case.snr else ():
        density = read_volume(path)
        mask = state_mask(density)
        point = latent_at(found, true, state)[None]
        rigid, flex = (0.5 * (first + second) for first, second in maps.values())
        frame = next(frames(model, Volume(flex, density.pixel_size_A), point))
        scores = {"rigid": map_score(rigid, density, mask), "flex": map_score(frame.data, density, mask)}
        if len(state):
            alone = _ceiling(case, size, work, state)
            scores["ceiling"] = map_score(alone, density, mask)
            scores["share"] = share(scores["rigid"], scores["flex"], scores["ceiling"])
        record["states"].append({"latents": list(map(float, state))} | scores)
    return record


def _refine(case: Case, size: Size, work: Path, job: Path) -> float:
    """The whole job from the command line; its seconds."""
    command = [
        sys.executable, "-c", COMMAND, "--o", f"{job}/", "--in_parts", str(work / STAR), "--in_mask", str(work / MASK),
        "--latent_dims", str(case.latent_dims), "--j", str(size.threads), *case.flags,
    ]  # fmt: skip
    if not size.auto:
        usual = settled(TrainParameters())
        for name in ("rigidity", "band_end", "epochs"):
            command += [f"--{name}", str(getattr(usual, name))]
    began = time.monotonic()
    done = subprocess.run(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{case.name}: refine ended with {done.returncode}\n{done.stdout[-3000:]}")
    return time.monotonic() - began


def _ceiling(case: Case, size: Size, work: Path, state: NDArray[np.float64]) -> NDArray[np.float32]:
    """The rigid reconstruction, in the same mask, of as many particles that are all in one state."""
    folder = work / "alone"
    shutil.rmtree(folder, ignore_errors=True)
    simulate_project(folder, **(case.simulation(size.particles) | {"fixed_latent": tuple(state)}))
    consensus = read_consensus(folder / STAR, mask_path=work / MASK)
    Refinement(consensus, RefineParameters(), folder, Events(message=lambda line: None)).half_maps("rigid", None)
    first, second = _half_maps(folder, "rigid")
    return 0.5 * (first + second)


def _states(case: Case, work: Path) -> list[tuple[Path, NDArray[np.float64]]]:
    """Files and latents of the states that maps are scored at."""
    latents = np.load(work / "truth/truth.npz")["state_latents"]
    chosen = case.states or range(len(latents))
    return [(work / f"truth/state_{number:03d}.mrc", latents[number]) for number in chosen]


def _half_maps(job: Path, kind: str) -> list[NDArray[np.float32]]:
    return [mrcfile.read(job / f"{kind}_half{half}_class001_unfil.mrc") for half in (1, 2)]


def _latents(job: Path) -> NDArray[np.float64]:
    table = starfile.read(job / "particles.star")["particles"]
    return table[[name for name in table if name.startswith("flexLatent") and "Std" not in name]].to_numpy()
