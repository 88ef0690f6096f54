"""The figures of the event log: FSC curves without and with motion, the landscape of the latents, a movie."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from flex_job.generate import support
from flex_job.half_maps import map_files
from flex_job.latent_paths import latent_series
from flex_job.refine import RefineResult
from flex_job.report.data import ReportData
from flex_job.report.movie import draw_movie, write_gif
from flex_job.report.panels_fsc import draw_fsc
from flex_job.report.panels_latents import draw_latents
from flex_job.series import shown_surface
from flex_job.volume import read_volume

__all__ = ["result_figures"]

FRAMES = 10


def result_figures(result: RefineResult, folder: Path) -> list[tuple[str, Figure | Path]]:
    """(caption, figure or picture's file) of each. Writes motion.gif to the job's folder."""
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
    figures: list[tuple[str, Figure | Path]] = [
        (f"FSC of the half-maps: {resolution}", curves),
        ("Latents of the particles", landscape),
    ]
    shown = shown_surface(result.model, read_volume(folder / map_files("flex")[-1]))
    if shown is not None:
        series = latent_series(result.model, "latents", FRAMES, clusters=1, seed=0)
        movie = draw_movie(result.model, shown[0], series, support(result.model, series.points))
        figures.append(("The motion along each latent", write_gif(folder / "motion.gif", movie)))
    return figures
