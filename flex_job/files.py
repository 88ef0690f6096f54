"""Files that are whole or not there: written aside, synced, then renamed over what was there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from flex_job.distributed import Group

__all__ = ["written_aside", "written_together"]


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well and is gone when it does not."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def written_together(path: Path, group: Group) -> Iterator[BinaryIO]:
    """As `written_aside`, for a file that all ranks of `group` see and each writes a part of, at its own place."""
    part = path.with_name(f".{path.name}.part")
    try:
        group.first_does(lambda: part.write_bytes(b""))
        with part.open("r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        group.barrier()
        group.first_does(lambda: os.replace(part, path))
    except BaseException:
        if group.is_first:
            part.unlink(missing_ok=True)
        raise
