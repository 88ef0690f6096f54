"""Clefts between parts of the molecule, kept open so that the parts can move past each other.

Two arms that lie close would be glued together by the soft edge of the mask and by cells as wide as the cleft, and
a hinge would not bend. So the middle sheet of each cleft is found and cut out of the region to be meshed, as a slit
just wide enough to be resolved. Voxels in the slit are moved by the nearest cell on their own side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["cleft_sheet"]

# Walls that face each other under less than about 90 degrees make a cleft; a wider notch is just a shape.
FACING = 0.7
# Two voxels of the outside, one between them and the wall on either side, are the narrowest cleft that can be seen.
NARROWEST_VOXELS = 2.5


def cleft_sheet(core: NDArray[np.bool_], within: NDArray[np.bool_], smallest_voxels: float) -> NDArray[np.bool_]:
    """Voxels (z, y, x) next to the middle sheet of clefts of `core`, in `within` and outside `core`.

    A voxel and its neighbour lie on either side of the sheet when the points of the core nearest to them are far
    apart, compared with the distance to them. Sheets of less area than `smallest_voxels` are dents, and left out.
    """
    distance, nearest = ndimage.distance_transform_edt(~core, return_indices=True)
    sheet = np.zeros(core.shape, dtype=bool)
    for axis in range(3):
        here = [slice(None)] * 3
        there = [slice(None)] * 3
        here[axis], there[axis] = slice(None, -1), slice(1, None)
        a, b = tuple(here), tuple(there)
        apart = np.sqrt(((nearest[(slice(None), *a)] - nearest[(slice(None), *b)]) ** 2).sum(axis=0))
        facing = (apart >= NARROWEST_VOXELS) & (apart >= FACING * (distance[a] + distance[b]))
        sheet[a] |= facing
        sheet[b] |= facing
    sheet &= within & ~core
    labels, _ = ndimage.label(sheet, structure=np.ones((3, 3, 3)))
    # The sheet is two voxels thick.
    keep = np.bincount(labels.ravel()) >= 2 * smallest_voxels
    keep[0] = False
    return keep[labels]
