"""Pictures of isosurfaces: marching cubes and a small orthographic software rasteriser, no display needed.

A view is a rotation (3, 3) whose rows are the picture's right, up and towards the viewer, in map coordinates xyz.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from flex_job.volume import Volume

__all__ = ["Surface", "isosurface", "principal_view", "render", "sample_at", "side_view"]

FINE_SIDE = 120
"""Voxels along the longest side of what is drawn: enough for a picture of a few hundred pixels."""

SUPERSAMPLING = 2
DUST = 0.02
"""Pieces smaller than this fraction of the largest one are left out of the picture."""


@dataclass(frozen=True)
class Surface:
    """Triangles of an isosurface: points_A and normals (V, 3) xyz, outward; faces (F, 3)."""

    points_A: NDArray[np.float64]
    normals: NDArray[np.float64]
    faces: NDArray[np.int64]


def isosurface(volume: Volume, level: float, hide_dust: bool = True, side: float = FINE_SIDE) -> Surface | None:
    """The surface at `level`, resampled to `side` voxels along its longest side; None when nothing lies above it."""
    above = volume.data > level
    if not above.any():
        return None
    corners = np.array([(hit.min(), hit.max()) for hit in np.nonzero(above)])
    low = np.maximum(corners[:, 0] - 3, 0)
    high = np.minimum(corners[:, 1] + 4, volume.box)
    part = volume.data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    zoom = float(np.clip(side / max(part.shape), 0.1, 3.0))
    if zoom < 1:
        part = scipy.ndimage.gaussian_filter(part, 0.4 / zoom)
    # A rim below the level closes surfaces that touch the edge of the box.
    rim = 2 * level - float(part.max())
    fine = np.pad(scipy.ndimage.zoom(part, zoom, order=3 if zoom > 1 else 1), 1, constant_values=rim)
    if hide_dust:
        fine = _without_dust(fine, level)
    if not (fine.min() < level < fine.max()):
        return None
    points, faces, normals, _ = marching_cubes(fine, level)
    scale = (np.array(part.shape) - 1) / np.maximum(np.array(fine.shape) - 3, 1)  # zoom keeps the corner voxels
    voxels = (points - 1) * scale + low
    points_A = ((voxels - volume.box // 2) * volume.pixel_size_A)[:, ::-1]
    return Surface(np.ascontiguousarray(points_A), np.ascontiguousarray(normals[:, ::-1]), faces)


def sample_at(volume: Volume, points_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a volume at points (P, 3) xyz; voxels that are NaN take the value of the nearest that is not."""
    data = volume.data
    unknown = ~np.isfinite(data)
    if unknown.any() and not unknown.all():
        nearest = scipy.ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True)
        data = data[tuple(nearest)]
    at = points_A[:, ::-1].T / volume.pixel_size_A + volume.box // 2
    return np.asarray(scipy.ndimage.map_coordinates(np.nan_to_num(data), at, order=1, mode="nearest"), dtype=float)


def principal_view(surface: Surface) -> NDArray[np.float64]:
    """The view that shows most: longest axis to the right, shortest towards the viewer."""
    centred = surface.points_A - surface.points_A.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    right, up = vectors[:, 2], vectors[:, 1]
    # An eigenvector has no sign of its own: the longer tail goes right and down, so that a molecule hangs one way.
    right = right * (np.sign(((centred @ right) ** 3).sum()) or 1.0)
    up = up * -(np.sign(((centred @ up) ** 3).sum()) or 1.0)
    return np.stack([right, up, np.cross(right, up)])


def side_view(view: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same molecule turned by 90 degrees about the picture's horizontal axis: what was up faces the viewer."""
    return np.stack([view[0], -view[2], view[1]])


def render(
    surface: Surface,
    view: NDArray[np.float64],
    colour: NDArray[np.floating],
    size: tuple[int, int],
    width_A: float,
    centre_A: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Picture (height, width, 4), RGBA in [0, 1] on a clear ground, and depth in A (height, width; -inf: nothing).

    `colour` is (3,) or, per point, (V, 3). `size` is (height, width) in pixels, `width_A` what the width spans.
    """
    height, width = (SUPERSAMPLING * side for side in size)
    scale = width / width_A
    seen = (surface.points_A - centre_A) @ view.T * scale
    screen = np.stack([seen[:, 0] + width / 2, height / 2 - seen[:, 1], seen[:, 2]], axis=1)
    colours = np.ascontiguousarray(np.broadcast_to(colour, (len(screen), 3)), dtype=np.float64)
    normals = surface.normals @ view.T
    depth, normal, albedo = _rasterise(screen, surface.faces, normals, colours, height, width)
    hit = np.isfinite(depth)
    shaded = _shade(depth, normal, albedo, hit, scale)
    rgba = np.concatenate([shaded * hit[..., None], hit[..., None]], axis=2)
    small = rgba.reshape(size[0], SUPERSAMPLING, size[1], SUPERSAMPLING, 4).mean(axis=(1, 3))
    small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
    small_depth = depth.reshape(size[0], SUPERSAMPLING, size[1], SUPERSAMPLING).max(axis=(1, 3)) / scale
    return small.astype(np.float32), small_depth.astype(np.float32)


def _without_dust(fine: NDArray[np.floating], level: float) -> NDArray[np.floating]:
    labels, count = scipy.ndimage.label(fine > level)
    if count < 2:
        return fine
    sizes = np.bincount(labels.ravel())
    sizes[0] = sizes.max() + 1
    dust = sizes < DUST * np.sort(sizes)[-2]
    return np.where(dust[labels], fine.min(), fine)


def _shade(
    depth: NDArray[np.float32],
    normal: NDArray[np.float32],
    albedo: NDArray[np.float32],
    hit: NDArray[np.bool_],
    scale: float,
) -> NDArray[np.float32]:
    """Two lights, a highlight, and darkness in hollows (what lies behind its surroundings gets less light)."""
    key = np.array([-0.45, 0.6, 0.66], dtype=np.float32)
    fill = np.array([0.7, 0.0, 0.7], dtype=np.float32)
    half = key + np.array([0.0, 0.0, 1.0], dtype=np.float32)
    unit = normal / np.maximum(np.sqrt((normal**2).sum(axis=2, keepdims=True)), 1e-9)
    light = 0.42 + 0.52 * np.clip(unit @ key, 0, None) + 0.16 * np.clip(unit @ fill, 0, None)
    light *= 1 - 0.45 * _hollows(depth, hit, scale)
    shine = 0.10 * np.clip(unit @ (half / np.linalg.norm(half)), 0, None) ** 40
    return np.clip(albedo * light[..., None] + shine[..., None], 0, 1)


def _hollows(depth: NDArray[np.float32], hit: NDArray[np.bool_], scale: float) -> NDArray[np.float32]:
    """0 in the open to 1 in a hollow: how far a point lies behind its surroundings; at half size, as it is smooth."""
    solid, there = np.where(hit, depth, 0)[::2, ::2], hit[::2, ::2].astype(np.float32)
    hollow = np.zeros_like(solid)
    for reach_A in (3.0, 9.0):
        reach = reach_A * scale
        weight = scipy.ndimage.uniform_filter(there, int(reach) + 1)
        around = scipy.ndimage.uniform_filter(solid, int(reach) + 1) / np.maximum(weight, 1e-6)
        hollow += np.clip((around - solid) / (2.5 * reach), 0, 1)
    return np.clip(hollow, 0, 1).repeat(2, axis=0).repeat(2, axis=1)


@numba.njit(cache=True, nogil=True)
def _rasterise(screen, faces, normals, colours, height, width):  # type: ignore[no-untyped-def]
    """z-buffer: per pixel the depth of the nearest triangle (-inf: none), its interpolated normal and colour."""
    depth = np.full((height, width), -np.inf, dtype=np.float32)
    normal = np.zeros((height, width, 3), dtype=np.float32)
    albedo = np.zeros((height, width, 3), dtype=np.float32)
    for f in range(len(faces)):
        a, b, c = faces[f]
        ax, ay, bx, by, cx, cy = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        x0, x1 = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0), min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        y0, y1 = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0), min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = x + 0.5, y + 0.5
                u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                w = 1.0 - u - v
                if u < 0.0 or v < 0.0 or w < 0.0:
                    continue
                z = u * screen[a, 2] + v * screen[b, 2] + w * screen[c, 2]
                if z > depth[y, x]:
                    depth[y, x] = z
                    for k in range(3):
                        normal[y, x, k] = u * normals[a, k] + v * normals[b, k] + w * normals[c, k]
                        albedo[y, x, k] = u * colours[a, k] + v * colours[b, k] + w * colours[c, k]
    return depth, normal, albedo
