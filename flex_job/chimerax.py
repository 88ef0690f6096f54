"""A script for ChimeraX that opens a series of maps, with its atomic models, and plays both back and forth.

Commands as in ChimeraX's user guide: open, volume, vseries, coordset, color byattribute, view. A script runs in its
own folder, so files are named without theirs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.atomic_model import AtomicModel
from flex_job.files import written_aside
from flex_job.report.look import MOTION_RAMP

__all__ = ["ATTRIBUTE", "write_attribute", "write_script"]

ATTRIBUTE = "motion_rms_A"
PALETTE = ":".join(MOTION_RAMP)
PAUSE = 6  # pictures of the screen per frame


def write_script(
    path: Path, frames: int, level: float, models: str = "", attribute: str = "", largest_A: float = 0.0
) -> Path:
    """`frames` maps frame_*.mrc contoured at `level`; the trajectory `models` coloured by the file `attribute` from 0
    to `largest_A`, where there is one."""
    lines = [
        "# maps and models along the motion; open it in ChimeraX, or drop it on its window",
        "set bgColor white",
        "graphics silhouettes true",
        "lighting soft",
        "open frame_*.mrc vseries true" if frames > 1 else "open frame_*.mrc",
        f"volume #1 style surface level {level:.6g} color #8fb3cf step 1",
    ]
    if models:
        lines += [
            f"open {models} id 2" + (" coordsets true" if frames > 1 else ""),
            "transparency #1 60 target s",
            f"open {attribute}",
            "hide #2 atoms",
            "show #2 cartoons",
            f"color byattribute r:{ATTRIBUTE} #2 palette {PALETTE} range 0,{max(largest_A, 0.1):.4g} target abc",
        ]
    lines += ["view"]
    if frames > 1:
        lines.append(
            f"vseries play #1 direction oscillate loop true normalize false pauseFrames {PAUSE} cacheFrames {frames}"
        )
    if models and frames > 1:
        lines.append(f"coordset #2 1,{frames} pauseFrames {PAUSE} loop 1000 bounce true")
    with written_aside(path) as file:
        file.write("\n".join([*lines, ""]).encode())
    return path


def write_attribute(path: Path, model: AtomicModel, values: NDArray[np.floating]) -> Path:
    """An attribute file with `values` (R,), one per residue."""
    lines = [f"attribute: {ATTRIBUTE}", "recipient: residues"]
    rows: dict[str, float] = {}
    for number, (chain, residue, _) in zip(model.residue.tolist(), model.walk(), strict=True):
        rows.setdefault(f"/{chain.name}:{residue.seqid.num}{residue.seqid.icode.strip()}", float(values[number]))
    lines += [f"\t{place}\t{value:.3f}" for place, value in rows.items()]
    with written_aside(path) as file:
        file.write("\n".join([*lines, ""]).encode())
    return path
