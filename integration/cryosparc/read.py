"""Read a cryoSPARC refinement from its `.cs` files into the engine's terms; no server is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.consensus import Consensus, extent_problems, random_halves
from flex_job.consensus_volumes import NO_MAP, read_volumes
from flex_job.images import ImageReader
from flex_job.problems import InputProblems
from integration.cryosparc.dataset import find_passthroughs, join, read_cs
from integration.cryosparc.fields import Fields
from integration.cryosparc.optics import read_optics
from integration.cryosparc.project import find_root, image_stacks
from integration.cryosparc.volumes import find_volumes

__all__ = ["latent_fields", "read_consensus"]

log = logging.getLogger("integration.cryosparc")
UNTRIED = "which was not tried against cryoSPARC itself"


def read_consensus(
    particles_cs: str | Path,
    passthroughs: Sequence[str | Path] | None = None,
    *,
    map_path: str | Path | None = None,
    mask_path: str | Path | None = None,
    half_map_paths: tuple[Path, Path] | None = None,
    half_sets: str = "consensus",
    seed: int = 0,
    latent_columns: Sequence[str] = (),
    project: str | Path | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Consensus:
    """Read particles, poses, CTFs and half-sets, and the map they were refined to.

    `passthroughs` are joined by uid; by default those beside the file are. The map is the one given, else that beside
    the file (`..._volume_map.mrc`), with its half-maps; a mask is used only where one is given. Paths in the file are
    relative to `project`, by default found by walking up from it. `half_sets="random"` splits the particles in two
    with `seed`, whatever alignments3D/split says. `latent_columns` names fields to start latents from, such as
    components_mode_0 (or components_mode_0/value).

    An image times blob/sign is that of a white particle, its contrast alignments3D/alpha times ctf/scale: all go into
    `ctf_scale`. Raises InputProblems with everything that is wrong; `warn` is told of effects taken on trust.
    """
    path = Path(particles_cs)
    problems: list[str] = []
    notes: list[str] = []
    others = [Path(other) for other in passthroughs] if passthroughs is not None else find_passthroughs(path)
    try:
        records = join(read_cs(path), [(other, read_cs(other)) for other in others])
    except ValueError as error:
        raise InputProblems([str(error)]) from None
    if not len(records["uid"]):
        raise InputProblems([f"{path}: no particles; expected those of a 3D refinement"])
    fields = Fields(records, problems)
    stacks = image_stacks(fields)
    root = Path(project) if project is not None else find_root(path, stacks.names)
    groups, optics_index, optics_shift_A = read_optics(fields, notes)
    defocus_u = fields.numbers("ctf/df1_A")
    files = find_volumes(path, map_path, mask_path, half_map_paths, problems)
    consensus_map, half_maps, mask = read_volumes(files, problems)
    consensus = Consensus(
        rotations=_rotations(fields),
        origins_A=_shifts(fields) - optics_shift_A,
        halves=_halves(fields, half_sets, seed),
        optics_index=optics_index,
        optics=groups,
        defocus_u_A=defocus_u,
        defocus_v_A=fields.numbers("ctf/df2_A"),
        defocus_angle_rad=fields.numbers("ctf/df_angle_rad"),
        phase_shift_rad=fields.numbers("ctf/phase_shift_rad", default=0.0),
        ctf_bfactor_A2=_bfactor(fields, notes),
        ctf_scale=_contrast(fields, notes),
        stack_paths=tuple((root or Path()) / name for name in stacks.names),
        stack_index=stacks.stack_index,
        image_index=stacks.image_index,
        map=consensus_map,
        half_maps=half_maps,
        mask=mask,
        latents=_latents(fields, latent_columns),
        source_files=(path, *others, *files.all()),
    )
    if consensus_map is not NO_MAP:
        problems += extent_problems(groups, consensus_map)
    reader = ImageReader(consensus)
    if root is None or not stacks.inside:
        problems += reader.optics_problems()
        if stacks.inside:
            problems.append(
                f"none of the {len(stacks.names)} image stacks is found from {path.absolute().parent} or any folder "
                f"above it, the first is {stacks.names[0]}; keep the .cs file in its job's folder in the project, or "
                "start the job in the project folder"
            )
    else:
        problems += reader.check(seed=seed)
    if problems:
        raise InputProblems(dict.fromkeys(problems))
    for note in notes:
        warn(note)
    return consensus


def latent_fields(names: Sequence[str]) -> list[str]:
    """The fields with values of 3D Variability components among `names`, in the order of their modes."""
    modes = {}
    for name in names:
        mode = name.removeprefix("components_mode_").removesuffix("/value")
        if name == f"components_mode_{mode}/value" and mode.isdecimal():
            modes[int(mode)] = name
    return [modes[mode] for mode in sorted(modes)]


def _rotations(fields: Fields) -> NDArray[np.float64]:
    """(n, 3, 3) from map to view coordinates: the transpose of the rotation that the pose (axis times angle) means."""
    poses = np.nan_to_num(fields.numbers("alignments3D/pose", 3))
    return np.ascontiguousarray(Rotation.from_rotvec(poses).as_matrix().transpose(0, 2, 1))


def _shifts(fields: Fields) -> NDArray[np.float64]:
    """(n, 2) angstroms, with RELION's sign; in the file they are pixels of the refinement's own pixel size."""
    name = "alignments3D/psize_A" if "alignments3D/psize_A" in fields else "blob/psize_A"
    pixel_A = fields.numbers(name)
    if (pixel_A <= 0).any():
        fields.problems.append(f"field {name} is zero or less for {(pixel_A <= 0).sum()} particles; expected angstroms")
    return fields.numbers("alignments3D/shift", 2) * pixel_A[:, None]


def _halves(fields: Fields, half_sets: str, seed: int) -> NDArray[np.int8]:
    """1 or 2 per particle. A random split is balanced and depends on the seed alone."""
    count = len(fields)
    if half_sets == "random":
        return random_halves(count, seed)
    if half_sets != "consensus":
        raise ValueError(f"half_sets is {half_sets!r}; expected 'consensus' or 'random'")
    split = fields.indices("alignments3D/split")
    found = np.unique(split).tolist()
    if "alignments3D/split" in fields and found != [0, 1]:
        fields.problems.append(
            f"no half-sets: alignments3D/split holds {', '.join(map(str, found[:5]))}; expected both 0 and 1; give the "
            "particles of a gold-standard refinement, or ask for half_sets=random (resolutions are then too good, for "
            "the poses were not refined independently)"
        )
    return (split.clip(0, 1) + 1).astype(np.int8)


def _bfactor(fields: Fields, notes: list[str]) -> NDArray[np.float64]:
    values = fields.numbers("ctf/bfactor", default=0.0)
    if np.nan_to_num(values).any():
        notes.append(f"ctf/bfactor: taken as exp(-B k^2 / 4) on the CTF, {UNTRIED}")
    return values


def _contrast(fields: Fields, notes: list[str]) -> NDArray[np.float64]:
    """The factor (n,) on the CTF: sign of the data, the refinement's scale, and that of the CTF."""
    sign = fields.numbers("blob/sign", default=1.0)
    if not np.isin(sign, (-1.0, 1.0)).all() and "blob/sign" in fields:
        fields.problems.append("field blob/sign holds more than 1 and -1; extract or import the particles again")
    elif np.ptp(np.nan_to_num(sign)) > 0:
        notes.append(f"blob/sign differs between particles: taken as the sign of their contrast, {UNTRIED}")
    factors = []
    for name in ("alignments3D/alpha", "ctf/scale"):
        factor = fields.numbers(name, default=1.0)
        unset = not factor.any()
        if not unset and (factor <= 0).any():
            fields.problems.append(
                f"field {name} is zero or less for {(factor <= 0).sum()} particles; expected a positive scale; leave "
                "them out (Subset Particles by Statistic, per-particle scale)"
            )
        factors.append(np.ones(len(fields)) if unset else factor)
        if not unset and np.ptp(np.nan_to_num(factor)) > 0:
            notes.append(f"{name}: taken as a factor on each particle's contrast, {UNTRIED}")
    if fields.numbers("ctf/scale_const", default=0.0).any():
        fields.problems.append(
            "field ctf/scale_const is not zero, and what it stands for is not known; set it to zero or leave it out"
        )
    return sign * factors[0] * factors[1]


def _latents(fields: Fields, names: Sequence[str]) -> NDArray[np.float64] | None:
    """(n, K) from the named fields, None when none is named."""
    labels = [name if name in fields else f"{name}/value" for name in names]
    missing = [label for label in labels if label not in fields]
    if missing:
        there = latent_fields(list(fields.records))
        fields.problems.append(
            f"latent fields {', '.join(missing)} are not in the particle table; it has {', '.join(there) or 'none'}"
        )
        return None
    return np.stack([fields.numbers(label) for label in labels], axis=1) if labels else None
