"""The report in numbers and plain sentences: what moves, how far, how much better the map, whether to believe it.

The rules behind the words are here, in one place, and the report prints them beside the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flex_job.fsc import FscCurves
from flex_job.report.data import ReportData
from flex_job.report.scene import motion_values
from flex_job.resolution import KINDS, MODEL_THRESHOLD

__all__ = ["CITE", "Badge", "Outcome", "Row", "Summary", "duration", "latent_sentences", "mean_fsc", "summarise"]

SAME_FSC = 0.01
"""Mean FSC curves closer than this count as equal."""

STILL_VOXELS = 0.25
"""A mean motion below this many voxels of the training box counts as none."""

CITE = (
    "The method: A. Punjani and D. J. Fleet, 3DFlex: determining structure and motion of flexible proteins from "
    "cryo-EM. Nature Methods 20, 860-870 (2023), doi:10.1038/s41592-023-01853-8.",
    "The software: flex-job, an open implementation of that method, in the version listed here; and the programs that "
    "picked, aligned and refined the particles.",
)

MOST_LATENTS = 4
"""With more latents than this, only those that spread most get a sentence."""

LONGEST_NAME = 24
"""Letters of the name of a mask or a model in the table."""

Outcome = Literal["better", "same", "worse", "unknown"]
WORDS = {"better": "better map", "same": "no better map", "worse": "worse map", "unknown": "maps not compared"}
OF_MOTION: dict[str, Outcome] = {"supported": "better", "not supported": "worse", "undecided": "same"}
"""How the words of a verdict are coloured."""


@dataclass(frozen=True)
class Row:
    """One line of the table at the top: what, without motion, with motion, and the difference in words."""

    label: str
    rigid: str
    flex: str
    change: str
    outcome: Outcome = "unknown"


@dataclass(frozen=True)
class Badge:
    """What a reader sees first: a word or two, in the colour of `outcome`, and the sentence beside."""

    word: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Summary:
    """The top of the report. `facts` holds (label, value) pairs, `trust` what limits the conclusions, `outcome` is that
    of the maps."""

    outcome: Outcome
    badges: tuple[Badge, ...]
    rows: tuple[Row, ...]
    facts: tuple[tuple[str, str], ...]
    findings: tuple[str, ...]
    trust: tuple[str, ...]


def summarise(data: ReportData) -> Summary:
    """Numbers and sentences for the head of the report; says 'not available' where something is missing."""
    rows, outcome = _rows(data)
    motion = motion_values(data)
    return Summary(
        outcome=outcome,
        badges=tuple(_badges(data, outcome, motion)),
        rows=tuple(rows),
        facts=tuple(_facts(data, motion)),
        findings=tuple([*data.findings, *_where_the_gain_lies(data, outcome), *latent_sentences(data)]),
        trust=tuple(_trust(data)),
    )


def mean_fsc(curves: FscCurves, beyond_A: float | None = None) -> float:
    """Mean of the corrected FSC over shells 1 to Nyquist, or over those finer than `beyond_A`; NaN without any."""
    used = curves.frequency_per_A > (0 if beyond_A is None else 1 / beyond_A)
    return float(np.mean(curves.corrected[used])) if used.any() else float("nan")


def duration(seconds: float) -> str:
    """'41 s', '3 min 5 s' or '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def latent_sentences(data: ReportData) -> list[str]:
    """Per latent: can single particles be placed along it?"""
    if data.latents is None or data.latent_std is None or not len(data.latents):
        return []
    sentences = []
    spreads = np.std(data.latents, axis=0)
    told = sorted(np.argsort(-spreads, kind="stable")[:MOST_LATENTS])
    for k in told:
        spread = float(spreads[k])
        error = float(np.sqrt(np.mean(data.latent_std[:, k] ** 2)))
        share = spread**2 / max(spread**2 + error**2, 1e-12)
        if share > 0.8:
            words = "single particles can be placed along it"
        elif share > 0.5:
            words = "single particles are placed only roughly; averages over many are better founded"
        else:
            words = "a single particle's value means little"
        sentences.append(f"Latent {k + 1}: spread {spread:.2f}, uncertainty {error:.2f} per particle: {words}.")
    rest = np.delete(spreads, told)
    if len(rest):
        sentences.append(f"{len(rest)} more latents spread less, by at most {rest.max():.2f}.")
    return sentences


def _where_the_gain_lies(data: ReportData, outcome: Outcome) -> list[str]:
    """A gain that ends where training ended is weaker evidence: said at the top, not in the small print."""
    limit = data.training_limit_A
    if outcome != "better" or data.rigid is None or data.flex is None or not limit or data.independent_halves:
        return []
    before, after = mean_fsc(data.rigid, limit), mean_fsc(data.flex, limit)
    if not np.isfinite(after) or _judge(before, after) == "better":
        return []
    return [
        f"The gain lies at resolutions that the motion model was trained on (up to {limit:.1f} Å); it does not "
        "continue beyond, so it does not yet prove the motion."
    ]


def _rows(data: ReportData) -> tuple[list[Row], Outcome]:
    rigid, flex = data.rigid, data.flex
    rows = [_resolution_row(f"Resolution at FSC {threshold:g}", rigid, flex, threshold) for threshold in (0.143, 0.5)]
    rows += _more_resolutions(data)
    if rigid is None or flex is None:
        return rows, "unknown"
    outcome = _judge(mean_fsc(rigid), mean_fsc(flex))
    rows.append(_fsc_row("Mean FSC, all shells", rigid, flex, None))
    limit = data.training_limit_A
    if limit and np.isfinite(mean_fsc(flex, limit)):
        rows.append(_fsc_row(f"Mean FSC beyond {limit:.1f} Å (not seen in training)", rigid, flex, limit))
    return rows, outcome


def _resolution_row(label: str, rigid: FscCurves | None, flex: FscCurves | None, threshold: float) -> Row:
    change, better = _resolution_change(rigid, flex, threshold)
    return Row(label, _resolution(rigid, threshold), _resolution(flex, threshold), change, better)


def _more_resolutions(data: ReportData) -> list[Row]:
    """In the user's masks, against the atomic model, and locally."""
    found = data.resolution
    rows = [_resolution_row(f"FSC 0.143 in {_short(mask.name)}", mask.rigid, mask.flex, 0.143) for mask in found.masks]
    if found.model is not None:
        model = found.model
        rigid, flex = (model.resolution_text(kind).replace(" A", " Å") for kind in KINDS)
        change, better = _change(model.resolution_A("rigid"), model.resolution_A("flex"), 1 / model.frequency_per_A[1])
        rows.append(Row(f"Map-model FSC {MODEL_THRESHOLD:g}, {_short(model.name)}", rigid, flex, change, better))
    if found.local:
        rigid, flex = (f"{found.local[kind]['median_A']:.2f} Å" for kind in KINDS)
        spread = " to ".join(f"{found.local['flex'][f'percentile{share}_A']:.2f}" for share in (5, 95))
        rows.append(Row("Local resolution, median in the mask", rigid, flex, f"flex: 90 % within {spread} Å"))
    return rows


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _fsc_row(label: str, rigid: FscCurves, flex: FscCurves, beyond_A: float | None) -> Row:
    before, after = mean_fsc(rigid, beyond_A), mean_fsc(flex, beyond_A)
    return Row(label, f"{before:.3f}", f"{after:.3f}", _signed(after - before, 3), _judge(before, after))


def _judge(before: float, after: float) -> Outcome:
    if abs(after - before) <= SAME_FSC:
        return "same"
    return "better" if after > before else "worse"


def _resolution(curves: FscCurves | None, threshold: float) -> str:
    return "not available" if curves is None else curves.resolution_text(threshold).replace(" A", " Å")


def _resolution_change(rigid: FscCurves | None, flex: FscCurves | None, threshold: float) -> tuple[str, Outcome]:
    if rigid is None or flex is None:
        return "", "unknown"
    return _change(rigid.resolution_A(threshold), flex.resolution_A(threshold), 1 / flex.frequency_per_A[1])


def _change(before: float, after: float, box_A: float) -> tuple[str, Outcome]:
    """From one resolution to another, in angstroms and shells of a box of `box_A`."""
    if not (np.isfinite(before) and np.isfinite(after)):
        if np.isfinite(before) == np.isfinite(after):
            return "neither map reaches it", "same"
        return ("only the flex map reaches it", "better") if np.isfinite(after) else ("lost", "worse")
    shells = (1 / after - 1 / before) * box_A
    if abs(shells) < 1:
        return "same within one Fourier shell", "same"
    return f"{_signed(after - before, 2)} Å ({_signed(shells, 1)} shells)", "better" if shells > 0 else "worse"


def _badges(data: ReportData, outcome: Outcome, motion: NDArray[np.float64]) -> list[Badge]:
    """Whether to believe the motion, where that was tested, and whether the map is better."""
    found = data.verdict
    tested = [] if found is None else [Badge(f"motion {found.verdict}", OF_MOTION[found.verdict], f"{found}")]
    return [*tested, Badge(WORDS[outcome], outcome, _headline(data, outcome, motion))]


def _headline(data: ReportData, outcome: Outcome, motion: NDArray[np.float64]) -> str:
    moved = ""
    if len(motion) and data.motion_A is not None:
        mean = _mean_motion(data, motion)
        still = mean < STILL_VOXELS * data.motion_A.pixel_size_A
        moved = (
            f" The motion found is negligible ({mean:.1f} Å on average, less than a quarter of a voxel)."
            if still
            else f" The density moves by {mean:.1f} Å on average, by {np.quantile(motion, 0.95):.1f} Å or more in its "
            "most mobile 5 %."
        )
    words = {
        "better": "The half-maps agree better with the motion than without.",
        "same": "The half-maps agree as well with the motion as without it: no improvement.",
        "worse": "The half-maps agree less well with the motion than without: prefer the rigid map.",
        "unknown": "Rigid and flex half-maps have not been compared.",
    }
    return words[outcome] + moved


def _mean_motion(data: ReportData, motion: NDArray[np.float64]) -> float:
    return float(np.mean(motion)) if data.motion_mean_A is None else data.motion_mean_A


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _facts(data: ReportData, motion: NDArray[np.float64]) -> list[tuple[str, str]]:
    facts = []
    if len(motion):
        facts += [
            ("Mean motion", f"{_mean_motion(data, motion):.1f} Å"),
            ("95th percentile", f"{np.quantile(motion, 0.95):.1f} Å"),
            ("Largest", f"{np.max(motion):.1f} Å"),
        ]
    if data.particles is not None:
        facts.append(("Particles", f"{sum(data.particles):,}"))
    if data.latents is not None:
        facts.append(("Latents", f"{data.latents.shape[1]}"))
    if data.stages:
        facts.append(("Time", duration(sum(stage.seconds for stage in data.stages))))
        peak = max(stage.peak_MiB for stage in data.stages)
        if peak > 0:
            facts.append(("Peak memory", f"{peak / 1024:.2f} GiB" if peak >= 1000 else f"{peak:.0f} MiB"))
    return facts


def _trust(data: ReportData) -> list[str]:
    lines = []
    if data.rigid is not None and data.flex is not None:
        lines.append(
            "Rigid and flex half-maps come from the same particles, half-sets, mask and solver; only the motion "
            f"differs. Mean FSCs within {SAME_FSC:g} and resolutions within one Fourier shell count as equal."
        )
        if data.independent_halves:
            lines.append(
                "Each half-set has a motion model of its own, trained from the consensus map up to where the rigid "
                "half-maps agree: the half-maps share nothing else, and a higher FSC is evidence for the motion."
            )
    if data.flex is not None:
        lines.append(
            "The FSC is that of the map in the middle of the motion. Errors of the motion that both half-maps share do "
            "not show in it, and at the ends of the motion the map is worse than it says."
            + ("" if data.independent_halves else " --independent_halves trains two motions and tells how they differ.")
        )
    if data.rigid is not None and data.flex is not None and not data.independent_halves:
        shared = "The motion model was trained on both half-sets, so the half-maps share it"
        if data.training_limit_A:
            lines.append(
                f"{shared}: up to {data.training_limit_A:.1f} Å, the finest detail used in training, a higher FSC "
                "alone does not prove the motion. A gain beyond that limit is independent evidence."
            )
        else:
            lines.append(f"{shared}, and a higher FSC alone does not prove the motion.")
    if data.motion_A is not None:
        lines.append(
            f"Motion is the {data.motion_definition}, over the voxels inside the mask"
            + ("" if data.motion_mean_A is None else ", its mean weighted by density")
            + ". It is a property of the fitted model: where density is weak, it follows the mesh's rigidity more than "
            "the images."
        )
    if data.latent_std is not None:
        lines.append(
            "The uncertainty of the latents holds if the motion model and the noise estimate are right; it does not "
            "include errors of the model itself or of the poses."
        )
    return lines
