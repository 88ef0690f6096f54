"""Write a particle table back with its latents, in the fields in which 3D Variability and 3D Flex keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from integration.cryosparc.dataset import Records, find_passthroughs, join, read_cs, write_cs

__all__ = ["latent_columns", "with_latents", "write_particles"]

OWN = ("components_mode_", "flex_latent_std_")


def with_latents(records: Records, latents: NDArray[np.floating], latent_std: NDArray[np.floating]) -> Records:
    """`records` with `components_mode_k/{component, value}` and `flex_latent_std_k/value` for each latent k.

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
    kept = {name: column for name, column in records.items() if not name.startswith(OWN)}
    for mode in range(values.shape[1]):
        kept[f"components_mode_{mode}/component"] = np.full(len(values), mode, dtype=np.uint32)
        kept[f"components_mode_{mode}/value"] = values[:, mode].astype(np.float32)
    for mode in range(values.shape[1]):
        kept[f"flex_latent_std_{mode}/value"] = deviations[:, mode].astype(np.float32)
    return kept


def write_particles(
    source: str | Path, target: str | Path, latents: NDArray[np.floating], latent_std: NDArray[np.floating]
) -> Path:
    """Copy a particle table, its passthrough files joined, with the latents added; rows, uids and order are kept."""
    path = Path(source)
    records = join(read_cs(path), [(other, read_cs(other)) for other in find_passthroughs(path)])
    return write_cs(Path(target), with_latents(records, latents, latent_std))


def latent_columns(particles: Path, dims: int) -> Sequence[str]:
    """The fields of latents and their deviations in a file of ours; none in any other."""
    names = [f"{prefix}{mode}/value" for prefix in OWN for mode in range(dims)]
    try:
        records = read_cs(particles)
    except ValueError:
        return ()  # told when it is read in full
    return names if all(name in records for name in names) else ()
