"""The part of the page that moves: the latents' landscape beside the molecule's surface, bent as the pointer asks.

Python puts the numbers into the page (`moving_section`), plotly draws, assets/moving.js joins the two.
"""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from itertools import product
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from flex_job.report.cartoon import cartoon_content, cartoon_scripts
from flex_job.report.data import ReportData
from flex_job.report.look import LIGHT
from flex_job.report.moving import MovingAtoms, MovingSurface, Plane
from flex_job.report.packed import packed
from flex_job.report.panels_latents import particle_colours
from flex_job.report.pictures import motion_palette
from flex_job.report.scene import Scene
from flex_job.report.surface import sample_at

__all__ = ["STYLE", "moving_section", "scripts"]

MOST_BINS, PER_BIN = {1: 60, 2: 48}, {1: 40, 2: 8}  # of the landscape, along each latent; particles in one, about
SHADES = 9
STYLE = """
.moving { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px; }
.moving .plot { height: 320px; min-width: 0; }
.moving .plot.molecule { background: var(--paper); border-radius: 6px; height: 380px; }
.moving .plot[hidden] { display: none; } #cartoon { position: relative; overflow: hidden; }
.moving .controls { display: grid; gap: 8px; align-content: start; }
.moving label { display: flex; align-items: center; gap: 10px; font-size: 13.5px; color: var(--grey); }
.moving input[type=range] { flex: 1; min-width: 0; accent-color: var(--flex); height: 28px; }
.moving button, .moving select { font: inherit; font-size: 13.5px; padding: 4px 12px; border: 1px solid var(--line);
  border-radius: 5px; background: #fff; color: var(--ink); }
.moving output { font-size: 13.5px; font-variant-numeric: tabular-nums; } .moving output.none { color: var(--bad); }
.moving .bar { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
@media (min-width: 760px) { .moving { grid-template-columns: minmax(0, 1fr) minmax(0, 1.25fr); }
  .moving .plot.molecule { grid-column: 2; grid-row: 1 / span 2; height: 430px; } }
@media print { #moving { display: none; } }
"""
CAPTION = (
    "Point at the landscape, or use the sliders: the surface is that of the flexible map, bent by the motion model; "
    "other latents stay at their medians. Colours of the surface: how far each place moves over all particles (Å, root "
    "mean square). Numbers: the most central particles of five clusters. Particles near are those whose latents, by "
    "their uncertainty, may lie there; where there are none, the motion is extrapolated and no image shows it."
)
TRACED = (
    " The line is the thread of the atomic model (one point a residue), moved as the map around it; alone, the model "
    "is drawn by Mol*, in the same colours: click on a residue to see its atoms."
)
SHOWN = (
    '<label>show <select id="moving-shown"><option>map and model</option><option>map</option><option>model</option>'
    "</select></label>"
)
CARTOON = '<div class="plot molecule" id="cartoon" hidden></div>'


def moving_section(data: ReportData, scene: Scene) -> str:
    """The section as HTML, with its numbers inside; empty where there is nothing that moves."""
    moving = data.moving
    if moving is None or data.latents is None:
        return ""
    content = json.dumps(_content(data, moving, scene), separators=(",", ":"))
    choices = "".join(
        f'<option value="{place}">{" and ".join(f"latent {k + 1}" for k in plane.latents)}</option>'
        for place, plane in enumerate(moving.planes)
    )
    colours = "".join(
        f'<option value="{escape(name)}">{escape(name)}</option>'
        for name in particle_colours(data.latent_std, data.gains)
    )
    shown, cartoon, caption = ("", "", CAPTION) if moving.atoms is None else (SHOWN, CARTOON, CAPTION + TRACED)
    pair = f'<label>show <select id="moving-plane">{choices}</select></label>' if len(moving.planes) > 1 else ""
    return (
        '<section class="card" id="moving"><h3>Move it</h3><div class="moving"><div class="plot" id="landscape"></div>'
        f'<div class="plot molecule" id="molecule"></div>{cartoon}<div class="controls">'
        f'<div class="bar"><button id="moving-play" type="button">Play</button>{pair}{shown}'
        '<label>colour by <select id="moving-colour"><option value="">particles</option>'
        f"{colours}</select></label></div>"
        '<div id="moving-sliders"></div><output id="moving-told" aria-live="polite"></output></div></div>'
        f'<noscript>This part needs JavaScript; the figures below do not.</noscript><p class="sub">{caption}</p>'
        f'<script type="application/json" id="moving-data">{content}</script></section>'
    )


def scripts(data: ReportData) -> str:
    """What the section needs, to stand at the end of the page."""
    own = files("flex_job.report").joinpath("assets/moving.js").read_text(encoding="utf-8")
    cartoon = "" if data.moving is None or data.moving.atoms is None else cartoon_scripts()
    return f"<script>{get_plotlyjs()}</script>{cartoon}<script>{own}</script>"


def _content(data: ReportData, moving: MovingSurface, scene: Scene) -> dict[str, Any]:
    view, surface, atoms = scene.views[0], moving.surface, moving.atoms
    palette = motion_palette(data)
    top = float(np.max(palette.norm.vmax or 1.0))
    seen = (surface.points_A - scene.centre_A) @ view.T
    return {
        "points": packed(seen),
        "faces": packed(surface.faces, np.int32),
        "modes": packed(moving.modes @ view.T),
        "count": len(moving.modes),
        "colour": packed(_motion_at(data, surface.points_A)),
        "top": top,
        "light": LIGHT,
        "ramp": [[place, to_hex(palette.cmap(place))] for place in np.linspace(0, 1, SHADES).tolist()],
        "span": _span(moving, seen, view).tolist(),
        "planes": [_plane(data, plane) for plane in moving.planes],
        "thread": None if atoms is None else _thread(atoms, scene),
        "atoms": None if atoms is None else cartoon_content(atoms, _motion_at(data, atoms.model.positions_A), view),
    }


def _thread(atoms: MovingAtoms, scene: Scene) -> dict[str, str]:
    view, (points_A, modes) = scene.views[0], atoms.thread()
    return {"points": packed((points_A - scene.centre_A) @ view.T), "modes": packed(modes @ view.T)}


def _motion_at(data: ReportData, points_A: NDArray[np.float64]) -> NDArray[np.floating]:
    return np.zeros(len(points_A)) if data.motion_A is None else sample_at(data.motion_A, points_A)


def _span(moving: MovingSurface, seen: NDArray[np.float64], view: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 2) from where to where the surface reaches, at the corners of every plane too, so that it stays in sight."""
    modes, bent = moving.modes @ view.T, [seen]
    for plane in moving.planes:
        for corner in product((0, -1), repeat=len(plane.latents)):
            bent.append(seen + np.einsum("m,mpa->pa", plane.amounts[corner], modes))
    every = np.concatenate(bent)
    return np.stack([every.min(axis=0), every.max(axis=0)], axis=1)


def _plane(data: ReportData, plane: Plane) -> dict[str, Any]:
    assert data.latents is not None
    at = data.latents[:, list(plane.latents)]
    dims = len(plane.latents)
    bins = int(np.clip((len(at) / PER_BIN[dims]) ** (1 / dims), 10, MOST_BINS[dims]))
    edges = [np.linspace(values[0], values[-1], bins + 1) for values in plane.values]
    count, _ = np.histogramdd(at, edges)
    maps = {"": count} | {
        name: np.divide(
            np.histogramdd(at, edges, weights=values)[0], count, where=count > 0, out=np.full_like(count, np.nan)
        )
        for name, values in particle_colours(data.latent_std, data.gains).items()
    }
    return {
        "latents": [k + 1 for k in plane.latents],
        "values": [values.tolist() for values in plane.values],
        "amounts": packed(plane.amounts),
        "near": packed(plane.near),
        "middles": [((edge[1:] + edge[:-1]) / 2).tolist() for edge in edges],
        "maps": {name: packed(found) for name, found in maps.items()},
        "median": np.median(at, axis=0).tolist(),
        "clusters": [] if data.cluster_centres is None else data.cluster_centres[:, list(plane.latents)].tolist(),
    }
