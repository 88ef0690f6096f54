"""What all pictures of maps share: where the molecule lies, from where it is seen, and at which level it is contoured.

Every map is contoured so that the surface encloses the same volume: two maps of different sharpening are then
compared by shape, not by a level that happens to suit one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from flex_job.report.data import ReportData
from flex_job.report.surface import Surface, isosurface, principal_view, sample_at, side_view
from flex_job.volume import Volume

__all__ = ["Scene", "build_scene", "enclosing_level", "motion_values", "resampled"]

MARGIN = 1.25


@dataclass(frozen=True)
class Scene:
    """One setting for all pictures. Surfaces are None where the map is missing or empty.

    `reference` is the best map there is, `motion_at` (V,) the motion's amplitude (A) at its points.

    `centre_A` (3,) xyz is the middle of the molecule and `half_sides_A` (3,) how far it reaches from there; `cuts_A`
    (3,) are the planes x, y and z that hold most density. `views` are the front and the side. `enclosed_A3` is the
    volume inside every surface.
    """

    centre_A: NDArray[np.float64]
    half_sides_A: NDArray[np.float64]
    cuts_A: NDArray[np.float64]
    views: tuple[NDArray[np.float64], NDArray[np.float64]]
    enclosed_A3: float
    reference: Surface
    motion_at: NDArray[np.float64] | None
    rigid: Surface | None
    flex: Surface | None
    first: Surface | None
    last: Surface | None


def build_scene(data: ReportData) -> Scene | None:
    """Contours, views and frame for the maps there are; None when there is no map, or none with density."""
    reference = data.flex_map or data.rigid_map or data.consensus_map
    if reference is None:
        return None
    masked = within_mask(reference, data.mask)
    level = threshold_otsu(masked.data[masked.data > 0]) if (masked.data > 0).any() else np.inf
    surface = isosurface(masked, level)
    if surface is None or len(surface.faces) < 4:
        return None
    enclosed = float((masked.data > level).sum()) * reference.pixel_size_A**3
    motion = None if data.motion_A is None else sample_at(data.motion_A, surface.points_A)
    front = _facing(principal_view(surface), surface, motion)
    low, high = surface.points_A.min(axis=0), surface.points_A.max(axis=0)
    centre = (low + high) / 2

    def contour(volume: Volume | None, mask: Volume | None) -> Surface | None:
        if volume is None:
            return None
        if volume is reference and mask is data.mask:
            return surface
        inside = within_mask(volume, mask)
        return isosurface(inside, enclosing_level(inside, enclosed))

    first = contour(data.frames[0], None) if len(data.frames) > 1 else None
    last = contour(data.frames[-1], None) if len(data.frames) > 1 else None
    return Scene(
        centre_A=centre,
        half_sides_A=(high - low) / 2 * MARGIN,
        cuts_A=_fullest_planes(masked, level),
        views=(front, _facing(side_view(front), surface, motion)),
        enclosed_A3=enclosed,
        reference=surface,
        motion_at=motion,
        rigid=contour(data.rigid_map, data.mask),
        flex=contour(data.flex_map, data.mask),
        first=first,
        last=last,
    )


def enclosing_level(volume: Volume, enclosed_A3: float) -> float:
    """The level above which the voxels make up `enclosed_A3`."""
    count = int(np.clip(round(enclosed_A3 / volume.pixel_size_A**3), 1, volume.data.size - 1))
    return float(-np.partition(-volume.data.ravel(), count)[count])


def within_mask(volume: Volume, mask: Volume | None) -> Volume:
    """The map times the mask, which is brought to the map's grid when it has another one."""
    if mask is None:
        return volume
    fitted = np.clip(resampled(mask, volume.box, volume.pixel_size_A).data, 0, 1)
    return Volume(volume.data * fitted, volume.pixel_size_A) if fitted.any() else volume


def resampled(volume: Volume, box: int, pixel_size_A: float) -> Volume:
    """The volume on another grid with the same origin (linear interpolation, 0 outside)."""
    if volume.box == box and abs(volume.pixel_size_A - pixel_size_A) < 1e-6 * pixel_size_A:
        return volume
    ratio = pixel_size_A / volume.pixel_size_A
    offset = volume.box // 2 - ratio * (box // 2)
    data = scipy.ndimage.affine_transform(volume.data, [ratio] * 3, offset, (box,) * 3, order=1)
    return Volume(data.astype(np.float32), pixel_size_A)


def _facing(view: NDArray[np.float64], surface: Surface, motion: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The view, or the one from behind (turned about its horizontal axis), so that what moves faces the reader."""
    if motion is None:
        return view
    behind = np.sum((motion - motion.mean()) * (surface.points_A @ view[2])) < 0
    return view * np.array([[1.0], [-1.0], [-1.0]]) if behind else view


def _fullest_planes(volume: Volume, level: float) -> NDArray[np.float64]:
    """Coordinates (x, y, z) of the planes with most density above the level."""
    dense = np.where(volume.data > level, volume.data, 0)
    planes = [dense.sum(axis=tuple(i for i in range(3) if i != axis)).argmax() for axis in (2, 1, 0)]
    return (np.array(planes) - volume.box // 2) * volume.pixel_size_A


def motion_values(data: ReportData) -> NDArray[np.float64]:
    """Motion amplitudes (A) of the voxels inside the mask (above 0.5), or of all known voxels without one."""
    if data.motion_A is None:
        return np.zeros(0)
    inside = np.isfinite(data.motion_A.data)
    if data.mask is not None:
        inside &= resampled(data.mask, data.motion_A.box, data.motion_A.pixel_size_A).data > 0.5
    return np.asarray(data.motion_A.data[inside], dtype=np.float64)
