"""The Fourier coefficients of an image inside a band limit, packed in order of increasing frequency.

A frequency is a pair of whole numbers (ky, kx): waves across the box. It does not depend on how finely the box is
sampled, so one list serves every grid, and the list of a lower band is the beginning of that of a higher one: a
particle's record on disk is read only as far as the band goes. Of k and -k, whose coefficients are conjugate for a real
image, one is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

__all__ = ["Band"]


@dataclass(frozen=True, eq=False)
class Band:
    """All (ky, kx) with 0 < |k| < `limit` and kx > 0 or (kx = 0, ky > 0), by |k|, then ky, then kx.

    `ky`, `kx` (m,) int64 and `radius` (m,) float32 = |k|, on one device. The mean of an image, k = 0, is not signal.
    Packed coefficients are sqrt(2) times the transform's, so that their sum of squares is that over the whole plane,
    and their real and imaginary parts have unit variance where the whitened image's pixels have.
    """

    limit: float
    ky: torch.Tensor
    kx: torch.Tensor
    radius: torch.Tensor

    def __len__(self) -> int:
        return len(self.radius)

    @staticmethod
    @lru_cache(maxsize=64)
    def below(limit: float, device: torch.device | str = "cpu") -> Band:
        """The band of all frequencies lower than `limit` waves per box."""
        if torch.device(device).type != "cpu":
            band = Band.below(limit)
            return Band(limit, *(each.to(device) for each in (band.ky, band.kx, band.radius)))
        most = int(np.ceil(limit))
        ky, kx = (axis.ravel() for axis in np.mgrid[-most : most + 1, 0 : most + 1])
        square = ky**2 + kx**2
        inside = (square < limit**2) & ((kx > 0) | (ky > 0))
        ky, kx, square = ky[inside], kx[inside], square[inside]
        order = np.lexsort((kx, ky, square))
        radius = np.sqrt(square[order]).astype(np.float32)
        return Band(limit, *(torch.from_numpy(each) for each in (ky[order], kx[order], radius)))

    @property
    def shells(self) -> torch.Tensor:
        """The whole number next to |k| (m,)."""
        return self.radius.round().long()

    def flat_index(self, box: int) -> torch.Tensor:
        """Places (m,) of the coefficients in the raveled rfft2 half plane (box, box // 2 + 1) of a box."""
        if self.limit > box / 2:
            raise ValueError(f"{box} pixels carry frequencies below {box / 2} waves per box; asked for {self.limit}")
        return (self.ky % box) * (box // 2 + 1) + self.kx

    def pack(self, half_plane: torch.Tensor) -> torch.Tensor:
        """Coefficients (..., m) out of rfft2 half planes (..., box, box // 2 + 1)."""
        # By gather: torch indexes several times as slowly.
        where = self.flat_index(half_plane.shape[-2]).expand(*half_plane.shape[:-2], -1)
        return torch.gather(half_plane.flatten(-2), -1, where) * 2**0.5

    def spread(self, packed: torch.Tensor, box: int) -> torch.Tensor:
        """Transpose of `pack`, up to sqrt(2): rfft2 half planes (..., box, box // 2 + 1), zero elsewhere.

        Both k and -k are set on the axis kx = 0, so that the half plane is that of a real image: `pack(spread(a))`
        is `a * sqrt(2)`, and irfft2(spread(a) / sqrt(2), norm="forward") is the gradient of <pack(rfft2(image)), a>.
        """
        plane = torch.zeros((*packed.shape[:-1], box * (box // 2 + 1)), dtype=packed.dtype, device=packed.device)
        plane.scatter_(-1, self.flat_index(box).expand_as(packed), packed)
        axis = torch.nonzero(self.kx == 0)[:, 0]
        plane[..., (-self.ky[axis] % box) * (box // 2 + 1)] = packed[..., axis].conj()
        return plane.unflatten(-1, (box, box // 2 + 1))
