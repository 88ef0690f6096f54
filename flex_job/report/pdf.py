"""The report as A4 pages: `logfile.pdf`, which RELION shows in its window."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from flex_job.report.data import ReportData
from flex_job.report.look import ACCENT, FLEX, GREY, INK, PAPER, RC
from flex_job.report.panels import WIDTH_IN, Panel
from flex_job.report.summary import CITE, Badge, Summary, duration
from flex_job.report.tables import flattened

__all__ = ["write_pdf"]

PAGE_IN = (8.27, 11.69)
MARGIN_IN = (PAGE_IN[0] - WIDTH_IN) / 2
TOP_IN, BOTTOM_IN = 0.75, 0.5
LINE = 1.5
GAP_IN = 0.09
ROW_IN = 0.155
CAPTION_CHARACTERS = 131
OUTCOME_COLOUR = {"better": "#00785a", "same": GREY, "worse": ACCENT, "unknown": GREY}


class Page:
    """One A4 page filled from the top; `y_in` is what is used so far, inches from the upper edge."""

    def __init__(self, data: ReportData, number: int) -> None:
        self.figure = Figure(figsize=PAGE_IN, dpi=150)
        FigureCanvasAgg(self.figure)
        self.y_in = TOP_IN
        if number > 1:
            self.text(MARGIN_IN, 0.48, data.title, size=8, colour=GREY)
        self.text(PAGE_IN[0] - MARGIN_IN, PAGE_IN[1] - 0.32, f"{number}", size=8, colour=GREY, ha="right")
        self.text(MARGIN_IN, PAGE_IN[1] - 0.32, data.job_folder, size=7, colour=GREY)

    def room(self, height_in: float) -> bool:
        return self.y_in + height_in <= PAGE_IN[1] - BOTTOM_IN

    def text(self, x_in: float, y_in: float, text: str, *, size: float = 8, colour: str = INK, **how: object) -> None:
        """One line of text, y_in its upper edge, both from the upper left of the page.

        Placed by the baseline: by its upper edge, a line with an 'Å' would sit lower than one without.
        """
        if "va" not in how:
            how["va"], y_in = "baseline", y_in + 0.8 * size / 72
        self.figure.text(x_in / PAGE_IN[0], 1 - y_in / PAGE_IN[1], text, fontsize=size, color=colour, **how)  # type: ignore[arg-type]

    def paragraph(
        self, text: str, *, size: float = 8, colour: str = INK, indent_in: float = 0.0, bullet: str = ""
    ) -> None:
        """Wrapped text over the page's width."""
        text = text.replace(" Å", "\u00a0Å").replace(" %", "\u00a0%")
        characters = int(CAPTION_CHARACTERS * 7.5 / size * (1 - indent_in / WIDTH_IN))
        lines = textwrap.wrap(text, characters) or [""]
        if bullet:
            self.text(MARGIN_IN + indent_in - 0.13, self.y_in, bullet, size=size, colour=colour)
        for line in lines:
            self.text(MARGIN_IN + indent_in, self.y_in, line, size=size, colour=colour)
            self.y_in += size * LINE / 72
        self.y_in += 0.03

    def heading(self, text: str) -> None:
        self.text(MARGIN_IN, self.y_in, text, size=10, weight="bold")
        self.y_in += 0.24

    def box(self, x_in: float, y_in: float, width_in: float, height_in: float, colour: str) -> None:
        self.figure.add_artist(
            Rectangle(
                (x_in / PAGE_IN[0], 1 - (y_in + height_in) / PAGE_IN[1]),
                width_in / PAGE_IN[0],
                height_in / PAGE_IN[1],
                transform=self.figure.transFigure,
                facecolor=colour,
                edgecolor="none",
                zorder=-5,
            )
        )

    def panel(self, panel: Panel) -> None:
        self.heading(panel.title)
        x, y = MARGIN_IN / PAGE_IN[0], 1 - (self.y_in + panel.height_in) / PAGE_IN[1]
        height = panel.height_in / PAGE_IN[1]
        place = self.figure.add_gridspec(
            3,
            3,
            width_ratios=[x, WIDTH_IN / PAGE_IN[0], x],
            height_ratios=[1 - y - height, height, y],
            wspace=0,
            hspace=0,
        )
        panel.draw(self.figure.add_subfigure(place[1, 1], facecolor="none"))
        self.y_in += panel.height_in + GAP_IN
        self.paragraph(panel.caption, size=7.5, colour=GREY)
        self.y_in += 0.14


def panel_height(panel: Panel) -> float:
    """Inches that a panel takes on a page, heading and caption included."""
    lines = len(textwrap.wrap(panel.caption, CAPTION_CHARACTERS))
    return 0.24 + panel.height_in + GAP_IN + lines * 7.5 * LINE / 72 + 0.03


def write_pdf(
    path: Path, data: ReportData, summary: Summary, panels: list[Panel], missing: list[str], when: str
) -> int:
    """Write the pages and return their number."""
    pages: list[Page] = []

    def fresh() -> Page:
        pages.append(Page(data, len(pages) + 1))
        return pages[-1]

    with rc_context(RC):  # type: ignore[arg-type]
        page = fresh()
        _head(page, data, summary, when)
        for panel in panels:
            if not page.room(panel_height(panel)):
                page = fresh()
            page.panel(panel)
        if not page.room(_back_height(data, summary, missing)):
            page = fresh()
        _back(page, data, summary, missing)
        with PdfPages(path, metadata={"Title": data.title, "Creator": "flex_job"}) as book:
            for each in pages:
                book.savefig(each.figure, dpi=150)
    return len(pages)


def _head(page: Page, data: ReportData, summary: Summary, when: str) -> None:
    page.y_in = 0.5
    page.text(MARGIN_IN, page.y_in, data.title, size=16, weight="bold")
    page.y_in += 0.33
    page.text(MARGIN_IN, page.y_in, "   ".join(part for part in (data.job_folder, when) if part), size=8, colour=GREY)
    page.y_in += 0.3
    for badge in summary.badges:
        _badge(page, badge)
    _facts(page, summary)
    _table(page, summary)
    for line in summary.findings:
        page.paragraph(line, indent_in=0.14, bullet="•")
    for line in data.notes:
        page.paragraph(line, indent_in=0.14, bullet="▲", colour=ACCENT)
    page.y_in += 0.1


def _badge(page: Page, badge: Badge) -> None:
    word = badge.word.upper()
    width = 0.095 * len(word) + 0.28
    page.figure.add_artist(
        FancyBboxPatch(
            (MARGIN_IN / PAGE_IN[0], 1 - (page.y_in + 0.27) / PAGE_IN[1]),
            width / PAGE_IN[0],
            0.27 / PAGE_IN[1],
            boxstyle="round,pad=0,rounding_size=0.006",
            mutation_aspect=PAGE_IN[0] / PAGE_IN[1],
            transform=page.figure.transFigure,
            facecolor=OUTCOME_COLOUR[badge.outcome],
            edgecolor="none",
        )
    )
    page.text(
        MARGIN_IN + width / 2, page.y_in + 0.14, word, size=8.5, colour="white", weight="bold", ha="center", va="center"
    )
    lines = textwrap.wrap(badge.sentence, int((WIDTH_IN - width - 0.15) * 14.5))
    for number, line in enumerate(lines):
        page.text(MARGIN_IN + width + 0.15, page.y_in + 0.06 + 0.2 * number, line, size=9.5)
    page.y_in += max(0.27, len(lines) * 0.2) + 0.17


def _facts(page: Page, summary: Summary) -> None:
    if not summary.facts:
        return
    width = WIDTH_IN / len(summary.facts)
    page.box(MARGIN_IN, page.y_in, WIDTH_IN, 0.55, PAPER)
    for place, (label, value) in enumerate(summary.facts):
        x = MARGIN_IN + (place + 0.5) * width
        page.text(x, page.y_in + 0.09, value, size=11, weight="bold", ha="center", colour=FLEX)
        page.text(x, page.y_in + 0.34, label, size=7, colour=GREY, ha="center")
    page.y_in += 0.55 + 0.17


def _table(page: Page, summary: Summary) -> None:
    columns = (MARGIN_IN + 0.08, MARGIN_IN + 2.95, MARGIN_IN + 4.15, MARGIN_IN + 5.4)
    for x, title in zip(columns, ("", "rigid", "flex", "difference"), strict=True):
        page.text(x, page.y_in, title, size=8, colour=GREY)
    page.y_in += 0.2
    for number, row in enumerate(summary.rows):
        if number % 2 == 0:
            page.box(MARGIN_IN, page.y_in - 0.04, WIDTH_IN, 0.22, PAPER)
        page.text(columns[0], page.y_in, row.label)
        page.text(columns[1], page.y_in, row.rigid.replace(" or better (Nyquist)", " (Nyquist)"))
        page.text(columns[2], page.y_in, row.flex.replace(" or better (Nyquist)", " (Nyquist)"), weight="bold")
        page.text(columns[3], page.y_in, row.change, size=7.5, colour=OUTCOME_COLOUR[row.outcome])
        page.y_in += 0.22
    page.y_in += 0.1


def _back(page: Page, data: ReportData, summary: Summary, missing: list[str]) -> None:
    """What limits the conclusions, then stages, parameters and versions."""
    if summary.trust:
        page.heading("How far to trust this")
        for line in summary.trust:
            page.paragraph(line, indent_in=0.14, bullet="•", size=7.5)
        page.y_in += 0.15
    stages = {s.name: duration(s.seconds) + (f", {s.peak_MiB:.0f} MiB" if s.peak_MiB else "") for s in data.stages}
    for title, mapping in (
        ("Stages: time and peak memory", stages),
        ("Parameters", data.parameters),
        ("Versions", data.versions),
    ):
        rows = flattened(mapping)
        if not rows:
            continue
        page.heading(title)
        half = -(-len(rows) // 2)
        for number, (name, value) in enumerate(rows):
            column, row = divmod(number, half)
            x, y = MARGIN_IN + column * WIDTH_IN / 2, page.y_in + row * ROW_IN
            page.text(x, y, name, size=7, colour=GREY)
            page.text(x + 1.75, y, textwrap.shorten(value, 34, placeholder=" …"), size=7)
        page.y_in += half * ROW_IN + 0.18
    page.heading("How to cite")
    for line in CITE:
        page.paragraph(line, indent_in=0.14, bullet="•", size=7.5)
    page.y_in += 0.15
    if missing:
        page.heading("Not in this report")
        page.paragraph(", ".join(missing) + ": the job did not produce the data.", colour=GREY)


def _back_height(data: ReportData, summary: Summary, missing: list[str]) -> float:
    """Inches that `_back` takes, so that it starts a page of its own only when it must."""
    height = (
        0.24
        + 0.15
        + sum(len(textwrap.wrap(line, CAPTION_CHARACTERS)) * 7.5 * LINE / 72 + 0.03 for line in (*summary.trust, *CITE))
        + 0.24
        + 0.15
    )
    counts = (len(data.stages), len(flattened(data.parameters)), len(flattened(data.versions)))
    return height + sum(0.24 + 0.18 + -(-count // 2) * ROW_IN for count in counts if count) + (0.55 if missing else 0)
