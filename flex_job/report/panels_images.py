"""What the particles' images show of the motion, without the model: their means along the first latent."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import FigureBase

from flex_job.report.data import ReportData
from flex_job.report.look import quiet, scale_bar

__all__ = ["draw_images"]


def draw_images(figure: FigureBase, data: ReportData) -> None:
    """The mean images side by side, in one scale of grey, and the last less the first."""
    means = data.images
    assert means is not None
    low, high = np.quantile(means.images, [0.01, 0.998])
    difference = means.images[-1] - means.images[0]
    largest = float(np.quantile(np.abs(difference), 0.998))
    count = len(means.images) + 1
    grid = figure.add_gridspec(1, count, left=0.01, right=0.99, top=0.88, bottom=0.02, wspace=0.06)
    side = means.images.shape[-1] * means.pixel_size_A
    for place in range(count):
        axes = figure.add_subplot(grid[0, place])
        extent = (0.0, side, 0.0, side)
        if place < count - 1:
            axes.imshow(means.images[place], cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
            axes.set_title(f"{means.latents[place]:+.2f}".replace("-", "−"), fontsize=8)
        else:
            axes.imshow(difference, cmap="PuOr", vmin=-largest, vmax=largest, origin="lower", extent=extent)
            axes.set_title("last less first", fontsize=8)
        quiet(axes)
        if place == 0:
            scale_bar(axes, side, colour="white")
