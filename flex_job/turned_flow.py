"""A flow, and a turn and a shift of the whole particle after it: what latents and pose errors are inferred along."""

from __future__ import annotations

import numpy as np
import torch

from flex_job.flow import Flow
from flex_job.mesh import TetMesh
from flex_job.mesh.tetmesh import vertex_weights

__all__ = ["TurnedFlow", "rigid_unit"]


class TurnedFlow:
    """Latents are the flow's K and six amplitudes of N(0, 1), which `root` (6, 6) takes to a shift in angstroms and a
    rotation vector in radians about the molecule's centre.

    Derivatives along a turn are those of a further small one: exact where the turn is zero, and off by half the turn
    elsewhere, which changes how fast Gauss-Newton steps come to rest but not where.
    """

    def __init__(self, flow: Flow, latent_dims: int, mesh: TetMesh, root: torch.Tensor) -> None:
        self.flow, self.own, self.root = flow, latent_dims, root
        self.latent_dims = latent_dims + 6
        self.rest = torch.from_numpy(mesh.vertices_A.astype(np.float32)).to(root.device)
        self.centre = torch.from_numpy((vertex_weights(mesh) @ mesh.vertices_A).astype(np.float32)).to(root.device)

    def motion(self, z: torch.Tensor) -> torch.Tensor:
        """Shift in angstroms and rotation vector in radians (b, 6) at `z` (b, K + 6)."""
        return z[:, self.own :] @ self.root.T

    def amplitudes(self, motion: torch.Tensor) -> torch.Tensor:
        """Amplitudes (b, 6) of a shift and rotation vector (b, 6)."""
        return torch.linalg.solve_triangular(self.root, motion.T, upper=False).T

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Displacements (b, V, 3) in angstroms at `z` (b, K + 6)."""
        return self._turned(z, self.flow(z[:, : self.own]))[0]

    def with_derivative(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u (b, V, 3) and its derivatives (b, K + 6, V, 3)."""
        with torch.no_grad():
            u, du = self.flow.with_derivative(z[:, : self.own])
            moved, arm, matrices = self._turned(z, u)
            axes = torch.eye(3, device=z.device)
            shifts = axes[:, None].expand(len(z), 3, *arm.shape[1:])
            turns = torch.linalg.cross(axes[None, :, None], arm[:, None], dim=-1)
            slopes = torch.einsum("mk,bmva->bkva", self.root, torch.cat([shifts, turns], dim=1))
            return moved, torch.cat([du @ matrices[:, None], slopes], dim=1)

    def _turned(self, z: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Displacements, turned vertices (b, V, 3) seen from the centre, and the transposed rotations (b, 3, 3)."""
        shift, turn = self.motion(z).split(3, dim=1)
        x, y, w = turn.unbind(1)
        zero = torch.zeros_like(x)
        generators = torch.stack([zero, w, -y, -w, zero, x, y, -x, zero], dim=1).view(-1, 3, 3)
        matrices = torch.linalg.matrix_exp(generators)
        arm = (self.rest - self.centre + u) @ matrices
        return arm + shift[:, None] + self.centre - self.rest, arm, matrices


def rigid_unit(mesh: TetMesh, device: torch.device) -> torch.Tensor:
    """The root (6, 6) of amplitudes in angstroms rms over the molecule's density."""
    weight = vertex_weights(mesh)
    arm = mesh.vertices_A - weight @ mesh.vertices_A
    turns = [1 / np.sqrt(weight @ (np.cross(axis, arm) ** 2).sum(axis=1)) for axis in np.eye(3)]
    return torch.diag(torch.tensor([1.0, 1.0, 1.0, *turns], dtype=torch.float32, device=device))
