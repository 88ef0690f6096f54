"""Latent coordinates of particles given map and flow: Gauss-Newton with posterior covariance, or coordinate descent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flex_job.flow import Flow
from flex_job.imaging import ImageModel
from flex_job.levels import Level
from flex_job.particles import Batch

__all__ = ["coordinate_descent", "gauss_newton", "inferred", "normal_equations", "posterior_covariance"]

MAX_STEP = 1.0  # longest Gauss-Newton step, in standard deviations of the prior
STEPS = 4  # Gauss-Newton steps in each band, where latents start from zero


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Real inner products (b, i, j) of coefficients a (b, i, m) and b (b, j, m)."""
    first = torch.view_as_real(a).flatten(2)
    second = torch.view_as_real(b).flatten(2)
    return first @ second.transpose(1, 2)


def normal_equations(
    model: ImageModel, values: torch.Tensor, batch: Batch, q: torch.Tensor, dq: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """J^T J (b, k, k), J^T r (b, k) and |r|^2 / 2 (b,) for derivatives of the vertices dq (b, k, V, 2) at q."""
    image, slopes = model.derivative(values, q, dq)
    residual = batch.data - batch.transfer * image
    slopes = batch.transfer[:, None] * slopes
    loss = 0.5 * torch.view_as_real(residual).square().sum((1, 2))
    return _inner(slopes, slopes), _inner(slopes, residual[:, None])[..., 0], loss


def posterior_covariance(hessian: torch.Tensor) -> torch.Tensor:
    """(J^T J + I)^-1 (b, k, k): what the images, and the prior N(0, 1), leave uncertain."""
    # By Cholesky: torch's batched LU of small matrices is up to 100 times slower on several busy threads.
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian + torch.eye(hessian.shape[-1], device=hessian.device)))


def gauss_newton(
    model: ImageModel,
    values: torch.Tensor,
    flow: Flow,
    batch: Batch,
    vertices_A: torch.Tensor,
    z: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One damped step (J^T J + I) dz = J^T r - z per particle, its length at most MAX_STEP.

    Returns the latents (b, K), the posterior covariance (J^T J + I)^-1 (b, K, K) and the data term (b,) before it.
    """
    u, du = flow.with_derivative(z)
    q, dq = model.positions(batch, vertices_A + u), model.directions(batch, du)
    hessian, gradient, loss = normal_equations(model, values, batch, q, dq)
    covariance = posterior_covariance(hessian)
    step = (covariance @ (gradient - z)[..., None])[..., 0]
    step *= (MAX_STEP / step.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return z + step, covariance, loss


def inferred(
    levels: Sequence[Level], flow: Flow, batch: Batch, vertices_A: torch.Tensor, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (b, K) and posterior covariance (b, K, K) with flow and maps frozen: Gauss-Newton steps from `z`, which
    may be zero, in one band after the other, from coarse to fine."""
    covariance = torch.zeros(0)
    for level in levels:
        part = batch.below(level.model.band)
        for _ in range(STEPS):
            z, covariance, _ = gauss_newton(level.model, level.values, flow, part, vertices_A, z)
    return z, covariance


def coordinate_descent(
    model: ImageModel,
    values: torch.Tensor,
    flow: Flow,
    batch: Batch,
    vertices_A: torch.Tensor,
    z: torch.Tensor,
    width: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The paper's option: for one latent after the other try one step down and up, and take the parabola's minimum.

    Same returns as `gauss_newton`; the covariance is diagonal, from the curvature along each coordinate.
    """
    z = z.clone()

    def objective(at: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            q = model.positions(batch, vertices_A + flow(at))
        residual = batch.data - batch.transfer * model.transform(values, q)
        return 0.5 * torch.view_as_real(residual).square().sum((1, 2)) + 0.5 * at.square().sum(1)

    here = objective(z)
    before = here - 0.5 * z.square().sum(1)
    curvature = torch.ones_like(z)
    for k in range(z.shape[1]):
        step = torch.zeros_like(z)
        step[:, k] = width
        below, above = objective(z - step), objective(z + step)
        bend = (below + above - 2 * here) / width**2
        curvature[:, k] = bend.clamp(min=1.0)  # the prior alone bends by one
        slope = (above - below) / (2 * width)
        newton = (-slope / bend.clamp(min=1e-6)).clamp(-2 * width, 2 * width)
        downhill = torch.where(above < below, width, -width)
        move = torch.where(bend > 0, newton, downhill)
        trial = z.clone()
        trial[:, k] += move
        after = objective(trial)
        better = after < here
        z, here = torch.where(better[:, None], trial, z), torch.where(better, after, here)
    return z, torch.diag_embed(1 / curvature), before
