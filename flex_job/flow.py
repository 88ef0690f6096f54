"""The flow generator f_theta (paper, "Flow generator"): latent coordinates to displacements of the mesh's vertices."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

__all__ = ["Flow", "FlowGenerator"]

UNIT_A = 10.0
"""The network's outputs are in this unit, so that weights of all layers are of one size and learn at one rate."""
PART = 10_000  # particles at a time


class Flow(Protocol):
    """What latents can be inferred along: displacements (b, V, 3) of the vertices at latents (b, K)."""

    def __call__(self, z: torch.Tensor) -> torch.Tensor: ...

    def with_derivative(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


class FlowGenerator(nn.Module):
    """Fully connected ReLU network; the last layer is linear without bias and gives (b, n_vertices, 3) in angstroms.

    A linear path goes past the hidden layers: u = L (z - c) + W (h(z) - d). The network could learn it (ReLU units come
    in pairs), but then every straight motion would carry the units' creases; here h adds only what bends.
    `centre` (units + K,) holds d and c. They fix the frame of the canonical map: where they are the means of h and z
    over the particles (`rest_at_mean`), the mean displacement of every vertex is zero. Nothing else would: a map in
    any other frame explains the particles as well.
    `motion` (n_vertices,) multiplies the displacements: zero where motion is excluded (micelle, nanodisc).
    """

    motion: torch.Tensor
    centre: torch.Tensor

    def __init__(self, latent_dims: int, layers: int, units: int, motion: torch.Tensor) -> None:
        super().__init__()
        self.latent_dims, self.layers, self.units = latent_dims, layers, units
        widths = [latent_dims] + [units] * layers
        hidden: list[nn.Module] = []
        for width, following in zip(widths[:-1], widths[1:], strict=True):
            hidden += [nn.Linear(width, following), nn.ReLU()]
        self.trunk = nn.Sequential(*hidden)
        self.last = nn.Linear(units, 3 * len(motion), bias=False)
        self.straight = nn.Linear(latent_dims, 3 * len(motion), bias=False)
        self.register_buffer("motion", motion.float())
        self.register_buffer("centre", torch.zeros(units + latent_dims))
        nn.init.zeros_(self.last.weight)
        nn.init.normal_(self.straight.weight, std=0.01 / UNIT_A)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Displacements u (b, n_vertices, 3) in angstroms at latents `z` (b, latent_dims)."""
        return ((torch.cat([self.trunk(z), z], dim=1) - self.centre) @ self._last_weight()).view(len(z), -1, 3)

    def _last_weight(self) -> torch.Tensor:
        """W and L, unit and motion factors (units + K, 3 n_vertices): one product with [h, z], and nothing of the size
        of u is touched twice."""
        weight = torch.cat([self.last.weight, self.straight.weight], dim=1)
        return (weight * (UNIT_A * self.motion.repeat_interleave(3))[:, None]).T

    def with_derivative(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u (b, V, 3) and its derivatives (b, K, V, 3) along each latent, no graph kept."""
        with torch.no_grad():
            eye = torch.eye(self.latent_dims, device=z.device).expand(len(z), -1, -1)
            features, slopes = z, eye
            for layer in self.trunk:
                if isinstance(layer, nn.Linear):
                    features, slopes = layer(features), slopes @ layer.weight.T
                else:
                    slopes = slopes * (features > 0)[:, None]
                    features = layer(features)
            here = torch.cat([features, z], dim=1) - self.centre
            together = torch.cat([here[:, None], torch.cat([slopes, eye], dim=2)], dim=1)
            both = (together @ self._last_weight()).view(len(z), 1 + self.latent_dims, -1, 3)
            return both[:, 0], both[:, 1:]

    @torch.no_grad()
    def start_straight(self, fields: torch.Tensor) -> None:
        """Begin as the linear flow u = sum_k z_k fields_k, fields (K, n_vertices, 3) in angstroms."""
        self.straight.weight.copy_(fields.reshape(self.latent_dims, -1).T / UNIT_A)

    @torch.no_grad()
    def change_latents(self, matrix: torch.Tensor) -> None:
        """Take latents z' with z = matrix z' from now on: no displacement changes."""
        first = self.trunk[0]
        assert isinstance(first, nn.Linear)
        first.weight.copy_(first.weight @ matrix)
        self.straight.weight.copy_(self.straight.weight @ matrix)
        self.centre[self.units :] = torch.linalg.solve(matrix, self.centre[self.units :])

    @torch.no_grad()
    def rest_at_mean(self, latents: torch.Tensor) -> None:
        """Make the mean displacement at `latents` (n, K) zero. All displacements change by one field, whatever z; a
        canonical map that was made before then no longer fits."""
        total = torch.zeros(len(self.centre), dtype=torch.float64, device=self.centre.device)
        for part in latents.split(PART):
            z = part.to(self.centre.device)
            total += torch.cat([self.trunk(z), z], dim=1).double().sum(0)
        self.centre.copy_(total / len(latents))
