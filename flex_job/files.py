"""Files that are whole or not there: written aside, synced, then renamed over what was there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["written_aside"]


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
