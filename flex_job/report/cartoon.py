"""The atomic model as a cartoon that the page moves: Mol*, packed, and the numbers that it needs.

Mol* (Sehnal et al. 2021, doi:10.1093/nar/gkab314) is kept in assets/molstar as its makers built it.
"""

from __future__ import annotations

import base64
import gzip
from importlib.resources import files
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from flex_job.atomic_model import AtomicModel
from flex_job.report.moving import MovingAtoms
from flex_job.report.packed import packed

__all__ = ["cartoon_content", "cartoon_scripts"]

PARTS = ("molstar.js", "molstar.css")


def cartoon_content(atoms: MovingAtoms, motion_A: NDArray[np.floating], view: NDArray[np.float64]) -> dict[str, Any]:
    """Where the atoms are in the frame of the model's own file; each atom's motion (n,) stands as its B-factor. The
    rows of `view` (3, 3) are right, up and towards the reader."""
    return {
        "cif": base64.b64encode(gzip.compress(_cif(atoms.model, motion_A).encode(), mtime=0)).decode(),
        "points": packed(atoms.model.positions_A + atoms.model.origin_A),
        "modes": packed(atoms.modes),
        "up": view[1].tolist(),
        "towards": view[2].tolist(),
    }


def cartoon_scripts() -> str:
    """Mol* as it is kept, unpacked when it is asked for, and our own code that drives it."""
    assets = files("flex_job.report").joinpath("assets")
    kept = (
        f'<script type="text/plain" id="{name.replace(".", "-")}">'
        f"{base64.b64encode(assets.joinpath(f'molstar/{name}.gz').read_bytes()).decode()}</script>"
        for name in PARTS
    )
    return f"{''.join(kept)}<script>{assets.joinpath('cartoon.js').read_text(encoding='utf-8')}</script>"


def _cif(model: AtomicModel, motion_A: NDArray[np.floating]) -> str:
    structure = model.placed(model.positions_A)
    for (_, _, atom), value in zip(model.walk(), np.nan_to_num(motion_A).tolist(), strict=True):
        atom.b_iso = value
    groups = gemmi.MmcifOutputGroups(False)
    groups.atoms = groups.group_pdb = groups.entity = groups.entity_poly = True
    return structure.make_mmcif_block(groups).as_string()
