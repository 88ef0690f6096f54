"""The processes of a job meet."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from flex_job.distributed import FOREVER_DAYS, Group, timed_group, together
from flex_job.launch import Place
from flex_job.shards import SHARDS

__all__ = ["join"]

START_S = 300.0  # for all ranks to come: the nodes of a batch job do not start at the same moment


def join(place: Place, device: torch.device) -> Group:
    """Meet the other ranks of the job; all tensors of this rank are to live on `device`.

    Raises ValueError for more ranks than there are shards, RankLost when they do not come within five minutes.
    """
    if place.size > SHARDS:
        raise ValueError(f"{place.size} processes were started; expected at most {SHARDS}")
    os.environ.update(place.variables())
    with together(f"expected {place.size} processes of this job at {place.address}:{place.port}"):
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=START_S)))
        store.set_timeout(timedelta(seconds=START_S))
        names = dist.PrefixStore("flex_job", store)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("groups", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(days=FOREVER_DAYS),
        )
        control = dist.group.WORLD
        everyone = tuple(range(size))
        group = Group(device, rank, everyone, control, control, names)
        # NCCL wants a device for each rank alone; ranks that share one go through the host.
        uuids = group.gathered(_uuid(device))
        if all(uuids) and len(set(uuids)) == size:
            group = replace(group, _data=timed_group(everyone, "nccl"))
    return group


def _uuid(device: torch.device) -> str:
    """What tells a GPU from all others, for "cuda:0" means another one in each task that a scheduler confines."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
