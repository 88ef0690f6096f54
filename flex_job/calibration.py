"""What the images say of themselves when they are compared with the consensus map.

The map, projected without motion, is the yardstick: the images' regression on it gives the sign and size of the
contrast, what it leaves gives the noise spectrum of each optics group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.band import Band
from flex_job.consensus import Consensus, OpticsGroup
from flex_job.ctf import ctf_at
from flex_job.events import Events
from flex_job.fourier import fourier_resize
from flex_job.imaging import ImageModel
from flex_job.operator import MASK_LEVEL, make_operator, rigid_domain
from flex_job.particles import Batch
from flex_job.problems import InputProblems
from flex_job.raw_images import RawImages
from flex_job.volume import Volume

__all__ = [
    "Calibration",
    "Yardstick",
    "contrast_sign",
    "noise_sample",
    "noise_spectrum",
    "odd_groups",
    "shrunk_contrast",
]

YARDSTICK_BAND = 0.7
ODD_GROUP = (
    0.6  # of the other groups' match: ice and microscopes differ, but hardly by two thirds of the signal's power
)
SURE = 4.0  # standard errors: there may be a thousand groups
TOLD_GROUPS = 5
GROUP_SAMPLE = 50  # images of every optics group at least, for the lowest shells have few coefficients each


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


class Yardstick:
    """The consensus map's own images: CTF x projection, in units of the map's density."""

    def __init__(self, source: RawImages, mask: Volume) -> None:
        self.source = source
        consensus = source.consensus
        reference = fourier_resize(consensus.map, source.box)
        domain, vertices = rigid_domain(fourier_resize(mask, source.box), MASK_LEVEL)
        self.values = torch.from_numpy(domain.gather(reference.data))
        self.points = torch.from_numpy(vertices)
        # The spline's error on the plain grid grows towards Nyquist; the calibration needs none of those.
        band = Band.below(YARDSTICK_BAND * source.box / 2)
        self.model = ImageModel(
            make_operator(domain), source.box, band, stack_box=source.box, stack_pixel_size_A=reference.pixel_size_A
        )

    def images(self, index: NDArray[np.int64]) -> torch.Tensor:
        """Packed coefficients (b, m) as those of `source`, zero beyond YARDSTICK_BAND of Nyquist."""
        source, band = self.source, self.model.band
        transfer = ctf_at(source.ctf, index, band.ky, band.kx, source.pixel_sizes_A[index] * source.box)
        batch = Batch(
            index=index,
            data=transfer,
            transfer=transfer,
            projections=torch.from_numpy(source.projections[index].astype(np.float32)),
            origins_px=torch.from_numpy(source.origins_px[index].astype(np.float32)),
        )
        seen = transfer * self.model.transform(self.values, self.model.positions(batch, self.points))
        return torch.nn.functional.pad(seen, (0, len(source.band) - len(band)))


def noise_sample(consensus: Consensus, particles: int, seed: int) -> NDArray[np.int64]:
    """Particles to estimate the noise from, ascending, the same number of every optics group."""
    share = max(GROUP_SAMPLE, particles // len(consensus.optics))
    order = np.random.default_rng(seed).permutation(len(consensus))
    groups = consensus.optics_index[order]
    return np.sort(np.concatenate([order[groups == number][:share] for number in range(len(consensus.optics))]))


def noise_spectrum(
    source: RawImages, yardstick: Yardstick, sample: NDArray[np.int64]
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
        data = source.coefficients(index)
        finite = torch.isfinite(data.abs().sum(1))
        data, index = data[finite], index[finite.numpy()]
        if not len(index):
            continue
        model = yardstick.images(index)
        group = torch.from_numpy(source.consensus.optics_index[index].astype(np.int64))
        cross.index_add_(0, group, _shell_mean((data * model.conj()).real, source.band))
        square.index_add_(0, group, _shell_mean(model.abs() ** 2, source.band))
        power.index_add_(0, group, _shell_mean(data.abs() ** 2, source.band))
        count.index_add_(0, group, torch.ones(len(index)))
    coefficients = torch.arange(box // 2 + 1.0) + 0.5  # proportional to the number of coefficients in a shell
    weight = coefficients / power.sum(0).clamp(min=1e-20)
    weight[0] = 0.0  # no coefficient there
    gain = float((cross.sum(0) * weight).sum() / (square.sum(0) * weight).sum().clamp(min=1e-20))
    correlation = float(
        (cross.sum(0) * weight).sum() / ((square.sum(0) * weight).sum() * (power.sum(0) * weight).sum()).sqrt()
    )
    left = (power - cross**2 / square.clamp(min=1e-20)) / count.clamp(min=1)[:, None]
    fallback = left[count > 0].mean(0)
    left = torch.where(count[:, None] > 0, left, fallback)
    left[:, 0] = left[:, 1]
    floor = 1e-6 * left.mean()
    # half, for the amplitude is that of the real and of the imaginary part
    return (0.5 * left.clamp(min=floor)).sqrt().numpy().astype(np.float32), gain, correlation


def _shell_mean(power: torch.Tensor, band: Band) -> torch.Tensor:
    """Mean over the coefficients of each shell (..., box // 2 + 1) of packed coefficients (..., m)."""
    shells = int(band.limit) + 1
    count = torch.zeros(shells).index_add(0, band.shells, torch.ones(len(band)))
    total = torch.zeros((*power.shape[:-1], shells)).index_add(-1, band.shells, power)
    return total / count.clamp(min=1)


def contrast_sign(contrast: str, gain: float, correlation: float, coefficients: int, events: Events) -> int:
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


def shrunk_contrast(
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


def odd_groups(
    raw: NDArray[np.float64],
    variance: NDArray[np.float64],
    optics_index: NDArray[np.int32],
    optics: Sequence[OpticsGroup],
) -> str:
    """What to tell of optics groups whose particles match the consensus map far less than the others', or nothing.

    A particle's match is its contrast in units of its standard error: how many standard deviations of its noise the map
    explains. One particle's is known to about one, so the mean of a group is sharp even where no image shows anything.
    It is compared with the median of the other groups' means, weighted by their particles.
    """
    match = raw / np.sqrt(variance)
    count = np.bincount(optics_index, minlength=len(optics))
    used = np.flatnonzero(count)
    if len(used) < 2:
        return ""
    mean = np.bincount(optics_index, match, len(optics)) / count.clip(min=1)
    spread = np.sqrt(np.bincount(optics_index, (match - mean[optics_index]) ** 2, len(optics)) / count.clip(min=1))
    # that of all within their groups, for few particles may agree by chance
    error = np.maximum(spread, np.sqrt(np.average(spread**2, weights=count))) / np.sqrt(count.clip(min=1))
    ascending = used[np.argsort(mean[used])]
    found = []
    for group in used.tolist():
        others = ascending[ascending != group]
        middle = others[np.searchsorted(np.cumsum(count[others]), 0.5 * count[others].sum())]
        if mean[middle] > SURE * error[middle] and mean[group] + SURE * error[group] < ODD_GROUP * mean[middle]:
            found.append(
                f"{optics[group].name} ({count[group]} particles, {optics[group].pixel_size_A:g} A pixels): "
                f"{mean[group]:.2f} where the others have {mean[middle]:.2f}"
            )
    if not found:
        return ""
    more = f"; and {len(found) - TOLD_GROUPS} more groups" if len(found) > TOLD_GROUPS else ""
    return (
        "warning: the particles of some optics groups match the consensus map far less than the others' (standard "
        f"deviations of the noise that the map explains in each image): {'; '.join(found[:TOLD_GROUPS])}{more}. Check "
        "their pixel size, the sign of their contrast, whether their images and poses belong together (the right star "
        "or cs file and stacks) and the hand of the map that they were refined to; or leave these groups out"
    )
