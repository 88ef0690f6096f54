"""What the images themselves show of the motion: means of those seen from one side, at one place of the latents.

The map has no part in it: images are centred by their poses, turned in their plane, their phases flipped, and averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.ctf import ctf_at
from flex_job.raw_images import RawImages

__all__ = ["SideViews", "side_views"]

APART_DEG = 25.0  # views that count as one
CANDIDATES = 2000  # particles whose directions are tried
MOST = 1500  # images kept
LARGEST_BOX = 64


@dataclass(frozen=True)
class SideViews:
    """Images (m, b, b) [y, x] of particles `index` (m,), seen nearly along one direction and turned upright in the
    frame `view` (3, 3): its rows are the picture's x, y and the direction of sight, in map coordinates. `pixel_size_A`
    is theirs. Density is positive."""

    images: NDArray[np.float32]
    index: NDArray[np.int64]
    view: NDArray[np.float64]
    pixel_size_A: float

    def mean(self, latents: NDArray[np.floating], at: NDArray[np.floating], count: int) -> NDArray[np.float32]:
        """Mean (b, b) of the `count` images whose `latents` (n, K) lie nearest to `at` (K,)."""
        away = ((latents[self.index] - at) ** 2).sum(axis=1)
        nearest = np.argsort(away, kind="stable")[:count]
        return np.asarray(self.images[nearest].mean(axis=0))


def side_views(
    consensus: Consensus, displacements_A: NDArray[np.floating] | None = None, sign: int = 1, seed: int = 0
) -> SideViews:
    """Of the side from which most is seen: the more particles show it, the better, and of `displacements_A` (V, 3),
    where they are given, the part in the picture's plane. `sign` is -1 where density is dark in the images."""
    rng = np.random.default_rng(seed)
    towards = consensus.rotations[:, 2]
    tried = rng.permutation(len(consensus))[:CANDIDATES]
    close = np.cos(np.radians(APART_DEG))
    shown = ((towards[tried] @ towards[tried].T) > close).sum(axis=1).astype(np.float64)
    if displacements_A is not None:
        spread = displacements_A.T @ displacements_A
        shown *= np.trace(spread) - np.einsum("na,ab,nb->n", towards[tried], spread, towards[tried])
    view = consensus.rotations[tried[shown.argmax()]]
    seen = np.flatnonzero(towards @ view[2] > close)
    index = np.sort(rng.permutation(seen)[:MOST])
    return SideViews(_upright(consensus, index, view, sign), index, view, _pixel_size_A(consensus))


def _box(consensus: Consensus) -> int:
    return min(consensus.map.box, LARGEST_BOX)


def _pixel_size_A(consensus: Consensus) -> float:
    return consensus.map.box * consensus.map.pixel_size_A / _box(consensus)


def _upright(
    consensus: Consensus, index: NDArray[np.int64], view: NDArray[np.float64], sign: int
) -> NDArray[np.float32]:
    """Images (m, b, b), origin at pixel b // 2."""
    box = _box(consensus)
    raw = RawImages(consensus, box)
    ky, kx = raw.band.ky, raw.band.kx
    flat = raw.band.flat_index(box)
    out = np.empty((len(index), box, box), dtype=np.float32)
    for rows in np.array_split(np.arange(len(index)), max(1, -(-len(index) // raw.batch_size))):
        part = index[rows]
        data = raw.coefficients(part) * ctf_at(raw.ctf, part, ky, kx, raw.pixel_sizes_A[part] * box).sign() * sign
        origin = torch.from_numpy(raw.origins_px[part]).float()
        turn = -2 * np.pi / box * (origin[:, :1] * kx + origin[:, 1:] * ky)
        half_plane = torch.zeros((len(part), box * (box // 2 + 1)), dtype=torch.complex64)
        half_plane[:, flat] = data * torch.polar(torch.ones_like(turn), turn)
        flipped = torch.fft.irfft2(half_plane.reshape(len(part), box, box // 2 + 1), s=(box, box))
        centred = torch.fft.fftshift(flipped, dim=(-2, -1)).numpy()
        for row, image, rotation in zip(rows, centred, consensus.rotations[part], strict=True):
            out[row] = _turned(image, rotation @ view.T)
    return out


def _turned(image: NDArray[np.float32], turn: NDArray[np.float64]) -> NDArray[np.float32]:
    """The image in the view's frame: what lies at p there lies at `turn` p (its part in the plane) in the image."""
    angle = np.arctan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1])
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.array([[cosine, sine], [-sine, cosine]])  # of (y, x)
    centre = np.full(2, len(image) // 2)
    return np.asarray(scipy.ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1))
