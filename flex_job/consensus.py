"""What a host hands to the engine: a consensus refinement in host-neutral terms and SI-like units.

Every convention is converted once, at the host boundary (`integration/<host>`); from here on lengths are
angstroms, angles radians, points xyz, volumes (z, y, x), image indices 0-based.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.volume import Volume

__all__ = ["PIXEL_SIZES_A", "Consensus", "OpticsGroup", "extent_problems", "random_halves"]

PIXEL_SIZES_A = (0.01, 1000.0)  # beyond, the unit is another one or the number is damaged
LARGEST_RATIO = 4.0


@dataclass(frozen=True)
class OpticsGroup:
    """Imaging conditions shared by a set of particles.

    `magnification` is RELION's matrix M (2, 2): the image's transform is the map's slice at A^T M k, so a point
    seen at p (xy, angstroms) lands at M^T p. `odd_zernike` and `even_zernike` are RELION's coefficient lists
    (`rlnOddZernike`, `rlnEvenZernike`), empty when absent. `beam_tilt_mrad` is (x, y).
    """

    name: str
    box: int
    pixel_size_A: float
    voltage_kV: float
    spherical_aberration_mm: float
    amplitude_contrast: float
    beam_tilt_mrad: tuple[float, float] = (0.0, 0.0)
    odd_zernike: tuple[float, ...] = ()
    even_zernike: tuple[float, ...] = ()
    magnification: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    premultiplied: bool = False
    phase_flipped: bool = False


@dataclass(frozen=True)
class Consensus:
    """Particles with poses, CTFs and half-sets, and the map they were refined to.

    Arrays have one entry per particle (n). `rotations` (n, 3, 3) map map coordinates to view coordinates (xyz,
    column vectors): a density at x is seen at (R x)[:2]. `origins_A` (n, 2) has RELION's sign: it is *added* to
    centre an image, so the projection lies at (R x)[:2] - origin from the image's centre, pixel box // 2.
    `halves` holds 1 or 2. `ctf_scale` multiplies the CTF, `ctf_bfactor_A2` enters as exp(-B k^2 / 4).
    `stack_index` points into `stack_paths`, `image_index` is the 0-based image in that stack.
    `latents` (n, K) are starting latents handed over by the host, if any.
    """

    rotations: NDArray[np.float64]
    origins_A: NDArray[np.float64]
    halves: NDArray[np.int8]
    optics_index: NDArray[np.int32]
    optics: tuple[OpticsGroup, ...]
    defocus_u_A: NDArray[np.float64]
    defocus_v_A: NDArray[np.float64]
    defocus_angle_rad: NDArray[np.float64]
    phase_shift_rad: NDArray[np.float64]
    ctf_bfactor_A2: NDArray[np.float64]
    ctf_scale: NDArray[np.float64]
    stack_paths: tuple[Path, ...]
    stack_index: NDArray[np.int32]
    image_index: NDArray[np.int64]
    map: Volume
    half_maps: tuple[Volume, Volume] | None = None
    mask: Volume | None = None
    latents: NDArray[np.float64] | None = None
    source_files: tuple[Path, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.halves)

    def select(self, index: NDArray[np.integer]) -> Consensus:
        """The particles at `index`, in that order; map, mask, optics and stacks as they are."""
        per_particle = (
            "rotations origins_A halves optics_index defocus_u_A defocus_v_A defocus_angle_rad phase_shift_rad "
            "ctf_bfactor_A2 ctf_scale stack_index image_index"
        ).split()
        changes = {name: getattr(self, name)[index] for name in per_particle}
        if self.latents is not None:
            changes["latents"] = self.latents[index]
        return replace(self, **changes)


def random_halves(count: int, seed: int | Sequence[int]) -> NDArray[np.int8]:
    """1 or 2 for each of `count` particles: a random split in two of the same size that depends on `seed` alone."""
    return (np.random.default_rng(seed).permutation(count) % 2 + 1).astype(np.int8)


def extent_problems(optics: Sequence[OpticsGroup], map: Volume) -> list[str]:
    """Optics groups whose images show a field much larger or smaller than the map's: one of the two scales is wrong.

    Images are cut to the map's extent or continued to it, which of a wrong scale would take any amount of memory.
    """
    across_A = map.box * map.pixel_size_A
    problems = []
    low, high = PIXEL_SIZES_A
    for group in (group for group in optics if low <= group.pixel_size_A <= high):
        images_A = group.box * group.pixel_size_A
        if images_A < across_A / LARGEST_RATIO or images_A > across_A * LARGEST_RATIO:
            problems.append(
                f"optics group {group.name}: images of {group.box} px of {group.pixel_size_A:g} A show {images_A:g} A, "
                f"and the map is {across_A:g} A across ({map.box} px of {map.pixel_size_A:g} A); expected about the "
                "same; correct the pixel size of either"
            )
    return problems
