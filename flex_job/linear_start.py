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

from flex_job.elastic import soft_modes
from flex_job.events import Events
from flex_job.imaging import ImageModel
from flex_job.latents import normal_equations
from flex_job.mesh import TetMesh
from flex_job.particles import ParticleStack

__all__ = ["LinearStart", "expectation_maximisation", "linear_start"]

MODES = 24
SAMPLE = 4000
ITERATIONS = 40


@dataclass(frozen=True)
class LinearStart:
    """`fields` (K, V, 3): displacement in angstroms per unit latent; `latents` (n, K) and `covariance` (n, K, K) of
    their posterior; `spectrum` (m,): the part of the images' variance, in units of the noise, that each direction of
    S explains, in falling order."""

    fields: NDArray[np.float32]
    latents: NDArray[np.float32]
    covariance: NDArray[np.float32]
    spectrum: NDArray[np.float64]


def expectation_maximisation(
    hessians: torch.Tensor, gradients: torch.Tensor, prior: torch.Tensor, iterations: int
) -> torch.Tensor:
    """The covariance S (m, m) of amplitudes a_i ~ N(0, S) given J^T J (n, m, m) and J^T r (n, m) per particle."""
    s = prior
    for _ in range(iterations):
        # Cholesky and not inv: torch's batched LU of small matrices is up to 100 times slower on several busy threads.
        posterior = torch.cholesky_inverse(torch.linalg.cholesky(hessians + torch.linalg.inv(s)))
        mean = posterior @ gradients[..., None]
        s = (posterior + mean @ mean.transpose(1, 2)).mean(0)
        s = 0.5 * (s + s.T) + 1e-6 * torch.diag(prior.diagonal())
    return s


def linear_start(
    stack: ParticleStack,
    mesh: TetMesh,
    model: ImageModel,
    values: NDArray[np.float32],
    latent_dims: int,
    band: float,
    batch_size: int,
    seed: int,
    events: Events,
) -> LinearStart:
    """Fields and latents from the particles at the box and band limit of `model`."""
    modes = torch.from_numpy(soft_modes(mesh, MODES + 6))
    vertices = torch.from_numpy(mesh.vertices_A.astype(np.float32))
    n = len(stack)
    sample = np.sort(np.random.default_rng(seed).permutation(n)[:SAMPLE])

    def equations(index: NDArray[np.int64], directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = stack.batch(index, box=model.box, band=band)
        q = model.positions(batch.projections, batch.origins_px, vertices)
        dq = torch.einsum("mva,bca->bmvc", directions, batch.projections) * model.oversampling
        hessian, gradient, _ = normal_equations(model, values, batch, q, dq.contiguous())
        return hessian, gradient

    parts = []
    for start in range(0, len(sample), batch_size):
        events.check_stop()
        parts.append(equations(sample[start : start + batch_size], modes))
    hessians = torch.cat([part[0] for part in parts]).double()
    gradients = torch.cat([part[1] for part in parts]).double()
    information = hessians.mean(0)
    prior = torch.eye(len(modes), dtype=torch.float64)  # 1 A rms in every mode
    s = expectation_maximisation(hessians, gradients, prior, ITERATIONS)
    # Directions ordered by the variance that they explain in the images: eigenvectors of H^1/2 S H^1/2.
    values_h, vectors_h = torch.linalg.eigh(information)
    root = vectors_h * values_h.clamp(min=1e-9 * float(values_h[-1])).sqrt() @ vectors_h.T
    spectrum, directions = torch.linalg.eigh(root @ s @ root)
    leading = directions[:, -latent_dims:].flip(1) * spectrum[-latent_dims:].flip(0).clamp(min=1e-12).sqrt()
    amplitudes = torch.linalg.solve(root, leading)  # (m, K): modes per unit latent
    fields = torch.einsum("mk,mva->kva", amplitudes.float(), modes)
    latents = np.empty((n, latent_dims), np.float32)
    covariance = np.empty((n, latent_dims, latent_dims), np.float32)
    for start in range(0, n, batch_size):
        events.check_stop()
        index = np.arange(start, min(start + batch_size, n))
        hessian, gradient = equations(index, fields)
        posterior = torch.linalg.inv(hessian + torch.eye(latent_dims))
        latents[index] = (posterior @ gradient[..., None])[..., 0].numpy()
        covariance[index] = posterior.numpy()
    return LinearStart(fields.numpy(), latents, covariance, spectrum.flip(0).numpy())
