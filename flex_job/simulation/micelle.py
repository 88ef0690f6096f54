"""A detergent micelle about the part of a molecule that does not move, as a membrane protein has it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flex_job.simulation.atoms import Beads
from flex_job.simulation.motion import Conformations

__all__ = ["with_micelle"]

OUTER_A, HALF_HEIGHT_A = 55.0, 18.0
GAP_A = 5.0  # from the protein
SPACING_A = 5.0
DENSITY = 0.5  # daltons per cubic angstrom: detergent shows two thirds of what protein (0.81) does


def with_micelle(conformations: Conformations, seed: int = 0) -> Conformations:
    """The same molecule in a belt of beads that no hinge moves: an ellipsoid of OUTER_A by HALF_HEIGHT_A, its centre
    and short axis those of the part that stays, its short axis along the longest one of that part, and the protein cut
    out of it.

    Raises ValueError where every bead moves.
    """
    beads = conformations.beads
    weights = np.array([hinge.weight for hinge in conformations.hinges]).reshape(-1, len(beads))
    still = (weights == 0).all(axis=0)
    if not still.any():
        raise ValueError("a micelle needs a part of the molecule that does not move; every bead does")
    points = _belt(beads.positions_A[still], beads.amplitude[still], seed)
    ends = np.array(list(product((-1.0, 0.0, 1.0), repeat=conformations.latent_dims)))
    for positions in conformations.positions(ends):
        points = points[cKDTree(positions).query(points)[0] > GAP_A]
    count = len(points)
    every = Beads(
        positions_A=np.concatenate([beads.positions_A, points]),
        amplitude=np.concatenate([beads.amplitude, np.full(count, DENSITY * SPACING_A**3)]),
        sigma_A=beads.sigma_A,
        chain=np.concatenate([beads.chain, np.full(count, "~")]),
        residue=np.concatenate([beads.residue, np.zeros(count, np.int32)]),
        alpha_carbon=np.concatenate([beads.alpha_carbon, np.zeros(count, bool)]),
    )
    hinges = tuple(
        replace(hinge, weight=np.concatenate([hinge.weight, np.zeros(count)])) for hinge in conformations.hinges
    )
    return replace(conformations, beads=every, hinges=hinges)


def _belt(still_A: NDArray[np.float64], mass: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Points (m, 3) of a jittered grid that fill the ellipsoid."""
    centre = np.average(still_A, axis=0, weights=mass)
    axes = np.linalg.svd((still_A - centre) * np.sqrt(mass)[:, None], full_matrices=False)[2][[1, 2, 0]]
    steps = np.arange(-OUTER_A, OUTER_A + SPACING_A, SPACING_A)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid + np.random.default_rng(seed).uniform(-0.3, 0.3, grid.shape) * SPACING_A
    inside = ((grid / [OUTER_A, OUTER_A, HALF_HEIGHT_A]) ** 2).sum(axis=1) < 1
    return centre + grid[inside] @ axes
