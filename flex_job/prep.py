"""From a consensus refinement to a `ParticleStack`: crop, calibrate, whiten, cache (`prepare`, then `restore`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.calibration import Calibration, Yardstick, contrast_sign, noise_sample, noise_spectrum, shrunk_contrast
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.files import written_aside, written_together
from flex_job.particles import ParticleStack
from flex_job.problems import InputProblems
from flex_job.raw_images import RawImages
from flex_job.read_ahead import read_ahead
from flex_job.volume import Volume
from job_specs.parameters import PrepParameters

__all__ = ["prepare", "restore"]

PAGE_PARTICLES = 1024  # records of 4 bytes a coefficient: this many of any length are whole pages of 4096 bytes


def prepare(
    consensus: Consensus,
    mask: Volume,
    box: int,
    parameters: PrepParameters,
    path: Path,
    record: Path,
    events: Events,
    *,
    seed: int = 0,
    calibration: Calibration | None = None,
    group: Group | None = None,
) -> None:
    """Write the cache of coefficients at `path` and what was estimated at `record` (.npz); `restore` reads them.

    With `calibration` (from a smaller box), sign and contrasts are taken from it. Of several ranks each reads a part
    of the particles; `path` and `record` are on a disk that all of them see.

    Raises InputProblems for images that are not finite or hold no signal of the map where the sign was to be found.
    """
    began, group = time.monotonic(), group or Group()
    source = RawImages(consensus, box)
    yardstick = Yardstick(source, mask)
    n = len(consensus)
    sample = noise_sample(consensus, parameters.noise_particles, seed)
    noise, gain, correlation = noise_spectrum(source, yardstick, sample)
    coefficients = int(len(sample) * np.pi / 2 * (box / 2) ** 2)
    sign = (
        calibration.sign if calibration else contrast_sign(parameters.contrast, gain, correlation, coefficients, events)
    )
    gain = abs(gain)
    first, last = _share(n, group)
    raw, variance, level = (np.empty(last - first) for _ in range(3))
    path.parent.mkdir(parents=True, exist_ok=True)
    shells = source.band.shells
    noise_t = torch.from_numpy(noise)
    batches = _batches(n, source.batch_size, group, events)
    with written_together(path, group) as cache:
        cache.seek(4 * len(source.band) * first)  # two float16 numbers for each coefficient
        for index, pieces in read_ahead(lambda index: (index, source.read(index)), batches, depth=1):
            here = index - first
            whiten = noise_t[consensus.optics_index[index]][:, shells]
            data = sign * source.coefficients(index, pieces) / whiten
            model = gain * yardstick.images(index) / whiten
            overlap = (data * model.conj()).real.sum(1).double().numpy()
            energy = (model.abs() ** 2).sum(1).double().numpy() + 1e-12
            raw[here] = overlap / energy
            left = data - model * torch.from_numpy(raw[here])[:, None].float()
            level[here] = (0.5 * (left.abs() ** 2).mean(1)).sqrt().numpy()
            variance[here] = level[here] ** 2 / energy
            scaled = data / torch.from_numpy(level[here])[:, None].float()
            torch.view_as_real(scaled).to(torch.float16).numpy().tofile(cache)
            if here[0] // source.batch_size % 50 == 49:
                events.progress(f"reading particles at {box} px", int(here[-1]) + 1, last - first, began)
        parts = group.gathered((raw, variance, level))  # in the particles' order
        raw, variance, level = (np.concatenate(each) for each in zip(*parts, strict=True))
        bad = np.flatnonzero(~np.isfinite(level) | (level < 1e-3)).tolist()
        if bad:
            raise InputProblems([_bad_images(consensus, bad)])
    if calibration is None:
        contrast = np.ones(n, np.float32)
        if parameters.per_particle_scale:
            contrast = shrunk_contrast(raw, variance, consensus.optics_index)
        calibration = Calibration(sign, gain, contrast, level.astype(np.float32), correlation)
    if group.is_first:
        with written_aside(record) as file:
            np.savez(file, noise=noise, level=level, **asdict(calibration))
    group.barrier()
    events.message(f"read {n} particles at {box} px ({source.pixel_size_A:.3f} A) in {time.monotonic() - began:.0f} s")


def _share(n: int, group: Group) -> tuple[int, int]:
    """First and last of the consecutive particles that this rank prepares. Shares begin at whole pages of the cache,
    whatever a record's length, so that two hosts never write to one page."""
    blocks = -(-n // PAGE_PARTICLES)
    first, last = (min(n, PAGE_PARTICLES * (blocks * rank // group.size)) for rank in (group.rank, group.rank + 1))
    return first, last


def _batches(n: int, batch_size: int, group: Group, events: Events) -> Iterator[NDArray[np.int64]]:
    """This rank's particles in batches. All ranks look together whether to stop, equally often."""
    first, last = _share(n, group)
    longest = max(group.gathered(last - first))
    starts = range(first, first + longest, batch_size)
    yield from group.checked((np.arange(start, min(start + batch_size, last)) for start in starts), events)


def _bad_images(consensus: Consensus, bad: list[int]) -> str:
    where = ", ".join(
        f"{consensus.image_index[i] + 1}@{consensus.stack_paths[consensus.stack_index[i]]}" for i in bad[:5]
    )
    return (
        f"{len(bad)} particle images are constant or not finite (NaN or infinite), e.g. {where}; "
        "expected finite images: take them out of the STAR file or extract them again"
    )


def restore(consensus: Consensus, box: int, path: Path, record: Path) -> tuple[ParticleStack, Calibration]:
    """The stack and calibration that `prepare` wrote."""
    source = RawImages(consensus, box)
    calibration = Calibration.load(record)
    with np.load(record, allow_pickle=False) as file:
        noise, level = file["noise"], file["level"]
    stack = ParticleStack(
        path=path,
        box=box,
        pixel_size_A=source.pixel_size_A,
        projections=source.projections.astype(np.float32),
        origins_px=source.origins_px.astype(np.float32),
        halves=consensus.halves,
        optics_index=consensus.optics_index,
        pixel_sizes_A=source.pixel_sizes_A,
        ctf=source.ctf,
        noise=noise,
        scale=(calibration.contrast / level).astype(np.float32),
    )
    return stack, calibration
