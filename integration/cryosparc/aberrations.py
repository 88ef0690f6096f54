"""cryoSPARC's higher-order aberrations and magnification in the engine's (RELION's) terms.

cryoSPARC keeps them per exposure group in angstroms, in the notation of aberration correctors (Haider et al.): with
k = |k| (cos t, sin t) in 1/A and the wavelength l,

    odd   = -2 pi [ B . k l^2 |k|^2 + (1/3) l^2 |k|^3 (A0 cos 3t + A1 sin 3t) ]
    even  =  2 pi l^3 |k|^4 [ T0 cos 2t + T1 sin 2t + (1/4) (T2 cos 4t + T3 sin 4t) ]

B is tilt_A (axial coma, Cs times the beam tilt), A trefoil_A, T tetra_A. `even` adds to the phase in which Cs stands as
+(pi/2) Cs l^3 |k|^4. shift_A is an image shift, taken off the alignment's. Sources: magnitudes, angles and the sign of
`even` agree with a published reader of .cs files (specter) that cites cryoSPARC's own code; tilt has the sign that pyem
gives it; neither was tried against cryoSPARC itself. anisomag is RELION's magnification matrix less the identity
(specter; its default of zeros means no distortion), and is also understood as the whole matrix (pyem).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Matrix", "even_zernike", "magnification", "odd_zernike"]

LARGEST_DISTORTION = 0.3
Matrix = tuple[tuple[float, float], tuple[float, float]]


def odd_zernike(tilt_A: NDArray[np.float64], trefoil_A: NDArray[np.float64], wavelength_A: float) -> tuple[float, ...]:
    """Six coefficients in the order of rlnOddZernike (n = 1: m = -1, 1; n = 3: m = -3, -1, 1, 3); none where all are 0.

    |k|^3 cos t is a third of Z(3, 1) and two thirds of Z(1, 1), the same with sines.
    """
    if not np.any(tilt_A) and not np.any(trefoil_A):
        return ()
    strength = -2.0 * math.pi * wavelength_A**2
    coma_x, coma_y = (strength * float(value) for value in tilt_A)
    three_cos, three_sin = (strength / 3.0 * float(value) for value in trefoil_A)
    return (2 * coma_y / 3, 2 * coma_x / 3, three_sin, coma_y / 3, coma_x / 3, three_cos)


def even_zernike(tetra_A: NDArray[np.float64], wavelength_A: float) -> tuple[float, ...]:
    """Nine coefficients in the order of rlnEvenZernike (n = 0; n = 2: m = -2, 0, 2; n = 4: m = -4 to 4); none where
    all are 0.

    |k|^4 cos 2t is a quarter of Z(4, 2) and three quarters of Z(2, 2), the same with sines.
    """
    if not np.any(tetra_A):
        return ()
    strength = 2.0 * math.pi * wavelength_A**3
    two_cos, two_sin, four_cos, four_sin = (strength * float(value) for value in tetra_A)
    return (
        0.0,
        *(3 * two_sin / 4, 0.0, 3 * two_cos / 4),
        *(four_sin / 4, two_sin / 4, 0.0, two_cos / 4, four_cos / 4),
    )


def magnification(anisomag: NDArray[np.float64]) -> Matrix:
    """The matrix M (2, 2) of anisomag (4,), row by row. Raises ValueError when it is no small distortion."""
    given = np.asarray(anisomag, dtype=np.float64).reshape(2, 2)
    whole = min((given, given + np.eye(2)), key=lambda matrix: float(np.abs(matrix - np.eye(2)).max()))
    if np.abs(whole - np.eye(2)).max() > LARGEST_DISTORTION:
        numbers = ", ".join(f"{value:g}" for value in given.ravel())
        raise ValueError(
            f"ctf/anisomag is ({numbers}); expected a magnification matrix less the identity, all within "
            f"{LARGEST_DISTORTION:g}; estimate the anisotropic magnification again, or set it to zero"
        )
    (xx, xy), (yx, yy) = whole.tolist()
    return (xx, xy), (yx, yy)
