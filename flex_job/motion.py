"""How far each part of the molecule moves over the particles, and how well that is known of a single one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flex_job.model import FlexModel
from flex_job.operator import VoxelDomain, voxel_domain
from flex_job.volume import Volume

__all__ = ["Motion", "molecule_weights", "motion_amplitude", "motion_error", "motion_uncertainty"]

SAMPLE = 1000  # particles
UNCERTAIN = 400  # of them, each with a field for each latent

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Motion:
    """`volume` (z, y, x): a root mean square displacement over the particles, in angstroms, NaN outside the mask.
    `mean_A` is its mean over the molecule weighted by density, `largest_A` its 99th percentile."""

    volume: Volume
    mean_A: float
    largest_A: float


def motion_amplitude(model: FlexModel, seed: int = 0) -> Motion:
    """Displacement from the mean position, at the latents of a random sample of the particles."""
    sample = np.random.default_rng(seed).permutation(len(model.latents))[:SAMPLE]
    u = model.displacement(model.latents[sample])
    domain = _domain(model)
    return _motion(model, domain, _square(domain, u - u.mean(axis=0), len(u)))


def motion_uncertainty(model: FlexModel, between_A: Floats | None = None, seed: int = 0) -> Motion:
    """Standard deviation of a single particle's displacement that its images leave: the root of the trace of
    J S J^T, with J the flow's derivative and S the posterior covariance at the particle's latents, averaged over a
    random sample. `between_A` (V,), the error of the flow itself at each vertex (that between two flows of independent
    half-sets), is added in square."""
    sample = np.random.default_rng(seed).permutation(len(model.latents))[:UNCERTAIN]
    roots = np.linalg.cholesky(model.covariance[sample].astype(np.float64))
    fields = np.einsum("nkva,nkl->nlva", model.slopes(model.latents[sample]), roots)
    domain = _domain(model)
    square = _square(domain, fields.reshape(-1, *fields.shape[2:]), len(sample))
    if between_A is not None:
        square += _between_vertices(domain, between_A)
    return _motion(model, domain, square)


def motion_error(model: FlexModel, between_A: Floats) -> Motion:
    """The error `between_A` (V,) of the motion at each vertex, in angstroms, carried to the voxels."""
    domain = _domain(model)
    return _motion(model, domain, _between_vertices(domain, between_A))


def molecule_weights(model: FlexModel) -> NDArray[np.float64]:
    """(V,) how much of the map's density hangs on each vertex of the mesh; their sum is one."""
    domain = _domain(model)
    vertices, weights = domain.weights()
    density = np.clip(domain.gather(model.map.data), 0, None) + 1e-12
    total = np.bincount(vertices.ravel(), (weights * density[:, None]).ravel(), len(model.mesh.vertices_A))
    return total / total.sum()


def _domain(model: FlexModel) -> VoxelDomain:
    return voxel_domain(model.mesh, model.support, 0.5)


def _between_vertices(domain: VoxelDomain, error_A: Floats) -> NDArray[np.float64]:
    """The square at each voxel of what (V,) is known at the vertices."""
    vertices, weights = domain.weights()
    return (weights * np.square(error_A)[vertices]).sum(axis=1)


def _square(domain: VoxelDomain, fields: Floats, count: int) -> NDArray[np.float64]:
    """Sum of the squares of displacement fields (m, V, 3) at each voxel, divided by `count`."""
    vertices, weights = domain.weights()
    # The square of a mix of vertices needs their covariances; few principal fields span all.
    _, size, principal = np.linalg.svd(fields.reshape(len(fields), -1), full_matrices=False)
    keep = size > 1e-3 * max(float(size[0]), 1e-12)
    square = np.zeros(len(domain))
    for scale, field in zip(size[keep], principal[keep], strict=True):
        at = np.einsum("nk,nka->na", weights, field.reshape(-1, 3)[vertices])
        square += scale**2 / count * (at**2).sum(axis=1)
    return square


def _motion(model: FlexModel, domain: VoxelDomain, square: NDArray[np.float64]) -> Motion:
    amplitude = np.sqrt(square)
    data = np.full(model.map.box**3, np.nan, dtype=np.float32)
    data[domain.flat_index] = amplitude
    density = np.clip(domain.gather(model.map.data), 0, None) + 1e-12
    return Motion(
        volume=Volume(data.reshape((model.map.box,) * 3), model.map.pixel_size_A),
        mean_A=float(np.average(amplitude, weights=density)),
        largest_A=float(np.percentile(amplitude, 99)),
    )
