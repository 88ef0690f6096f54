"""Opening files that a user, a host or another file names: regular files only, and nothing that could make us wait.

Links are followed, for hosts use them everywhere. A pipe is opened without waiting for its other end and then refused,
as are devices, sockets and folders.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from flex_job.problems import one_line

__all__ = ["open_input", "opened_input", "read_input"]


def open_input(path: Path, what: str, expected: str) -> int:
    """A descriptor for reading. Raises ValueError, with the path, for all but regular files; `what` the file is to be
    ("STAR file") and what is `expected` of it are told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise ValueError(one_line(f"{path}: no such {what}; expected {expected}")) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            one_line(f"{path}: cannot be read ({reason}); expected {expected}; check path and permissions")
        ) from None
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    found = "a folder" if stat.S_ISDIR(kind) else "a device, pipe or socket"
    raise ValueError(one_line(f"{path}: {found}; expected {expected}"))


def opened_input(path: Path, what: str, expected: str, most_bytes: int) -> BinaryIO:
    """The file, open. Raises ValueError as `open_input` does, and for more than `most_bytes`."""
    file = os.fdopen(open_input(path, what, expected), "rb")
    size = os.fstat(file.fileno()).st_size
    if size > most_bytes:
        file.close()
        raise ValueError(one_line(f"{path}: {size} bytes; expected {expected}, of at most {most_bytes} bytes"))
    return file


def read_input(path: Path, what: str, expected: str, most_bytes: int) -> bytes:
    """The file's bytes. Raises ValueError as `open_input` does, and for more than `most_bytes`."""
    try:
        with opened_input(path, what, expected, most_bytes) as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(one_line(f"{path}: cannot be read ({error.strerror}); expected {expected}")) from None
    if len(content) > most_bytes:  # files of /proc tell no size
        raise ValueError(one_line(f"{path}: more than {most_bytes} bytes; expected {expected}"))
    return content
