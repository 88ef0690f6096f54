"""Refined poses and contrasts as the columns in which RELION keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.pose_corrections import PoseCorrections
from integration.relion.columns import Columns
from integration.relion.optics import pixel_sizes_A
from integration.relion.star import find_optics, find_particles, read_star

__all__ = ["ANGLES", "pose_columns"]

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
SCALE = "rlnCtfScalefactor"


def pose_columns(star: str | Path, corrections: PoseCorrections) -> dict[str, NDArray[np.float64]]:
    """Values (n,) by label of the particles of `star`: its own poses with the corrections.

    Origins stay in the unit that the file has them in: angstroms, in RELION 3.0 pixels. A refined contrast multiplies
    rlnCtfScalefactor, by which RELION multiplies the CTF. What was not refined is not among them. Raises ValueError
    where the file does not hold numbers for as many particles.
    """
    document, problems = read_star(Path(star)), list[str]()
    particles = find_particles(document)
    if particles is None or len(particles) != len(corrections):
        raise ValueError(f"{star}: expected a particle STAR file of {len(corrections)} particles")
    columns, found = Columns(particles, find_optics(document), problems), dict[str, NDArray[np.float64]]()
    if corrections.moved:
        angles = np.stack([columns.pose(label) for label in ANGLES], axis=1)
        given = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)
        refined = Rotation.from_matrix(corrections.rotations(given).transpose(0, 2, 1))
        found |= dict(zip(ANGLES, refined.as_euler("ZYZ", degrees=True).T, strict=True))
        in_pixels = "rlnOriginXAngst" not in particles and "rlnOriginX" in particles
        unit_A = pixel_sizes_A(columns) if in_pixels else np.ones(len(particles))
        for axis, shift_A in zip("XY", corrections.shift_A.T, strict=True):
            label = f"rlnOrigin{axis}" if in_pixels else f"rlnOrigin{axis}Angst"
            found[label] = columns.pose(label) + shift_A / unit_A
    if corrections.contrast is not None:
        found[SCALE] = columns.value(SCALE, default=1.0) * corrections.contrast
    if problems:
        raise ValueError(f"{star}: {'; '.join(problems)}")
    return found
