"""The two figures of the event log: FSC curves without and with motion, and the landscape of the latents."""

from __future__ import annotations

from matplotlib.figure import Figure

from flex_job.refine import RefineResult
from flex_job.report.data import ReportData
from flex_job.report.panels_fsc import draw_fsc
from flex_job.report.panels_latents import draw_latents

__all__ = ["result_figures"]


def result_figures(result: RefineResult) -> list[tuple[str, Figure]]:
    """(caption, figure) of each."""
    data = ReportData(
        title="Flexible refinement",
        latents=result.model.latents,
        latent_std=result.model.latent_std,
        rigid=result.rigid,
        flex=result.flex,
    )
    curves, landscape = Figure(figsize=(6.5, 4.5)), Figure(figsize=(5.5, 5.0))
    draw_fsc(curves, data)
    draw_latents(landscape, data)
    resolution = f"{result.rigid.resolution_text()} without motion, {result.flex.resolution_text()} with it"
    return [(f"FSC of the half-maps: {resolution}", curves), ("Latents of the particles", landscape)]
