"""Local resolution: the FSC of two half-maps in a soft sphere that is moved over the molecule.

The rule is that of RELION's `relion_postprocess --locres`, as its options and its results tell: spheres of half the
sampling distance with a cosine edge as wide as that distance, centres on a grid of that distance, phases random from
25 A on, each sphere's resolution the last shell before the corrected curve falls below 0.143, and every voxel the
average of these spatial frequencies, weighted by the spheres' values there. Three things are done in another way: only
spheres that reach the molecule are looked at; transforms are those of a window a quarter wider than the sphere, whose
curves are interpolated to the shells of the whole box; and the correction is the one that random phases give on average
(`flex_job.fsc.randomised_masked`), for which the power of the random part is the same in all spheres.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.ndimage
import torch
from numpy.typing import NDArray

from flex_job.fsc import corrected_for_mask, low_shells, mean_spread, radii_by_plane
from flex_job.volume import Volume

__all__ = ["LocalResolution", "local_resolution"]

Point = tuple[int, int, int]
Slices = tuple[slice, ...]

THRESHOLD = 0.143
RANDOMISE_AT_A = 25.0
COARSEST_A = 50.0
"""Spheres with less agreement count as this; RELION's default, as are the two before."""

INSIDE = 0.5
"""Voxels of the mask above this are the molecule, whose resolution is asked for."""

WINDOW = 1.25
"""Side of the window over the sphere's diameter; wider ones give the same to a few hundredths of an angstrom."""

FEWEST = 4
"""Centres are no farther apart than the box's side over this."""


@dataclass(frozen=True)
class LocalResolution:
    """`volume` holds angstroms per voxel, 0 where no sphere reaches; `inside` (n,) those in the mask, sorted."""

    volume: Volume
    inside: NDArray[np.float32]
    spheres: int
    sampling_A: float

    def record(self) -> dict[str, float]:
        """Quantiles inside the mask, for the manifest and tables."""
        low, middle, high = np.quantile(self.inside, (0.05, 0.5, 0.95)).tolist()
        quantiles = {"percentile5_A": low, "median_A": middle, "percentile95_A": high}
        return quantiles | {"spheres": self.spheres, "sampling_A": self.sampling_A}


def local_resolution(half1: Volume, half2: Volume, mask: Volume, sampling_A: float = 25.0) -> LocalResolution:
    """Local resolution around and in `mask` (on the half-maps' grid, [0, 1]), from spheres every `sampling_A`, or every
    quarter of the box where that is less.

    Raises ValueError where boxes differ or the mask is empty.
    """
    box, pixel_A = half1.box, half1.pixel_size_A
    if not half1.box == half2.box == mask.box:
        raise ValueError(f"half-maps of {half1.box} and {half2.box} px, mask of {mask.box} px; expected one box")
    inside = mask.data > INSIDE
    if not inside.any():
        raise ValueError(f"the mask has no voxel above {INSIDE}; expected values near 1 on the molecule")
    sampling_A = min(sampling_A, box * pixel_A / FEWEST)
    step, radius = max(_nearest(sampling_A / pixel_A), 1), _nearest(0.5 * sampling_A / pixel_A)
    sphere = _sphere(radius, step, box)
    curves = _SphereCurves([half1.data, half2.data], sphere, max(_nearest(box * pixel_A / RANDOMISE_AT_A), 1))
    centres = list(_centres(inside, step, radius))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        shells = list(pool.map(curves.last_shell, centres))
    total, weight = np.zeros_like(half1.data), np.zeros_like(half1.data)
    for centre, shell in zip(centres, shells, strict=True):
        if shell is not None:
            there, here = _overlap(centre, len(sphere), box)
            total[there] += max(shell / (box * pixel_A), 1 / COARSEST_A) * sphere[here]
            weight[there] += sphere[here]
    data = np.divide(weight, total, out=np.zeros_like(total), where=weight > 1e-6)
    return LocalResolution(Volume(data, pixel_A), np.sort(data[inside]), len(centres), sampling_A)


class _SphereCurves:
    """The corrected FSC of two maps in a soft sphere at any centre; phases are random from `first_shell` on."""

    def __init__(self, halves: list[NDArray[np.float32]], sphere: NDArray[np.float32], first_shell: int) -> None:
        self.halves, self.sphere, self.first_shell = halves, sphere, first_shell
        self.near = [low_shells(half, first_shell) for half in halves]
        box, window = len(halves[0]), len(sphere)
        last = window // 2
        shell = np.concatenate([np.rint(radius).astype(np.int64).ravel() for _, radius in radii_by_plane(window)])
        self.shell = np.minimum(shell, last + 1)  # the corners fall in a bin that is dropped
        self.counts = np.bincount(self.shell, minlength=last + 2)[: last + 1].astype(float)
        # where the shells of the box lie among those of the window
        self.at = np.arange(box // 2 + 1) * (window / box)
        placed = np.zeros((box,) * 3, np.float32)
        there, here = _overlap((box // 2,) * 3, window, box)
        placed[there] = sphere[here]
        means = [np.interp(np.arange(last + 1), self.at, mean_spread(half, placed, first_shell)) for half in halves]
        self.random = [mean * self.counts for mean in means]

    def last_shell(self, centre: Point) -> int | None:
        """The last shell of the box before the corrected curve falls below the threshold; 0 without any, None where a
        half-map is empty."""
        cross, *power = self._sums(self.halves, centre)
        if not (power[0].any() and power[1].any()):
            return None
        near, *near_power = self._sums(self.near, centre)
        random = [mine + added for mine, added in zip(near_power, self.random, strict=True)]
        # the single coefficient of shell 0 has an FSC of 1 or -1, and nothing to do with its neighbours
        shells = np.arange(1, len(self.counts))
        curves = [_ratio(cross, power[0] * power[1])[1:], _ratio(near, random[0] * random[1])[1:]]
        masked, randomised = (np.interp(self.at, shells, curve) for curve in curves)
        below = np.flatnonzero(corrected_for_mask(masked, randomised, self.first_shell)[1:] < THRESHOLD)
        return int(below[0]) if len(below) else len(masked) - 1

    def _sums(self, maps: list[NDArray[np.float32]], centre: Point) -> list[NDArray[np.float64]]:
        """Over the window's shells: of the product of both maps' transforms, and of the power of each."""
        window = len(self.sphere)
        there, here = _overlap(centre, window, len(maps[0]))
        cut = np.zeros((2, window, window, window), np.float32)
        for place, whole in zip(cut, maps, strict=True):
            place[here] = whole[there] * self.sphere[here]
        a, b = scipy.fft.rfftn(cut, axes=(1, 2, 3)).reshape(2, -1)
        products = ((first.real * second.real + first.imag * second.imag) for first, second in ((a, b), (a, a), (b, b)))
        sums = (np.bincount(self.shell, values, len(self.counts) + 1) for values in products)
        return [np.asarray(each[: len(self.counts)], dtype=np.float64) for each in sums]


def _nearest(value: float) -> int:
    """The nearest whole number, halves up: Python rounds 12.5 to 12, RELION to 13."""
    return int(np.floor(value + 0.5))


def _ratio(cross: NDArray[np.float64], power: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(power > 0, cross / np.sqrt(np.where(power > 0, power, 1.0)), 0.0)


def _sphere(radius: int, edge: int, box: int) -> NDArray[np.float32]:
    """1 within `radius` px, falling to 0 over `edge` px, in the middle of a window with a fast transform."""
    window = min(scipy.fft.next_fast_len(round(WINDOW * 2 * (radius + edge)), real=True), box)
    axis = np.arange(window) - window // 2
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2)
    ramp = np.clip((distance - radius) / edge, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * ramp)).astype(np.float32)


def _centres(inside: NDArray[np.bool_], step: int, radius: int) -> Iterator[Point]:
    """Points (z, y, x) of RELION's grid, multiples of `step` in the sphere that leaves `radius` to the box's faces,
    whose own sphere reaches the molecule."""
    box = len(inside)
    distance = scipy.ndimage.distance_transform_edt(~inside)
    axis = range(step, box, step)
    for centre in itertools.product(axis, axis, axis):
        from_middle = np.linalg.norm(np.array(centre) - box // 2)
        if from_middle < box // 2 - radius and distance[centre] < radius + step:
            yield centre


def _overlap(centre: Point, window: int, box: int) -> tuple[Slices, Slices]:
    """Slices of the box and of the window, where a window at `centre` lies in the box."""
    starts = [c - window // 2 for c in centre]
    there = tuple(slice(max(s, 0), min(s + window, box)) for s in starts)
    here = tuple(slice(t.start - s, t.stop - s) for s, t in zip(starts, there, strict=True))
    return there, here
