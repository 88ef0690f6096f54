"""The report as one HTML file that needs nothing beside it: pictures are inside, as base64 PNG."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flex_job.report import interactive
from flex_job.report.data import ReportData
from flex_job.report.look import RC
from flex_job.report.panels import WIDTH_IN, Panel
from flex_job.report.scene import Scene
from flex_job.report.summary import CITE, Summary, duration
from flex_job.report.tables import flattened

__all__ = ["write_html"]

DPI = 170
SECTIONS = {"motion": "The motion", "maps": "The maps", "model": "Model and training"}
STYLE = """
:root { --ink: #1f2933; --grey: #6b7785; --line: #e3e8ed; --paper: #f4f6f8; --flex: #0072b2;
        --good: #00785a; --bad: #b34700; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0; }
h2 { font-size: 19px; margin: 38px 0 12px; } h3 { font-size: 15.5px; margin: 0 0 8px; }
.sub, figcaption, .trust { color: var(--grey); font-size: 13.5px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 18px 20px; margin: 14px 0; }
.headline { font-size: 17px; margin: 0 0 14px; }
.badge { display: inline-block; color: #fff; border-radius: 5px; padding: 1px 10px; margin-right: 8px; font-size: 14px;
         font-weight: 600; background: var(--grey); }
.badge.better { background: var(--good); } .badge.worse { background: var(--bad); }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin-bottom: 14px; }
.facts div { flex: 1 1 100px; background: var(--paper); border-radius: 6px; padding: 8px 6px; text-align: center; }
.facts b { display: block; font-size: 18px; color: var(--flex); white-space: nowrap; }
.facts span { font-size: 12.5px; color: var(--grey); }
table { border-collapse: collapse; width: 100%; } td:first-child { width: 36%; }
th { text-align: left; color: var(--grey); font-weight: 500; }
td, th { padding: 5px 10px; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td.better { color: var(--good); } td.worse { color: var(--bad); } td.same, td.unknown { color: var(--grey); }
ul { margin: 12px 0 0; padding-left: 20px; } .note { color: var(--bad); }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
.rows { columns: 2 380px; column-gap: 36px; font-size: 13px; }
.rows div { display: flex; justify-content: space-between; gap: 12px; break-inside: avoid;
            border-bottom: 1px solid var(--line); }
.rows span { color: var(--grey); } .rows b { font-weight: 500; text-align: right; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 18px 10px 40px; } .card { padding: 14px 12px; overflow-x: auto; }
  table { font-size: 13px; } td, th { padding: 4px 5px; overflow-wrap: anywhere; } .headline { font-size: 15.5px; } }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""


def write_html(
    path: Path,
    data: ReportData,
    summary: Summary,
    panels: list[Panel],
    scene: Scene | None,
    missing: list[str],
    when: str,
) -> None:
    """Write the page."""
    moving = "" if scene is None else interactive.moving_section(data, scene)
    parts = [_head(data, summary, when), moving]
    section = "result"
    for panel in panels:
        if panel.section != section:
            section = panel.section
            parts.append(f"<h2>{SECTIONS[section]}</h2>")
        parts.append(
            f'<figure class="card" id="{panel.key}"><h3>{escape(panel.title)}</h3><img alt="{escape(panel.title)}" '
            f'src="data:image/png;base64,{_png(panel)}"><figcaption>{escape(panel.caption)}</figcaption></figure>'
        )
    parts.append(_back(data, summary, missing))
    body = "\n".join(parts)
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)}</title><style>{STYLE}{interactive.STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main>{interactive.scripts(data) if moving else ''}</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _png(panel: Panel) -> str:
    with rc_context(RC):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH_IN, panel.height_in), dpi=DPI)
        FigureCanvasAgg(figure)
        panel.draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 3})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _head(data: ReportData, summary: Summary, when: str) -> str:
    facts = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for label, value in summary.facts)
    rows = "".join(
        f"<tr><td>{escape(row.label)}</td><td>{escape(row.rigid)}</td><td><b>{escape(row.flex)}</b></td>"
        f'<td class="{row.outcome}">{escape(row.change)}</td></tr>'
        for row in summary.rows
    )
    lines = [f"<li>{escape(line)}</li>" for line in summary.findings]
    lines += [f'<li class="note">{escape(line)}</li>' for line in data.notes]
    where = " · ".join(escape(part) for part in (data.job_folder, when) if part)
    badges = "".join(
        f'<p class="headline"><span class="badge {each.outcome}">{escape(each.word)}</span>{escape(each.sentence)}</p>'
        for each in summary.badges
    )
    return (
        f'<h1>{escape(data.title)}</h1><div class="sub">{where}</div><section class="card">'
        f'{badges}<div class="facts">{facts}</div>'
        f"<table><tr><th></th><th>rigid</th><th>flex</th><th>difference</th></tr>{rows}</table>"
        f"<ul>{''.join(lines)}</ul></section>"
    )


def _back(data: ReportData, summary: Summary, missing: list[str]) -> str:
    parts = []
    if summary.trust:
        lines = "".join(f"<li>{escape(line)}</li>" for line in summary.trust)
        parts.append(f'<h2>How far to trust this</h2><section class="card trust"><ul>{lines}</ul></section>')
    stages = {
        stage.name: duration(stage.seconds) + (f", {stage.peak_MiB:.0f} MiB" if stage.peak_MiB else "")
        for stage in data.stages
    }
    for title, mapping in (("Stages", stages), ("Parameters", data.parameters), ("Versions", data.versions)):
        rows = "".join(
            f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in flattened(mapping)
        )
        if rows:
            parts.append(f'<h2>{title}</h2><section class="card rows">{rows}</section>')
    cited = "".join(f"<li>{escape(line)}</li>" for line in CITE)
    parts.append(f'<h2>How to cite</h2><section class="card trust"><ul>{cited}</ul></section>')
    if missing:
        names = escape(", ".join(missing))
        parts.append(f'<p class="sub">Not in this report, because the job did not produce the data: {names}.</p>')
    return "".join(parts)
