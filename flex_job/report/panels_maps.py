"""Figures that show maps: motion on the density, extremes, slices, surfaces, and the mesh.

Each function draws into a figure (or subfigure) that it is given and assumes nothing on its size but the proportions.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import FigureBase
from matplotlib.gridspec import SubplotSpec
from numpy.typing import NDArray

from flex_job.mesh.picture import slice_cells
from flex_job.report.data import ReportData
from flex_job.report.look import ACCENT, FIRST, GREY, INK, LAST, quiet, scale_bar
from flex_job.report.pictures import Picture, motion_palette
from flex_job.report.scene import Scene, resampled, within_mask
from flex_job.volume import Volume

__all__ = [
    "draw_extremes",
    "draw_locres",
    "draw_mesh",
    "draw_motion_slices",
    "draw_motion_surface",
    "draw_slices",
    "draw_surfaces",
]

PLANES = (("xy", 0, 1), ("xz", 0, 2), ("yz", 1, 2))
"""Slices by name: the axes (0 = x) drawn to the right and up."""

VIEWS = ("front", "turned by 90°")


def draw_motion_surface(figure: FigureBase, data: ReportData, pictures: list[Picture]) -> None:
    """The map's surface, front and side, coloured by the amplitude of the motion."""
    grid = figure.add_gridspec(
        1, 3, width_ratios=[1, 1, 0.025], left=0.0, right=0.93, top=0.94, bottom=0.0, wspace=0.04
    )
    for column, (title, picture) in enumerate(zip(VIEWS, pictures, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        _show(axes, picture)
        axes.set_title(title, fontsize=7, color=GREY, pad=1)
    _colour_bar(figure, grid[0, 2], motion_palette(data), "motion (Å)")


def draw_motion_slices(figure: FigureBase, data: ReportData, scene: Scene) -> None:
    """Three slices: motion in colour inside the mask, density as contour lines."""
    assert data.motion_A is not None
    palette = motion_palette(data)
    known = np.isfinite(data.motion_A.data)
    motion = Volume(np.where(known, data.motion_A.data, 0).astype(np.float32), data.motion_A.pixel_size_A)
    shown = data.mask or Volume(known.astype(np.float32), data.motion_A.pixel_size_A)
    grid = figure.add_gridspec(
        1, 4, width_ratios=[1, 1, 1, 0.035], left=0.0, right=0.93, top=0.93, bottom=0.01, wspace=0.05
    )
    for column in range(3):
        _colour_slice(figure.add_subplot(grid[0, column]), data, scene, column, motion, shown, palette)
    _colour_bar(figure, grid[0, 3], palette, "motion (Å)")


def draw_locres(figure: FigureBase, data: ReportData, scene: Scene) -> None:
    """Three slices each of the rigid and the flex map: local resolution in colour inside the mask, density as lines."""
    pairs = (("rigid", data.rigid_locres), ("flex", data.flex_locres))
    palette = _locres_palette(data, [volume for _, volume in pairs if volume is not None])
    grid = figure.add_gridspec(
        2, 4, width_ratios=[1, 1, 1, 0.035], left=0.03, right=0.93, top=0.95, bottom=0.0, wspace=0.04, hspace=0.05
    )
    for row, (name, volume) in enumerate(pairs):
        for column in range(3):
            axes = figure.add_subplot(grid[row, column])
            if volume is None:
                _missing(axes)
            else:
                shown = data.mask or Volume((volume.data > 0).astype(np.float32), volume.pixel_size_A)
                _colour_slice(axes, data, scene, column, volume, shown, palette, titled=row == 0)
            if column == 0:
                axes.set_ylabel(name, weight="bold", fontsize=9)
    _colour_bar(figure, grid[:, 3], palette, "local resolution (Å)", finest_up=True)


def _locres_palette(data: ReportData, volumes: list[Volume]) -> ScalarMappable:
    """One scale for both maps; fine is light, so that the contours are seen where they mean most."""
    values = [volume.data[volume.data > 0] for volume in volumes]
    if data.mask is not None:
        masks = [resampled(data.mask, volume.box, volume.pixel_size_A).data > 0.5 for volume in volumes]
        values = (
            [volume.data[inside & (volume.data > 0)] for volume, inside in zip(volumes, masks, strict=True)]
            if all(mask.any() for mask in masks)
            else values
        )
    low, high = np.quantile(np.concatenate(values), (0.02, 0.98)) if any(map(len, values)) else (1.0, 2.0)
    return ScalarMappable(Normalize(float(low), max(float(high), float(low) + 0.1)), "viridis_r")


def _colour_slice(
    axes: Axes,
    data: ReportData,
    scene: Scene,
    plane: int,
    coloured: Volume,
    shown: Volume,
    palette: ScalarMappable,
    titled: bool = True,
) -> None:
    """A slice of `coloured` in colours where `shown` is near 1, under contours of the map's density."""
    volume = data.flex_map or data.rigid_map or data.consensus_map
    assert volume is not None
    density = Volume(scipy.ndimage.gaussian_filter(within_mask(volume, data.mask).data, 0.7), volume.pixel_size_A)
    level = float(np.quantile(density.data, 0.999)) * np.array([0.3, 0.6])
    values, extent = _slice(coloured, scene, plane)
    inside, _ = _slice(resampled(shown, coloured.box, coloured.pixel_size_A), scene, plane)
    fine = np.asarray(palette.to_rgba(scipy.ndimage.zoom(values, 3, order=1, grid_mode=True, mode="grid-constant")))
    fine[..., 3] = np.clip(scipy.ndimage.zoom(inside, 3, order=1, grid_mode=True, mode="grid-constant") * 2 - 0.5, 0, 1)
    axes.imshow(fine, extent=extent, origin="lower")
    picture, extent = _slice(density, scene, plane)
    if picture.max() > level[0]:
        axes.contour(picture, level, extent=extent, colors=INK, linewidths=[0.6, 1.0])
    _crop(axes, scene, plane, titled)


def draw_extremes(figure: FigureBase, data: ReportData, pictures: list[Picture]) -> None:
    """First and last frame along latent 1 in two colours, front and side."""
    grid = figure.add_gridspec(1, 2, left=0.0, right=1.0, top=0.94, bottom=0.07, wspace=0.04)
    for column, (title, picture) in enumerate(zip(VIEWS, pictures, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        _show(axes, picture)
        axes.set_title(title, fontsize=7, color=GREY, pad=1)
    names = ["lowest latent 1", "highest latent 1"]
    if data.frame_latents is not None:
        names = [f"latent 1 = {data.frame_latents[place]:+.2f}".replace("-", "−") for place in (0, -1)]
    for x, name, colour in ((0.36, names[0], FIRST), (0.64, names[1], LAST)):
        figure.text(x, 0.01, f"■ {name}", color=colour, ha="center", fontsize=8, weight="bold")


def draw_surfaces(figure: FigureBase, pictures: dict[str, list[Picture]]) -> None:
    """Rigid and flex maps side by side; rows front and side."""
    grid = figure.add_gridspec(2, 2, left=0.0, right=1.0, top=0.95, bottom=0.0, wspace=0.04, hspace=0.04)
    for column, (name, views) in enumerate(pictures.items()):
        for row in range(2):
            axes = figure.add_subplot(grid[row, column])
            if views:
                _show(axes, views[row])
            else:
                _missing(axes)
            if row == 0:
                axes.set_title(name, weight="bold", fontsize=9)


def draw_slices(figure: FigureBase, data: ReportData, scene: Scene) -> None:
    """Slices of the rigid and the flex map, each map in units of its own spread."""
    grid = figure.add_gridspec(2, 3, left=0.03, right=1.0, top=0.95, bottom=0.0, wspace=0.03, hspace=0.04)
    for row, (name, volume) in enumerate((("rigid", data.rigid_map), ("flex", data.flex_map))):
        for column in range(3):
            axes = figure.add_subplot(grid[row, column])
            if volume is None:
                _missing(axes)
            else:
                inside = within_mask(volume, data.mask).data
                spread = float(inside[inside != 0].std()) if (inside != 0).any() else 1.0
                picture, extent = _slice(volume, scene, column)
                axes.imshow(
                    picture / spread,
                    cmap="gray_r",
                    vmin=-1.0,
                    vmax=4.5,
                    extent=extent,
                    origin="lower",
                    interpolation="bicubic",
                )
                _crop(axes, scene, column, titled=row == 0)
            if column == 0:
                axes.set_ylabel(name, weight="bold", fontsize=9)


def draw_mesh(figure: FigureBase, data: ReportData, scene: Scene | None) -> None:
    """The mesh cut by three planes, over the density; cells coloured by their rigidity weight."""
    mesh = data.mesh
    assert mesh is not None
    vertices = np.asarray(mesh.vertices_A, dtype=float)
    cuts = scene.cuts_A if scene is not None else vertices.mean(axis=0)
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    half = 0.53 * float(np.ptp(vertices, axis=0).max())
    volume = data.consensus_map or data.flex_map
    palette = ScalarMappable(Normalize(0, 1), "cividis")
    grid = figure.add_gridspec(
        1, 4, width_ratios=[1, 1, 1, 0.035], left=0.0, right=0.93, top=0.93, bottom=0.01, wspace=0.05
    )
    for column, (_, right, up) in enumerate(PLANES):
        axes = figure.add_subplot(grid[0, column])
        normal = 3 - right - up
        if volume is not None and scene is not None:
            picture, extent = _slice(volume, scene, column)
            top = float(np.quantile(volume.data, 0.9995))
            axes.imshow(
                picture, cmap="gray_r", vmin=0, vmax=top, extent=extent, origin="lower", interpolation="bicubic"
            )
        outlines, cells = slice_cells(mesh, normal, float(cuts[normal]))
        colours = np.asarray(palette.to_rgba(np.asarray(mesh.rigidity)[cells]))
        colours[:, 3] = 0.45
        axes.add_collection(PolyCollection(outlines, facecolors=colours, edgecolors="#33415577", linewidths=0.35))
        near = np.abs(vertices[:, normal] - cuts[normal]) < 0.03 * half
        axes.plot(*vertices[(np.asarray(mesh.motion) < 0.5) & near][:, [right, up]].T, ".", color=ACCENT, ms=3)
        axes.set_xlim(middle[right] - half, middle[right] + half)
        axes.set_ylim(middle[up] - half, middle[up] + half)
        axes.set_aspect("equal")
        quiet(axes)
        axes.set_title(_plane_name(column, float(cuts[normal])), fontsize=7, color=GREY, pad=2)
        scale_bar(axes, 2 * half)
    _colour_bar(figure, grid[0, 3], palette, "rigidity weight")


def _show(axes: Axes, picture: Picture) -> None:
    half_width, half_height = picture.width_A / 2, picture.height_A / 2
    axes.imshow(picture.rgb, extent=(-half_width, half_width, -half_height, half_height))
    axes.set_ylim(-half_height - 0.09 * half_width, half_height)  # room for the bar below the molecule
    quiet(axes)
    scale_bar(axes, picture.width_A)


def _slice(volume: Volume, scene: Scene, plane: int) -> tuple[NDArray[np.float32], tuple[float, float, float, float]]:
    """The scene's slice in this plane as a picture (up, right), and its extent in angstrom."""
    _, right, up = PLANES[plane]
    normal = 3 - right - up
    index = int(np.clip(round(scene.cuts_A[normal] / volume.pixel_size_A) + volume.box // 2, 0, volume.box - 1))
    edge = -(volume.box // 2 + 0.5) * volume.pixel_size_A
    far = edge + volume.box * volume.pixel_size_A
    return np.take(volume.data, index, axis=2 - normal), (edge, far, edge, far)  # (z, y, x): axis 2 - i is coordinate i


def _crop(axes: Axes, scene: Scene, plane: int, titled: bool = True) -> None:
    """Show the molecule with a margin, all three planes at one scale."""
    _, right, up = PLANES[plane]
    half = float(scene.half_sides_A.max())
    axes.set_xlim(scene.centre_A[right] - half, scene.centre_A[right] + half)
    axes.set_ylim(scene.centre_A[up] - half, scene.centre_A[up] + half)
    quiet(axes)
    if titled:
        axes.set_title(_plane_name(plane, float(scene.cuts_A[3 - right - up])), fontsize=7, color=GREY, pad=2)
    scale_bar(axes, 2 * half)


def _plane_name(plane: int, at_A: float) -> str:
    name, right, up = PLANES[plane]
    return f"{name}, {'xyz'[3 - right - up]} = {at_A:.0f} Å".replace("-", "−")


def _colour_bar(
    figure: FigureBase, place: SubplotSpec, palette: ScalarMappable, label: str, finest_up: bool = False
) -> None:
    axes = figure.add_subplot(place)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0 + 0.18 * box.height, box.width, 0.64 * box.height))
    bar = figure.colorbar(palette, cax=axes)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(label)
    if finest_up:
        axes.invert_yaxis()


def _missing(axes: Axes) -> None:
    quiet(axes)
    axes.text(0.5, 0.5, "not available", ha="center", va="center", color=ACCENT, transform=axes.transAxes)
