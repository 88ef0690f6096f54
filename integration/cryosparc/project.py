"""Where things are in a cryoSPARC project: image stacks named by the particle table, and the project's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from integration.cryosparc.fields import Fields

__all__ = ["ImageStacks", "find_root", "image_stacks", "inside_project", "project_path"]

PROBED_STACKS = 20


@dataclass(frozen=True)
class ImageStacks:
    """Stacks relative to the project, and for each particle its stack and its 0-based image there.

    `inside` says that all lie in the project; else none is to be opened.
    """

    names: tuple[str, ...]
    stack_index: NDArray[np.int32]
    image_index: NDArray[np.int64]
    inside: bool


def image_stacks(fields: Fields) -> ImageStacks:
    """blob/path and blob/idx, taken apart."""
    numbers: dict[str, int] = {}
    stack_index = np.array(
        [numbers.setdefault(project_path(text), len(numbers)) for text in fields.strings("blob/path")], dtype=np.int32
    )
    outside = [name for name in numbers if not inside_project(name)]
    if outside and "blob/path" in fields:
        fields.problems.append(
            f"field blob/path: {len(outside)} image stacks are outside the project, the first is {outside[0]!r}; "
            "expected names relative to the project folder, as cryoSPARC writes them"
        )
    return ImageStacks(tuple(numbers), stack_index, fields.indices("blob/idx"), not outside)


def project_path(text: str) -> str:
    """A path as cryoSPARC writes it, without the > that stands before some."""
    return text.removeprefix(">")


def inside_project(name: str) -> bool:
    """Whether a name stays in the folder it is relative to; links in a project are made on purpose and followed."""
    return bool(name) and not os.path.isabs(name) and os.path.normpath(name).split("/")[0] != ".." and "\0" not in name


def find_root(path: Path, stacks: Sequence[str]) -> Path | None:
    """The folder relative to which most of `stacks` exist: the nearest at or above `path`, else the current one."""
    probes = [name for name in stacks[:: max(1, len(stacks) // PROBED_STACKS)] if inside_project(name)]
    candidates = [*path.absolute().parents, *path.resolve().parents, Path.cwd()]
    counts = [sum(os.path.isfile(folder / probe) for probe in probes) for folder in candidates]
    best = max(counts)
    return candidates[counts.index(best)] if best else None
