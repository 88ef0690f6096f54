"""A script for ChimeraX that opens a series of maps, with its atomic models, and plays both back and forth, in step.

Commands as in ChimeraX's user guide: open, volume, vseries, coordset, color byattribute, view. A script runs in its
own folder, so files are named without theirs. Models get numbers that a session hardly has yet. The maps oscillate with
each end shown once and coordinate sets bounce with each end shown twice, so models come as a loop that goes there and
back by itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
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
MAPS, MODELS = "#101", "#102"
SHADES = 100


def write_script(
    path: Path,
    frames: int,
    level: float,
    dust_A: float,
    view: NDArray[np.floating],
    largest_A: float | None = None,
) -> Path:
    """`frames` maps frame_*.mrc contoured at `level`, without pieces smaller than `dust_A`, seen so that the rows of
    `view` (3, 3) are right, up and towards the reader. Where the largest motion of an atomic model is given, its
    frames.cif too, coloured by motion.defattr up to that and moved by the loop series.dcd."""
    plays = frames > 1
    lines = [
        "# maps and models along the motion; open it in ChimeraX, or drop it on its window",
        "set bgColor white",
        "graphics silhouettes true",
        "lighting soft",
        f"close {MAPS},{MODELS[1:]}",  # of another time
        f"open frame_*.mrc{' vseries true' if plays else ''} id {MAPS[1:]}",
        f"volume {MAPS} style surface level {level:.6g} color #8fb3cf step 1",
    ]
    if largest_A is not None:
        lines += [
            f"open frames.cif maxModels 1 id {MODELS[1:]}",
            f"altlocs clean {MODELS}",  # second conformations would stand still
            *([f"open series.dcd structureModel {MODELS}"] if plays else []),
            f"transparency {MAPS} 60 target s",
            "open motion.defattr",
            f"hide {MODELS} atoms",
            f"show {MODELS} cartoons",
            f"show {MODELS} & ligand atoms",
            f"color byattribute r:{ATTRIBUTE} {MODELS} palette {PALETTE} range 0,{max(largest_A, 0.1):.4g} target ac",
        ]
    camera = ",".join(f"{value:.6g}" for row in view.T for value in (*row, 0.0))
    lines += [f"surface dust {MAPS} size {dust_A:.4g}", f"view matrix camera {camera}", "view"]
    if plays:
        lines.append(
            f"vseries play {MAPS} direction oscillate startTime 0 loop true normalize false pauseFrames {PAUSE} "
            f"cacheFrames {frames}"
        )
    if largest_A is not None and plays:
        lines.append(f"coordset {MODELS} 1,{2 * frames - 2} pauseFrames {PAUSE} loop 1000000")
    with written_aside(path) as file:
        file.write("\n".join([*lines, ""]).encode())
    return path


def write_attribute(path: Path, model: AtomicModel, values: NDArray[np.floating]) -> Path:
    """An attribute file with `values` (R,), one per residue, to a hundredth of the largest: ChimeraX looks through all
    atoms for each line."""
    rows: dict[tuple[str, str], float] = {}
    for number, (chain, residue, _) in zip(model.residue.tolist(), model.walk(), strict=True):
        place = re.sub(r"\W", "?", chain.name, flags=re.ASCII), f"{residue.seqid.num}{residue.seqid.icode.strip()}"
        rows.setdefault(place, float(values[number]))
    step = max(float(np.max(values)) / SHADES, 1e-3)
    shades: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (chain_name, residue_name), value in rows.items():
        shades[round(value / step)][chain_name].append(residue_name)
    lines = [f"attribute: {ATTRIBUTE}", "recipient: residues"]
    for shade in sorted(shades):
        places = "".join(f"/{name}:{','.join(numbers)}" for name, numbers in shades[shade].items())
        lines.append(f"\t{MODELS}{places}\t{shade * step:.3f}")
    with written_aside(path) as file:
        file.write("\n".join([*lines, ""]).encode())
    return path
