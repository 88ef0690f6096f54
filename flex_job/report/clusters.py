"""The clusters of a selection, as a picture over the latents."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flex_job.files import path_aside
from flex_job.report.look import GREY, RC, STILL
from flex_job.subsets import Subsets

__all__ = ["draw_clusters"]

MOST_SHOWN = 20_000  # particles


def draw_clusters(path: Path, latents: NDArray[np.float64], subsets: Subsets) -> Path:
    """Write a PNG: histograms per cluster of one latent (n, 1), else the first two of `latents` (n, K) as points.

    Particles left out are grey; numbers stand at the clusters' most central particles.
    """
    count = len(subsets.central)
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.92, count))
    centres = latents[subsets.central]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(5, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_xlabel("latent 1")
        groups = [subsets.cluster == number for number in range(count + 1)]
        shades = [STILL, *colours]
        if latents.shape[1] == 1:
            axes.hist([latents[group, 0] for group in groups], bins=60, stacked=True, color=shades)
            axes.set_ylabel("particles")
            places = np.column_stack([centres[:, 0], np.zeros(count)])
        else:
            step = max(1, len(latents) // MOST_SHOWN)
            for group, shade in zip(groups, shades, strict=True):
                shown = latents[np.flatnonzero(group)[::step]]
                axes.scatter(shown[:, 0], shown[:, 1], s=3, color=shade, linewidths=0)
            axes.set_ylabel("latent 2")
            places = centres[:, :2]
        for number, (x, y) in enumerate(places, start=1):
            axes.annotate(
                str(number), (x, y), ha="center", va="bottom", fontweight="bold",
                bbox={"boxstyle": "circle,pad=0.2", "fc": "white", "ec": GREY, "lw": 0.5},
            )  # fmt: skip
        axes.set_title(f"{(subsets.cluster > 0).sum()} of {len(latents)} particles in {count} clusters")
        with path_aside(path) as aside:
            figure.savefig(aside, format="png", dpi=150)
    return path
