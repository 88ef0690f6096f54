"""The mesh over the map, as a picture: three slices through the molecule and the surface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flex_job.files import path_aside
from flex_job.mask import lowpass
from flex_job.mesh.tetmesh import TetMesh, cell_quality
from flex_job.mesh.topology import boundary_faces
from flex_job.volume import Volume

__all__ = ["draw_mesh", "slice_cells"]

AXES = "xyz"


def draw_mesh(mesh: TetMesh, map: Volume, path: str | Path, mask: Volume | None = None) -> Path:
    """Write a PNG, aside first: the mesh cut by the planes through its middle over the map's slices, and its surface.

    Cells are coloured by rigidity weight, or by segment when there are several; a mask is drawn as a line at 0.5.
    """
    path = Path(path)
    middle = 0.5 * (mesh.vertices_A.min(axis=0) + mesh.vertices_A.max(axis=0))
    shown = Volume(lowpass(map, 3 * map.pixel_size_A), map.pixel_size_A)
    figure = Figure(figsize=(11, 10), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2)
    segmented = mesh.segment.max() > mesh.segment.min()
    value = mesh.segment.astype(float) if segmented else np.minimum(mesh.rigidity, 1.0).astype(float)
    label = "segment" if segmented else "rigidity weight"
    polygons = None
    for axis in range(3):
        panel = figure.add_subplot(grid[axis // 2, axis % 2])
        polygons = _draw_slice(panel, mesh, shown, mask, axis, float(middle[axis]), value)
    if polygons is not None:
        figure.colorbar(polygons, ax=figure.axes, shrink=0.6, label=label)
    _draw_surface(figure.add_subplot(grid[1, 1], projection="3d"), mesh)
    figure.suptitle(
        f"{len(mesh.vertices_A)} vertices, {len(mesh.cells)} cells, "
        f"worst quality {cell_quality(mesh.vertices_A, mesh.cells).min():.2f}"
    )
    with path_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=100)
    return path


def slice_cells(mesh: TetMesh, axis: int, level_A: float) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Polygons (3 or 4, 2) in the other two axes where coordinate[axis] = `level_A` cuts cells, and those cells."""
    others = [a for a in range(3) if a != axis]
    height = mesh.vertices_A[:, axis] - level_A
    height = np.where(np.abs(height) < 1e-9, 1e-9, height)
    above = height[mesh.cells] > 0
    cut = np.flatnonzero((above.sum(axis=1) > 0) & (above.sum(axis=1) < 4))
    polygons = []
    for cell, up in zip(mesh.cells[cut], above[cut], strict=True):
        points = []
        for a in cell[up]:
            for b in cell[~up]:
                t = height[a] / (height[a] - height[b])
                points.append(((1 - t) * mesh.vertices_A[a] + t * mesh.vertices_A[b])[others])
        corners = np.array(points)
        turned = corners - corners.mean(axis=0)
        polygons.append(corners[np.argsort(np.arctan2(turned[:, 1], turned[:, 0]))])
    return polygons, cut


def _draw_slice(
    panel: Axes,
    mesh: TetMesh,
    map: Volume,
    mask: Volume | None,
    axis: int,
    level_A: float,
    value: NDArray[np.float64],
) -> PolyCollection:
    half = map.box // 2
    voxel = int(np.clip(round(level_A / map.pixel_size_A) + half, 0, map.box - 1))
    low = (-half - 0.5) * map.pixel_size_A
    high = (map.box - half - 0.5) * map.pixel_size_A
    extent = (low, high, low, high)
    panel.imshow(np.take(map.data, voxel, axis=2 - axis), cmap="gray_r", origin="lower", extent=extent)
    if mask is not None and (line := np.take(mask.data, voxel, axis=2 - axis)).max() > 0:
        panel.contour(line, levels=[0.5], colors="tab:red", linewidths=0.8, extent=extent, origin="lower")
    polygons, cells = slice_cells(mesh, axis, level_A)
    drawn = PolyCollection(polygons, array=value[cells], cmap="viridis", alpha=0.35, linewidths=0.5)
    drawn.set_edgecolor((0, 0, 0, 0.6))
    drawn.set_clim(float(value.min()), float(max(value.max(), value.min() + 1e-3)))
    panel.add_collection(drawn)
    held = (mesh.motion < 0.5) & (np.abs(mesh.vertices_A[:, axis] - level_A) < 2 * map.pixel_size_A)
    others = [a for a in range(3) if a != axis]
    panel.plot(*mesh.vertices_A[held][:, others].T, "k.", markersize=4)
    panel.set(xlabel=f"{AXES[others[0]]} (A)", ylabel=f"{AXES[others[1]]} (A)", title=f"{AXES[axis]} = {level_A:.0f} A")
    corners = mesh.vertices_A[:, others]
    margin = 0.1 * float((corners.max(axis=0) - corners.min(axis=0)).max())
    panel.set_xlim(corners[:, 0].min() - margin, corners[:, 0].max() + margin)
    panel.set_ylim(corners[:, 1].min() - margin, corners[:, 1].max() + margin)
    return drawn


def _draw_surface(panel: Axes, mesh: TetMesh) -> None:
    faces = boundary_faces(mesh.cells)
    panel.plot_trisurf(  # type: ignore[attr-defined]
        *mesh.vertices_A.T, triangles=faces, color="lightsteelblue", edgecolor="dimgray", linewidth=0.3, shade=True
    )
    panel.set_aspect("equal")
    panel.set(xlabel="x (A)", ylabel="y (A)", title="surface")
