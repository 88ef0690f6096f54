"""Particles as the engine sees them: whitened, band-limited coefficients on disk, read in batches."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.band import Band
from flex_job.ctf import CtfParameters, ctf_at
from flex_job.read_ahead import read_ahead
from flex_job.records import read_records

__all__ = ["Batch", "ParticleStack"]


@dataclass(frozen=True)
class Batch:
    """Some particles' packed coefficients (see `Band`), on one device.

    `data` (b, m) complex64 has unit noise variance in its real and in its imaginary parts; `transfer` (b, m) float32
    is what the packed coefficients of the density's projection are multiplied with: scale x CTF / noise amplitude.
    Half the sum of |data - transfer x model|^2 is the negative log-likelihood. `projections` (b, 2, 3) and
    `origins_px` (b, 2) are in pixels of the stack's box.
    """

    index: NDArray[np.int64]
    data: torch.Tensor
    transfer: torch.Tensor
    projections: torch.Tensor
    origins_px: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    def below(self, band: Band) -> Batch:
        """The same particles in a lower band; nothing is copied."""
        m = len(band)
        return Batch(self.index, self.data[:, :m], self.transfer[:, :m], self.projections, self.origins_px)

    def only(self, seen: torch.Tensor) -> Batch:
        """The same particles with the coefficients that are not `seen` (m,) taken out of data and model."""
        return replace(self, data=self.data * seen, transfer=self.transfer * seen)

    def take(self, keep: NDArray[np.bool_]) -> Batch:
        """Those of the particles that `keep` (b,) says."""
        if keep.all():
            return self
        rows = torch.from_numpy(np.flatnonzero(keep)).to(self.data.device)
        fields = (self.data, self.transfer, self.projections, self.origins_px)
        return Batch(self.index[keep], *(field[rows] for field in fields))


@dataclass(frozen=True)
class ParticleStack:
    """Cached particles: packed coefficients (n, m, 2) float16 below Nyquist in `path`, all else in memory.

    The images' origin is their centre, so the transforms of a centred, symmetric particle are real. `noise`
    (groups, box // 2 + 1) is the noise amplitude per shell that the coefficients were divided by, `scale` (n,) the
    particle's contrast divided by its own noise level. `projections` (n, 2, 3) take angstroms to pixels of the
    stack and hold rotation and magnification; `pixel_sizes_A` (n,) are the images' exact pixel sizes at `box`.
    `rows` (n,) are the particles' places in the file, where it holds others too.
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
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.halves)

    def select(self, index: NDArray[np.int64]) -> ParticleStack:
        """The particles at `index`, in that order, from the same file."""
        per_particle = ("projections", "origins_px", "halves", "optics_index", "pixel_sizes_A", "scale")
        changes = {name: getattr(self, name)[index] for name in per_particle}
        rows = index if self.rows is None else self.rows[index]
        return replace(self, rows=rows, ctf=self.ctf.select(index), **changes)

    @property
    def extent_A(self) -> float:
        """Edge of the box in angstroms."""
        return self.box * self.pixel_size_A

    def band(self, fraction: float = 1.0, device: torch.device | str = "cpu") -> Band:
        """The frequencies up to a fraction of the stack's Nyquist."""
        return Band.below(fraction * self.box / 2, device)

    def batch(self, index: NDArray[np.int64], band: Band | None = None) -> Batch:
        """The particles at `index` in `band` (all that is cached when None), on the band's device."""
        band = band or self.band()
        return self._batch(index, self._read(index, band), band)

    def batches(self, indices: Iterable[NDArray[np.int64]], band: Band) -> Generator[Batch]:
        """A batch for each of `indices`, read from disk while the one before is worked on; close it to stop early.

        For a GPU the whole batch is made beside the present one, on a stream of its own. On the CPU only the disk's
        work is done ahead: arithmetic in the background would take the same cores.
        """
        if band.radius.is_cuda:
            yield from read_ahead(lambda index: self.batch(index, band), indices, depth=2, device=band.radius.device)
        else:
            for index, packed in read_ahead(lambda index: (index, self._read(index, band)), indices, depth=1):
                yield self._batch(index, packed, band)

    def _read(self, index: NDArray[np.int64], band: Band) -> NDArray[np.float16]:
        """Coefficients (b, m, 2). The lowest frequencies come first: of each record only the beginning is read."""
        rows = index if self.rows is None else self.rows[index]
        return read_records(self.path, rows, (len(self.band()), 2), len(band))

    def _batch(self, index: NDArray[np.int64], packed: NDArray[np.float16], band: Band) -> Batch:
        device = band.radius.device
        on_host = torch.from_numpy(packed)
        data = on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host
        noise = torch.from_numpy(self.noise[self.optics_index[index]]).to(device)
        transfer = ctf_at(self.ctf, index, band.ky, band.kx, self.pixel_sizes_A[index] * self.box)
        transfer *= torch.from_numpy(self.scale[index]).to(device)[:, None]
        transfer /= noise[:, band.shells.clamp(max=self.box // 2)]
        return Batch(
            index=index,
            data=torch.view_as_complex(data.float()),
            transfer=transfer,
            projections=torch.from_numpy(self.projections[index]).to(device),
            origins_px=torch.from_numpy(self.origins_px[index]).to(device),
        )
