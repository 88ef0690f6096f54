"""The refined map, its halves and the mask: found beside a particle file."""

from __future__ import annotations

from pathlib import Path

from flex_job.consensus_volumes import VolumeFiles

__all__ = ["find_volumes"]

MAP_ENDING = "_volume_map.mrc"


def find_volumes(
    particles: Path,
    map_path: str | Path | None,
    mask_path: str | Path | None,
    half_map_paths: tuple[Path, Path] | None,
    problems: list[str],
) -> VolumeFiles:
    """Those given, else the last iteration's `..._volume_map.mrc` beside the particles, and the half-maps beside it."""
    there = sorted(particles.parent.glob(f"*{MAP_ENDING}"))
    map_file = Path(map_path) if map_path else there[-1] if there else None
    if map_file is None:
        problems.append(f"no consensus map beside {particles} (*{MAP_ENDING}); give one with --in_3dref")
    halves: tuple[Path, ...] = half_map_paths or ()
    if not halves and map_file is not None and map_file.name.endswith("map.mrc"):
        stem = map_file.name.removesuffix(".mrc")
        beside = tuple(map_file.with_name(f"{stem}_half_{half}.mrc") for half in "AB")
        halves = beside if all(path.is_file() for path in beside) else ()
    return VolumeFiles(map_file, halves, Path(mask_path) if mask_path else None)
