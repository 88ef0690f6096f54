"""Volumes of the model at chosen latents: the canonical map convected by the flow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flex_job.fourier import fourier_resize
from flex_job.model import FlexModel
from flex_job.operator import MASK_LEVEL, voxel_domain
from flex_job.operator.convect import convect
from flex_job.volume import Volume

__all__ = ["frames", "latent_path"]


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
