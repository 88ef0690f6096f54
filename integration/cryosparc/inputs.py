"""The inputs of an external job: declared, connected, and brought to where the engine can read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flex_job.files import written_aside
from flex_job.problems import InputProblems
from integration.cryosparc.client import ExternalJob, Instance
from integration.cryosparc.dataset import read_cs
from integration.cryosparc.project import inside_project, project_path
from integration.cryosparc.request import Source

__all__ = ["Prepared", "connect_inputs", "prepare"]

FOLDER = "inputs"
PREPARED = "prepared.json"
# input -> (kind, title, slots); what else the connected output has comes with it
INPUTS: dict[str, tuple[str, str, list[str | tuple[str, str]]]] = {
    "particles": ("particle", "Particles", ["blob", "ctf", "alignments3D"]),
    "volume": ("volume", "Refined volume", ["map", ("?map_half_A", "map_half_A"), ("?map_half_B", "map_half_B")]),
    "mask": ("mask", "Mask", ["mask"]),
}


@dataclass(frozen=True)
class Prepared:
    """Files of the inputs on this machine; paths in `particles` are relative to `root`."""

    particles: Path
    root: Path
    map: Path
    half_maps: tuple[Path, Path] | None = None
    mask: Path | None = None

    def save(self, folder: Path) -> None:
        """Leave a note in the job's folder for its other processes."""
        with written_aside(folder / FOLDER / PREPARED) as file:
            file.write(json.dumps(asdict(self), default=str).encode())

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        entries = json.loads((folder / FOLDER / PREPARED).read_text())
        halves = entries.pop("half_maps")
        paths = {name: Path(text) if text else None for name, text in entries.items()}
        return cls(**paths, half_maps=(Path(halves[0]), Path(halves[1])) if halves else None)  # type: ignore[arg-type]


def connect_inputs(job: ExternalJob, sources: Mapping[str, Source]) -> None:
    """Declare the inputs that have a source and connect them. Raises InputProblems with what does not connect."""
    problems = []
    for name, source in sources.items():
        kind, title, slots = INPUTS[name]
        try:
            job.add_input(kind, name, slots, title, required=name != "mask")
            job.connect(name, source.job, source.output)
        except Exception as error:
            reason = " ".join(str(error).split())[:400]
            problems.append(f"--{name} {source.job}.{source.output} cannot be connected: {reason}")
    if problems:
        raise InputProblems(problems)


def prepare(instance: Instance, job: ExternalJob, project: str, folder: Path, say: Callable[[str], None]) -> Prepared:
    """Load the connected inputs into `folder`/inputs; returns where things are.

    Volumes and image stacks are read in the project's folder where this machine sees it, else downloaded, once.
    """
    inputs = folder / FOLDER
    inputs.mkdir(parents=True, exist_ok=True)
    particles, volume = job.load_input("particles"), job.load_input("volume")
    path = inputs / "particles.cs"
    particles.save(str(path))
    names = {"map": _first(volume, "map/path")}
    names |= {half: _first(volume, f"{half}/path") for half in ("map_half_A", "map_half_B")}
    if job.has_input("mask"):
        names["mask"] = _first(job.load_input("mask"), "mask/path")
    stacks = {project_path(text.decode()) for text in set(read_cs(path).get("blob/path", ()).tolist())}  # type: ignore[union-attr]
    wanted = [name for name in (*names.values(), *sorted(stacks)) if name]
    outside = [name for name in wanted if not inside_project(name)]
    if outside or not names["map"]:
        raise InputProblems(
            [f"{name!r} is outside the project; expected names relative to its folder" for name in outside[:5]]
            or ["the connected volume has no map; connect the volume of a refinement"]
        )
    root = instance.project_folder(project)
    if not (root / names["map"]).is_file():
        missing = [name for name in wanted if not (inputs / name).is_file()]
        say(f"{root} is not seen by this machine: {len(missing)} files are downloaded to {inputs}")
        for name in missing:
            instance.download(project, name, inputs / name)
        root = inputs
    found = {name: root / text for name, text in names.items() if text}
    halves = (found["map_half_A"], found["map_half_B"]) if {"map_half_A", "map_half_B"} <= set(found) else None
    prepared = Prepared(path, root, found["map"], halves, found.get("mask"))
    prepared.save(folder)
    return prepared


def _first(dataset: Any, field: str) -> str:
    """The text of the first row, empty where the dataset has no such field or row."""
    if len(dataset) == 0 or field not in dataset:
        return ""
    return project_path(str(dataset[field][0]))
