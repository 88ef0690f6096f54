"""Small errors of the poses as nuisance: rigid motions of the whole beside, or instead of, the flow.

A particle whose pose is a little wrong is explained better by a motion of the whole, and a flow can learn to make
one. That is no conformational change, so both models that a validation compares may turn and shift each particle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.distributed import Group
from flex_job.flow import FlowGenerator
from flex_job.latents import normal_equations
from flex_job.levels import Level
from flex_job.linear_start import expectation_maximisation
from flex_job.mesh import TetMesh
from flex_job.mesh.tetmesh import vertex_weights
from flex_job.particles import Batch, ParticleStack

__all__ = ["PosedFlow", "pose_fields", "rigid_motions"]

ITERATIONS = 150


def rigid_motions(mesh: TetMesh) -> NDArray[np.float32]:
    """Displacement fields (6, V, 3) of three shifts and three infinitesimal turns about the molecule's centre, each of
    1 A rms over its density."""
    weight = vertex_weights(mesh)
    arm = mesh.vertices_A - weight @ mesh.vertices_A
    fields = [np.broadcast_to(axis, arm.shape) for axis in np.eye(3)] + [np.cross(axis, arm) for axis in np.eye(3)]
    sizes = [np.sqrt(weight @ (field**2).sum(axis=1)) for field in fields]
    return np.stack([field / size for field, size in zip(fields, sizes, strict=True)]).astype(np.float32)


def pose_fields(
    stack: ParticleStack,
    index: NDArray[np.int64],
    mesh: TetMesh,
    level: Level,
    batch_size: int,
    group: Group,
    displacement: Callable[[Batch], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Fields (6, V, 3) whose amplitudes are N(0, 1) in the particles `index`: rigid motions in the sizes that the
    images tell, by expectation-maximisation as in a linear start. They are next to nothing where poses are exact.
    `displacement(batch)` (b, V, 3) says where the vertices are, at rest by default."""
    model, device = level.model, level.values.device
    motions = torch.from_numpy(rigid_motions(mesh)).to(device)
    vertices = torch.from_numpy(mesh.vertices_A.astype(np.float32)).to(device)
    hessians, gradients = [torch.zeros(0, 6, 6).double()], [torch.zeros(0, 6).double()]
    for batch in stack.batches(group.batches(index, batch_size), model.band):
        moved = vertices if displacement is None else vertices + displacement(batch)
        q, dq = model.positions(batch, moved), model.directions(batch, motions)
        hessian, gradient, _ = normal_equations(model, level.values, batch, q, dq)
        hessians.append(hessian.cpu().double())
        gradients.append(gradient.cpu().double())
    prior = 4 * torch.eye(len(motions), dtype=torch.float64)  # 2 A rms
    covariance = expectation_maximisation(torch.cat(hessians), torch.cat(gradients), prior, ITERATIONS, group)
    root = torch.linalg.cholesky(covariance).float().to(device)
    return torch.einsum("mk,mva->kva", root, motions)


class PosedFlow:
    """A flow, or none, and rigid motions along `fields` (6, V, 3): latents are the flow's, then six amplitudes."""

    def __init__(self, flow: FlowGenerator | None, fields: torch.Tensor) -> None:
        self.flow, self.fields = flow, fields
        self.own = flow.latent_dims if flow else 0
        self.latent_dims = self.own + len(fields)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Displacements (b, V, 3) in angstroms at `z` (b, latent_dims)."""
        u = torch.einsum("bk,kva->bva", z[:, self.own :], self.fields)
        return u if self.flow is None else u + self.flow(z[:, : self.own])

    def with_derivative(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u (b, V, 3) and its derivatives (b, latent_dims, V, 3)."""
        with torch.no_grad():
            u = torch.einsum("bk,kva->bva", z[:, self.own :], self.fields)
            slopes = self.fields.expand(len(z), *self.fields.shape)
            if self.flow is None:
                return u, slopes
            moved, bent = self.flow.with_derivative(z[:, : self.own])
            return u + moved, torch.cat([bent, slopes], dim=1)
