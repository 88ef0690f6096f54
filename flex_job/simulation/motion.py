"""Motions of the antibody: each Fab arm a rigid body that bends about its hinge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flex_job.simulation.atoms import Beads

__all__ = ["MOTIONS", "Conformations", "Hinge", "antibody_motion", "arm_hinge"]

ARMS = (("A", "B"), ("C", "D"))  # (light, heavy) chain of each Fab in 1IGY
HINGE_RESIDUES = (212, 222)  # label_seq_id in the heavy chains: after CH1, before the inter-chain disulphides end
MOTIONS = ("one_hinge", "two_hinges", "none")


@dataclass(frozen=True)
class Hinge:
    """A rotation about `axis` (3,) through `pivot_A` (3,) by `amplitude_rad * latent`; `weight` (n,) is the share of
    the angle that each bead takes: 1 in the arm, 0 in the rest, between them along the hinge so that the chain bends
    and does not tear.
    """

    pivot_A: NDArray[np.float64]
    axis: NDArray[np.float64]
    weight: NDArray[np.float64]
    amplitude_rad: float

    def displacement(self, positions_A: NDArray[np.float64], latent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacements (b, n, 3) of beads at `positions_A` (n, 3) for `latent` (b,): Rodrigues' formula."""
        angle = self.amplitude_rad * latent[:, None] * self.weight[None, :]
        arm = positions_A - self.pivot_A
        across = np.cross(self.axis, arm)
        inward = np.cross(self.axis, across)
        return np.sin(angle)[..., None] * across + (1 - np.cos(angle))[..., None] * inward


@dataclass(frozen=True)
class Conformations:
    """All conformations of `beads`: one latent coordinate, from -1 to 1, per hinge. All are populated evenly or, where
    `levels` are given, only those whose latents are among these values.
    """

    beads: Beads
    hinges: tuple[Hinge, ...]
    levels: tuple[float, ...] = ()

    @property
    def latent_dims(self) -> int:
        return len(self.hinges)

    def positions(self, latents: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bead positions (b, n, 3), xyz in angstroms, at `latents` (b, k). Raises ValueError on another k."""
        latents = np.asarray(latents, dtype=np.float64)
        if latents.ndim != 2 or latents.shape[1] != self.latent_dims:
            raise ValueError(f"latents of shape {latents.shape}; this motion expects (n, {self.latent_dims})")
        xyz = self.beads.positions_A
        moved = np.repeat(xyz[None], len(latents), axis=0)
        for k, hinge in enumerate(self.hinges):  # arms are disjoint, so that displacements add up exactly
            moved += hinge.displacement(xyz, latents[:, k])
        return moved

    def angles_rad(self, latents: NDArray[np.float64]) -> NDArray[np.float64]:
        """The hinge angles (b, k) at `latents` (b, k)."""
        return np.asarray(latents) * np.array([hinge.amplitude_rad for hinge in self.hinges])

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Latents (count, k), independent, uniform or each of the levels equally often."""
        if self.levels:
            return rng.choice(self.levels, size=(count, self.latent_dims))
        return rng.uniform(-1.0, 1.0, size=(count, self.latent_dims))


def arm_hinge(beads: Beads, arm: int, amplitude_rad: float) -> Hinge:
    """The hinge of Fab `arm` (0 or 1). The axis is normal to the plane of arm and Fc, so the arm swings in the
    plane of the Y.
    """
    light, heavy = ARMS[arm]
    first, last = HINGE_RESIDUES
    on_heavy = (beads.chain == heavy) & (beads.residue > 0)
    along = np.clip((last - beads.residue) / (last - first), 0.0, 1.0)
    weight = np.where(on_heavy, along * along * (3 - 2 * along), 0.0)
    weight[beads.chain == light] = 1.0
    in_hinge = on_heavy & beads.alpha_carbon & (beads.residue > first) & (beads.residue < last)
    fc = np.isin(beads.chain, [chain for _, chain in ARMS]) & (beads.residue > last)
    pivot = beads.positions_A[in_hinge].mean(axis=0)
    outward = np.average(beads.positions_A, axis=0, weights=weight * beads.amplitude) - pivot
    stem = np.average(beads.positions_A, axis=0, weights=fc * beads.amplitude) - pivot
    axis = np.cross(outward, stem)
    return Hinge(pivot, axis / np.linalg.norm(axis), weight, float(amplitude_rad))


def antibody_motion(beads: Beads, motion: str, amplitudes_deg: Sequence[float] = (20.0, 20.0)) -> Conformations:
    """Conformations of the antibody: `one_hinge` (arm 0), `two_hinges` (both arms, independent), or `none`.

    Latents of -1 and 1 stand for hinge angles of -amplitude and amplitude. Raises ValueError on another name.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion {motion!r}; expected one of {', '.join(MOTIONS)}")
    arms = {"none": 0, "one_hinge": 1, "two_hinges": 2}[motion]
    return Conformations(beads, tuple(arm_hinge(beads, arm, np.deg2rad(amplitudes_deg[arm])) for arm in range(arms)))
