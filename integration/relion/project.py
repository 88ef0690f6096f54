"""Where things are in a RELION project: image stacks, the optimiser's file, the refined map and its halves."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from integration.relion.star import read_star, read_table

__all__ = [
    "ImageNames",
    "Optimiser",
    "climbs",
    "find_half_maps",
    "find_map",
    "find_root",
    "parse_image_names",
    "read_optimiser",
]

PROBED_STACKS = 20
IMAGE_NUMBER = re.compile("[0-9]{1,15}")


@dataclass(frozen=True)
class ImageNames:
    """Stacks as named in the STAR file, and for each particle its stack and its 0-based image there.

    `inside` says that no name climbs out of the project; else no stack is to be opened.
    """

    stacks: tuple[str, ...]
    stack_index: NDArray[np.int32]
    image_index: NDArray[np.int64]
    inside: bool = True


@dataclass(frozen=True)
class Optimiser:
    """What `run_optimiser.star` adds to the particle file."""

    path: Path | None = None
    mask_name: str | None = None
    phase_flipped: bool = False


def parse_image_names(names: Sequence[str], problems: list[str]) -> ImageNames:
    """Take `000001@Extract/job005/a.mrcs` (1-based) apart; a name without @ is a file of one image."""
    numbers: dict[str, int] = {}
    stack_index = np.zeros(len(names), dtype=np.int32)
    image_index = np.zeros(len(names), dtype=np.int64)
    broken = []
    for row, name in enumerate(names):
        image, at, stack = name.rpartition("@")
        stack_index[row] = numbers.setdefault(stack, len(numbers))
        if not at and stack:
            continue
        if stack and IMAGE_NUMBER.fullmatch(image):
            image_index[row] = int(image) - 1
        else:
            broken.append((row, name))
    if broken:
        row, name = broken[0]
        problems.append(
            f"column rlnImageName: {len(broken)} values are not number@stack, the first is {name!r} in row {row + 1}; "
            "expected such as 000001@Extract/job005/a.mrcs; correct them or remove these rows"
        )
    outside = [stack for stack in numbers if climbs(stack)]
    if outside:
        problems.append(
            f"column rlnImageName: {len(outside)} image stacks are outside the project, the first is {outside[0]}; "
            "expected names relative to the project folder; link what you need into the project (ln -s), or give its "
            "full path"
        )
    return ImageNames(tuple(numbers), stack_index, image_index, not outside)


def climbs(name: str) -> bool:
    """Whether a relative name leaves the folder that it is relative to.

    RELION writes no such names, and since the project folder is searched for, they might mean any file. Full paths are
    usual and say what they mean, links inside the project are made on purpose: both are followed.
    """
    return ".." in name and os.path.normpath(name).split("/")[0] == ".."


def find_root(star: Path, stacks: Sequence[str]) -> Path | None:
    """The folder relative to which most of `stacks` exist: the nearest at or above the STAR file, else the current.

    RELION's paths are relative to the project folder, and a STAR file lies somewhere below it. None: none exists.
    """
    step = max(1, len(stacks) // PROBED_STACKS)
    probes = stacks[::step]
    candidates = [*star.absolute().parents, *star.resolve().parents, Path.cwd()]
    counts = [sum(os.path.isfile(folder / probe) for probe in probes) for folder in candidates]
    best = max(counts)
    return candidates[counts.index(best)] if best else None


def read_optimiser(star: Path, problems: list[str]) -> Optimiser:
    """Read `run_optimiser.star` beside `run_data.star`; empty when there is none."""
    prefix = _prefix(star, "_data.star")
    path = star.with_name(f"{prefix}_optimiser.star") if prefix else None
    if path is None or not path.is_file():
        return Optimiser()
    try:
        block = read_star(path).find_block("optimiser_general")
    except ValueError as error:
        problems.append(str(error))
        return Optimiser()
    table = None if block is None else read_table(block)
    if table is None:
        return Optimiser(path)

    def value(label: str) -> str:
        return table.strings(label)[0] if label in table and len(table) else ""

    mask = value("rlnSolventMaskName")
    flipped = value("rlnCtfDataArePhaseFlipped").lower() in ("1", "true", "yes")
    return Optimiser(path, None if mask in ("", "None") else mask, flipped)


def find_map(star: Path) -> Path | None:
    """`run_class001.mrc` beside `run_data.star`, if it is there."""
    prefix = _prefix(star, "_data.star")
    path = star.with_name(f"{prefix}_class001.mrc") if prefix else None
    return path if path is not None and path.is_file() else None


def find_half_maps(map_path: Path | None, star: Path, problems: list[str]) -> tuple[Path, Path] | None:
    """The unfiltered half-maps beside the map, else beside the STAR file; None when neither has any."""
    places = [(star, _prefix(star, "_data.star"))]
    if map_path is not None:
        places.insert(0, (map_path, _prefix(map_path, "_class001.mrc")))
    for beside, prefix in places:
        if not prefix:
            continue
        for ending in ("class001_unfil.mrc", "class001.mrc"):
            first, second = (beside.with_name(f"{prefix}_half{half}_{ending}") for half in (1, 2))
            if first.is_file() and second.is_file():
                return first, second
            if first.is_file() or second.is_file():
                problems.append(f"only one of the two half-maps {first} and {second.name} is there; expected both")
                return None
    return None


def _prefix(path: Path, ending: str) -> str:
    """`run` for `run_data.star`; empty when the name does not end so."""
    match = re.fullmatch(rf"(.+){re.escape(ending)}", path.name)
    return match[1] if match else ""
