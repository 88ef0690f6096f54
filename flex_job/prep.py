"""From a consensus refinement to a `ParticleStack`: crop, calibrate, whiten, cache (`prepare`, then `restore`)."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from flex_job.calibration import Calibration, Yardstick, contrast_sign, noise_sample, noise_spectrum, shrunk_contrast
from flex_job.consensus import Consensus
from flex_job.events import Events
from flex_job.files import written_aside
from flex_job.fourier import radius_half_plane
from flex_job.particles import ParticleStack
from flex_job.problems import InputProblems
from flex_job.raw_images import RawImages
from flex_job.volume import Volume
from job_specs.parameters import PrepParameters

__all__ = ["prepare", "restore"]


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
) -> None:
    """Write the cache of transforms at `path` and what was estimated at `record` (.npz); `restore` reads them.

    With `calibration` (from a smaller box), sign and contrasts are taken from it.

    Raises InputProblems for images that are not finite or hold no signal of the map where the sign was to be found.
    """
    began = time.monotonic()
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
    raw, variance, level = np.empty(n), np.empty(n), np.empty(n)
    bad: list[int] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    shells = radius_half_plane(box).round().long().clamp(max=box // 2)
    ring = radius_half_plane(box) < box / 2
    once = torch.ones(box // 2 + 1)
    once[0] = 0.5  # the column that holds both of every pair of conjugate coefficients
    noise_t = torch.from_numpy(noise)
    with written_aside(path) as cache:
        for start in range(0, n, source.batch_size):
            events.check_stop()
            index = np.arange(start, min(start + source.batch_size, n))
            whiten = noise_t[consensus.optics_index[index]][:, shells]
            data = sign * source.transforms(index) / whiten
            model = gain * yardstick.images(index) / whiten
            data[:, 0, 0] = 0
            model[:, 0, 0] = 0
            overlap = ((data * model.conj()).real * once).sum((1, 2)).double().numpy()
            energy = (model.abs() ** 2 * once).sum((1, 2)).double().numpy() + 1e-12
            raw[index] = overlap / energy
            left = data - model * torch.from_numpy(raw[index])[:, None, None].float()
            level[index] = (left.abs() ** 2)[:, ring].mean(1).sqrt().numpy()
            variance[index] = 0.5 * level[index] ** 2 / energy
            bad += index[~np.isfinite(level[index]) | (level[index] < 1e-3)].tolist()
            scaled = data / torch.from_numpy(level[index])[:, None, None].float()
            torch.view_as_real(scaled).numpy().astype(np.float16).tofile(cache)
            if start // source.batch_size % 50 == 49:
                events.progress(f"reading particles at {box} px", int(index[-1]) + 1, n, began)
        if bad:
            raise InputProblems([_bad_images(consensus, bad)])
    if calibration is None:
        contrast = np.ones(n, np.float32)
        if parameters.per_particle_scale:
            contrast = shrunk_contrast(raw, variance, consensus.optics_index)
        calibration = Calibration(sign, gain, contrast, level.astype(np.float32), correlation)
    with written_aside(record) as file:
        np.savez(file, noise=noise, level=level, **asdict(calibration))
    events.message(f"read {n} particles at {box} px ({source.pixel_size_A:.3f} A) in {time.monotonic() - began:.0f} s")


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
