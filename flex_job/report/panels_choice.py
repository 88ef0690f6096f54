"""Figure of the settings that held-out images chose: every candidate with its gain."""

from __future__ import annotations

from matplotlib.figure import FigureBase

from flex_job.report.data import ReportData
from flex_job.report.look import FLEX, GREY

__all__ = ["choice_height", "draw_choice"]

ROW_IN, REST_IN = 0.17, 0.5


def choice_height(data: ReportData) -> float:
    """Inches."""
    assert data.choice is not None
    return REST_IN + ROW_IN * len(data.choice.tried)


def draw_choice(figure: FigureBase, data: ReportData) -> None:
    """One row for each candidate, in the order tried: by how much it gains more or less than the one chosen, with the
    standard error of the difference, and its gain."""
    choice = data.choice
    assert choice is not None
    height = choice_height(data)
    place = figure.add_gridspec(1, 1, left=0.38, right=0.88, top=1 - 0.05 / height, bottom=0.38 / height)
    axes = figure.add_subplot(place[0])
    axes.axvline(0, color=FLEX, lw=0.8)
    for row, tried in enumerate(choice.tried):
        colour = FLEX if choice.is_of(tried) else GREY
        axes.errorbar(tried.more, row, xerr=tried.more_error, fmt="o", ms=4, lw=1.3, capsize=2, color=colour)
        axes.text(1.02, row, f"{tried.gain:.2f}", transform=axes.get_yaxis_transform(), va="center", color=colour)
    axes.set_yticks(range(len(choice.tried)), [str(tried) for tried in choice.tried])
    for text, tried in zip(axes.get_yticklabels(), choice.tried, strict=True):
        text.set_fontweight("bold" if choice.is_of(tried) else "normal")
    axes.set_ylim(len(choice.tried) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", lw=0.4, color=GREY, alpha=0.4)
    axes.set_xlabel("gain less that of the chosen (right: gain over no motion), nats per held-out particle")
