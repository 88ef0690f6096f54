"""Optics groups of a RELION particle file, of any version, as the engine's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flex_job.consensus import OpticsGroup
from integration.relion.columns import Columns
from integration.relion.star import LARGEST, Table

__all__ = ["pixel_sizes_A", "read_optics"]

# The smallest and largest values that make sense; outside, the unit is another one.
BOUNDS = {
    "voltage (kV)": (1.0, 1e4),
    "spherical aberration (mm)": (-100.0, 100.0),
    "amplitude contrast": (0.0, 1.0),
}
LARGEST_AREA = 10.0  # of a square of area one, under the magnification matrix


def read_optics(
    columns: Columns, stack_boxes: Callable[[], NDArray[np.integer]], phase_flipped: bool
) -> tuple[tuple[OpticsGroup, ...], NDArray[np.int32]]:
    """Groups in use and the group of each particle (n,).

    `stack_boxes()` gives the boxes (n,) found in the image stacks, asked where the file has no rlnImageSize. Voltage,
    spherical aberration and amplitude contrast may differ between particles of one RELION group (they are read from
    the particle row first), and RELION 3.0 has no groups: so a group of ours is a distinct set of these values.
    """
    optics = columns.optics
    table = optics if optics is not None else columns.particles
    values = np.stack(
        [
            pixel_sizes_A(columns),
            columns.value("rlnVoltage"),
            columns.value("rlnSphericalAberration"),
            columns.value("rlnAmplitudeContrast"),
            columns.first(["rlnBeamTiltX"], [table], 0.0),
            columns.first(["rlnBeamTiltY"], [table], 0.0),
            columns.first(["rlnImageSize"], [optics], None)
            if optics is not None and "rlnImageSize" in optics
            else stack_boxes(),
        ]
    )
    group_of, first = _distinct([columns.optics_row, *values])
    groups: list[OpticsGroup] = []
    for particle in first:
        pixel, voltage, aberration, contrast, tilt_x, tilt_y, box = values[:, particle].tolist()
        row = int(columns.optics_row[particle])
        name = _name(optics, row, len(groups) + 1)
        for (what, (low, high)), value in zip(BOUNDS.items(), (voltage, aberration, contrast), strict=True):
            if value < low or value > high:
                columns.problems.append(
                    f"optics group {name}: {what} is {value:g}; expected {low:g} to {high:g}; correct the STAR file"
                )
        groups.append(
            OpticsGroup(
                name=name,
                box=int(np.nan_to_num(box)),
                pixel_size_A=pixel,
                voltage_kV=voltage,
                spherical_aberration_mm=aberration,
                amplitude_contrast=contrast,
                beam_tilt_mrad=(tilt_x, tilt_y),
                odd_zernike=_vector(columns, "rlnOddZernike", row),
                even_zernike=_vector(columns, "rlnEvenZernike", row),
                magnification=_magnification(columns, row),
                premultiplied=bool(_optics_number(columns, "rlnCtfDataAreCtfPremultiplied", row, 0.0)),
                phase_flipped=phase_flipped,
            )
        )
    return tuple(groups), group_of.astype(np.int32)


def pixel_sizes_A(columns: Columns) -> NDArray[np.float64]:
    """rlnImagePixelSize (n,), or from RELION 3.0's detector pixel (um) and magnification; zero without a
    magnification."""
    table = columns.optics if columns.optics is not None else columns.particles
    if "rlnImagePixelSize" in table or "rlnDetectorPixelSize" not in table or "rlnMagnification" not in table:
        return columns.first(["rlnImagePixelSize"], [table], None)
    detector_um = columns.first(["rlnDetectorPixelSize"], [table], None)
    magnification = columns.first(["rlnMagnification"], [table], None)
    with np.errstate(over="ignore"):  # infinite is told as any other size that makes no sense
        return np.divide(1e4 * detector_um, magnification, out=np.zeros_like(detector_um), where=magnification != 0)


def _distinct(keys: list[NDArray[np.generic]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number (n,) of each particle's distinct combination of `keys`, and a particle that has it, in order."""
    combined = np.zeros(len(keys[0]), dtype=np.int64)
    for key in keys:
        _, inverse = np.unique(key, return_inverse=True)
        _, combined = np.unique(combined * (inverse.max() + 1) + inverse, return_inverse=True)
    _, first = np.unique(combined, return_index=True)
    return combined, first


def _name(optics: Table | None, row: int, number: int) -> str:
    if optics is None or "rlnOpticsGroupName" not in optics:
        return f"opticsGroup{number}"
    return optics.strings("rlnOpticsGroupName")[row]


def _optics_number(columns: Columns, label: str, row: int, default: float) -> float:
    if columns.optics is None or label not in columns.optics:
        return default
    return float(columns.numbers(columns.optics, label)[row])


def _magnification(columns: Columns, row: int) -> tuple[tuple[float, float], tuple[float, float]]:
    xx, xy, yx, yy = (
        _optics_number(columns, f"rlnMagMat{place}", row, default)
        for place, default in (("00", 1.0), ("01", 0.0), ("10", 0.0), ("11", 1.0))
    )
    area = xx * yy - xy * yx
    if area <= 1 / LARGEST_AREA or area >= LARGEST_AREA:
        columns.problems.append(
            f"optics row {row + 1}: the magnification matrix [[{xx:g}, {xy:g}], [{yx:g}, {yy:g}]] mirrors or flattens "
            "the image, or blows it up; expected one near the identity; correct rlnMagMat00 to rlnMagMat11"
        )
    return (xx, xy), (yx, yy)


def _vector(columns: Columns, label: str, row: int) -> tuple[float, ...]:
    """RELION writes a list of coefficients as [1.5,0,-2]."""
    if columns.optics is None or label not in columns.optics:
        return ()
    text = columns.optics.strings(label)[row]
    try:
        coefficients = tuple(float(number) for number in text.strip("[] ").split(",") if number.strip())
    except ValueError:
        coefficients = (float("nan"),)
    if not all(abs(number) <= LARGEST for number in coefficients):  # NaN is not <= anything
        columns.problems.append(
            f"optics row {row + 1}: {label} is {text!r}; expected a list of numbers such as [1.5,0,-2]"
        )
        return ()
    return coefficients
