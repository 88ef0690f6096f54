"""Optics groups of a cryoSPARC particle table: one per distinct set of imaging conditions within an exposure group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flex_job.consensus import OpticsGroup
from flex_job.ctf import electron_wavelength
from integration.cryosparc.aberrations import Matrix, even_zernike, magnification, odd_zernike
from integration.cryosparc.fields import Fields

__all__ = ["read_optics"]

# The smallest and largest values that make sense; outside, the unit is another one.
BOUNDS = {
    "ctf/accel_kv (kV)": (1.0, 1e4),
    "ctf/cs_mm (mm)": (-100.0, 100.0),
    "ctf/amp_contrast": (0.0, 1.0),
}


def read_optics(
    fields: Fields, notes: list[str]
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32], NDArray[np.float64]]:
    """Groups in use, the group of each particle (n,), and the image shift of the optics (n, 2) in angstroms.

    `notes` gets a line about each effect that is taken in a way that was not tried against cryoSPARC itself.
    """
    shapes = fields.indices("blob/shape", 2)
    if (shapes[:, 0] != shapes[:, 1]).any():
        fields.problems.append("field blob/shape: some particle images are not square; extract them again")
    numbers = {name: fields.numbers(name) for name in ("blob/psize_A", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")}
    tilt = fields.numbers("ctf/tilt_A", 2, default=0.0)
    trefoil = fields.numbers("ctf/trefoil_A", 2, default=0.0)
    tetra = fields.numbers("ctf/tetra_A", 4, default=0.0)
    anisomag = fields.numbers("ctf/anisomag", 4, default=0.0)
    shift_A = fields.numbers("ctf/shift_A", 2, default=0.0)
    exposure_group = fields.indices("ctf/exp_group_id", default=0)
    table = np.column_stack([exposure_group, shapes[:, 0], *numbers.values(), tilt, trefoil, tetra, anisomag])
    # NaN, of a field that is missing and told, would make a group of each particle
    _, first, group_of = np.unique(np.nan_to_num(table), axis=0, return_index=True, return_inverse=True)
    _note(notes, "beam tilt and trefoil", tilt, trefoil)
    _note(notes, "tetrafoil", tetra)
    _note(notes, "anisotropic magnification", anisomag)
    _note(notes, "image shift of the beam tilt", shift_A)
    groups: list[OpticsGroup] = []
    for particle in first:
        name = f"exposure_group{exposure_group[particle]}"
        values = {field: float(column[particle]) for field, column in numbers.items()}
        pixel_A, voltage_kV, aberration_mm, contrast = values.values()
        for (what, (low, high)), value in zip(BOUNDS.items(), (voltage_kV, aberration_mm, contrast), strict=True):
            if value < low or value > high:
                fields.problems.append(
                    f"exposure group {exposure_group[particle]}: {what} is {value:g}; expected {low:g} to {high:g}; "
                    "correct it with an Exposure Group Utilities job"
                )
        wavelength = electron_wavelength(voltage_kV) if voltage_kV > 0 else 1.0
        groups.append(
            OpticsGroup(
                name=name,
                box=int(shapes[particle, 0]),
                pixel_size_A=pixel_A,
                voltage_kV=voltage_kV,
                spherical_aberration_mm=aberration_mm,
                amplitude_contrast=contrast,
                odd_zernike=odd_zernike(tilt[particle], trefoil[particle], wavelength),
                even_zernike=even_zernike(tetra[particle], wavelength),
                magnification=_magnification(fields, name, anisomag[particle]),
            )
        )
    return tuple(groups), group_of.reshape(-1).astype(np.int32), shift_A


def _magnification(fields: Fields, name: str, anisomag: NDArray[np.float64]) -> Matrix:
    try:
        return magnification(anisomag)
    except ValueError as error:
        fields.problems.append(f"{name}: {error}")
        return (1.0, 0.0), (0.0, 1.0)


def _note(notes: list[str], what: str, *values: NDArray[np.float64]) -> None:
    if any(np.nan_to_num(value).any() for value in values):
        notes.append(
            f"{what}: taken as integration/cryosparc/aberrations.py says, which was not tried against cryoSPARC itself"
        )
