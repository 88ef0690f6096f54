"""Figures that show numbers per particle and per epoch: latents, their uncertainty, learning curves."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from flex_job.report.data import ReportData
from flex_job.report.look import FLEX, GREY

__all__ = ["draw_latents", "draw_learning", "draw_uncertainty", "learning_curves", "particle_colours", "shown_latents"]

MOST_LATENTS = 4
MOST_CURVES = 8
LATENT_COLOURS = (FLEX, "#e69f00", "#009e73", "#cc79a7")
LEARNING = {
    "data term per coefficient": ("data term per coefficient", "compare at equal detail only"),
    "band limit (A)": ("finest detail used (Å)", "follows the plan"),
    "rigidity": ("rigidity term", "mean squared stretch"),
    "latent spread": ("spread of the latents", "prior: 1"),
    "posterior std": ("uncertainty of the latents", "standard deviation, mean"),
    "motion (A)": ("motion (Å)", "root mean square"),
}
"""Curves of the training by their names there (`flex_job.train.HISTORY`): what a reader sees, and a hint."""


def draw_latents(figure: FigureBase, data: ReportData) -> None:
    """One latent: its histogram. Several: each histogram on the diagonal, the densities of the pairs below."""
    latents = data.latents
    assert latents is not None
    shown = shown_latents(latents)
    count = len(shown)
    right, bottom = (0.98, 0.25) if count == 1 else (0.8, 0.15)
    grid = figure.add_gridspec(count, count, left=0.09, right=right, top=0.96, bottom=bottom, wspace=0.09, hspace=0.09)
    for row in range(count):
        for column in range(row + 1):
            axes = figure.add_subplot(grid[row, column])
            x = latents[:, shown[column]]
            if row == column:
                axes.set_xlim(*_range(x))
                _histogram(axes, x, LATENT_COLOURS[row])
                axes.set_yticks([])
                axes.spines["left"].set_visible(False)
            else:
                y = latents[:, shown[row]]
                axes.hexbin(
                    x,
                    y,
                    gridsize=36,
                    extent=(*_range(x), *_range(y)),
                    bins="log",
                    mincnt=1,
                    cmap="cividis",
                    edgecolors="face",
                    linewidths=0.2,
                )
                axes.set_xlim(*_range(x))
                axes.set_ylim(*_range(y))
                axes.axhline(0, color="white", lw=0.4)
                axes.axvline(0, color="white", lw=0.4)
            if row == count - 1:
                axes.set_xlabel(f"latent {shown[column] + 1}")
            else:
                axes.tick_params(labelbottom=False)
            if column == 0 and row:
                axes.set_ylabel(f"latent {shown[row] + 1}")
            elif row != column:
                axes.tick_params(labelleft=False)
    figure.text(
        0.985,
        0.93,
        "histogram: particles\ndashes: prior N(0, 1)" + ("\npairs: particles, log scale" if count > 1 else ""),
        ha="right",
        va="top",
        fontsize=7,
        color=GREY,
        linespacing=1.5,
    )


def draw_uncertainty(figure: FigureBase, data: ReportData) -> None:
    """Histogram of the posterior standard deviation per latent, and the standard deviation against the latent."""
    latents, std = data.latents, data.latent_std
    assert std is not None
    shown = shown_latents(latents if latents is not None else std)
    grid = figure.add_gridspec(1, 2, width_ratios=[1, 1.25], left=0.07, right=0.985, top=0.9, bottom=0.2, wspace=0.2)
    axes = figure.add_subplot(grid[0, 0])
    top = float(np.quantile(std[:, shown], 0.995)) * 1.05 or 1.0
    for place, k in enumerate(shown):
        axes.hist(
            std[:, k],
            bins=list(np.linspace(0, top, 50)),
            histtype="stepfilled",
            alpha=0.25,
            color=LATENT_COLOURS[place],
        )
        axes.hist(
            std[:, k],
            bins=list(np.linspace(0, top, 50)),
            histtype="step",
            color=LATENT_COLOURS[place],
            label=f"latent {k + 1}",
        )
    axes.set_xlim(0, top)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("uncertainty of one particle (standard deviation)")
    axes.set_title("particles", loc="left", fontsize=7, color=GREY)
    axes.legend(loc="upper right")
    axes = figure.add_subplot(grid[0, 1])
    if latents is not None:
        for place, k in enumerate(shown):
            _running(axes, latents[:, k], std[:, k], LATENT_COLOURS[place])
        axes.set_ylim(0, None)
        axes.set_xlabel("latent")
        axes.set_title("uncertainty along the latent: median, and the middle half", loc="left", fontsize=7, color=GREY)


def draw_learning(figure: FigureBase, data: ReportData) -> None:
    """Small multiples over the epochs, known quantities first."""
    names = learning_curves(data)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.06,
        right=0.985,
        top=0.8 if rows == 1 else 0.9,
        bottom=0.27 / rows,
        wspace=0.3,
        hspace=0.95,
    )
    for place, name in enumerate(names):
        axes = figure.add_subplot(grid[place // columns, place % columns])
        values = np.asarray(data.learning[name], dtype=float)
        values = values.reshape(len(values), -1)
        epochs = np.arange(1, len(values) + 1)
        for k in range(min(values.shape[1], MOST_LATENTS)):
            axes.plot(epochs, values[:, k], color=LATENT_COLOURS[k], lw=1.3, marker="o", ms=2)
        label, hint = LEARNING.get(name, (name.replace("_", " "), ""))
        axes.set_title(label, loc="left", fontsize=7.5, pad=11)
        if hint:
            axes.text(0.0, 1.01, hint, transform=axes.transAxes, fontsize=6, color=GREY, va="bottom")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("epoch")
        axes.ticklabel_format(axis="y", useOffset=False)


def learning_curves(data: ReportData) -> list[str]:
    """Names of the curves to draw, known quantities first."""
    names = [n for n in LEARNING if n in data.learning] + [n for n in data.learning if n not in LEARNING]
    return [n for n in names if np.size(data.learning[n])][:MOST_CURVES]


def particle_colours(
    latent_std: NDArray[np.floating] | None, gains: NDArray[np.floating] | None
) -> dict[str, NDArray[np.floating]]:
    """What a landscape may be coloured by, a number for each particle: from what is known of standard deviations of the
    latents (n, K) and likelihood gains (n,)."""
    found = {} if gains is None else {"likelihood gain": gains}
    return found if latent_std is None else found | {"uncertainty": np.sqrt((latent_std**2).mean(axis=1))}


def shown_latents(latents: NDArray[np.floating]) -> list[int]:
    """At most four latents, those that spread most, in their own order."""
    order = np.argsort(-latents.std(axis=0), kind="stable")[:MOST_LATENTS]
    return sorted(int(k) for k in order)


def _range(values: NDArray[np.floating]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.002, 0.998])
    margin = 0.08 * max(high - low, 1e-3)
    return float(low - margin), float(high + margin)


def _histogram(axes: Axes, values: NDArray[np.floating], colour: str) -> None:
    """Particles per bin, and dashed the prior as so many particles would fill it."""
    low, high = _range(values)
    bins = list(np.linspace(low, high, 61))
    axes.hist(values, bins=bins, color=colour, alpha=0.35, histtype="stepfilled")
    axes.hist(values, bins=bins, color=colour, histtype="step", lw=1.1)
    x = np.linspace(low, high, 200)
    prior = len(values) * (bins[1] - bins[0]) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(x, prior, color=GREY, lw=0.8, ls="--")


def _running(axes: Axes, x: NDArray[np.floating], y: NDArray[np.floating], colour: str) -> None:
    """Median and quartiles of y in 20 groups of as many particles each, along x."""
    order = np.argsort(x)
    groups = [g for g in np.array_split(order, min(20, max(len(x) // 20, 1))) if len(g)]
    middle = [float(np.median(x[g])) for g in groups]
    low, median, high = np.array([np.quantile(y[g], [0.25, 0.5, 0.75]) for g in groups]).T
    axes.fill_between(middle, low, high, color=colour, alpha=0.18, lw=0)
    axes.plot(middle, median, color=colour, lw=1.4)
