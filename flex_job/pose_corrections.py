"""Corrections of the poses and contrasts that a consensus refinement gave: what is kept, applied and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.particles import ParticleStack

__all__ = ["PoseCorrections"]


@dataclass(frozen=True)
class PoseCorrections:
    """Of n particles. A rotation R (map to view) becomes R exp(`turn_rad`) with rotation vectors (n, 3) in the map's
    frame; `shift_A` (n, 2) is added to the origins, which have RELION's sign. `contrast` (n,) are relative contrasts in
    place of those that the preparation found; None where they were not refined."""

    turn_rad: NDArray[np.float32]
    shift_A: NDArray[np.float32]
    contrast: NDArray[np.float32] | None = None

    @classmethod
    def none(cls, count: int) -> PoseCorrections:
        """Poses and contrasts as they were given."""
        return cls(np.zeros((count, 3), np.float32), np.zeros((count, 2), np.float32))

    @classmethod
    def joined(cls, parts: Sequence[PoseCorrections], places: Sequence[NDArray[np.integer]]) -> PoseCorrections:
        """Of all particles, from parts with the particles at `places`."""
        order = np.argsort(np.concatenate(places))
        contrasts = [part.contrast for part in parts if part.contrast is not None]
        return cls(
            np.concatenate([part.turn_rad for part in parts])[order],
            np.concatenate([part.shift_A for part in parts])[order],
            np.concatenate(contrasts)[order] if contrasts else None,
        )

    def __len__(self) -> int:
        return len(self.turn_rad)

    @property
    def moved(self) -> bool:
        """Whether poses were refined, and not contrasts alone."""
        return bool(self.turn_rad.any() or self.shift_A.any())

    def rotations(self, given: NDArray[np.floating]) -> NDArray[np.float64]:
        """Corrected matrices (n, 3, 3), or the first rows of them (n, 2, 3)."""
        return given @ Rotation.from_rotvec(self.turn_rad).as_matrix()

    def applied(self, stack: ParticleStack, contrast: NDArray[np.floating]) -> ParticleStack:
        """The stack with corrected poses and contrasts; `contrast` (n,) are those that it was prepared with."""
        origins = stack.origins_px + self.shift_A / stack.pixel_sizes_A[:, None]
        scale = stack.scale if self.contrast is None else stack.scale * (self.contrast / contrast)
        return replace(
            stack,
            projections=self.rotations(stack.projections).astype(np.float32),
            origins_px=origins.astype(np.float32),
            scale=scale.astype(np.float32),
        )
