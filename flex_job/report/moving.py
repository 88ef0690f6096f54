"""The molecule's surface as the latents bend it, small enough for a page: few modes, and how much of each lies where.

The flow is u(v, z) over vertices v and latents z. Over the particles few fields span it, u(v, z) = sum_m c_m(z) U_m(v),
so a page needs the U_m at the points of one surface, and the c_m on a grid of latents to interpolate in.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from flex_job.atomic_model import BACKBONE, AtomicModel, drawn_atoms
from flex_job.generate import support
from flex_job.mesh.points import MeshPoints
from flex_job.model import FlexModel
from flex_job.report.panels_latents import shown_latents
from flex_job.report.scene import within_mask
from flex_job.report.surface import Surface, isosurface
from flex_job.volume import Volume

__all__ = ["MovingAtoms", "MovingSurface", "Plane", "coarse_surface", "moving_surface"]

MOST_POINTS = 9000  # of the surface: what a phone redraws several times a second
FIRST_SIDE, LARGEST_SIDE = 50, 100  # voxels along the molecule that it is contoured from
LEFT_OUT = 0.01  # of the displacements' mean square, by the modes that are not kept
MOST_MODES = 16
SAMPLE = 400  # particles that the modes are found from
STEPS = 21  # of a grid along each latent
MOST_ATOMS = 30_000  # that a page draws
RANGE = (0.5, 99.5)  # percentiles of a latent that the grid spans


@dataclass(frozen=True)
class Plane:
    """Where two latents go, or one, the others at their medians. `latents` are their numbers, from 0; `values` the grid
    along each (STEPS,); `amounts` (STEPS, ..., M) the c_m; `near` (STEPS, ...) how many particles lie near."""

    latents: tuple[int, ...]
    values: tuple[NDArray[np.float32], ...]
    amounts: NDArray[np.float32]
    near: NDArray[np.float32]


@dataclass(frozen=True)
class MovingAtoms:
    """The n atoms of `model`, and the `modes` (M, n, 3) there."""

    model: AtomicModel
    modes: NDArray[np.float32]

    def thread(self) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Points (m, 3), angstroms, one for each residue that has one of the atoms that a chain is drawn by, and the
        modes (M, m, 3) there; NaN between chains."""
        backbone = [
            (number, chain.name)
            for number, (chain, _, atom) in enumerate(self.model.walk())
            if atom.name in BACKBONE and not atom.element.is_metal
        ]
        numbers = np.array([number for number, _ in backbone], dtype=np.int64)
        breaks = [n for n in range(1, len(backbone)) if backbone[n][1] != backbone[n - 1][1]]
        points, modes = self.model.positions_A[numbers], self.modes[:, numbers]
        return np.insert(points, breaks, np.nan, axis=-2), np.insert(modes, breaks, np.nan, axis=-2)


@dataclass(frozen=True)
class MovingSurface:
    """`surface` is where all displacements are zero; `modes` (M, N, 3) the U_m at its N points, A; `planes` each pair
    of the latents that spread most, or the only one; `atoms` those of an atomic model, where there is one."""

    surface: Surface
    modes: NDArray[np.float32]
    planes: tuple[Plane, ...]
    atoms: MovingAtoms | None = None


def moving_surface(
    model: FlexModel, density: Volume, mask: Volume | None, atoms: AtomicModel | None = None
) -> MovingSurface | None:
    """The surface of `density` within `mask` in the model's motion, with an atomic model built into the map; None where
    the map has no density to show."""
    surface = coarse_surface(density, mask)
    if surface is None:
        return None
    sample = np.random.default_rng(0).permutation(len(model.latents))[:SAMPLE]
    sampled = model.displacement(model.latents[sample]).reshape(len(sample), -1).astype(np.float64)
    _, size, modes = np.linalg.svd(sampled, full_matrices=False)
    left = 1 - np.cumsum(size**2) / max(float((size**2).sum()), 1e-12)
    modes = modes[: min(int(np.argmax(left < LEFT_OUT**2)) + 1, MOST_MODES)]
    fields = modes.reshape(len(modes), -1, 3)
    placed = None if atoms is None else _moving_atoms(model, fields, atoms)
    shown = shown_latents(model.latents)
    pairs: list[tuple[int, ...]] = [*combinations(shown, 2)] or [tuple(shown)]
    planes = tuple(_plane(model, pair, modes) for pair in pairs)
    at_points = MeshPoints.at(model.mesh, surface.points_A).carried(fields)
    return MovingSurface(surface, at_points.astype(np.float32), planes, placed)


def coarse_surface(density: Volume, mask: Volume | None) -> Surface | None:
    """The surface at the level of the pictures, of few enough points to be moved in a page."""
    masked = within_mask(density, mask)
    if not (masked.data > 0).any():
        return None
    level = float(threshold_otsu(masked.data[masked.data > 0]))
    side = float(FIRST_SIDE)
    for _ in range(3):
        surface = isosurface(masked, level, side=side)
        if surface is None:
            return None
        count = len(surface.points_A)
        if 0.7 * MOST_POINTS < count <= MOST_POINTS or side == LARGEST_SIDE:
            break
        side = min(side * np.sqrt(0.85 * MOST_POINTS / count), LARGEST_SIDE)
    return surface


def _moving_atoms(model: FlexModel, modes: NDArray[np.float64], atoms: AtomicModel) -> MovingAtoms | None:
    drawn = drawn_atoms(atoms, MOST_ATOMS)
    if not len(drawn):
        return None
    return MovingAtoms(drawn, MeshPoints.at(model.mesh, drawn.positions_A).carried(modes).astype(np.float32))


def _plane(model: FlexModel, latents: tuple[int, ...], modes: NDArray[np.float64]) -> Plane:
    ends = [np.percentile(model.latents[:, k], RANGE) for k in latents]
    values = tuple(np.linspace(low, high, STEPS) for low, high in ends)
    shape = (STEPS,) * len(latents)
    points = np.repeat(np.median(model.latents, axis=0)[None], STEPS ** len(latents), axis=0).astype(np.float64)
    for k, along in zip(latents, np.meshgrid(*values, indexing="ij"), strict=True):
        points[:, k] = along.ravel()
    amounts = np.concatenate(
        [model.displacement(part).reshape(len(part), -1) @ modes.T for part in np.array_split(points, len(latents) * 4)]
    )
    return Plane(
        latents,
        tuple(along.astype(np.float32) for along in values),
        amounts.reshape(*shape, -1).astype(np.float32),
        support(model, points).particles.reshape(shape).astype(np.float32),
    )
