"""Where a process stands among the ranks of its job, as torchrun or srun tell it. Standard library only."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Place", "chosen_devices", "place_of", "wanted_devices"]

FIRST_PORT, PORTS = 20_000, 10_000


@dataclass(frozen=True)
class Place:
    """One rank of `size`; `local_rank` counts the ranks of its host. The first rank listens at `address`:`port`."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int

    @property
    def host(self) -> str:
        return socket.gethostname()

    def variables(self) -> dict[str, str]:
        """The environment variables that torch.distributed reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def place_of(environment: Mapping[str, str], hostnames: Callable[[str], list[str]] | None = None) -> Place | None:
    """The place that torchrun (or whoever sets its variables) or srun gave this process; None when nobody did.

    A batch script of SLURM has task variables too, but only a step that srun started has a step's task count; a step
    of one task is a process for itself. Raises ValueError for a step whose first host cannot be found out.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Place(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environment.get("MASTER_PORT", "29500")),
        )
    size = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1 or "SLURM_PROCID" not in environment:
        return None
    job, step = int(environment.get("SLURM_JOB_ID", "0")), environment.get("SLURM_STEP_ID", "0")
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        size=size,
        local_rank=int(environment.get("SLURM_LOCALID", "0")),
        address=environment.get("MASTER_ADDR") or _first_host(environment, hostnames or _scontrol_hostnames),
        # another step of the same job must not meet this one
        port=int(environment.get("MASTER_PORT") or FIRST_PORT + (31 * job + int(step)) % PORTS),
    )


def _first_host(environment: Mapping[str, str], hostnames: Callable[[str], list[str]]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if nodes and not any(sign in nodes for sign in "[,"):
        return nodes
    hosts = hostnames(nodes) if nodes else []
    found = hosts[0] if hosts else environment.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not found:
        raise ValueError(
            f"the first host of the step's nodes {nodes!r} cannot be found out (scontrol show hostnames); "
            "set MASTER_ADDR to the host of task 0"
        )
    return found


def _scontrol_hostnames(nodes: str) -> list[str]:
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split()


def wanted_devices(text: str) -> list[str] | None:
    """Devices named by the parameter `devices`: "0,1" are GPUs, "cpu" and "cpu:2" that many ranks on the CPU; None
    for an empty text, which leaves it to what the machine has. Raises ValueError for anything else."""
    text = text.strip().lower()
    if not text:
        return None
    kind, _, count = text.partition(":")
    if kind == "cpu" and (not count or (count.isdecimal() and 1 <= int(count) <= 64)):
        return ["cpu"] * int(count or 1)
    numbers = [part.strip().removeprefix("cuda:") for part in text.split(",")]
    if all(number.isdecimal() for number in numbers) and len(set(numbers)) == len(numbers):
        return [f"cuda:{int(number)}" for number in numbers]
    raise ValueError(
        f"devices: {text!r} was given; expected numbers of GPUs such as 0,1, or cpu, or cpu:2 for two CPU ranks, "
        "or nothing for all visible GPUs"
    )


def chosen_devices(text: str, gpus: int) -> list[str]:
    """The devices to use on a machine with so many visible GPUs, one per rank. Raises ValueError as above."""
    wanted = wanted_devices(text)
    if wanted is None:
        return [f"cuda:{number}" for number in range(gpus)] or ["cpu"]
    missing = [name for name in wanted if name.startswith("cuda:") and int(name[5:]) >= gpus]
    if missing:
        raise ValueError(
            f"devices: {text!r} was given; expected GPUs from 0 to {gpus - 1}"
            if gpus
            else f"devices: {text!r} was given, and no GPU is visible; expected cpu, or nothing"
        )
    return wanted
