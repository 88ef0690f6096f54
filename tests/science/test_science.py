"""Every case of `make science`, resumable one by one: what is promised of each must come out."""

from __future__ import annotations

import pytest
from science.cases import CASES, Case, Size, broken
from science.run import record_of
from science.table import write_tables

pytestmark = pytest.mark.science


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    size = Size()
    record = record_of(case, size)
    print(f"\n{case.name}: {record}\ntable: {write_tables(size)}")
    assert not broken(case.promised, record)
