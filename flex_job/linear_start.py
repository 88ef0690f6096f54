"""A linear start: which few combinations of soft elastic modes do the images move along?

Small motions change an image linearly: d_i = J_i a_i + noise with a_i ~ N(0, S) the amplitudes of the mesh's soft
modes in particle i. S is found by expectation-maximisation (exact for this model, with no start to choose and no
local optimum of practical concern); its leading directions, weighed by how much of the images they explain, become
the first flow, and the particles' posterior means along them the first latents. Motions that random latents would
have to find one after the other are found together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.distributed import Group
from flex_job.elastic import soft_modes
from flex_job.events import Events
from flex_job.imaging import ImageModel
from flex_job.latents import normal_equations, posterior_covariance
from flex_job.mesh import TetMesh
from flex_job.particles import Batch, ParticleStack

__all__ = ["LinearStart", "expectation_maximisation", "linear_latents", "linear_start"]

MODES = 24
SAMPLE = 4000
ITERATIONS = 40


@dataclass(frozen=True)
class LinearStart:
    """`fields` (K, V, 3): displacement in angstroms per unit latent; `spectrum` (m,): the part of the images' variance,
    in units of the noise, that each direction of S explains, in falling order."""

    fields: torch.Tensor
    spectrum: NDArray[np.float64]


def expectation_maximisation(
    hessians: torch.Tensor, gradients: torch.Tensor, prior: torch.Tensor, iterations: int, group: Group | None = None
) -> torch.Tensor:
    """The covariance S (m, m) of amplitudes a_i ~ N(0, S) given J^T J (n, m, m) and J^T r (n, m) per particle.

    Each rank of `group` gives the equations of its own particles; all get the same S.
    """
    group = group or Group()
    (n,) = group.total(len(hessians))
    s = prior
    for _ in range(iterations):
        # Cholesky and not inv: torch's batched LU of small matrices is up to 100 times slower on several busy threads.
        posterior = torch.cholesky_inverse(torch.linalg.cholesky(hessians + torch.linalg.inv(s)))
        mean = posterior @ gradients[..., None]
        s = (posterior + mean @ mean.transpose(1, 2)).sum(0) / n
        group.sum_(s)
        s = 0.5 * (s + s.T) + 1e-6 * torch.diag(prior.diagonal())
    return s


def linear_start(
    stack: ParticleStack,
    mesh: TetMesh,
    model: ImageModel,
    values: torch.Tensor,
    latent_dims: int,
    batch_size: int,
    seed: int,
    events: Events,
    group: Group | None = None,
    index: NDArray[np.int64] | None = None,
) -> LinearStart:
    """Fields from SAMPLE particles (where given: of those at `index`) in the band of `model`; the ranks of `group`
    share the work."""
    group = group or Group()
    device = model.operator.device
    modes = torch.from_numpy(soft_modes(mesh, MODES + 6)).to(device)
    vertices = torch.from_numpy(mesh.vertices_A.astype(np.float32)).to(device)
    known = np.arange(len(stack)) if index is None else index
    sample = np.sort(np.random.default_rng(seed).permutation(known)[:SAMPLE])
    hessian_parts, gradient_parts = [torch.zeros(0, len(modes), len(modes))], [torch.zeros(0, len(modes))]
    for batch in stack.batches(group.checked(group.batches(sample, batch_size), events), model.band):
        hessian, gradient = _equations(model, values, batch, vertices, modes)
        hessian_parts.append(hessian)
        gradient_parts.append(gradient)
    hessians, gradients = torch.cat(hessian_parts).double(), torch.cat(gradient_parts).double()
    information = hessians.sum(0) / len(sample)
    group.sum_(information)
    prior = torch.eye(len(modes), dtype=torch.float64)  # 1 A rms in every mode
    s = expectation_maximisation(hessians, gradients, prior, ITERATIONS, group)
    # Directions ordered by the variance that they explain in the images: eigenvectors of H^1/2 S H^1/2.
    values_h, vectors_h = torch.linalg.eigh(information)
    root = vectors_h * values_h.clamp(min=1e-9 * float(values_h[-1])).sqrt() @ vectors_h.T
    spectrum, directions = torch.linalg.eigh(root @ s @ root)
    leading = directions[:, -latent_dims:].flip(1) * spectrum[-latent_dims:].flip(0).clamp(min=1e-12).sqrt()
    amplitudes = torch.linalg.solve(root, leading)  # (m, K): modes per unit latent
    fields = torch.einsum("mk,mva->kva", amplitudes.float().to(device), modes)
    return LinearStart(fields, spectrum.flip(0).numpy())


def linear_latents(
    model: ImageModel, values: torch.Tensor, batch: Batch, vertices_A: torch.Tensor, fields: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior means (b, K) and covariance (b, K, K), on the CPU, of the latents along `fields` (K, V, 3)."""
    hessian, gradient = _equations(model, values, batch, vertices_A, fields)
    posterior = posterior_covariance(hessian)
    return (posterior @ gradient[..., None])[..., 0], posterior


def _equations(
    model: ImageModel, values: torch.Tensor, batch: Batch, vertices_A: torch.Tensor, fields: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """J^T J (b, K, K) and J^T r (b, K) of the amplitudes of `fields` (K, V, 3), at rest, on the CPU."""
    q, dq = model.positions(batch, vertices_A), model.directions(batch, fields)
    hessian, gradient, _ = normal_equations(model, values, batch, q, dq)
    return hessian.cpu(), gradient.cpu()
