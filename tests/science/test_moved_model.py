"""The promise of `generate --atomic_model`: a model that is moved is where the molecule is, and still a sound one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from science.moved_model import moved_model

pytestmark = pytest.mark.science


def test_a_moved_model_is_where_the_molecule_is(tmp_path: Path) -> None:
    record = moved_model(tmp_path, 3500, 0.1)
    print("\n" + json.dumps(record, indent=1))
    assert record["displacement_rms_A"] > 15
    for name in ("built_in_the_middle", "taken_for_canonical"):
        rigid, flow = record[f"{name}, rigid residues"], record[f"{name}, flow alone"]
        assert rigid["error_rms_A"] < 1.0 and rigid["error_rms_A"] < 1.1 * flow["error_rms_A"]
        worst = rigid["worst_frame"]
        assert worst["bonds_within_A"] < 1e-6 and worst["bonds_between_A"] < 0.02
        assert worst["phi_deg"] < 1 and worst["psi_deg"] < 1 and worst["long_peptide_bonds"] == 0
        assert flow["worst_frame"]["bonds_within_A"] > 0.01  # negative control: the flow alone strains bonds
