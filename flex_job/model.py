"""The trained model: flow generator, canonical map, latents with covariance, and their file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.consensus import PIXEL_SIZES_A
from flex_job.files import written_aside
from flex_job.flow import FlowGenerator
from flex_job.input_files import opened_input
from flex_job.mesh.tetmesh import ENTRIES, TetMesh
from flex_job.plain_tensors import array_in, load_tensors
from flex_job.pose_corrections import PoseCorrections
from flex_job.problems import one_line
from flex_job.volume import Volume

__all__ = ["FlexModel"]

SCHEMA = 1
MOST_BYTES = 1 << 40
MOST_LAYERS, MOST_UNITS = 64, 4096
CORRECTIONS = {"turn_rad": (3,), "shift_A": (2,), "contrast": ()}  # shapes for each particle


@dataclass(frozen=True)
class FlexModel:
    """`latents` (n, K) and `covariance` (n, K, K) in the particles' order; `map` and `support` at the training box.

    `corrections` are those of the particles' poses, where these were refined.
    `history` has one row per epoch: names in `history_names`.
    """

    mesh: TetMesh
    flow: FlowGenerator
    latents: NDArray[np.float32]
    covariance: NDArray[np.float32]
    map: Volume
    support: Volume
    history: NDArray[np.float64]
    history_names: tuple[str, ...]
    corrections: PoseCorrections | None = None

    @property
    def latent_std(self) -> NDArray[np.float32]:
        """Posterior standard deviations (n, K)."""
        return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))

    @torch.no_grad()
    def displacement(self, z: NDArray[np.floating]) -> NDArray[np.float32]:
        """Displacements (b, V, 3) of the mesh's vertices in angstroms at latents `z` (b, K)."""
        return self.flow(torch.from_numpy(np.asarray(z, dtype=np.float32))).numpy()

    def slopes(self, z: NDArray[np.floating]) -> NDArray[np.float32]:
        """Derivatives (b, K, V, 3) of those displacements along each latent."""
        return self.flow.with_derivative(torch.from_numpy(np.asarray(z, dtype=np.float32)))[1].numpy()

    def save(self, path: Path) -> Path:
        """Plain tensors with a schema version; written aside, then renamed over `path`."""
        with written_aside(path) as file:
            torch.save(self._tensors(), file)
        return path

    def _tensors(self) -> dict[str, object]:
        mesh = self.mesh
        return {
            "schema": SCHEMA,
            "flow": self.flow.state_dict(),
            "flow_shape": [self.flow.latent_dims, self.flow.layers, self.flow.units],
            "mesh": {
                name: torch.from_numpy(np.array(getattr(mesh, name)))
                for name in ("vertices_A", "cells", "rigidity", "motion", "segment")
            },
            "latents": torch.from_numpy(self.latents),
            "covariance": torch.from_numpy(self.covariance),
            "map": torch.from_numpy(self.map.data),
            "support": torch.from_numpy(self.support.data),
            "pixel_size_A": self.map.pixel_size_A,
            "history": torch.from_numpy(self.history),
            "history_names": list(self.history_names),
        } | self._corrections()

    def _corrections(self) -> dict[str, object]:
        found = self.corrections
        if found is None:
            return {}
        names = [name for name in CORRECTIONS if getattr(found, name) is not None]
        return {"corrections": {name: torch.from_numpy(np.ascontiguousarray(getattr(found, name))) for name in names}}

    @classmethod
    def load(cls, path: Path) -> FlexModel:
        """Read what `save` wrote. Raises ValueError, with the path, for anything else."""
        try:
            with opened_input(path, "file", "a trained model (flex_model.pt)", MOST_BYTES) as file:
                return _model(load_tensors(file))
        except Exception as error:  # torch raises anything
            if str(error).startswith(f"{path}: "):
                raise
            raise ValueError(
                one_line(f"{path}: not a trained model of this software ({error}); train it again, or give another")
            ) from error


def _model(data: Mapping[str, Any]) -> FlexModel:
    """The model in a file's content, all of it checked. Raises ValueError, and others for what is missing."""
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']}; this version reads schema {SCHEMA}")
    corners = {"vertices_A": 3, "cells": 4}
    mesh = TetMesh(
        **{
            name: array_in(data["mesh"], name, dtype, None, *([corners[name]] if name in corners else []))
            for name, dtype in ENTRIES.items()
        }
    )
    dims, layers, units = (int(number) for number in data["flow_shape"])
    if not (1 <= layers <= MOST_LAYERS and dims >= 1 and 1 <= units <= MOST_UNITS):
        raise ValueError(f"a flow of {dims} latents, {layers} layers and {units} units")
    weights = {"centre": torch.zeros(units + dims)} | dict(data["flow"])  # models of earlier versions have none
    array_in(weights, "last.weight", np.float32, 3 * len(mesh.vertices_A), units)
    array_in(weights, "trunk.0.weight", np.float32, units, dims)
    for name, tensor in weights.items():
        array_in(weights, name, np.float32, *tensor.shape)
    flow = FlowGenerator(dims, layers, units, torch.from_numpy(mesh.motion))
    flow.load_state_dict(weights)
    pixel = float(data["pixel_size_A"])
    if not PIXEL_SIZES_A[0] <= pixel <= PIXEL_SIZES_A[1]:
        raise ValueError(f"pixel size {pixel:g} A")
    names = tuple(map(str, data["history_names"]))
    latents = array_in(data, "latents", np.float32, None, dims)
    volume = array_in(data, "map", np.float32, None, None, None)
    return FlexModel(
        mesh=mesh,
        flow=flow,
        latents=latents,
        covariance=array_in(data, "covariance", np.float32, len(latents), dims, dims),
        map=Volume(array_in(data, "map", np.float32, *[len(volume)] * 3), pixel),
        support=Volume(array_in(data, "support", np.float32, *[len(volume)] * 3), pixel),
        history=array_in(data, "history", np.float64, None, len(names)),
        history_names=names,
        corrections=_corrections(data["corrections"], len(latents)) if "corrections" in data else None,
    )


def _corrections(data: Mapping[str, Any], count: int) -> PoseCorrections:
    needed = [name for name in CORRECTIONS if name in data or name != "contrast"]
    return PoseCorrections(**{name: array_in(data, name, np.float32, count, *CORRECTIONS[name]) for name in needed})
