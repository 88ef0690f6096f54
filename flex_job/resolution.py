"""Resolution beyond the curves of the half-maps: in every sphere, in masks of the user, and against an atomic model.

Everything is said of the rigid and the flex maps side by side, by one rule. An atomic model is compared with the
average of the two half-maps as they are, not sharpened, both inside the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from flex_job.files import written_aside
from flex_job.fsc import FscCurves, compare_half_maps, fsc_masked, resolution_at, resolution_text
from flex_job.half_maps import fitted_mask, read_halves
from flex_job.local_resolution import local_resolution
from flex_job.map_model import model_density, model_problem, read_model
from flex_job.mask import value_problem
from flex_job.volume import Volume, read_volume, write_volume
from job_specs.parameters import ResolutionParameters, names_in

__all__ = [
    "KINDS",
    "MaskFsc",
    "ModelFsc",
    "Resolution",
    "locres_file",
    "resolution_files",
    "resolution_problems",
    "write_fsc_xml",
    "write_resolution",
]

KINDS = ("rigid", "flex")
MODEL_THRESHOLD = 0.5
"""A model has no noise: its FSC with the whole map is compared with this (Rosenthal & Henderson 2003)."""

SAME_EXTENT = 0.01
CURVES = ("unmasked", "masked", "randomised", "corrected")
DIGITS = 8


@dataclass(frozen=True)
class MaskFsc:
    """The curves inside a mask that the user gave, `path` as it was given."""

    path: str
    rigid: FscCurves
    flex: FscCurves

    @property
    def name(self) -> str:
        return Path(self.path).stem


@dataclass(frozen=True)
class ModelFsc:
    """FSC of an atomic model with the averages of the half-maps, each (box // 2 + 1,)."""

    path: str
    rigid: NDArray[np.float64]
    flex: NDArray[np.float64]
    frequency_per_A: NDArray[np.float64]

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def resolution_A(self, kind: str) -> float:
        """Where the curve falls below 0.5, in angstroms."""
        curve = getattr(self, kind)
        return resolution_at(curve, MODEL_THRESHOLD, self.frequency_per_A)

    def resolution_text(self, kind: str) -> str:
        """The same for a reader."""
        return resolution_text(getattr(self, kind), MODEL_THRESHOLD, self.frequency_per_A)


@dataclass(frozen=True)
class Resolution:
    """`masks` in the order given; `model` None without one; `local` has quantiles by kind, none where not asked for."""

    masks: tuple[MaskFsc, ...] = ()
    model: ModelFsc | None = None
    local: Mapping[str, Mapping[str, float]] | None = None

    def record(self) -> dict[str, Any]:
        """All of it as plain numbers, for the manifest."""
        record: dict[str, Any] = {"local": {kind: dict(values) for kind, values in (self.local or {}).items()}}
        record["masks"] = [
            {"path": mask.path} | {kind: _curves_record(getattr(mask, kind)) for kind in KINDS} for mask in self.masks
        ]
        if self.model is not None:
            names = (*KINDS, "frequency_per_A")
            record["model"] = {"path": self.model.path} | {name: _plain(getattr(self.model, name)) for name in names}
            record["model"]["resolution"] = {kind: self.model.resolution_text(kind) for kind in KINDS}
        return record

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """From what `record` gave."""
        masks = tuple(
            MaskFsc(mask["path"], _curves_of(mask["rigid"]), _curves_of(mask["flex"]))
            for mask in record.get("masks", ())
        )
        model = record.get("model")
        curves = None
        if model:
            rigid, flex, frequency = (np.array(model[name]) for name in (*KINDS, "frequency_per_A"))
            curves = ModelFsc(model["path"], rigid, flex, frequency)
        return cls(masks, curves, record.get("local") or None)


def locres_file(kind: str) -> str:
    """Name of the local resolution map; `kind` is rigid or flex."""
    return f"{kind}_locres.mrc"


def xml_file(kind: str) -> str:
    """Name of the corrected FSC for a deposition."""
    return f"{kind}_fsc.xml"


def resolution_files(parameters: ResolutionParameters) -> list[str]:
    """Names of all that `write_resolution` writes."""
    maps = [locres_file(kind) for kind in KINDS] if parameters.locres_sampling else []
    return [*maps, *(xml_file(kind) for kind in KINDS)]


def resolution_problems(parameters: ResolutionParameters, map: Volume | None) -> list[str]:
    """All that is wrong with the masks and the model that were given; `map` is None where it cannot be had."""
    found = []
    for path in names_in(parameters.fsc_masks):
        try:
            mask = read_volume(path)
            problem = value_problem(mask) or _extent_problem(mask, map)
            found += [f"fsc_masks: {path}: {problem}"] if problem else []
        except ValueError as error:
            found.append(f"fsc_masks: {error}")
    path = parameters.model_fsc
    if path and Path(path).is_file() and map is not None:
        problem = model_problem(path, map)
        found += [f"model_fsc: {problem}"] if problem else []
    return found


def write_resolution(
    folder: Path,
    rigid: FscCurves,
    flex: FscCurves,
    mask: Volume,
    consensus_map: Volume,
    parameters: ResolutionParameters,
) -> Resolution:
    """Compute all of it from the half-maps in `folder`; write local resolution as maps and the curves as XML.

    `mask` may have any box; the frame of an atomic model is that of `consensus_map`.
    """
    halves = {kind: read_halves(folder, kind) for kind in KINDS}
    box, pixel_A = halves["flex"][0].box, halves["flex"][0].pixel_size_A
    soft = fitted_mask(mask, box)
    for kind, curves in (("rigid", rigid), ("flex", flex)):
        write_fsc_xml(folder / xml_file(kind), curves, f"{kind} half-maps, FSC corrected for the mask")
    local = {}
    if parameters.locres_sampling:
        for kind, (first, second) in halves.items():
            found = local_resolution(first, second, soft, parameters.locres_sampling)
            write_volume(folder / locres_file(kind), found.volume.data, pixel_A)
            local[kind] = found.record()
    masks = []
    for path in names_in(parameters.fsc_masks):
        inside = fitted_mask(read_volume(path), box).data
        both = {
            kind: compare_half_maps(first.data, second.data, inside, pixel_A)
            for kind, (first, second) in halves.items()
        }
        masks.append(MaskFsc(path, both["rigid"], both["flex"]))
    model = None
    if parameters.model_fsc:
        density = model_density(read_model(parameters.model_fsc), consensus_map, box)
        whole = {
            kind: fsc_masked(density, (first.data + second.data) / 2, soft.data)
            for kind, (first, second) in halves.items()
        }
        model = ModelFsc(parameters.model_fsc, whole["rigid"], whole["flex"], flex.frequency_per_A)
    return Resolution(tuple(masks), model, local or None)


def write_fsc_xml(path: Path, curves: FscCurves, title: str) -> Path:
    """The corrected FSC as EMDB takes it in a deposition: an `fsc` element of `coordinate` elements, x in 1/A.

    The format is that of EMDB's FSC server and of RELION's postprocess_fsc.xml.
    """
    root = ElementTree.Element("fsc", {"title": title, "xaxis": "Resolution (A-1)", "yaxis": "Correlation Coefficient"})
    for x, y in zip(curves.frequency_per_A, curves.corrected, strict=True):
        coordinate = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(coordinate, "x").text = f"{x:.6f}"
        ElementTree.SubElement(coordinate, "y").text = f"{y:.6f}"
    ElementTree.indent(root)
    with written_aside(path) as file:
        ElementTree.ElementTree(root).write(file, encoding="UTF-8", xml_declaration=True)
    return path


def _extent_problem(mask: Volume, map: Volume | None) -> str | None:
    """A mask may have another box than the map, over the same part of space."""
    if map is None:
        return None
    extent, expected = mask.box * mask.pixel_size_A, map.box * map.pixel_size_A
    if mask.box != map.box and abs(extent - expected) > SAME_EXTENT * expected:
        return f"{extent:.1f} A across; expected {expected:.1f} A, the extent of the map; resample it to the map"
    return None


def _plain(values: NDArray[np.float64]) -> list[float]:
    return [round(value, DIGITS) for value in np.asarray(values).tolist()]


def _curves_record(curves: FscCurves) -> dict[str, Any]:
    record: dict[str, Any] = {name: _plain(getattr(curves, name)) for name in (*CURVES, "frequency_per_A")}
    return {"resolution": curves.resolution_text(), "randomised_from": curves.randomised_from} | record


def _curves_of(record: Mapping[str, Any]) -> FscCurves:
    arrays = {name: np.array(record[name], dtype=np.float64) for name in (*CURVES, "frequency_per_A")}
    return FscCurves(**arrays, randomised_from=record["randomised_from"])
