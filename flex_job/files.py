"""Files that are whole or not there: written aside, synced, then renamed over what was there. Standard library only."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["file_hash", "path_aside", "put_aside", "sync_folder", "write_csv", "written_aside"]


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well and is gone when it does not."""
    with path_aside(path) as part, part.open("wb") as file:
        yield file


@contextmanager
def path_aside(path: Path, suffix: str = ".part") -> Iterator[Path]:
    """As `written_aside`, for writers that want a path: what they leave there is renamed to `path`. `suffix` is for
    those that also want it to end in a certain way."""
    part = path.with_name(f".{path.name}{suffix}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """A table of comma-separated values, its columns' `names` first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    with written_aside(path) as file:
        file.write(text.getvalue().encode())
    return path


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files on disk: a rename that was not synced may be lost with the power."""
    with suppress(OSError):  # some network file systems cannot; they keep names in step by themselves
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_aside(path: Path) -> Path:
    """Rename a damaged file, so that it can be looked at and is not met again; returns its new path."""
    damaged = path.with_name(f"{path.name}.damaged")
    os.replace(path, damaged)
    sync_folder(path.parent)
    return damaged


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
