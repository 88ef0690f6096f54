"""Atomic models: read, checked against a map, and made into the density that the map's grid can hold.

A model lies in the frame of the map it was built into: an atom at x is at the voxel (x - origin) / pixel size, with
the origin of that map's MRC header.
"""

from __future__ import annotations

import os
from pathlib import Path

import gemmi
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from flex_job.fourier import fourier_resize
from flex_job.fsc import radii_by_plane
from flex_job.input_files import open_input
from flex_job.problems import one_line
from flex_job.volume import Volume

__all__ = ["model_density", "model_problem", "read_model", "read_structure"]

EXPECTED = "an atomic model: a PDB or mmCIF file"
OVERSAMPLING = 1.5
"""Grid points of the density per grid point of the map, each way."""

FEWEST_INSIDE = 0.5
"""A model with fewer of its atoms in the map's box is in another frame, or of something else."""


def read_model(path: str | Path) -> gemmi.Model:
    """The first model of a PDB or mmCIF file (or one packed by gzip). Raises ValueError, with the path."""
    return read_structure(path)[0]


def read_structure(path: str | Path) -> gemmi.Structure:
    """What a PDB or mmCIF file holds, its first model checked. Raises ValueError, with the path."""
    path = Path(path)
    os.close(open_input(path, "file", EXPECTED))
    try:
        structure = gemmi.read_structure(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(one_line(f"{path}: cannot be read ({error}); expected {EXPECTED}")) from None
    if not len(structure) or not structure[0].count_atom_sites():
        raise ValueError(one_line(f"{path}: holds no atoms; expected {EXPECTED}"))
    if not np.isfinite(_positions(structure[0])).all():
        raise ValueError(one_line(f"{path}: has atoms at positions that are not finite; mend the file"))
    return structure


def model_problem(path: str | Path, map: Volume) -> str | None:
    """What is wrong with the model in the file for this map; None when nothing is."""
    try:
        model = read_model(path)
    except ValueError as error:
        return str(error)
    corner, side = np.array(map.corner_A), map.box * map.pixel_size_A
    atoms = _positions(model)
    inside = ((atoms >= corner) & (atoms <= corner + side)).all(axis=1).mean()
    if inside >= FEWEST_INSIDE:
        return None
    found, box = (
        ", ".join(f"{axis} {low:.0f} to {high:.0f}" for axis, low, high in zip("xyz", lows, highs, strict=True))
        for lows, highs in ((atoms.min(axis=0), atoms.max(axis=0)), (corner, corner + side))
    )
    return (
        f"{path}: {100 * inside:.0f} % of its atoms lie in the map's box; they are at {found} A, the box at {box} A by "
        "the map's header; fit the model into this map"
    )


def model_density(model: gemmi.Model, map: Volume, box: int) -> NDArray[np.float32]:
    """The model's electrostatic density on `box` voxels of the extent of `map` (z, y, x), band-limited to its Nyquist.

    Atoms are sums of Gaussians with their B-factors and occupancies (gemmi, electron scattering), made on a finer grid
    and blurred there, which is undone in Fourier space. `model` is not changed.
    """
    side = map.box * map.pixel_size_A
    calculator = gemmi.DensityCalculatorE()
    calculator.d_min, calculator.rate = 2 * side / box, OVERSAMPLING
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.grid.set_unit_cell(gemmi.UnitCell(side, side, side, 90, 90, 90))
    calculator.initialize_grid()
    fine = calculator.grid.nu
    placed = model.clone()
    # the middle voxels of all three grids, that of the map, the fine one and the result, are one point
    middle_A = (map.box // 2) * map.pixel_size_A + np.array(map.corner_A)
    shift = gemmi.Position(*((fine // 2) * side / fine - middle_A))
    for chain in placed:
        for residue in chain:
            for atom in residue:
                atom.pos += shift
    calculator.set_refmac_compatible_blur(placed)
    calculator.add_model_density_to_grid(placed)
    density = np.ascontiguousarray(np.array(calculator.grid, copy=False).transpose(2, 1, 0))
    resized = fourier_resize(Volume(density, side / fine), box).data
    transform = scipy.fft.rfftn(resized)
    for z, radius in radii_by_plane(box):
        # no shell reaches the corners, where what the blur has left may be less than the grid's error
        whole = radius < box // 2 + 0.5
        transform[z] *= np.where(whole, np.exp(calculator.blur / 4 * (np.where(whole, radius, 0.0) / side) ** 2), 0.0)
    return np.asarray(scipy.fft.irfftn(transform, s=resized.shape), dtype=np.float32)


def _positions(model: gemmi.Model) -> NDArray[np.float64]:
    return np.array([atom.pos.tolist() for chain in model for residue in chain for atom in residue])
