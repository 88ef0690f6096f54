"""What the results tab shows of a job directory: summary, FSC curves, maps, latents, pictures and report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from gemmi import cif
from pipeliner.display_tools import (
    create_results_display_object,
    graph_from_starfile_cols,
    histogram_from_starfile_col,
    make_map_model_thumb_and_display,
    make_mrcs_central_slices_montage,
)
from pipeliner.results_display_objects import ResultsDisplayObject

from job_specs.jobs import JobSpec, Output

__all__ = ["resolutions", "results"]

RESOLUTIONS = {"with motion": "_rlnFinalResolution", "without motion": "_flexRigidFinalResolution"}
FSC_CURVES = {
    "with motion": "_rlnFourierShellCorrelationCorrected",
    "without motion": "_flexRigidFourierShellCorrelationCorrected",
}
LATENT = re.compile(r"_flexLatent\d+")
MOST_FRAMES = 12  # rows of slices in one picture


def results(job: JobSpec, folder: Path) -> list[ResultsDisplayObject]:
    """Display objects of what `job` has left in `folder`; what is not there is not shown."""
    pictures = (output for output in job.outputs if output.file.endswith(".png"))
    return [
        *_summary(folder),
        *_fsc(folder),
        *_maps(folder),
        *_latents(folder),
        *(shown for picture in pictures for shown in _picture(picture, folder)),
        *_report(folder),
    ]


def resolutions(folder: Path) -> dict[str, float]:
    """Angstroms at FSC 0.143 by "with motion" and "without motion"; empty without fsc.star."""
    path = folder / "fsc.star"
    if not path.is_file():
        return {}
    general = cif.read(str(path)).find_block("general")
    return {name: float(general.find_value(label)) for name, label in RESOLUTIONS.items()}


def _summary(folder: Path) -> Iterator[ResultsDisplayObject]:
    """The lines that the job itself ended with."""
    path = folder / "manifest.json"
    if not path.is_file():
        return
    stages = json.loads(path.read_text()).get("stages", {})
    lines = stages.get("report", {}).get("results", {}).get("summary", [])
    if lines:
        yield create_results_display_object(
            "text", title="Summary", display_data="\n".join(lines), associated_data=[str(path)]
        )


def _fsc(folder: Path) -> Iterator[ResultsDisplayObject]:
    path = folder / "fsc.star"
    if path.is_file():
        yield graph_from_starfile_cols(
            "Fourier shell correlation of the half-maps",
            str(path),
            "fsc",
            ycols=list(FSC_CURVES.values()),
            xcols=["_rlnResolution"] * len(FSC_CURVES),
            data_series_labels=list(FSC_CURVES),
            xlabel="Resolution (1/Å)",
            ylabel="FSC, corrected for the mask",
        )


def _maps(folder: Path) -> Iterator[ResultsDisplayObject]:
    path = folder / "flex_class001.mrc"
    if path.is_file():
        yield make_mrcs_central_slices_montage({str(path): "Map through the motion"}, str(folder))
        yield make_map_model_thumb_and_display(str(folder), maps=[str(path)], title="Map through the motion")
    frames = sorted(folder.glob("frame_*.mrc"))
    if frames:
        chosen = _evenly(frames, MOST_FRAMES)
        yield make_mrcs_central_slices_montage({str(frame): frame.stem for frame in chosen}, str(folder))


def _latents(folder: Path) -> Iterator[ResultsDisplayObject]:
    path = folder / "particles.star"
    if path.is_file():
        for label in _latent_labels(path):
            title = label.replace("_flexLatent", "Latent ")
            yield histogram_from_starfile_col(
                title, str(path), "particles", label, xlabel="latent coordinate", ylabel="particles"
            )


def _latent_labels(path: Path) -> list[str]:
    """Labels of the latents, from the head of a file that may have millions of rows."""
    found: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            label = line.split(maxsplit=1)[0] if line.strip() else ""
            if LATENT.fullmatch(label):
                found.append(label)
            elif found and label and not label.startswith("_"):
                break
    return found


def _picture(output: Output, folder: Path) -> Iterator[ResultsDisplayObject]:
    path = folder / output.file
    if path.is_file():
        yield create_results_display_object(
            "image", title=output.help, image_path=str(path), image_desc=output.help, associated_data=[str(path)]
        )


def _report(folder: Path) -> Iterator[ResultsDisplayObject]:
    page, pdf = folder / "report.html", folder / "logfile.pdf"
    if page.is_file():
        yield create_results_display_object(
            "html", title="Report", html_file=str(page), associated_data=[str(page)], start_collapsed=True
        )
    if pdf.is_file():
        yield create_results_display_object("pdffile", title="Report as PDF", file_path=str(pdf), start_collapsed=True)


def _evenly(paths: list[Path], most: int) -> list[Path]:
    """At most `most` of them, the first and the last included."""
    if len(paths) <= most:
        return paths
    return [paths[round(index * (len(paths) - 1) / (most - 1))] for index in range(most)]
