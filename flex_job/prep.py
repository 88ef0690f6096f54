"""From a consensus refinement to a `ParticleStack`: crop, calibrate, whiten, cache (`prepare`, then `restore`)."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.cache_parts import CacheParts
from flex_job.calibration import (
    Calibration,
    Yardstick,
    contrast_sign,
    noise_sample,
    noise_spectrum,
    odd_groups,
    shrunk_contrast,
)
from flex_job.checkpoint import Checkpoint, Saver
from flex_job.consensus import Consensus
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.files import written_aside
from flex_job.particles import ParticleStack
from flex_job.problems import InputProblems, one_line
from flex_job.raw_images import RawImages
from flex_job.read_ahead import read_ahead
from flex_job.volume import Volume
from job_specs.parameters import PrepParameters

__all__ = ["prepare", "restore"]

LOWEST_LEVEL = 1e-3  # noise of an image, in units of its optics group's
TOLD_IMAGES = 5
MANY_BAD = 1000  # images: the stacks are broken, and to read on would tell nothing new
log = logging.getLogger("flex_job")


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
    checkpoint: Checkpoint | None = None,
) -> None:
    """Write the cache of coefficients at `path` and what was estimated at `record` (.npz); `restore` reads them.

    With `calibration` (from a smaller box), sign and contrasts are taken from it. Of several ranks each reads a part
    of the particles; `path` and `record` are on a disk that all of them see. With a `checkpoint`, parts that an earlier
    call has written are kept where they are still what it wrote.

    Raises InputProblems for images that are not finite or constant, with as many as were met: all of them, or the first
    MANY_BAD of this rank. Also where the images hold no signal of the map and the sign was to be found.
    """
    began, group = time.monotonic(), group or Group()
    source = RawImages(consensus, box)
    yardstick = Yardstick(source, mask)
    parts = CacheParts(len(consensus), 4 * len(source.band), group)  # two float16 numbers for each coefficient
    found = checkpoint.load(group) if checkpoint else None
    if found is None:
        sample = noise_sample(consensus, parameters.noise_particles, seed)
        noise, gain, correlation = noise_spectrum(source, yardstick, sample)
        coefficients = int(len(sample) * np.pi / 2 * (box / 2) ** 2)
    else:
        noise, (gain, correlation, coefficients) = found["noise"].numpy(), found["found"]
    sign = (
        calibration.sign if calibration else contrast_sign(parameters.contrast, gain, correlation, coefficients, events)
    )
    size = abs(gain)
    shells, noise_t, bad_so_far = source.band.shells, torch.from_numpy(noise), list[int]()

    def save() -> None:
        written = parts.collected()
        if checkpoint is not None and group.is_first:
            found = [gain, correlation, coefficients]
            checkpoint.save({"noise": noise_t, "found": found, "parts": written})

    with parts.written(path, found["parts"] if found else None, keep=checkpoint is not None):
        batches = Saver(save, group, events).checked(parts.batches(source.batch_size))
        for index, pieces in read_ahead(lambda index: (index, source.read(index)), batches, depth=1):
            whiten = noise_t[consensus.optics_index[index]][:, shells]
            data = sign * source.coefficients(index, pieces) / whiten
            model = size * yardstick.images(index) / whiten
            overlap = (data * model.conj()).real.sum(1).double().numpy()
            energy = (model.abs() ** 2).sum(1).double().numpy() + 1e-12
            raw = overlap / energy
            left = data - model * torch.from_numpy(raw)[:, None].float()
            level = (0.5 * (left.abs() ** 2).mean(1)).sqrt().double().numpy()
            scaled = data / torch.from_numpy(level)[:, None].float()
            values = np.stack([raw, level**2 / energy, level], axis=1)
            parts.write(index, torch.view_as_real(scaled).to(torch.float16).numpy(), values)
            bad_so_far += index[_is_bad(level)].tolist()
            if len(bad_so_far) >= MANY_BAD:
                raise _bad_images(consensus, bad_so_far, f" of the first {parts.count} read")
            events.progress(parts.count / parts.most, f"reading particles at {box} px")
        save()
        raw, variance, level = parts.values.T
        bad = np.flatnonzero(_is_bad(level)).tolist()
        if bad:
            raise _bad_images(consensus, bad)
    if calibration is None:
        odd = odd_groups(raw, variance, consensus.optics_index, consensus.optics)
        if odd:
            events.message(odd)
        contrast = np.ones(len(consensus), np.float32)
        if parameters.per_particle_scale:
            contrast = shrunk_contrast(raw, variance, consensus.optics_index)
        calibration = Calibration(sign, size, contrast, level.astype(np.float32), correlation)
    if group.is_first:
        with written_aside(record) as file:
            np.savez(file, noise=noise, level=level, **asdict(calibration))
    group.barrier()
    of = "" if parts.todo == len(consensus) else f" of {len(consensus)}"
    events.message(
        f"read {parts.todo}{of} particles at {box} px ({source.pixel_size_A:.3f} A) in {time.monotonic() - began:.0f} s"
    )


def _is_bad(level: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which noise levels are those of images that say nothing: one NaN, wherever it was, is in every coefficient."""
    return ~np.isfinite(level) | (level < LOWEST_LEVEL)


def _bad_images(consensus: Consensus, bad: list[int], of: str = "") -> InputProblems:
    """The problem with some of them by name; the log gets all names, for they are to be taken out together."""
    names = [f"{consensus.image_index[i] + 1}@{consensus.stack_paths[consensus.stack_index[i]]}" for i in bad]
    log.error("bad particle images:\n%s", "\n".join(map(one_line, names)))
    return InputProblems(
        [
            f"{len(bad)} particle images{of} are constant or not finite (NaN or infinite), or a thousand times fainter "
            f"than others of their optics group, e.g. {', '.join(names[:TOLD_IMAGES])}; expected finite images with "
            "noise: take them out of the particle list (the log names all of them) or extract them again"
        ]
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
