"""Write a particle table back with its latents, in the fields in which 3D Variability and 3D Flex keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.pose_corrections import PoseCorrections
from integration.cryosparc.dataset import Records, find_passthroughs, join, read_cs, write_cs

__all__ = ["latent_columns", "with_latents", "write_particles", "write_selection"]

OWN = ("components_mode_", "flex_latent_std_")
GAIN = "flex_likelihood_gain/value"


def with_latents(
    records: Records,
    latents: NDArray[np.floating],
    latent_std: NDArray[np.floating],
    *,
    corrections: PoseCorrections | None = None,
    gains: NDArray[np.floating] | None = None,
) -> Records:
    """`records` with `components_mode_k/{component, value}` and `flex_latent_std_k/value` for each latent k, poses and
    scales in alignments3D as `corrections` have them, and `flex_likelihood_gain/value`.

    Components of an earlier job are replaced, so that none of more modes is left over. Raises ValueError when the
    numbers of rows differ, or a latent is not finite.
    """
    values, deviations = np.atleast_2d(latents), np.atleast_2d(latent_std)
    if values.shape != deviations.shape or len(values) != len(records["uid"]):
        raise ValueError(
            f"latents {values.shape} and latent_std {deviations.shape} for {len(records['uid'])} particles; expected "
            "one row each"
        )
    if not np.isfinite(values).all() or not np.isfinite(deviations).all():
        raise ValueError("latents or their standard deviations hold values that are not finite; nothing was written")
    kept = {name: column for name, column in records.items() if not name.startswith(OWN) and name != GAIN}
    for mode in range(values.shape[1]):
        kept[f"components_mode_{mode}/component"] = np.full(len(values), mode, dtype=np.uint32)
        kept[f"components_mode_{mode}/value"] = values[:, mode].astype(np.float32)
    for mode in range(values.shape[1]):
        kept[f"flex_latent_std_{mode}/value"] = deviations[:, mode].astype(np.float32)
    if gains is not None:
        kept[GAIN] = gains.astype(np.float32)
    return kept if corrections is None else kept | _corrected(kept, corrections)


def _corrected(records: Records, corrections: PoseCorrections) -> Records:
    """The fields of alignments3D that were refined: poses are axis times angle of the transpose of our rotations,
    shifts pixels of the refinement, alpha a factor on the contrast, all zero where the refinement had none."""
    found: Records = {}
    if corrections.moved:
        given = Rotation.from_rotvec(records["alignments3D/pose"].astype(np.float64)).as_matrix().transpose(0, 2, 1)
        refined = Rotation.from_matrix(corrections.rotations(given).transpose(0, 2, 1))
        pixel_A = records.get("alignments3D/psize_A", records.get("blob/psize_A"))
        assert pixel_A is not None  # the reader has seen it
        found["alignments3D/pose"] = refined.as_rotvec().astype(np.float32)
        shifts = records["alignments3D/shift"].astype(np.float64)
        shifts += corrections.shift_A / pixel_A.astype(np.float64)[:, None]
        found["alignments3D/shift"] = shifts.astype(np.float32)
    if corrections.contrast is not None:
        alpha = records.get("alignments3D/alpha", np.zeros(len(corrections))).astype(np.float64)
        found["alignments3D/alpha"] = ((alpha if alpha.any() else 1.0) * corrections.contrast).astype(np.float32)
    return found


def write_particles(
    source: str | Path,
    target: str | Path,
    latents: NDArray[np.floating],
    latent_std: NDArray[np.floating],
    *,
    corrections: PoseCorrections | None = None,
    gains: NDArray[np.floating] | None = None,
) -> Path:
    """Copy a particle table, its passthrough files joined, with all that `with_latents` adds; rows, uids and order are
    kept."""
    path = Path(source)
    records = join(read_cs(path), [(other, read_cs(other)) for other in find_passthroughs(path)])
    return write_cs(Path(target), with_latents(records, latents, latent_std, corrections=corrections, gains=gains))


def write_selection(source: Path, target: Path, kept: NDArray[np.bool_]) -> Path:
    """Copy the rows where `kept` (n,) is True, with passthrough files joined; uids and order stay."""
    records = join(read_cs(source), [(other, read_cs(other)) for other in find_passthroughs(source)])
    return write_cs(target, {name: column[kept] for name, column in records.items()})


def latent_columns(particles: Path, dims: int) -> Sequence[str]:
    """The fields of latents and their deviations in a file of ours; none in any other."""
    names = [f"{prefix}{mode}/value" for prefix in OWN for mode in range(dims)]
    try:
        records = read_cs(particles)
    except ValueError:
        return ()  # told when it is read in full
    return names if all(name in records for name in names) else ()
