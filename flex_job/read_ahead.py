"""The next batches are made in the background while the present one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import TypeVar

import torch

__all__ = ["read_ahead"]

Item = TypeVar("Item")
Batch = TypeVar("Batch")


def read_ahead(
    make: Callable[[Item], Batch],
    items: Iterable[Item],
    *,
    depth: int = 2,
    threads: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """`make(item)` for every item, in their order, up to `depth` of them made before they are asked for.

    At most depth + 1 batches are in memory, the caller's included. `items` is consumed in the caller's thread, so it
    may ask whether to stop; `make` runs in `threads` background threads, or in the caller's when `depth` is 0. What
    `make` raises is raised here, at its place in the order, with its own traceback. The threads have ended when the
    iterator has, be it exhausted, closed (a loop left by break) or left by an exception; at worst that takes as long as
    the batch being made.

    On a CUDA `device`, `make` runs on a stream of its own and the tensors of the batch (a tensor, or a dataclass with
    tensors in its fields) that are still on the host go there through pinned memory, beside what the device computes.
    """
    device = torch.device(device)
    if device.type == "cuda":
        yield from _onto_device(make, items, depth, threads, device)
    else:
        yield from _ahead(make, items, depth, threads)


def _ahead(make: Callable[[Item], Batch], items: Iterable[Item], depth: int, threads: int) -> Iterator[Batch]:
    if depth <= 0:
        yield from map(make, items)
        return
    pending: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read_ahead")
    try:
        for item in items:
            if len(pending) < depth:
                pending.append(pool.submit(make, item))
                continue
            batch = pending.popleft().result()  # waited for before another is begun: that bounds the memory
            pending.append(pool.submit(make, item))
            yield batch
            del batch
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _onto_device(
    make: Callable[[Item], Batch], items: Iterable[Item], depth: int, threads: int, device: torch.device
) -> Iterator[Batch]:
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # for tables made there that `make` uses

    def moved(item: Item) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(side):
            batch = _each_tensor(make(item), lambda tensor: _pinned(tensor).to(device, non_blocking=True))
            ready = torch.cuda.Event()
            ready.record(side)
        return batch, ready

    for batch, ready in _ahead(moved, items, depth, threads):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(ready)
        # Made on one stream and used on another: the allocator must not give the memory away before both are done.
        _each_tensor(batch, partial(_used_on, stream))
        yield batch


def _each_tensor(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with `change` applied to it, or to those of its fields that are tensors."""
    if isinstance(batch, torch.Tensor):
        return change(batch)  # type: ignore[return-value]
    if not is_dataclass(batch) or isinstance(batch, type):
        return batch
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: change(value) for name, value in values.items() if isinstance(value, torch.Tensor)})


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_cuda else tensor.pin_memory()


def _used_on(stream: torch.cuda.Stream, tensor: torch.Tensor) -> torch.Tensor:
    tensor.record_stream(stream)
    return tensor
