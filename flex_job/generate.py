"""Volumes of the model at chosen latents: the canonical map convected by the flow, and what supports them there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flex_job.fourier import fourier_resize
from flex_job.model import FlexModel
from flex_job.motion import molecule_weights
from flex_job.operator import MASK_LEVEL, voxel_domain
from flex_job.operator.convect import convect
from flex_job.volume import Volume

__all__ = ["Support", "frames", "latent_path", "support"]


def latent_path(latents: NDArray[np.floating], dimension: int, count: int) -> NDArray[np.float32]:
    """`count` points (count, K) along one latent from its 5th to its 95th percentile, the others at their medians."""
    path = np.repeat(np.median(latents, axis=0)[None], count, axis=0)
    low, high = np.percentile(latents[:, dimension], [5, 95])
    path[:, dimension] = np.linspace(low, high, count)
    return path.astype(np.float32)


def frames(model: FlexModel, density: Volume, points: NDArray[np.floating]) -> Iterator[Volume]:
    """The canonical `density` (any box of the same extent; the model's own map or a reconstruction) at each latent."""
    support = fourier_resize(model.support, density.box)
    domain = voxel_domain(model.mesh, support, MASK_LEVEL)
    values = domain.gather(density.data)
    oversampling = 2 if density.box <= 256 else 1
    for z in points:
        vertices = model.mesh.vertices_A + model.displacement(z[None])[0]
        yield convect(domain, values, vertices, oversampling=oversampling)


@dataclass(frozen=True)
class Support:
    """What the particles say at each of m points. `particles` (m,) is the effective number of particles that lie near,
    `displacement_std_A` (m,) how well the displacement of one that lies there is known: root mean square over the
    molecule, in angstroms."""

    particles: NDArray[np.float64]
    displacement_std_A: NDArray[np.float64]

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(m,) True where not one particle lies near: the motion is extrapolated there."""
        return self.particles < 1


def support(model: FlexModel, points: NDArray[np.floating]) -> Support:
    """Of the model's particles at `points` (m, K).

    A particle at distance d counts exp(-d^2 / 2), one at the very place counts one. The unit of d is what blurs the
    latents: their mean posterior covariance, and the bandwidth n^(-1 / (K + 4)) with which the density of n particles,
    of unit spread, is best estimated (Scott 1992), so that few particles in many dimensions count as far as they reach.
    """
    n, dims = model.latents.shape
    blur = model.covariance.mean(axis=0, dtype=np.float64) + n ** (-2 / (dims + 4)) * np.eye(dims)
    inverse = np.linalg.inv(np.linalg.cholesky(blur))
    scaled = model.latents @ inverse.T
    weights = molecule_weights(model)
    numbers, variances = np.empty(len(points)), np.empty(len(points))
    for row, point in enumerate(points @ inverse.T):
        exponent = -0.5 * ((scaled - point) ** 2).sum(axis=1)
        weight = np.exp(exponent - exponent.max())
        numbers[row] = weight.sum() * np.exp(exponent.max())
        local = np.einsum("n,nkl->kl", weight / weight.sum(), model.covariance)
        slopes = model.slopes(points[row, None])[0]
        variances[row] = np.einsum("v,kva,lva,kl->", weights, slopes, slopes, local, optimize=True)
    return Support(numbers, np.sqrt(variances))
