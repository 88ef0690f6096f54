"""A report that is read in a minute: `logfile.pdf` for RELION's window, `report.html` for everyone else."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from flex_job.files import path_aside
from flex_job.report.data import MeanImages, ReportData, Stage, motion_volume

__all__ = ["MeanImages", "ReportData", "Stage", "motion_volume", "write_report"]


def write_report(data: ReportData, folder: str | Path) -> tuple[Path, Path]:
    """Write `logfile.pdf` and `report.html` into `folder` (which must exist), each aside first, then renamed.

    Figures whose data are missing are left out and named at the end. Raises ValueError, with all problems in one
    message, for data that do not fit together.
    """
    from flex_job.report.html import write_html
    from flex_job.report.panels import missing_panels, report_panels
    from flex_job.report.pdf import write_pdf
    from flex_job.report.scene import build_scene
    from flex_job.report.summary import summarise

    problems = data.problems()
    if problems:
        raise ValueError("report: " + "; ".join(problems))
    folder = Path(folder)
    summary = summarise(data)
    scene = build_scene(data)
    panels = report_panels(data, scene)
    missing = missing_panels(panels)
    when = f"{datetime.now():%Y-%m-%d %H:%M}"
    pdf, html = folder / "logfile.pdf", folder / "report.html"
    with path_aside(pdf) as aside:
        write_pdf(aside, data, summary, panels, missing, when)
    with path_aside(html) as aside:
        write_html(aside, data, summary, panels, scene, missing, when)
    return pdf, html
