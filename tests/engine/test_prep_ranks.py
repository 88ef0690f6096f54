"""Particles prepared by several ranks are those that one prepares."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from flex_job import cache_parts, checkpoint
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
    monkeypatch.setattr(cache_parts, "PART_PARTICLES", 8)


def prepared(
    consensus: Consensus, folder: Path, group: Group | None = None, events: Events | None = None, key: str = ""
) -> bytes:
    """The cache that is made; with a `key` what is interrupted can be gone on with."""
    assert consensus.mask is not None
    folder.mkdir(exist_ok=True)
    cache, record = folder / "cache.f16", folder / "prep.npz"
    kept = checkpoint.Checkpoint(folder / "checkpoint.pt", key) if key else None
    prepare(
        consensus,
        consensus.mask,
        BOX,
        PrepParameters(),
        cache,
        record,
        events or Events(),
        group=group,
        checkpoint=kept,
    )
    return cache.read_bytes()


def assert_same(cache: bytes, other: bytes) -> None:
    """But for rounding, which depends on the threads that there are."""
    one, two = (np.frombuffer(each, np.float16).astype(np.float32) for each in (cache, other))
    assert one.shape == two.shape and np.abs(one - two).max() < 0.01


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_write_what_one_writes(consensus: Consensus, tmp_path: Path, size: int) -> None:
    alone = prepared(consensus, tmp_path / "one")
    for cache in in_ranks(size, lambda group: prepared(consensus, tmp_path / "many", group)):
        assert_same(cache, alone)
    records = [restore(consensus, BOX, tmp_path / n / "cache.f16", tmp_path / n / "prep.npz") for n in ("one", "many")]
    for name in ("contrast", "noise_level"):
        one, many = (getattr(calibration, name) for _, calibration in records)
        np.testing.assert_allclose(many, one, rtol=1e-4)
    assert {path.name for path in (tmp_path / "many").iterdir()} == {"cache.f16", "prep.npz"}


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 1024])
@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_shares_are_all_particles_once_and_begin_at_whole_pages(n: int, size: int) -> None:
    groups = [Group(rank=rank, members=tuple(range(size))) for rank in range(size)]
    parts = [cache_parts.CacheParts(n, 4, group) for group in groups]
    shares = [each.batches(3) for each in parts]
    assert len({len(share) for share in shares}) == 1
    held = [np.concatenate(share) for share in shares]
    assert np.array_equal(np.concatenate(held), np.arange(n))
    assert all(len(share) == 0 or share[0] % 8 == 0 for share in held)
    assert max(len(share) for share in held) <= n / size + 8
    assert all(len(set(batch // 8)) <= 1 for share in shares for batch in share)


@pytest.mark.parametrize("before, after", [(1, 1), (2, 1), (1, 3)])
def test_a_stopped_preparation_goes_on_with_any_number_of_ranks(
    consensus: Consensus, tmp_path: Path, before: int, after: int
) -> None:
    (alone,) = in_ranks(1, lambda group: prepared(consensus, tmp_path / "one", group))
    folder, said = tmp_path / "many", list[str]()
    asked = iter([False] * 3 * before + [True] * 9)
    stop = Events(should_stop=lambda: next(asked))
    stopped = in_ranks(before, lambda group: prepared(consensus, folder, group, stop, "prep"))
    assert all(isinstance(result, StopRequested) for result in stopped), stopped
    assert {path.name for path in folder.iterdir()} == {".cache.f16.part", "checkpoint.pt"}
    events = Events(message=said.append)
    for cache in in_ranks(after, lambda group: prepared(consensus, folder, group, events, "prep")):
        assert_same(cache, alone)
        assert cache == alone or before + after > 2
    done = int(said[-1].split()[1])
    assert 40 <= done < COUNT and f"read {done} of 100 particles" in said[-1]
    one, many = (np.load(path / "prep.npz") for path in (tmp_path / "one", folder))
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-4)


def test_damaged_parts_of_a_cache_are_seen_and_only_they_are_made_again(consensus: Consensus, tmp_path: Path) -> None:
    whole = prepared(consensus, tmp_path, key="prep")
    kept = checkpoint.Checkpoint(tmp_path / "checkpoint.pt", "prep")
    length, cache = len(whole) // COUNT, tmp_path / "cache.f16"
    assert cache_parts.is_intact(cache, kept, COUNT, length, Group())
    for damaged in (whole[:5] + b"x" + whole[6:-1] + b"x", whole[: 90 * length], b""):
        cache.write_bytes(damaged)
        assert not cache_parts.is_intact(cache, kept, COUNT, length, Group())
        said: list[str] = []
        assert prepared(consensus, tmp_path, events=Events(message=said.append), key="prep") == whole
        assert cache_parts.is_intact(cache, kept, COUNT, length, Group())
        assert f"read {12 if b'x' in damaged[:6] else 12 if damaged else 100}" in said[-1], said


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
