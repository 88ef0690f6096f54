"""From a consensus refinement to a `ParticleStack`: crop, correct odd aberrations, calibrate, whiten, cache.

The consensus map, projected without motion, is the yardstick: the images' regression on it gives the sign and size of
the contrast, what it leaves gives the noise spectrum of each optics group and the noise level of each particle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.ctf import CtfParameters, ctf, ctf_parameters, odd_phase
from flex_job.events import Events
from flex_job.fourier import centred_window, crop_half_plane, fourier_resize, radius_half_plane
from flex_job.images import ImageReader
from flex_job.imaging import ImageModel
from flex_job.operator import MASK_LEVEL, rigid_domain
from flex_job.particles import ParticleStack
from flex_job.problems import InputProblems
from flex_job.volume import Volume
from job_specs.parameters import PrepParameters

__all__ = ["Calibration", "prepare", "restore"]

BATCH_PIXELS = 4_000_000  # pixels in a batch's images, so that memory does not grow with the box
GROUP_SAMPLE = 50  # images of every optics group at least, for the lowest shells have few coefficients each
MIN_CTF = 0.02  # below this a premultiplied image holds no information that division could bring back


@dataclass(frozen=True)
class Calibration:
    """What the images say of themselves: `sign` of the contrast, `gain` from the consensus map's density to the
    images', each particle's relative `contrast` (n,) and noise level (n,), and how well the map explains them."""

    sign: int
    gain: float
    contrast: NDArray[np.float32]
    noise_level: NDArray[np.float32]
    correlation: float

    @classmethod
    def load(cls, record: Path) -> Calibration:
        """What `prepare` wrote at `record`."""
        with np.load(record, allow_pickle=False) as file:
            return cls(
                sign=int(file["sign"]),
                gain=float(file["gain"]),
                contrast=file["contrast"],
                noise_level=file["noise_level"],
                correlation=float(file["correlation"]),
            )


class _Source:
    """Raw images of a consensus as transforms (b, box, box // 2 + 1) on the common grid of `box` pixels."""

    def __init__(self, consensus: Consensus, box: int) -> None:
        self.consensus, self.box = consensus, box
        self.reader = ImageReader(consensus)
        self.ctf: CtfParameters = ctf_parameters(consensus)
        extent = consensus.map.box * consensus.map.pixel_size_A
        self.pixel_size_A = extent / box
        # The window is a whole, even number of raw pixels, so groups differ a little in extent; the exact pixel
        # size that follows enters projections and CTFs, and nothing is interpolated.
        self.windows = [max(box, 2 * round(extent / group.pixel_size_A / 2)) for group in consensus.optics]
        largest = max(*self.windows, *(group.box for group in consensus.optics))
        self.batch_size = int(np.clip(BATCH_PIXELS // largest**2, 8, 200))
        self.optics_pixels_A = np.array(
            [w * g.pixel_size_A / box for w, g in zip(self.windows, consensus.optics, strict=True)]
        )
        self.pixel_sizes_A = self.optics_pixels_A[consensus.optics_index]
        magnification = np.array([group.magnification for group in consensus.optics])[consensus.optics_index]
        rotations = consensus.rotations[:, :2]
        self.projections = (magnification.transpose(0, 2, 1) @ rotations) / self.pixel_sizes_A[:, None, None]
        self.origins_px = consensus.origins_A / self.pixel_sizes_A[:, None]

    def transforms(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Coefficients with the image's centre as origin, odd aberrations and CTF premultiplication undone."""
        out = torch.empty((len(index), self.box, self.box // 2 + 1), dtype=torch.complex64)
        groups = self.consensus.optics_index[index]
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            images = centred_window(_on_zero(self.reader.read(index[rows])), self.windows[group])
            images = torch.fft.ifftshift(torch.from_numpy(images), dim=(-2, -1))
            spectrum = crop_half_plane(torch.fft.rfft2(images), self.box)
            # images are density per area: the same density has the same coefficient whatever the window's extent
            area = (self.optics_pixels_A[group] / self.pixel_size_A) ** 2
            out[torch.from_numpy(rows)] = spectrum * float(area * self.box / self.windows[group] ** 2)
        pixels = self.pixel_sizes_A[index]
        phase = odd_phase(self.ctf, index, self.box, pixels)
        if phase is not None:
            out *= torch.polar(torch.ones_like(phase), -phase)
        premultiplied = np.array([group.premultiplied for group in self.consensus.optics])[groups]
        if premultiplied.any():
            strength = ctf(self.ctf, index, self.box, pixels).abs()
            undone = torch.where(strength > MIN_CTF, out / strength.clamp(min=MIN_CTF), 0.0)
            out = torch.where(torch.from_numpy(premultiplied)[:, None, None], undone, out)
        return out


def _on_zero(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images (b, n, n) less the mean of their border: a window larger than they are continues them without a step."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    return images - border.mean(axis=1)[:, None, None]


def _shell_mean(power: torch.Tensor, box: int) -> torch.Tensor:
    """Mean over the coefficients of each shell (..., box // 2 + 1) of a half plane, the corner left out."""
    shell = radius_half_plane(box).round().long()
    inside = shell <= box // 2
    count = torch.zeros(box // 2 + 1).index_add(0, shell[inside], torch.ones(int(inside.sum())))
    total = torch.zeros((*power.shape[:-2], box // 2 + 1))
    return total.index_add(-1, shell[inside], power[..., inside]) / count


class _Yardstick:
    """The consensus map's own images: CTF x projection, in units of the map's density."""

    def __init__(self, source: _Source, mask: Volume) -> None:
        self.source = source
        consensus = source.consensus
        reference = fourier_resize(consensus.map, source.box)
        domain, vertices = rigid_domain(fourier_resize(mask, source.box), MASK_LEVEL)
        self.values = domain.gather(reference.data)
        self.points = torch.from_numpy(vertices)
        self.model = ImageModel(
            domain, source.box, stack_box=source.box, stack_pixel_size_A=reference.pixel_size_A, oversampling=1
        )
        # The spline's error on the plain grid grows towards Nyquist; the calibration needs none of those.
        self.band = radius_half_plane(source.box) < 0.7 * source.box / 2

    def images(self, index: NDArray[np.int64]) -> torch.Tensor:
        source = self.source
        projections = torch.from_numpy(source.projections[index].astype(np.float32))
        origins = torch.from_numpy(source.origins_px[index].astype(np.float32))
        q = self.model.positions(projections, origins, self.points)
        transfer = ctf(source.ctf, index, source.box, source.pixel_sizes_A[index])
        return self.model.transform(self.values, q) * transfer * self.band


def _noise_spectrum(
    source: _Source, yardstick: _Yardstick, sample: NDArray[np.int64]
) -> tuple[NDArray[np.float32], float, float]:
    """Noise amplitude (groups, box // 2 + 1), signed gain of the consensus map, correlation of images and map.

    Images that are not finite are passed over. The noise of a shell is what the map, scaled for that shell and optics
    group, leaves: so a map that was filtered or sharpened serves as well.
    """
    box, groups = source.box, len(source.consensus.optics)
    cross = torch.zeros(groups, box // 2 + 1)
    square = torch.zeros(groups, box // 2 + 1)
    power = torch.zeros(groups, box // 2 + 1)
    count = torch.zeros(groups)
    for start in range(0, len(sample), source.batch_size):
        index = sample[start : start + source.batch_size]
        data = source.transforms(index)
        finite = torch.isfinite(data.abs().sum((1, 2)))
        data, index = data[finite], index[finite.numpy()]
        if not len(index):
            continue
        model = yardstick.images(index)
        group = torch.from_numpy(source.consensus.optics_index[index].astype(np.int64))
        cross.index_add_(0, group, _shell_mean((data * model.conj()).real, box))
        square.index_add_(0, group, _shell_mean(model.abs() ** 2, box))
        power.index_add_(0, group, _shell_mean(data.abs() ** 2, box))
        count.index_add_(0, group, torch.ones(len(index)))
    coefficients = torch.arange(box // 2 + 1.0) + 0.5  # proportional to the number of coefficients in a shell
    weight = coefficients / power.sum(0).clamp(min=1e-20)
    weight[0] = 0.0  # the mean level of an image is not signal
    gain = float((cross.sum(0) * weight).sum() / (square.sum(0) * weight).sum().clamp(min=1e-20))
    correlation = float(
        (cross.sum(0) * weight).sum() / ((square.sum(0) * weight).sum() * (power.sum(0) * weight).sum()).sqrt()
    )
    left = (power - cross**2 / square.clamp(min=1e-20)) / count.clamp(min=1)[:, None]
    fallback = left[count > 0].mean(0)
    left = torch.where(count[:, None] > 0, left, fallback)
    left[:, 0] = left[:, 1]
    floor = 1e-6 * left.mean()
    return left.clamp(min=floor).sqrt().numpy().astype(np.float32), gain, correlation


def _shrunk_contrast(
    raw: NDArray[np.float64], variance: NDArray[np.float64], optics_index: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Posterior means of contrasts relative to the average of all, the prior's spread estimated (empirical Bayes).

    The prior's centre is that of the particle's optics group, where that is known to ten percent: normalised to unit
    noise, images of another microscope or pixel size have another contrast as a whole.
    """
    precision = 1 / variance
    overall = np.average(raw, weights=precision)
    total = np.bincount(optics_index, precision).clip(min=1e-300)
    of_group = np.bincount(optics_index, precision * raw) / total
    centre = np.where(np.abs(of_group) * np.sqrt(total) > 10, of_group, overall)[optics_index]
    relative, variance = raw / centre, variance / centre**2
    # robust variance (0.4549 is the median of chi-square of one degree of freedom), less its standard error of
    # 2.4 / sqrt(n): a spread that chance alone gives counts as none
    found = float(np.median((relative - 1) ** 2)) / 0.4549
    spread = max(0.0, found * (1 - 2.4 / np.sqrt(len(raw))) - float(variance.mean()))
    shrunk = 1 + (relative - 1) * spread / (spread + variance)
    return (np.clip(shrunk, 0.2, 3.0) * centre / overall).astype(np.float32)


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
    source = _Source(consensus, box)
    yardstick = _Yardstick(source, mask)
    n = len(consensus)
    sample = _sample(consensus, parameters.noise_particles, seed)
    noise, gain, correlation = _noise_spectrum(source, yardstick, sample)
    coefficients = int(len(sample) * np.pi / 2 * (box / 2) ** 2)
    sign = calibration.sign if calibration else _sign(parameters.contrast, gain, correlation, coefficients, events)
    gain = abs(gain)
    raw, variance, level = np.empty(n), np.empty(n), np.empty(n)
    bad: list[int] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    shells = radius_half_plane(box).round().long().clamp(max=box // 2)
    ring = radius_half_plane(box) < box / 2
    once = torch.ones(box // 2 + 1)
    once[0] = 0.5  # the column that holds both of every pair of conjugate coefficients
    noise_t = torch.from_numpy(noise)
    with _aside(path) as cache:
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
            contrast = _shrunk_contrast(raw, variance, consensus.optics_index)
        calibration = Calibration(sign, gain, contrast, level.astype(np.float32), correlation)
    with _aside(record) as file:
        np.savez(file, noise=noise, level=level, **asdict(calibration))
    events.message(f"read {n} particles at {box} px ({source.pixel_size_A:.3f} A) in {time.monotonic() - began:.0f} s")


@contextmanager
def _aside(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well and is gone when it does not."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sample(consensus: Consensus, particles: int, seed: int) -> NDArray[np.int64]:
    """Particles to estimate the noise from, ascending, the same number of every optics group."""
    share = max(GROUP_SAMPLE, particles // len(consensus.optics))
    order = np.random.default_rng(seed).permutation(len(consensus))
    groups = consensus.optics_index[order]
    return np.sort(np.concatenate([order[groups == number][:share] for number in range(len(consensus.optics))]))


def _sign(contrast: str, gain: float, correlation: float, coefficients: int, events: Events) -> int:
    """+1 for particles brighter than the background, as asked for or as they are found to be."""
    if contrast != "auto":
        return -1 if contrast == "invert" else 1
    # correlation of a map with that many coefficients of nothing but noise, three standard deviations
    chance = 3 / np.sqrt(2 * max(coefficients, 1))
    if abs(correlation) <= chance:  # not a number where all images are bad, which is told by name later
        raise InputProblems(
            [
                f"the particle images show no sign of the consensus map (correlation {correlation:+.4f}, by chance "
                f"alone up to {chance:.4f}); expected the map, poses and stacks of one refinement: check that they "
                "belong together, or set contrast to keep or invert"
            ]
        )
    said = "brighter" if gain > 0 else "darker"
    events.message(
        f"contrast: the particles are {said} than the background, their correlation with the consensus map is "
        f"{correlation:+.3f}"
    )
    return 1 if gain > 0 else -1


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
    source = _Source(consensus, box)
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
