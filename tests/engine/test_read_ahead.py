"""Reading ahead changes when batches are made, and nothing else; and it leaves no thread behind."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from flex_job.events import Events, StopRequested
from flex_job.read_ahead import read_ahead


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


class Counted:
    """Batches that know how many of them are alive."""

    alive = most = 0
    lock = threading.Lock()

    def __init__(self, item: int) -> None:
        self.item = item
        with Counted.lock:
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        with Counted.lock:
            Counted.alive -= 1


@pytest.mark.parametrize("depth, threads", [(0, 1), (1, 1), (2, 1), (3, 2), (100, 4)])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_all_items_in_their_order(depth: int, threads: int, count: int) -> None:
    def make(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(read_ahead(make, range(count), depth=depth, threads=threads)) == [i * i for i in range(count)]


def test_batches_are_made_while_the_caller_works() -> None:
    began, made = threading.Event(), threading.Event()

    def make(item: int) -> int:
        if item == 1:
            began.set()
            made.wait(5)
        return item

    batches = read_ahead(make, range(3), depth=1)
    assert next(batches) == 0
    assert began.wait(5), "the second batch is begun while the first is worked on"
    made.set()
    assert list(batches) == [1, 2]


@pytest.mark.parametrize("depth, threads", [(0, 1), (1, 1), (2, 1), (3, 2)])
def test_memory_is_bounded_by_the_depth(depth: int, threads: int) -> None:
    Counted.most = 0
    for number, batch in enumerate(read_ahead(Counted, range(30), depth=depth, threads=threads)):
        time.sleep(0.002)
        assert batch.item == number
        del batch
    # the one being handed over counts on both sides for a moment
    assert Counted.alive == 0 and Counted.most <= depth + 2


@pytest.mark.parametrize("depth", [0, 2])
def test_an_exception_comes_at_its_place_with_its_traceback(depth: int) -> None:
    def the_culprit(item: int) -> int:
        if item == 3:
            raise KeyError(f"item {item}")
        return item

    seen = []
    with pytest.raises(KeyError, match="item 3") as raised:
        for batch in read_ahead(the_culprit, range(10), depth=depth):
            seen.append(batch)
    assert seen == [0, 1, 2]
    assert "the_culprit" in "".join(traceback.format_exception(raised.value))


def test_threads_end_when_the_loop_is_left() -> None:
    made = []

    def make(item: int) -> int:
        time.sleep(0.01)
        made.append(item)
        return item

    for batch in read_ahead(make, range(1000), depth=3, threads=2):
        if batch == 2:
            break
    assert threading.active_count() == 1 or not any("read_ahead" in thread.name for thread in threading.enumerate())
    assert len(made) < 10

    with pytest.raises(RuntimeError, match="in the loop"):
        for _ in read_ahead(make, range(1000), depth=3):
            raise RuntimeError("in the loop")

    batches = read_ahead(make, range(1000), depth=3)
    next(batches)
    batches.close()


def test_items_may_ask_for_a_stop() -> None:
    events = Events(should_stop=lambda: len(seen) == 4)

    def items() -> Iterator[int]:
        for item in range(1000):
            events.check_stop()
            yield item

    seen: list[int] = []
    with pytest.raises(StopRequested):
        for batch in read_ahead(lambda item: item, items(), depth=2):
            seen.append(batch)
    assert len(seen) == 4


@dataclass(frozen=True)
class Batch:
    number: int
    data: torch.Tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("depth", [0, 2])
def test_batches_reach_the_device_whole(depth: int) -> None:
    def make(item: int) -> Batch:
        return Batch(item, torch.full((1 << 20,), float(item)))

    for number, batch in enumerate(read_ahead(make, range(30), depth=depth, device="cuda")):
        assert batch.number == number and batch.data.is_cuda
        assert bool((batch.data == number).all())
    for number, tensor in enumerate(read_ahead(lambda item: make(item).data, range(3), depth=depth, device="cuda")):
        assert bool((tensor == number).all())


def test_on_the_processor_batches_are_handed_over_as_they_are() -> None:
    batches = [Batch(number, torch.zeros(3)) for number in range(5)]
    found = list(read_ahead(lambda item: batches[item], range(5), depth=2, device="cpu"))
    assert all(a is b for a, b in zip(found, batches, strict=True))
