"""Records read by place are those that were written, only as far as asked for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flex_job.records import read_records


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, NDArray[np.float16]]:
    data = np.random.default_rng(0).normal(size=(30, 11, 2)).astype(np.float16)
    path = tmp_path / "cache.f16"
    data.tofile(path)
    return path, data


@pytest.mark.parametrize("first", [1, 4, 11])
def test_any_records_in_any_order_up_to_a_length(written: tuple[Path, NDArray[np.float16]], first: int) -> None:
    path, data = written
    index = np.random.default_rng(1).integers(0, 30, 50)
    assert np.array_equal(read_records(path, index, (11, 2), first), data[index, :first])
    assert read_records(path, index[:0], (11, 2), first).shape == (0, first, 2)


def test_only_the_bytes_asked_for_are_read_and_short_answers_completed(
    written: tuple[Path, NDArray[np.float16]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = written
    given: list[int] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        given.append(real(descriptor, [buffers[0][:7]], offset))
        return given[-1]

    monkeypatch.setattr(os, "preadv", preadv)
    assert np.array_equal(read_records(path, np.array([29, 3]), (11, 2), 5), data[[29, 3], :5])
    assert sum(given) == 2 * 5 * 2 * 2 and max(given) == 7


def test_a_file_that_ends_early_is_told(written: tuple[Path, NDArray[np.float16]]) -> None:
    path, _ = written
    os.truncate(path, 29 * 44 + 3)
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match=r"cache\.f16: 1279 bytes, record 29 of 44 bytes"):
        read_records(path, np.array([0, 29]), (11, 2), 2)
    assert len(os.listdir("/proc/self/fd")) == files
