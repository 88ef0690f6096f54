"""The flow generator f_theta (paper, "Flow generator"): latent coordinates to displacements of the mesh's vertices."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["FlowGenerator"]


class FlowGenerator(nn.Module):
    """Fully connected ReLU network; the last layer is linear without bias and gives (b, n_vertices, 3) in angstroms.

    `motion` (n_vertices,) multiplies the displacements: zero where motion is excluded (micelle, nanodisc).
    """

    motion: torch.Tensor

    def __init__(self, latent_dims: int, layers: int, units: int, motion: torch.Tensor) -> None:
        super().__init__()
        self.latent_dims, self.layers, self.units = latent_dims, layers, units
        widths = [latent_dims] + [units] * layers
        hidden: list[nn.Module] = []
        for width, following in zip(widths[:-1], widths[1:], strict=True):
            hidden += [nn.Linear(width, following), nn.ReLU()]
        self.trunk = nn.Sequential(*hidden)
        self.last = nn.Linear(units, 3 * len(motion), bias=False)
        self.register_buffer("motion", motion.float())
        nn.init.normal_(self.last.weight, std=0.01)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Displacements u (b, n_vertices, 3) in angstroms at latents `z` (b, latent_dims)."""
        return self.last(self.trunk(z)).view(len(z), -1, 3) * self.motion[:, None]

    def with_derivative(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u (b, V, 3) and its derivatives (b, K, V, 3) along each latent, no graph kept."""
        with torch.no_grad():
            features, slopes = z, torch.eye(self.latent_dims).expand(len(z), -1, -1)
            for layer in self.trunk:
                if isinstance(layer, nn.Linear):
                    features, slopes = layer(features), slopes @ layer.weight.T
                else:
                    slopes = slopes * (features > 0)[:, None]
                    features = layer(features)
            motion = self.motion[:, None]
            u = self.last(features).view(len(z), -1, 3) * motion
            return u, self.last(slopes).view(len(z), self.latent_dims, -1, 3) * motion

    @torch.no_grad()
    def fit_last_layer(self, z: torch.Tensor, u: torch.Tensor) -> None:
        """Set the last layer by ridge regression so that the network reproduces displacements `u` (b, V, 3) at `z`."""
        features = self.trunk(z).double()
        gram = features.T @ features
        gram += 1e-4 * gram.diagonal().mean() * torch.eye(self.units, dtype=gram.dtype)
        weight = torch.linalg.solve(gram, features.T @ u.reshape(len(u), -1).double())
        self.last.weight.copy_(weight.T.float())
