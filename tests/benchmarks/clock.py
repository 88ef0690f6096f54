"""How the benchmarks take time: the fastest of several calls, so that what else the machine does counts least."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numba
import torch

__all__ = ["cores", "fastest", "use_threads"]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def use_threads(number: int) -> None:
    """For torch and numba alike."""
    torch.set_num_threads(number)
    numba.set_num_threads(number)


def fastest(call: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` calls, after one that compiles and warms the caches."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
