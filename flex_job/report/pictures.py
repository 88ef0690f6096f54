"""Rendered surfaces, each a picture with its size in angstrom; made once and shown in both the PDF and the HTML."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from numpy.typing import NDArray

from flex_job.report.data import ReportData
from flex_job.report.look import FIRST, LAST, MAP_COLOUR, MOTION_COLOURS, STILL
from flex_job.report.scene import Scene, motion_values
from flex_job.report.surface import Surface, render

__all__ = ["Picture", "extremes_pictures", "map_pictures", "motion_palette", "motion_pictures"]

WIDTH_PX = 480
MARGIN = 1.05
SAME_A = (2.0, 6.0)
"""Two surfaces closer in depth than the first number are drawn as one, still; farther apart than the second as two."""

SEE_THROUGH = 0.7
"""Opacity of what lies in front of the other."""

FLATTEST = 0.45
"""Pictures are at least this high, relative to their width."""


@dataclass(frozen=True)
class Picture:
    """`rgb` (height, width, 3) in [0, 1] on white; `width_A`, `height_A` what it spans."""

    rgb: NDArray[np.float32]
    width_A: float
    height_A: float


@dataclass(frozen=True)
class Frame:
    """What the pictures of one figure span (A), and the point (2,) in the middle of each view, right and up."""

    width_A: float
    height_A: float
    middles: tuple[NDArray[np.float64], ...]


def motion_palette(data: ReportData) -> ScalarMappable:
    """Colours for the motion, from 0 to the 99th percentile, so that one wild voxel does not dim the rest."""
    values = motion_values(data)
    top = max(float(np.quantile(values, 0.99)), 1e-3) if len(values) else 1.0
    return ScalarMappable(Normalize(0.0, top), MOTION_COLOURS)


def motion_pictures(data: ReportData, scene: Scene) -> list[Picture]:
    """The reference map's surface, front and side, coloured by the amplitude of the motion."""
    if scene.motion_at is None:
        return []
    colours = np.asarray(motion_palette(data).to_rgba(scene.motion_at))[:, :3]
    frame = _frame([scene.reference], scene)
    return [_single(scene, number, scene.reference, colours, frame) for number in range(len(scene.views))]


def map_pictures(scene: Scene) -> dict[str, list[Picture]]:
    """Rigid and flex surfaces, front and side, in one frame; empty lists for what is missing."""
    there = [surface for surface in (scene.rigid, scene.flex) if surface is not None]
    if not there:
        return {"rigid": [], "flex": []}
    frame, colour = _frame(there, scene), np.array(to_rgb(MAP_COLOUR))
    return {
        name: [] if surface is None else [_single(scene, n, surface, colour, frame) for n in range(len(scene.views))]
        for name, surface in (("rigid", scene.rigid), ("flex", scene.flex))
    }


def extremes_pictures(scene: Scene) -> list[Picture]:
    """First and last frame in two colours, front and side; what both share is grey, what lies behind shines through."""
    if scene.first is None or scene.last is None:
        return []
    frame = _frame([scene.first, scene.last], scene)
    return [_overlay(scene, number, scene.first, scene.last, frame) for number in range(len(scene.views))]


def _overlay(scene: Scene, number: int, first: Surface, last: Surface, frame: Frame) -> Picture:
    a, a_depth = _layer(scene, number, first, np.array(to_rgb(FIRST)), frame)
    b, b_depth = _layer(scene, number, last, np.array(to_rgb(LAST)), frame)
    light = a[..., 2:3] / to_rgb(FIRST)[2]  # what the first layer's blue says of the light; grey is lit alike
    shared = np.concatenate([np.clip(light * to_rgb(STILL), 0, 1), a[..., 3:]], axis=2)
    both = np.isfinite(a_depth) & np.isfinite(b_depth)
    apart = np.abs(np.where(both, a_depth, 0.0) - np.where(both, b_depth, 0.0))
    moved = np.clip((apart - SAME_A[0]) / (SAME_A[1] - SAME_A[0]), 0, 1)[..., None]
    front = np.where((a_depth >= b_depth)[..., None], a, b)
    back = np.where((a_depth >= b_depth)[..., None], b, a)
    see_through = _over(front[..., :3], SEE_THROUGH * front[..., 3:], _on_white(back))
    two = moved * see_through + (1 - moved) * _on_white(shared)
    return _picture(np.where(both[..., None], two, _on_white(front)), frame)


def _single(scene: Scene, number: int, surface: Surface, colour: NDArray[np.floating], frame: Frame) -> Picture:
    rgba, _ = _layer(scene, number, surface, colour, frame)
    return _picture(_on_white(rgba), frame)


def _layer(
    scene: Scene, number: int, surface: Surface, colour: NDArray[np.floating], frame: Frame
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    view = scene.views[number]
    middle = np.append(frame.middles[number], 0.0) @ view
    height = max(round(WIDTH_PX * frame.height_A / frame.width_A), 8)
    return render(surface, view, colour, (height, WIDTH_PX), frame.width_A, middle)


def _frame(surfaces: list[Surface], scene: Scene) -> Frame:
    """One size that holds every surface in every view, each view centred on what it shows."""
    middles, spans = [], []
    for view in scene.views:
        seen = np.concatenate([surface.points_A @ view[:2].T for surface in surfaces])
        low, high = seen.min(axis=0), seen.max(axis=0)
        middles.append((low + high) / 2)
        spans.append(high - low)
    width, height = np.maximum(np.max(spans, axis=0) * MARGIN, 1.0)
    return Frame(float(width), float(max(height, FLATTEST * width)), tuple(middles))


def _picture(rgb: NDArray[np.floating], frame: Frame) -> Picture:
    return Picture(np.clip(rgb, 0, 1).astype(np.float32), frame.width_A, frame.height_A)


def _on_white(rgba: NDArray[np.floating]) -> NDArray[np.floating]:
    return _over(rgba[..., :3], rgba[..., 3:], 1.0)


def _over(
    top: NDArray[np.floating], alpha: NDArray[np.floating], below: NDArray[np.floating] | float
) -> NDArray[np.floating]:
    return np.asarray(top * alpha + below * (1 - alpha))
