"""A flow, and a turn and a shift of the whole particle after it: what latents and pose errors are inferred along.

A particle whose pose is a little wrong is explained better by a motion of the whole, and a flow can learn to make one.
That is no conformational change, so where poses may be wrong each particle is turned and shifted beside its flow.
"""

from __future__ import annotations

import numpy as np
import torch

from flex_job.flow import FlowGenerator
from flex_job.mesh import TetMesh
from flex_job.mesh.tetmesh import vertex_weights

__all__ = ["TurnedFlow", "rigid_unit"]


class TurnedFlow:
    """Latents are the flow's K (none without a flow) and six amplitudes of N(0, 1), which `root` (6, 6), lower
    triangular, takes to a shift in angstroms and a rotation vector in radians about the molecule's centre.

    Derivatives along a turn are those of a further small one: exact where the turn is zero, and off by half the turn
    elsewhere, which changes how fast Gauss-Newton steps come to rest but not where.
    """

    def __init__(self, flow: FlowGenerator | None, mesh: TetMesh, root: torch.Tensor) -> None:
        self.flow, self.root = flow, root
        self.own = flow.latent_dims if flow else 0
        self.latent_dims = self.own + 6
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
        bent = self.rest if self.flow is None else self.rest + self.flow(z[:, : self.own])
        return self._turned(z, bent)[0]

    def with_derivative(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u (b, V, 3) and its derivatives (b, K + 6, V, 3)."""
        with torch.no_grad():
            bend, du = (None, None) if self.flow is None else self.flow.with_derivative(z[:, : self.own])
            u, arm, rotations = self._turned(z, self.rest if bend is None else self.rest + bend)
            slopes = arm.new_empty(len(z), self.latent_dims, *arm.shape[1:])  # (b, K + 6, 3, V), filled in place
            if du is not None:
                slopes[:, : self.own] = rotations[:, None] @ du.transpose(2, 3)
            shifts, turns = self.root.T.split(3, dim=1)
            rigid = slopes[:, self.own :]
            crossed = _cross_products(turns).view(18, 3).expand(len(z), 18, 3)
            torch.bmm(crossed, arm, out=rigid.flatten(1, 2))
            rigid += shifts[:, :, None]
            return u, slopes.transpose(2, 3)

    def _turned(self, z: torch.Tensor, bent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From vertices `bent` (b, V, 3), or (V, 3) of all: displacements from rest (b, V, 3), turned vertices seen
        from the centre (b, 3, V), and the rotations (b, 3, 3). With coordinates first, products take a tenth of the
        time."""
        shift, turn = self.motion(z).split(3, dim=1)
        rotations = torch.linalg.matrix_exp(_cross_products(turn))
        arm = rotations @ (bent - self.centre).transpose(-2, -1)
        u = arm + shift[:, :, None]
        u += (self.centre - self.rest).T.contiguous()
        return u.transpose(1, 2), arm, rotations


def rigid_unit(mesh: TetMesh, device: torch.device) -> torch.Tensor:
    """The root (6, 6) of amplitudes in angstroms rms over the molecule's density."""
    weight = vertex_weights(mesh)
    arm = mesh.vertices_A - weight @ mesh.vertices_A
    turns = [1 / np.sqrt(weight @ (np.cross(axis, arm) ** 2).sum(axis=1)) for axis in np.eye(3)]
    return torch.diag(torch.tensor([1.0, 1.0, 1.0, *turns], dtype=torch.float32, device=device))


def _cross_products(turn: torch.Tensor) -> torch.Tensor:
    """Matrices (n, 3, 3) that take x to the cross product of rotation vectors (n, 3) with x."""
    x, y, z = turn.unbind(1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
