"""The figure on which the verdict rests: FSC curves of the rigid and the flex half-maps."""

from __future__ import annotations

import textwrap
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from flex_job.fsc import FscCurves
from flex_job.report.data import ReportData
from flex_job.report.look import ACCENT, DOMAINS, FLEX, GREY, INK, RIGID

__all__ = ["draw_fsc"]

NO_MASK = (0, (1.5, 1.5))
DASHED = (0, (4, 2))
RANDOM = (0, (5, 1.5, 1, 1.5))
ROUND_A = (100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3.2, 3, 2.8, 2.6, 2.4, 2.2, 2, 1.8, 1.6, 1.4, 1.2, 1)
"""Resolutions that may get a tick."""


def draw_fsc(figure: FigureBase, data: ReportData) -> None:
    """Corrected FSC of both pairs of half-maps, the uncorrected ones thin, and below the difference flex - rigid."""
    both = data.rigid is not None and data.flex is not None
    grid = figure.add_gridspec(
        2 if both else 1,
        1,
        height_ratios=[3, 1] if both else [1],
        left=0.085,
        right=0.955,
        top=0.97,
        bottom=0.165,
        hspace=0.12,
    )
    axes = figure.add_subplot(grid[0, 0])
    for name, curves, colour in (("rigid", data.rigid, RIGID), ("flex", data.flex, FLEX)):
        if curves is not None:
            _plot_curves(axes, name, curves, colour)
    _plot_masks(axes, data)
    _plot_model(axes, data)
    some = data.flex or data.rigid
    assert some is not None
    finest = float(some.frequency_per_A[-1])
    for threshold in (0.143, 0.5):
        axes.axhline(threshold, color=GREY, lw=0.6, ls=(0, (4, 3)))
        axes.text(finest * 1.006, threshold, f"{threshold:g}", ha="left", va="center", fontsize=6.5, color=GREY)
    axes.axhline(0, color=GREY, lw=0.5)
    axes.set_ylim(-0.08, 1.03)
    axes.set_ylabel("FSC")
    _legend(axes, data)
    lower = axes
    if data.rigid is not None and data.flex is not None and len(data.rigid.corrected) == len(data.flex.corrected):
        lower = figure.add_subplot(grid[1, 0], sharex=axes)
        _plot_difference(lower, data.rigid, data.flex)
        axes.tick_params(labelbottom=False)
    if data.training_limit_A and 1 / data.training_limit_A < finest:
        for each in {axes, lower}:
            each.axvspan(0, 1 / data.training_limit_A, color="#0072b2", alpha=0.05, lw=0)
        lower.text(
            1 / data.training_limit_A,
            0.06,
            f"seen in training: up to {data.training_limit_A:.1f} Å ◂ ",
            ha="right",
            va="bottom",
            fontsize=6.5,
            color=FLEX,
            transform=lower.get_xaxis_transform(),
        )
    lower.set_xlim(0, finest)
    _resolution_axis(lower, finest)


def _plot_curves(axes: Axes, name: str, curves: FscCurves, colour: str) -> None:
    x = curves.frequency_per_A
    resolution = curves.resolution_text(0.143).replace(" A", " Å")
    axes.plot(x, curves.corrected, color=colour, lw=1.9, label=f"{name}: {resolution}")
    axes.plot(x, curves.unmasked, color=colour, lw=0.8, ls=NO_MASK)
    if curves.randomised_from is not None:
        axes.plot(x, curves.randomised, color=colour, lw=0.7, alpha=0.6, ls=RANDOM)
    crossing = curves.resolution_A(0.143)
    if np.isfinite(crossing) and "better" not in resolution:
        axes.plot([1 / crossing], [0.143], "o", ms=4.5, mfc="white", mec=colour, mew=1.4, zorder=5)


def _plot_masks(axes: Axes, data: ReportData) -> None:
    """Corrected curves inside the user's masks, flex whole and rigid dashed."""
    for mask, colour in zip(data.resolution.masks, cycle(DOMAINS), strict=False):
        resolution = mask.flex.resolution_text(0.143).replace(" A", " Å")
        name = textwrap.shorten(mask.name, 24, placeholder="…")
        axes.plot(mask.flex.frequency_per_A, mask.flex.corrected, color=colour, lw=1.1, label=f"{name}: {resolution}")
        axes.plot(mask.rigid.frequency_per_A, mask.rigid.corrected, color=colour, lw=0.9, ls=DASHED)


def _plot_model(axes: Axes, data: ReportData) -> None:
    model = data.resolution.model
    if model is None:
        return
    for kind, colour in (("rigid", RIGID), ("flex", FLEX)):
        axes.plot(model.frequency_per_A, getattr(model, kind), ".", color=colour, ms=3, alpha=0.8, mew=0)


def _legend(axes: Axes, data: ReportData) -> None:
    """The two curves to quote by name, the line styles of the others in grey; where fewest curves run."""
    handles, labels = axes.get_legend_handles_labels()
    handles += [Line2D([], [], color=GREY, lw=0.8, ls=NO_MASK), Line2D([], [], color=GREY, lw=0.7, ls=RANDOM)]
    labels += ["without mask", "random phases, masked"]
    if data.resolution.masks:
        handles.append(Line2D([], [], color=GREY, lw=0.9, ls=DASHED))
        labels.append("rigid, in these")
    if data.resolution.model is not None:
        handles.append(Line2D([], [], color=GREY, lw=0, marker=".", ms=4))
        labels.append("map and model")
    legend = axes.legend(handles, labels, loc="best", handlelength=2.4, frameon=True, title="resolution at 0.143")
    legend.get_frame().set(facecolor="white", alpha=0.85, edgecolor="none")
    legend.set_alignment("left")
    legend.get_title().set(fontsize=6.5, color=GREY)


def _plot_difference(axes: Axes, rigid: FscCurves, flex: FscCurves) -> None:
    x, difference = flex.frequency_per_A, flex.corrected - rigid.corrected
    axes.fill_between(x, 0, difference, where=difference >= 0, interpolate=True, color=FLEX, alpha=0.55, lw=0)
    axes.fill_between(x, 0, difference, where=difference <= 0, interpolate=True, color=ACCENT, alpha=0.55, lw=0)
    axes.axhline(0, color=INK, lw=0.5)
    reach = max(0.05, float(np.abs(difference[1:]).max()) * 1.15)
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("gain", labelpad=2)
    axes.yaxis.set_major_locator(MaxNLocator(3, symmetric=True))


def _resolution_axis(axes: Axes, finest: float) -> None:
    """Ticks at round resolutions, evenly enough spaced to be read."""
    ticks: list[float] = []
    for nice in ROUND_A:
        if 1 / nice <= finest and (not ticks or 1 / nice - 1 / ticks[-1] > 0.055 * finest):
            ticks.append(nice)
    axes.xaxis.set_major_locator(FixedLocator([1 / t for t in ticks]))
    axes.set_xticklabels([f"{t:g}" for t in ticks])
    axes.set_xlabel("resolution (Å), linear in 1/Å")
