"""Several processes at one job, started here when no launcher did: one per device. Standard library only.

They get the variables that torchrun would set, so that all else is the same with either. The starter does no work: it
passes signals on, ends those that hang after another has died, and knows by which signal one died.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait

from flex_job.launch import Place

__all__ = ["Run", "describe", "run_ranks"]

GRACE_S = 30.0  # for the other ranks to end by themselves and to leave the exit file
Run = Callable[[str, Mapping[str, str]], int]


def run_ranks(run: Run, job: str, options: Mapping[str, str], size: int, signal_name: Callable[[], str]) -> list[int]:
    """Call `run(job, options)` in `size` processes; returns their exit codes, minus the signal for one that died of it.

    `signal_name` is polled; the signal it names is passed on, once.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    places = [Place(rank, size, rank, "127.0.0.1", port) for rank in range(size)]
    ranks = [context.Process(target=_rank, args=(place, run, job, dict(options))) for place in places]
    for process in ranks:
        process.start()
    passed_on, failed_at = False, None
    while running := [process for process in ranks if process.is_alive()]:
        wait([process.sentinel for process in running], timeout=0.2)
        if signal_name() and not passed_on:
            passed_on = True
            # a second SIGINT means "now", and Ctrl-C may come twice
            number = signal.SIGTERM if signal_name() == "SIGINT" else signal.Signals[signal_name()]
            for process in running:
                if process.pid is not None:
                    os.kill(process.pid, number)
        if failed_at is None and any(process.exitcode for process in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + GRACE_S:
            for process in running:
                process.kill()
    return [process.exitcode or 0 for process in ranks]


def describe(codes: list[int]) -> str:
    """Which ranks died of a signal, in words; empty when none did."""
    killed = [
        f"process {rank} was ended by {signal.Signals(-code).name}" for rank, code in enumerate(codes) if code < 0
    ]
    return ", ".join(killed)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(place: Place, run: Run, job: str, options: Mapping[str, str]) -> None:
    os.setsid()  # Ctrl-C in the terminal reaches the starter, which passes it on
    threading.Thread(target=_end_with_starter, daemon=True).start()
    os.environ.update(place.variables())
    sys.exit(run(job, options))


def _end_with_starter() -> None:
    starter = multiprocessing.parent_process()
    if starter is not None:
        starter.join()
        os._exit(1)  # killed: whoever starts the job again must not meet this process
