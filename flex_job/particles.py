"""Particles as the engine sees them: whitened, band-limited transforms on disk, read in batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.ctf import CtfParameters, ctf
from flex_job.fourier import crop_half_plane, radius_half_plane

__all__ = ["Batch", "ParticleStack"]


@dataclass(frozen=True)
class Batch:
    """Some particles at one box and band limit.

    `data` (b, box, box // 2 + 1) complex64 are coefficients of unit noise variance, `transfer` float32 what the
    density's transform is multiplied with (scale x CTF / noise amplitude). Both are multiplied by the band
    and by the square root of the coefficient's `multiplicity` in the whole plane, so that half the sum of
    |data - transfer x model|^2 is the negative log-likelihood. `origins_px` are in pixels of this box.
    """

    index: NDArray[np.int64]
    data: torch.Tensor
    transfer: torch.Tensor
    multiplicity: torch.Tensor
    projections: torch.Tensor
    origins_px: torch.Tensor


@dataclass(frozen=True)
class ParticleStack:
    """Cached particles: transforms (n, box, box // 2 + 1, 2) float16 in `path`, all else in memory.

    The images' origin is their centre, so the transforms of a centred, symmetric particle are real. `noise`
    (groups, box // 2 + 1) is the noise amplitude per shell that the transforms were divided by, `scale` (n,) the
    particle's contrast divided by its own noise level. `projections` (n, 2, 3) take angstroms to pixels of the
    stack and hold rotation and magnification; `pixel_sizes_A` (n,) are the images' exact pixel sizes at `box`.
    """

    path: Path
    box: int
    pixel_size_A: float
    projections: NDArray[np.float32]
    origins_px: NDArray[np.float32]
    halves: NDArray[np.int8]
    optics_index: NDArray[np.int32]
    pixel_sizes_A: NDArray[np.float64]
    ctf: CtfParameters
    noise: NDArray[np.float32]
    scale: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.halves)

    @property
    def extent_A(self) -> float:
        """Edge of the box in angstroms."""
        return self.box * self.pixel_size_A

    def batch(self, index: NDArray[np.int64], *, box: int | None = None, band: float = 1.0) -> Batch:
        """The particles at `index`, cropped to `box` pixels, with frequencies up to `band` times Nyquist *of `box`*."""
        box = box or self.box
        # Mapped anew for each batch and dropped after it: resident memory stays that of one batch.
        cache = np.memmap(self.path, dtype=np.float16, mode="r", shape=(len(self), self.box, self.box // 2 + 1, 2))
        data = torch.view_as_complex(torch.from_numpy(cache[index].astype(np.float32)))
        radius = radius_half_plane(box)
        double = torch.full((box // 2 + 1,), 2.0)
        double[0] = 1.0
        inside = (radius < band * box / 2) & (radius > 0)  # the mean level of an image is not signal
        weight = torch.where(inside, double.sqrt(), 0.0)
        transfer = ctf(self.ctf, index, box, self.pixel_sizes_A[index] * self.box / box)
        shell = radius.round().long().clamp(max=self.box // 2)
        noise = torch.from_numpy(self.noise[self.optics_index[index]])[:, shell]
        transfer = transfer * weight / noise * torch.from_numpy(self.scale[index])[:, None, None]
        return Batch(
            index=index,
            data=crop_half_plane(data, box) * weight if box != self.box else data * weight,
            transfer=transfer.float(),
            multiplicity=torch.where(inside, double, 1.0),
            projections=torch.from_numpy(self.projections[index]) * (box / self.box),
            origins_px=torch.from_numpy(self.origins_px[index]) * (box / self.box),
        )
