"""How far each part of the molecule moves over the particles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flex_job.model import FlexModel
from flex_job.operator import voxel_domain
from flex_job.volume import Volume

__all__ = ["Motion", "motion_amplitude"]

SAMPLE = 1000  # particles


@dataclass(frozen=True)
class Motion:
    """`volume` (z, y, x): root mean square displacement from the mean position over the particles, in angstroms, NaN
    outside the mask. `mean_A` is its mean over the molecule weighted by density, `largest_A` its 99th percentile."""

    volume: Volume
    mean_A: float
    largest_A: float


def motion_amplitude(model: FlexModel, seed: int = 0) -> Motion:
    """Motion at the latents of a random sample of the particles."""
    sample = np.random.default_rng(seed).permutation(len(model.latents))[:SAMPLE]
    u = model.displacement(model.latents[sample])
    domain = voxel_domain(model.mesh, model.support, 0.5)
    vertices, weights = domain.weights()
    # The square of a mix of vertices needs their covariances; K of them span all, so go through principal fields.
    centred = (u - u.mean(axis=0)).reshape(len(u), -1)
    _, size, fields = np.linalg.svd(centred, full_matrices=False)
    keep = size > 1e-3 * max(float(size[0]), 1e-12)
    square = np.zeros(len(domain))
    for scale, field in zip(size[keep], fields[keep], strict=True):
        at = np.einsum("nk,nka->na", weights, field.reshape(-1, 3)[vertices])
        square += scale**2 / len(u) * (at**2).sum(axis=1)
    amplitude = np.sqrt(square)
    data = np.full(model.map.box**3, np.nan, dtype=np.float32)
    data[domain.flat_index] = amplitude
    density = np.clip(domain.gather(model.map.data), 0, None) + 1e-12
    return Motion(
        volume=Volume(data.reshape((model.map.box,) * 3), model.map.pixel_size_A),
        mean_A=float(np.average(amplitude, weights=density)),
        largest_A=float(np.percentile(amplitude, 99)),
    )
