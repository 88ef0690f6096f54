"""What every host does before the engine starts: how many threads it may use, and on which devices it runs."""

from __future__ import annotations

import os
import sys

from flex_job.launch import chosen_devices, wanted_devices

__all__ = ["devices_of", "limit_threads"]


def limit_threads(threads: int) -> None:
    """Keep every library to `threads`. Environment variables count only before the first import."""
    # Waiting threads sleep: on a core shared with another job spinning costs half the speed (measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost rank is told once, in our words
    for module, variable in (("numpy", "OPENBLAS_NUM_THREADS"), ("torch", "OMP_NUM_THREADS")):
        if module not in sys.modules:
            os.environ[variable] = str(threads)
    import numba
    import torch

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def devices_of(text: str, problems: list[str]) -> list[str]:
    """The devices here that the parameter `devices` asks for, one per process; what is wrong goes to `problems`."""
    gpus = 0
    try:
        named = wanted_devices(text)
        if named is None or named[0] != "cpu":
            import torch

            gpus = torch.cuda.device_count()
        return chosen_devices(text, gpus)
    except ValueError as error:
        problems.append(str(error))
        return ["cpu"]
