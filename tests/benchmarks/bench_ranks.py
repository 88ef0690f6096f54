"""Seconds per epoch of training: two ranks of one thread each against one rank of one thread.

6,000 particles of 64 px, latents and flow at the final band limit. Epochs with and without a solved map, best of each;
one rank, two ranks and one rank again, so that a machine that is busy with something else shows; so does processor time
of the busiest rank, which other programs disturb less. Last, the same training twice at the same time, by two processes
that know nothing of each other: what they lose to one another (caches, memory, clock rate) two ranks cannot win. Run by
`make bench`; about three minutes on two cores. Options: --particles, --box, --epochs, --batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LAST = 12  # where the band limit no longer rises, of 16 epochs


Seconds = tuple[float, float]  # by the clock, and of the busiest rank's processor


def measure(project: Path, size: int, epochs: int, batch: int) -> list[Seconds]:
    """Seconds of each epoch, by `size` ranks."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    found = context.Queue()
    ranks = [
        context.Process(target=rank, args=(number, size, port, project, epochs, batch, found)) for number in range(size)
    ]
    for process in ranks:
        process.start()
    seconds: list[Seconds] = found.get()
    for process in ranks:
        process.join()
    return seconds


def rank(number: int, size: int, port: int, project: Path, epochs: int, batch: int, found: Any) -> None:
    """One process: trains, and the first says how long the epochs took."""
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    import numpy as np
    import torch

    from flex_job.distributed import Group
    from flex_job.events import Events
    from flex_job.join import join
    from flex_job.launch import Place
    from flex_job.mesh import build_mesh
    from flex_job.prep import prepare, restore
    from flex_job.train import Trainer
    from flex_job.volume import Volume
    from integration.relion.read import read_consensus
    from job_specs.parameters import MeshParameters, PrepParameters, TrainParameters

    torch.set_num_threads(1)
    group = Group()
    if size > 1:
        group = join(Place(number, size, number, "127.0.0.1", port), torch.device("cpu"))
    consensus = read_consensus(
        project / "Refine3D/job001/run_data.star", mask_path=project / "MaskCreate/job002/mask.mrc"
    )
    assert consensus.mask is not None
    box = consensus.map.box
    cache, record = project / f"{port}.f16", project / f"{port}.npz"
    prepare(consensus, consensus.mask, box, PrepParameters(), cache, record, Events(), group=group)
    stack, calibration = restore(consensus, box, cache, record)
    density = Volume(consensus.map.data * np.float32(calibration.gain), consensus.map.pixel_size_A)
    parameters = TrainParameters(latent_dims=1, latent_start="random", fixed_latent_epochs=0, map_every=2, batch=batch)
    mesh = build_mesh(consensus.map, consensus.mask, MeshParameters())
    trainer = Trainer(stack, mesh, density, consensus.mask, parameters, Events(), group=group)
    trainer.start_latents(None)
    seconds = []
    for _ in range(epochs + 1):  # the first compiles
        trainer.epoch = LAST + trainer.epoch % 2
        group.barrier()
        began, used = time.perf_counter(), time.process_time()
        trainer.run_epoch()
        used = max(group.gathered(time.process_time() - used))
        seconds.append((time.perf_counter() - began, used))
    group.leave()
    if number == 0:
        found.put(seconds[1:])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--particles", type=int, default=6000)
    options.add_argument("--box", type=int, default=64)
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--batch", type=int, default=200)
    given = options.parse_args()
    from integration.relion.simulate import simulate_project

    cores = len(os.sched_getaffinity(0))
    print(f"{given.particles} particles of {given.box} px, minibatches of {given.batch}, {cores} cores")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        simulate_project(
            project,
            motion="one_hinge",
            particles=given.particles,
            box=given.box,
            pixel_size_A=256 / given.box,
            snr=0.1,
            seed=0,
        )
        runs = [measure(project, size, given.epochs, given.batch) for size in (1, 2, 1)]
        with ThreadPoolExecutor(2) as pool:
            strangers = list(pool.map(lambda _: measure(project, 1, given.epochs, given.batch), range(2)))
    for name, every in (("with a solved map", slice(0, None, 2)), ("without", slice(1, None, 2))):
        for which, what in enumerate(("wall clock", "processor of the busiest rank")):
            one, two, again = (min(second[which] for second in seconds[every]) for seconds in runs)
            print(
                f"epoch {name}, {what}: 1 rank {one:.2f} s and {again:.2f} s, 2 ranks {two:.2f} s; "
                f"ratio {two / min(one, again):.2f} (0.50 is perfect)"
            )
    alone = min(min(runs[0]), min(runs[2]))[0]
    beside = max(min(seconds)[0] for seconds in strangers)
    print(
        f"one epoch beside a stranger's {beside:.2f} s, alone {alone:.2f} s; "
        f"ratio {beside / alone:.2f} (1.00 is perfect)"
    )
    if cores < 2:
        print("fewer than two cores: the two ranks had to take turns")


if __name__ == "__main__":
    main()
