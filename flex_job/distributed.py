"""Several processes at one job: what is whose, and the few things that they do together.

A group of one rank has nothing to do in all of this, so the engine is written once.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from flex_job.events import Events, StopRequested
from flex_job.shards import Index, owner

__all__ = ["FOREVER_DAYS", "Group", "RankLost", "timed_group", "together"]

WORK_S = 600.0  # for the slowest rank to reach a sum; while one rank works alone the others wait as long as it takes
FOREVER_DAYS = 7  # a process that ends is noticed at once, for its connections close
LEAVE_S = 10.0
POLL_S = 1.0
T = TypeVar("T")


class RankLost(RuntimeError):
    """Another process of this job ended or cannot be reached, so that this one cannot go on."""


@dataclass
class Group:
    """Some ranks of a job. Methods that say "together" must be called by all of them, in the same order.

    `device` is where this rank's tensors live; `members` are the group's ranks among all of the job, in order.
    Without arguments: one process for itself.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    members: tuple[int, ...] = (0,)
    _control: Any = None  # objects and flags, over gloo
    _data: Any = None  # tensors; NCCL where every rank has a GPU of its own
    _store: Any = None
    _half: Group | None = None
    _next_poll: float = 0.0

    @classmethod
    def on(cls, device: str) -> Group:
        """One process for itself on a device, which becomes the current one."""
        if device.startswith("cuda"):
            torch.cuda.set_device(device)  # kernels are started on the current device, wherever their tensors are
        return cls(torch.device(device))

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    # -- who owns what -------------------------------------------------------------------------------------------

    def owns(self, index: Index) -> NDArray[np.bool_]:
        """Which particles of `index` are this rank's."""
        return owner(index, self.size) == self.rank

    def own(self, index: Index) -> Index:
        """The particles of `index` that are this rank's."""
        return index[self.owns(index)]

    def batches(self, index: Index, size: int) -> list[Index]:
        """For work that any rank may do: this rank's consecutive part of `index`, at most `size` particles at a time.

        There are as many batches on every rank; the last may be empty.
        """
        part = np.array_split(index, self.size)[self.rank]
        longest = -(-len(index) // self.size)
        return [part[start : start + size] for start in range(0, longest, size)]

    def checked(self, indices: Iterable[Index], events: Events) -> Iterator[Index]:
        """Those of `indices` that hold any particle; before each, stops are looked for. Together."""
        for index in indices:
            self.check_stop(events)
            if len(index):
                yield index

    # -- together ------------------------------------------------------------------------------------------------

    def sum_(self, *tensors: torch.Tensor) -> None:
        """Sum tensors over the ranks, in place and together; of one dtype and on one device."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        group = self._data if flat.is_cuda else self._control
        if dist.get_backend(group) == "gloo":
            flat = flat.cpu()
        with together():
            dist.all_reduce(flat, group=group)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view(tensor.shape))

    def total(self, *values: float) -> list[float]:
        """Sums of plain numbers over the ranks, in float64, together."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with together():
            dist.all_reduce(sums, group=self._control)
        return [float(value) for value in sums]

    def complete_(self, rows: torch.Tensor, mine: Index) -> None:
        """Fill rows (n, ...) of all particles from the ranks that have them, in place and together.

        `mine` are the rows that this rank has, and no other. Exact: each is added to nothing but zeros.
        """
        if self.size == 1:
            return
        others = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        others[torch.from_numpy(mine).to(rows.device)] = False
        rows[others] = 0
        self.sum_(rows)

    def first_does(self, function: Callable[[], T]) -> T:
        """Call `function` on the first rank only; its result, or what it raised, reaches all. Together."""
        if self.size == 1:
            return function()
        said: list[Any] = [None, None]
        if self.is_first:
            try:
                said[0] = function()
            except Exception as error:
                said[1] = error if _survives_pickling(error) else RuntimeError(f"{type(error).__name__}: {error}")
                with together():
                    dist.broadcast_object_list(said, src=self.members[0], group=self._control)
                raise
        with together():
            dist.broadcast_object_list(said, src=self.members[0], group=self._control)
        if said[1] is not None:
            raise said[1]
        result: T = said[0]
        return result

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in order of rank, together."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with together():
            dist.all_gather_object(values, value, group=self._control)
        return values

    def barrier(self) -> None:
        """Wait for all ranks, however long the slowest takes. Together."""
        self.total(0.0)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on one of the ranks at least: a decision that all take alike. Together."""
        return self.total(float(flag))[0] > 0

    def check_stop(self, events: Events) -> None:
        """Raise StopRequested on all ranks at once, when one of them was asked to stop. Together.

        Other groups of the same job are told and stop at their own next check; when a rank of theirs has failed, this
        raises RankLost.
        """
        if self._store is None:
            events.check_stop()
            return
        told = self._told() if self.is_first else set()
        stop, lost = self.total(float("stop" in told or events.stop_wanted()), float("failure" in told))
        if lost:
            raise RankLost("another process of this job failed")
        if stop:
            with together():
                self._store.set("stop", "1")
            raise StopRequested

    def _told(self) -> set[str]:
        """What other groups of the job have left word of; looks once a second."""
        if time.monotonic() < self._next_poll:
            return set()
        self._next_poll = time.monotonic() + POLL_S
        with together():
            return {word for word in ("stop", "failure") if self._store.check([word])}

    def split(self, color: int) -> Group:
        """The group of those ranks that give the same `color`. Together."""
        if self.size == 1:
            return self
        colors = self.gathered(color)
        backend, mine = dist.get_backend(self._data), self
        for value in sorted(set(colors)):
            members = tuple(rank for rank, other in zip(self.members, colors, strict=True) if other == value)
            with together():
                control = dist.new_group(members, backend="gloo", timeout=timedelta(days=FOREVER_DAYS))
                data = control if backend == "gloo" else timed_group(members, backend)
            if value == color:
                here = members.index(self.members[self.rank])
                mine = Group(self.device, here, members, control, data, self._store)
        return mine

    def both_halves(self, solve: Callable[[int, Group], T]) -> tuple[T, T]:
        """`solve(half, group)` for half-sets 1 and 2; both results reach all ranks. Together.

        An even number of ranks works on both side by side, an odd number on one after the other: split unevenly, the
        smaller part would keep the larger waiting.
        """
        if self.size % 2:
            return solve(1, self), solve(2, self)
        if self._half is None:
            self._half = self.split(self.rank % 2)
        mine: Any = None
        stopped = False
        try:
            mine = solve(self.rank % 2 + 1, self._half)
        except StopRequested:
            stopped = True
        # One half may end before it hears that the other was stopped: they meet here, and stop together.
        if self.any(stopped):
            raise StopRequested
        first, second = (self._from(rank, mine) for rank in (0, 1))
        return first, second

    def _from(self, rank: int, value: T) -> T:
        said: list[Any] = [value if self.rank == rank else None]
        with together():
            dist.broadcast_object_list(said, src=self.members[rank], group=self._control)
        result: T = said[0]
        return result

    # -- the end -------------------------------------------------------------------------------------------------

    def tell_failure(self, text: str) -> bool:
        """Leave word for the first rank of why this one ends; whether that was possible."""
        if self._store is not None:
            with _quiet():
                self._store.set("failure", f"rank {self.rank}: {text}")
                return True
        return False

    def told_failure(self, seconds: float = 5.0) -> str:
        """What another rank said before it ended; empty when it said nothing."""
        until = time.monotonic() + seconds
        while self._store is not None and time.monotonic() < until:
            with _quiet():
                if self._store.check(["failure"]):
                    return str(self._store.get("failure").decode())
            time.sleep(0.1)
        return ""

    def leave(self) -> None:
        """End well: no rank closes its connections while another still reads from them, and the first, which keeps the
        books, is the last to go."""
        if self._store is None:
            return
        with _quiet():
            self._count("left", 1, self.size)
            self._count("gone", int(not self.is_first), self.size - 1 if self.is_first else 0)
            dist.destroy_process_group()
        self._store = None

    def _count(self, name: str, one: int, wanted: int) -> None:
        """Add to a number that all ranks share, and wait until it is as large as is wanted; not for ever."""
        until = time.monotonic() + LEAVE_S
        while self._store.add(name, one) < wanted and time.monotonic() < until:
            one = 0
            time.sleep(0.02)


def timed_group(members: tuple[int, ...], backend: str) -> Any:
    """Ranks that wait for one another for WORK_S only: NCCL does not notice when one of them has died."""
    return dist.new_group(members, backend=backend, timeout=timedelta(seconds=WORK_S))


def _survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


@contextmanager
def together(what: str = "") -> Iterator[None]:
    """Failures of gloo, NCCL and the store, which are of many types and texts, as RankLost."""
    try:
        yield
    except (RuntimeError, ConnectionError, TimeoutError) as error:
        raise RankLost(
            f"another process of this job ended or cannot be reached{'; ' + what if what else ''}; "
            "press Continue to resume"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """At the end of a job it no longer matters whether the others can be reached."""
    with suppress(RuntimeError, ConnectionError, TimeoutError):
        yield
