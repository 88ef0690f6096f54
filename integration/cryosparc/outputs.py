"""The outputs of an external job: particles with latents, volumes, the mesh; saved under cryoSPARC's names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flex_job.mesh import write_cryosparc_mesh
from flex_job.model import FlexModel
from flex_job.volume import Volume, read_volume
from integration.cryosparc.client import ExternalJob
from integration.cryosparc.dataset import Records

__all__ = ["declare_outputs", "save_outputs"]

log = logging.getLogger("integration.cryosparc")

# output -> slot -> file of the job's folder
HALF = "{}_half{}_class001_unfil.mrc"
VOLUMES: dict[str, tuple[str, dict[str, str]]] = {
    "volume": (
        "Volume through the motion",
        {
            "map": "flex_class001.mrc",
            "map_half_A": HALF.format("flex", 1),
            "map_half_B": HALF.format("flex", 2),
            "mask_refine": "mask.mrc",
        },
    ),
    "volume_rigid": (
        "Volume without motion",
        {
            "map": "rigid_class001.mrc",
            "map_half_A": HALF.format("rigid", 1),
            "map_half_B": HALF.format("rigid", 2),
        },
    ),
}
ALIGNMENTS = "alignments3D"
MESH = ("flex_mesh", "mesh", "flex_mesh.p")


@dataclass(frozen=True)
class _File:
    """What the fields of a slot say of a file."""

    path: str
    box: int
    pixel_size_A: float


def declare_outputs(job: ExternalJob, dims: int, *, refines_poses: bool = False) -> None:
    """Tell the job what it will give: done before it runs, so that others can be connected to it. Alignments, where it
    refines them, take the place of those that are passed through."""
    modes: list[str | tuple[str, str]] = [(f"components_mode_{mode}", "components") for mode in range(dims)]
    if refines_poses:
        modes.append(ALIGNMENTS)
    job.add_output("particle", "particles", modes, "Particles with latents", passthrough="particles")
    for name, (title, slots) in VOLUMES.items():
        job.add_output("volume", name, list(slots), title)


def save_outputs(
    job: ExternalJob,
    folder: Path,
    records: Records,
    model: FlexModel,
    say: Callable[[str], None],
) -> None:
    """Save all outputs of a finished run in `folder`, uploading files where that is not the job's own.

    `records` are the particles as they were written, in the order of the model's latents."""
    mask = read_volume(folder / "mask.mrc")
    mesh_file = _write_mesh(model, mask, folder, say)
    own = folder.resolve() == job.folder.resolve()
    files = {name for _, slots in VOLUMES.values() for name in slots.values()}
    if not own:
        extra = ("logfile.pdf", "report.html", "flex_model.pt", "fsc.star", "particles.cs", "flex.log")
        for name in (*sorted(files), *extra, mesh_file):
            if name and (folder / name).is_file():
                job.upload(folder / name)

    def fill_latents(dataset: Any) -> None:
        for mode in range(model.latents.shape[1]):
            dataset[f"components_mode_{mode}/component"] = mode
            dataset[f"components_mode_{mode}/value"] = model.latents[:, mode].astype(np.float32)
        for name in list(dataset):
            if name.startswith(f"{ALIGNMENTS}/") and name in records:
                dataset[name] = records[name]

    job.save_output("particles", records["uid"].astype(np.uint64), fill_latents)
    for name, (_, slots) in VOLUMES.items():
        job.save_output(name, 1, _filler(job.uid, slots, folder))
    if mesh_file:
        _save_mesh(job, mesh_file, mask, say)


def _filler(uid: str, slots: Mapping[str, str], folder: Path) -> Callable[[Any], None]:
    def fill(dataset: Any) -> None:
        for slot, name in slots.items():
            volume = read_volume(folder / name)
            _describe(dataset, slot, _File(f"{uid}/{name}", volume.box, volume.pixel_size_A))

    return fill


def _describe(dataset: Any, slot: str, file: _File) -> None:
    """Set the fields of a slot that say which file it is, how large, on what scale; others keep their defaults."""
    values = {"path": file.path, "shape": (file.box,) * 3, "psize_A": file.pixel_size_A}
    for name, value in values.items():
        field = f"{slot}/{name}"
        if field in dataset:
            dataset[field] = value if name != "shape" else np.array([value])


def _write_mesh(model: FlexModel, mask: Volume, folder: Path, say: Callable[[str], None]) -> str:
    """cryoSPARC's mesh file beside ours; empty where it cannot be written."""
    try:
        write_cryosparc_mesh(model.mesh, mask, folder / MESH[2])
    except (ValueError, OSError) as error:
        say(f"the mesh is in mesh.npz only, it cannot be written for cryoSPARC: {error}")
        return ""
    return MESH[2]


def _save_mesh(job: ExternalJob, name: str, mask: Volume, say: Callable[[str], None]) -> None:
    """The mesh as an output of its own, declared last: what its slot looks like is not public, a refusal costs nothing
    but the output."""
    kind, slot, _ = MESH

    def fill(dataset: Any) -> None:
        if f"{slot}/path" not in dataset:
            raise ValueError(f"its fields are {', '.join(dataset)}, with no {slot}/path among them")
        _describe(dataset, slot, _File(f"{job.uid}/{name}", mask.box, mask.pixel_size_A))

    try:
        job.add_output(kind, kind, [(slot, slot)], "Mesh")
        job.save_output(kind, 1, fill)
    except Exception as error:
        log.warning("mesh output", exc_info=True)
        reason = " ".join(str(error).split())[:300]
        say(f"the mesh is the file {name} only, cryoSPARC did not take it as an output: {reason}")
