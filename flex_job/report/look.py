"""The report's look: colours that colour-blind readers can tell apart (Okabe & Ito), type sizes, small axes helpers."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

__all__ = [
    "ACCENT",
    "DOMAINS",
    "FIRST",
    "FLEX",
    "GREY",
    "INK",
    "LAST",
    "LIGHT",
    "MAP_COLOUR",
    "MOTION_COLOURS",
    "MOTION_RAMP",
    "PAPER",
    "RC",
    "RIGID",
    "STILL",
    "quiet",
    "scale_bar",
]

INK = "#1f2933"
GREY = "#6b7785"
PAPER = "#f4f6f8"
RIGID = "#7b8794"
FLEX = "#0072b2"
ACCENT = "#d55e00"
FIRST = "#0072b2"
LAST = "#e69f00"
MAP_COLOUR = "#8fb3cf"
STILL = "#c3cad2"
DOMAINS = ("#009e73", "#cc79a7", "#b08800", "#56b4e9")
"""For the masks of a user."""
MOTION_RAMP = ("#d3d9df", "#f3d98b", "#ec9a3c", "#cc4b37", "#75184a")
"""From still to moving; it darkens all the way, so that it reads without colour too."""

MOTION_COLOURS = LinearSegmentedColormap.from_list("motion", MOTION_RAMP)

LIGHT = {
    "lighting": {"ambient": 0.5, "diffuse": 0.7, "specular": 0.15, "roughness": 0.7, "fresnel": 0.1},
    "lightposition": {"x": -4000, "y": 6000, "z": 9000},
}
"""Of surfaces that plotly draws."""

RC: dict[str, object] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 3,
    "image.interpolation": "antialiased",
}


def quiet(axes: Axes) -> None:
    """No ticks, no frame: for pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def scale_bar(axes: Axes, width_A: float, *, colour: str = INK) -> None:
    """A bar of a round length, a fifth to a third of the picture, at the lower left; the x axis must be in angstrom."""
    length = next((nice for nice in (500, 200, 100, 50, 30, 20, 10, 5, 2) if nice <= width_A / 3), 1)
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    x, y = left + 0.04 * (right - left), bottom + 0.03 * (top - bottom)
    axes.plot([x, x + length * (1 if right > left else -1)], [y, y], color=colour, lw=1.8, solid_capstyle="butt")
    end = x + length * (1 if right > left else -1)
    axes.annotate(f"{length} Å", (end, y), (3, 0), textcoords="offset points", va="center", fontsize=6.5, color=colour)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
