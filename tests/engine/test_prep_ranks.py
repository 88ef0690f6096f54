"""Particles prepared by several ranks are those that one prepares."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from flex_job import prep
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events, StopRequested
from flex_job.prep import prepare, restore
from flex_job.problems import InputProblems
from integration.relion.simulate import simulate_project
from job_specs.parameters import PrepParameters

T = TypeVar("T")
BOX, COUNT = 24, 100


class Meeting:
    """Where threads that stand for ranks hand over what they have."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.values: list[Any] = [None] * size


@dataclass
class ThreadRank(Group):
    """A rank that is a thread: only `gathered` is its own, all else that prep uses is made of it."""

    meeting: Any = field(default=None)

    def gathered(self, value: T) -> list[T]:
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        values = list(self.meeting.values)
        self.meeting.barrier.wait()
        return values

    def first_does(self, function: Callable[[], T]) -> T:
        return self.gathered(function() if self.is_first else None)[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        self.gathered(None)

    def check_stop(self, events: Events) -> None:
        if any(self.gathered(events.should_stop())):
            raise StopRequested


def in_ranks(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` returned or raised in each of `size` threads."""
    meeting = Meeting(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRank(rank=rank, members=tuple(range(size)), meeting=meeting))
        except (InputProblems, StopRequested) as error:  # all ranks raise them, at the same place
            results[rank] = error
        except BaseException as error:
            results[rank] = error
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.fixture(scope="module")
def consensus(tmp_path_factory: pytest.TempPathFactory) -> Consensus:
    folder = tmp_path_factory.mktemp("project")
    return simulate_project(
        folder, particles=COUNT, box=BOX, pixel_size_A=10.0, snr=1.0, seed=1, motion="none"
    ).particles.refined


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prep, "PAGE_PARTICLES", 8)


def prepared(consensus: Consensus, folder: Path, group: Group | None = None, events: Events | None = None) -> bytes:
    assert consensus.mask is not None
    folder.mkdir(exist_ok=True)
    cache, record = folder / "cache.f16", folder / "prep.npz"
    prepare(consensus, consensus.mask, BOX, PrepParameters(), cache, record, events or Events(), group=group)
    return cache.read_bytes()


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_write_what_one_writes(consensus: Consensus, tmp_path: Path, size: int) -> None:
    alone = np.frombuffer(prepared(consensus, tmp_path / "one"), np.float16)
    caches = in_ranks(size, lambda group: prepared(consensus, tmp_path / "many", group))
    for cache in caches:
        together = np.frombuffer(cache, np.float16)
        assert together.shape == alone.shape
        assert np.abs(together.astype(np.float32) - alone).max() < 0.01  # batches of other sizes round differently
    records = [restore(consensus, BOX, tmp_path / n / "cache.f16", tmp_path / n / "prep.npz") for n in ("one", "many")]
    for name in ("contrast", "noise_level"):
        one, many = (getattr(calibration, name) for _, calibration in records)
        np.testing.assert_allclose(many, one, rtol=1e-4)
    assert {path.name for path in (tmp_path / "many").iterdir()} == {"cache.f16", "prep.npz"}


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 1024])
@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_shares_are_all_particles_once_and_begin_at_whole_pages(n: int, size: int) -> None:
    shares = [prep._share(n, Group(rank=rank, members=tuple(range(size)))) for rank in range(size)]
    assert np.array_equal(np.concatenate([np.arange(*share) for share in shares]), np.arange(n))
    assert all(first % 8 == 0 or first == n for first, _ in shares)
    if n > 8 * size:
        assert max(last - first for first, last in shares) <= n / size + 8


def test_bad_images_of_any_rank_stop_all_and_leave_nothing(consensus: Consensus, tmp_path: Path) -> None:
    path = tmp_path / "bad.mrcs"
    stack = bytearray(consensus.stack_paths[consensus.stack_index[90]].read_bytes())
    offset = 1024 + int(consensus.image_index[90]) * BOX * BOX * 4
    stack[offset : offset + BOX * BOX * 4] = bytes(BOX * BOX * 4)
    path.write_bytes(stack)
    paths = list(consensus.stack_paths)
    paths[consensus.stack_index[90]] = path
    bad = replace(consensus, stack_paths=tuple(paths))
    results = in_ranks(2, lambda group: prepared(bad, tmp_path / "job", group))
    assert all(isinstance(result, InputProblems) and "1 particle images" in str(result) for result in results), results
    assert list((tmp_path / "job").iterdir()) == []


def test_a_stop_asked_of_one_rank_stops_all(consensus: Consensus, tmp_path: Path) -> None:
    def work(group: Group) -> bytes:
        return prepared(consensus, tmp_path / "job", group, Events(should_stop=lambda: group.rank == 1))

    assert all(isinstance(result, StopRequested) for result in in_ranks(2, work))
    assert list((tmp_path / "job").iterdir()) == []
