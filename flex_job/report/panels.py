"""The figures of a report in their order: title, caption, and who draws it.

A figure whose data are missing is not in the list; `missing_panels` names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from matplotlib.figure import FigureBase

from flex_job.report import captions, panels_choice, panels_fsc, panels_images, panels_latents, panels_maps
from flex_job.report.data import ReportData
from flex_job.report.pictures import extremes_pictures, map_pictures, motion_pictures
from flex_job.report.scene import Scene

__all__ = ["WIDTH_IN", "Panel", "missing_panels", "report_panels"]

WIDTH_IN = 7.1
"""Width of every figure: an A4 page less its margins."""

Section = Literal["result", "motion", "maps", "model"]

TITLES = {
    "fsc": "Fourier shell correlation",
    "motion_surface": "What moves, and how far",
    "motion_slices": "Motion in slices",
    "extremes": "Extremes of latent 1",
    "images": "What the images show",
    "latents": "Latents",
    "uncertainty": "Uncertainty of the latents",
    "slices": "Slices, rigid and flex",
    "locres": "Local resolution",
    "surfaces": "Surfaces, rigid and flex",
    "mesh": "Mesh",
    "choice": "Settings that the data chose",
    "learning": "Training",
}
"""All figures there can be, in the order of the report."""


@dataclass(frozen=True)
class Panel:
    """One figure, drawn at WIDTH_IN x `height_in` inches."""

    key: str
    section: Section
    caption: str
    height_in: float
    draw: Callable[[FigureBase], None]

    @property
    def title(self) -> str:
        return TITLES[self.key]


def report_panels(data: ReportData, scene: Scene | None) -> list[Panel]:
    """All figures for which there are data; surfaces are rendered here, once for all outputs."""
    panels = []
    if data.flex is not None or data.rigid is not None:
        height = 3.1 if data.resolution.masks or data.resolution.model else 2.45
        panels.append(Panel("fsc", "result", captions.fsc(data), height, partial(panels_fsc.draw_fsc, data=data)))
    if scene is not None and (data.rigid_locres is not None or data.flex_locres is not None):
        draw = partial(panels_maps.draw_locres, data=data, scene=scene)
        panels.append(Panel("locres", "maps", captions.locres(data), 4.15, draw))
    if scene is not None:
        panels += _motion_panels(data, scene)
        panels += _map_panels(data, scene)
    if data.latents is not None and len(data.latents):
        count = len(panels_latents.shown_latents(data.latents))
        height = 1.75 if count == 1 else min(0.8 + 0.95 * count, 4.4)
        draw = partial(panels_latents.draw_latents, data=data)
        panels.append(Panel("latents", "motion", captions.latents(data, count), height, draw))
    if data.latent_std is not None and len(data.latent_std):
        draw = partial(panels_latents.draw_uncertainty, data=data)
        panels.append(Panel("uncertainty", "motion", captions.uncertainty(data), 1.75, draw))
    if data.images is not None:
        draw = partial(panels_images.draw_images, data=data)
        panels.append(Panel("images", "motion", captions.images(data), 1.4, draw))
    if data.mesh is not None:
        draw_mesh = partial(panels_maps.draw_mesh, data=data, scene=scene)
        panels.append(Panel("mesh", "model", captions.mesh(data), 2.3, draw_mesh))
    if data.choice is not None and data.choice.tried:
        draw = partial(panels_choice.draw_choice, data=data)
        panels.append(Panel("choice", "model", captions.choice(data), panels_choice.choice_height(data), draw))
    curves = panels_latents.learning_curves(data)
    if curves:
        draw = partial(panels_latents.draw_learning, data=data)
        panels.append(Panel("learning", "model", captions.learning(data), 1.6 if len(curves) <= 4 else 3.0, draw))
    order = list(TITLES)
    return sorted(panels, key=lambda panel: order.index(panel.key))


def missing_panels(panels: list[Panel]) -> list[str]:
    """Titles of the figures that could not be drawn."""
    there = {panel.key for panel in panels} | {"choice"}  # there may have been none to make
    return [title for key, title in TITLES.items() if key not in there]


def _motion_panels(data: ReportData, scene: Scene) -> list[Panel]:
    panels = []
    if data.motion_A is not None:
        pictures = motion_pictures(data, scene)
        draw = partial(panels_maps.draw_motion_surface, data=data, pictures=pictures)
        panels.append(Panel("motion_surface", "result", captions.motion_surface(data), 2.15, draw))
        draw = partial(panels_maps.draw_motion_slices, data=data, scene=scene)
        panels.append(Panel("motion_slices", "motion", captions.motion_slices(data), 2.3, draw))
    pictures = extremes_pictures(scene)
    if pictures:
        draw = partial(panels_maps.draw_extremes, data=data, pictures=pictures)
        panels.append(Panel("extremes", "motion", captions.extremes(data), 2.5, draw))
    return panels


def _map_panels(data: ReportData, scene: Scene) -> list[Panel]:
    if data.rigid_map is None and data.flex_map is None:
        return []
    draw_slices = partial(panels_maps.draw_slices, data=data, scene=scene)
    draw_surfaces = partial(panels_maps.draw_surfaces, pictures=map_pictures(scene))
    return [
        Panel("slices", "maps", captions.slices(data), 4.4, draw_slices),
        Panel("surfaces", "maps", captions.surfaces(data, scene.enclosed_A3), 4.9, draw_surfaces),
    ]
