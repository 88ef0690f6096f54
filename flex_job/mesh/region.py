"""The region that the mesh fills, as a distance field round the mask's support."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flex_job.mesh.gaps import cleft_sheet
from flex_job.volume import Volume

__all__ = ["SUPPORT_LEVEL", "DistanceField", "region_field"]

# Mask values up to this are numerical dust of a resampled mask, not part of it.
SUPPORT_LEVEL = 1e-3
# In wanted edge lengths: the coarsest voxel the field is worked out on; half the width of a slit, and the side of the
# smallest sheet worth one.
COARSEST = 1 / 6
HALF_SLIT = 0.35
SMALLEST_SHEET = 0.75


@dataclass(frozen=True)
class DistanceField:
    """Distance to the surface of a region, angstrom, positive inside, on a grid of its own (z, y, x).

    Node [k, j, i] lies at xyz = origin_A + step_A * (i, j, k).
    """

    values_A: NDArray[np.float64]
    origin_A: NDArray[np.float64]
    step_A: float

    def at(self, points_A: NDArray[np.floating]) -> NDArray[np.float64]:
        """Trilinear value (n,) at `points_A` (n, 3) xyz; outside the grid that of the nearest node."""
        index = ((points_A - self.origin_A) / self.step_A)[:, ::-1].T
        return ndimage.map_coordinates(self.values_A, index, order=1, mode="nearest")

    def gradient_at(self, points_A: NDArray[np.floating]) -> NDArray[np.float64]:
        """Gradient (n, 3) xyz at `points_A`, by central differences over one step."""
        half = 0.5 * self.step_A
        pairs = [(points_A + half * e, points_A - half * e) for e in np.eye(3)]
        return np.stack([(self.at(plus) - self.at(minus)) / self.step_A for plus, minus in pairs], axis=1)

    def resampled(self, step_A: float) -> DistanceField:
        """The field at another step, blurred by a third of it against staircases, and with a negative rim."""
        blurred = ndimage.gaussian_filter(self.values_A, 0.35 * step_A / self.step_A, mode="nearest")
        extent = (np.array(self.values_A.shape[::-1]) - 1) * self.step_A
        low = self.origin_A - 2 * step_A
        counts = np.ceil((extent + 4 * step_A) / step_A).astype(int) + 1
        index = [(low[a] + step_A * np.arange(counts[a]) - self.origin_A[a]) / self.step_A for a in (2, 1, 0)]
        values = ndimage.map_coordinates(blurred, np.meshgrid(*index, indexing="ij"), order=1, mode="nearest")
        for axis in range(3):
            rim = np.moveaxis(values, axis, 0)
            rim[[0, -1]] = np.minimum(rim[[0, -1]], -0.5 * step_A)
        return DistanceField(values, low, step_A)


def region_field(mask: Volume, edge_A: float, margin_A: float, keep_clefts: bool = True) -> DistanceField:
    """Distance field of the region to be meshed: the support of `mask` and a margin, less slits in its clefts.

    `edge_A` is the wanted edge length of cells. The support is where the mask is above SUPPORT_LEVEL. With
    `keep_clefts`, the clefts of the mask at level 0.5 stay open even where its soft edge has closed over them. Voxels
    finer than a sixth of `edge_A` are pooled first; a pooled voxel is support when any of its voxels is. Raises
    ValueError for an empty mask.
    """
    support = mask.data > SUPPORT_LEVEL
    if not support.any():
        raise ValueError("the mask is empty; expected values above 0 where the molecule is")
    pool = max(1, int(COARSEST * edge_A / mask.pixel_size_A))
    step = mask.pixel_size_A * pool
    support, core = (_pooled(v, pool, part) for v, part in ((support, 0.0), (mask.data >= 0.5, 0.499)))
    rim = int(np.ceil((margin_A + 0.5 * edge_A) / step)) + 1
    found = [np.flatnonzero(support.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    crop = tuple(slice(f[0], f[-1] + 1) for f in found)
    support, core = np.pad(support[crop], rim), np.pad(core[crop], rim)
    values = _signed_distance(support) * step + margin_A
    if keep_clefts and core.any():
        sheet = cleft_sheet(core, values > 0, (SMALLEST_SHEET * edge_A / step) ** 2)
        if sheet.any():
            # The sheet is two voxels thick; its middle lies half a voxel inside each.
            away = (ndimage.distance_transform_edt(~sheet) + 0.5) * step
            slit = away - max(HALF_SLIT * edge_A, 0.75 * step)
            # Never cut into the core: a thin hinge beside a cleft stays whole.
            values = np.maximum(np.minimum(values, slit), _signed_distance(core) * step)
    first = np.array([f[0] - rim for f in found[::-1]], dtype=float)
    origin = (first * pool + 0.5 * (pool - 1) - mask.box // 2) * mask.pixel_size_A
    return DistanceField(values, origin, step)


def _pooled(values: NDArray[np.bool_], pool: int, part: float) -> NDArray[np.bool_]:
    """Blocks of `pool` voxels a side of which more than `part` is True."""
    short = -values.shape[0] % pool
    blocks = np.pad(values, [(0, short)] * 3)
    size = blocks.shape[0] // pool
    return np.asarray(blocks.reshape([size, pool] * 3).mean(axis=(1, 3, 5)) > part)


def _signed_distance(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance in voxels to the surface between True and False voxels; positive in `region`."""
    inside = ndimage.distance_transform_edt(region)
    outside = ndimage.distance_transform_edt(~region)
    return np.where(region, inside - 0.5, 0.5 - outside)
