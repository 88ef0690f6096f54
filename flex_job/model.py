"""The trained model: flow generator, canonical map, latents with covariance, and their file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.files import written_aside
from flex_job.flow import FlowGenerator
from flex_job.mesh import TetMesh
from flex_job.volume import Volume

__all__ = ["FlexModel"]

SCHEMA = 1


@dataclass(frozen=True)
class FlexModel:
    """`latents` (n, K) and `covariance` (n, K, K) in the particles' order; `map` and `support` at the training box.

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

    @property
    def latent_std(self) -> NDArray[np.float32]:
        """Posterior standard deviations (n, K)."""
        return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))

    @torch.no_grad()
    def displacement(self, z: NDArray[np.floating]) -> NDArray[np.float32]:
        """Displacements (b, V, 3) of the mesh's vertices in angstroms at latents `z` (b, K)."""
        return self.flow(torch.from_numpy(np.asarray(z, dtype=np.float32))).numpy()

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
        }

    @classmethod
    def load(cls, path: Path) -> FlexModel:
        """Read what `save` wrote. Raises ValueError, with the path, for anything else."""
        try:
            data = torch.load(path, weights_only=True)
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']}; this version reads schema {SCHEMA}")
            mesh = TetMesh(**{name: tensor.numpy() for name, tensor in data["mesh"].items()})
            dims, layers, units = data["flow_shape"]
            flow = FlowGenerator(dims, layers, units, torch.from_numpy(mesh.motion))
            flow.load_state_dict(data["flow"])
            pixel = float(data["pixel_size_A"])
            return cls(
                mesh=mesh,
                flow=flow,
                latents=data["latents"].numpy(),
                covariance=data["covariance"].numpy(),
                map=Volume(data["map"].numpy(), pixel),
                support=Volume(data["support"].numpy(), pixel),
                history=data["history"].numpy(),
                history_names=tuple(data["history_names"]),
            )
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; expected a trained model (flex_model.pt)") from None
        except Exception as error:
            raise ValueError(f"{path}: not a trained model of this software ({error})") from error
