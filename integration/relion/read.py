"""Read a RELION refinement (3.0, 3.1, 4 or 5) into the engine's terms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.consensus import Consensus, extent_problems, random_halves
from flex_job.consensus_volumes import NO_MAP, VolumeFiles, read_volumes
from flex_job.images import ImageReader, read_header
from flex_job.problems import InputProblems
from integration.relion.columns import Columns
from integration.relion.optics import read_optics
from integration.relion.project import (
    ImageNames,
    Optimiser,
    climbs,
    find_half_maps,
    find_map,
    find_root,
    parse_image_names,
    read_optimiser,
)
from integration.relion.rows import particle_loop
from integration.relion.star import find_optics, find_particles, read_star

__all__ = ["read_consensus"]


def read_consensus(
    particles_star: str | Path,
    *,
    map_path: str | Path | None = None,
    mask_path: str | Path | None = None,
    half_sets: str = "consensus",
    seed: int = 0,
    latent_columns: Sequence[str] = (),
    project: str | Path | None = None,
) -> Consensus:
    """Read particles, poses, CTFs and half-sets, and the map they were refined to.

    Map, half-maps and mask are those given, else those beside `particles_star` (`run_class001.mrc`,
    `run_half1_class001_unfil.mrc`, the optimiser's rlnSolventMaskName). Paths in the file are relative to `project`,
    by default found by walking up from the file. `half_sets="random"` splits the particles in two at random with
    `seed`, whatever the file says; otherwise rlnRandomSubset is needed. `latent_columns` are columns to start
    latents from. Voltage, spherical aberration, amplitude contrast, defocus, poses and origins must be there: RELION
    would put zeros in their place. Phase shift, B-factor (0), scale factor (1) and aberrations may be absent.

    Raises InputProblems with everything that is wrong.
    """
    star = Path(particles_star)
    problems: list[str] = []
    try:
        document = read_star(star)
    except ValueError as error:
        raise InputProblems([str(error)]) from None
    particles, optics = find_particles(document), find_optics(document)
    if particles is None or not len(particles):
        raise InputProblems(
            [
                f"{star}: no particles (no table with an rlnImageName column and rows); "
                "expected run_data.star of a 3D refinement"
            ]
        )
    if optics is not None and not len(optics):
        raise InputProblems([f"{star}: the optics table has no rows; give the particles as the refinement wrote them"])
    columns = Columns(particles, optics, problems)
    if (
        optics is not None
        and "rlnImageDimensionality" in optics
        and (columns.value("rlnImageDimensionality") == 3).any()
    ):
        problems.append(f"{star}: particles are subtomograms (rlnImageDimensionality 3); expected 2D images")
    optimiser = read_optimiser(star, problems)
    names = parse_image_names(particles.strings("rlnImageName"), problems)
    root = Path(project) if project is not None else find_root(star, names.stacks)
    stacks = tuple((root or Path()) / name for name in names.stacks)
    groups, optics_index = read_optics(columns, lambda: _stack_boxes(names, stacks), optimiser.phase_flipped)
    defocus_u = columns.value("rlnDefocusU")
    files = _find_volumes(star, root, map_path, mask_path, optimiser, problems)
    consensus_map, half_maps, mask = read_volumes(files, problems)
    consensus = Consensus(
        rotations=_rotations(columns),
        origins_A=_origins(columns, np.array([group.pixel_size_A for group in groups])[optics_index]),
        halves=_halves(columns, half_sets, seed),
        optics_index=optics_index,
        optics=groups,
        defocus_u_A=defocus_u,
        defocus_v_A=columns.value("rlnDefocusV") if _has(columns, "rlnDefocusV") else defocus_u,
        defocus_angle_rad=np.deg2rad(columns.value("rlnDefocusAngle", default=0.0)),
        phase_shift_rad=np.deg2rad(columns.value("rlnPhaseShift", default=0.0)),
        ctf_bfactor_A2=columns.value("rlnCtfBfactor", default=0.0),
        ctf_scale=columns.value("rlnCtfScalefactor", default=1.0),
        stack_paths=stacks,
        stack_index=names.stack_index,
        image_index=names.image_index,
        map=consensus_map,
        half_maps=half_maps,
        mask=mask,
        latents=_latents(columns, latent_columns),
        source_files=tuple(path for path in (star, optimiser.path, *files.all()) if path is not None),
    )
    problems += _layout_problems(star, len(particles))
    if consensus_map is not NO_MAP:
        problems += extent_problems(groups, consensus_map)
    reader = ImageReader(consensus)
    if not names.inside:
        problems += reader.optics_problems()
    elif root is None:
        problems += reader.optics_problems()
        problems.append(
            f"none of the {len(stacks)} image stacks is found from {star.absolute().parent} or any folder above it, "
            f"the first is {names.stacks[0]}; start the job in the project folder, or mend the paths in rlnImageName"
        )
    else:
        problems += reader.check(seed=seed)
    if problems:
        raise InputProblems(dict.fromkeys(problems))
    return consensus


def _layout_problems(star: Path, count: int) -> list[str]:
    """Whether latents can be added to the file's rows in the end, which takes one line for each."""
    try:
        lines = particle_loop(star)[2]
    except ValueError as error:
        return [str(error)]
    if lines == count:
        return []
    return [f"{star}: {count} particles in {lines} lines; expected one line for each, as RELION writes them"]


def _has(columns: Columns, label: str) -> bool:
    return label in columns.particles or (columns.optics is not None and label in columns.optics)


def _rotations(columns: Columns) -> NDArray[np.float64]:
    """(n, 3, 3) from map to view coordinates; RELION's angles turn the other way round about z, y and z."""
    angles = np.stack([columns.pose(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=1)
    matrices = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
    return np.ascontiguousarray(matrices.transpose(0, 2, 1))


def _origins(columns: Columns, pixel_size_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) angstroms; RELION 3.0 has pixels of the image."""
    particles = columns.particles
    if "rlnOriginXAngst" not in particles and "rlnOriginX" in particles:
        return np.stack([columns.pose(f"rlnOrigin{axis}") * pixel_size_A for axis in "XY"], axis=1)
    return np.stack([columns.pose(f"rlnOrigin{axis}Angst") for axis in "XY"], axis=1)


def _halves(columns: Columns, half_sets: str, seed: int) -> NDArray[np.int8]:
    """1 or 2 per particle. A random split is balanced and depends on the seed alone."""
    count = len(columns)
    if half_sets == "random":
        return random_halves(count, seed)
    if half_sets != "consensus":
        raise ValueError(f"half_sets is {half_sets!r}; expected 'consensus' or 'random'")
    advice = (
        "give the particles of a refinement with gold-standard half-sets, or ask for half_sets=random "
        "(resolutions are then too good, for the poses were not refined independently)"
    )
    if "rlnRandomSubset" not in columns.particles:
        columns.problems.append(f"no half-sets: no column rlnRandomSubset; {advice}")
        return np.ones(count, dtype=np.int8)
    subset = np.nan_to_num(columns.numbers(columns.particles, "rlnRandomSubset"))
    found = np.unique(subset)
    if found.tolist() != [1.0, 2.0]:
        values = ", ".join(f"{value:g}" for value in found[:5])
        columns.problems.append(f"no half-sets: rlnRandomSubset holds {values}; expected both 1 and 2; {advice}")
    return subset.astype(np.int8)


def _latents(columns: Columns, names: Sequence[str]) -> NDArray[np.float64] | None:
    """(n, K) from the named columns, None when none is named."""
    labels = [name.strip().removeprefix("_") for name in names]
    missing = [label for label in labels if label not in columns.particles]
    if missing:
        own = [label for label in columns.particles.labels if not label.startswith("rln")]
        columns.problems.append(
            f"latent columns {', '.join(missing)} are not in the particle table; "
            f"its columns that are not RELION's own: {', '.join(own) or 'none'}"
        )
        return None
    if not labels:
        return None
    return np.stack([columns.numbers(columns.particles, label) for label in labels], axis=1)


def _stack_boxes(names: ImageNames, stacks: Sequence[Path]) -> NDArray[np.int64]:
    """Box of each particle's images (n,) from the stack's header; 0 where it cannot be read, which is told later."""
    boxes = np.zeros(len(stacks), dtype=np.int64)
    for number, path in enumerate(stacks if names.inside else ()):
        try:
            boxes[number] = read_header(path).width
        except ValueError:
            continue
    return boxes[names.stack_index]


def _find_volumes(
    star: Path,
    root: Path | None,
    map_path: str | Path | None,
    mask_path: str | Path | None,
    optimiser: Optimiser,
    problems: list[str],
) -> VolumeFiles:
    """Those given, else those beside the particles and the mask that the optimiser names."""
    map_file = Path(map_path) if map_path else find_map(star)
    if map_file is None:
        problems.append(f"no consensus map beside {star} (such as run_class001.mrc); give one with --in_3dref")
    mask_file = Path(mask_path) if mask_path else None
    if mask_file is None and optimiser.mask_name and climbs(optimiser.mask_name):
        problems.append(
            f"the mask {optimiser.mask_name} that {optimiser.path} names is outside the project; expected one inside; "
            "give it with --in_mask"
        )
    elif mask_file is None and optimiser.mask_name:
        mask_file = (root or Path()) / optimiser.mask_name
        if not os.path.isfile(mask_file):
            problems.append(
                f"the mask {optimiser.mask_name} that {optimiser.path} names is not at {mask_file}; "
                "give one with --in_mask"
            )
            mask_file = None
    return VolumeFiles(map_file, find_half_maps(map_file, star, problems) or (), mask_file)
