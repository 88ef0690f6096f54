"""Checkpoints: states of half-done work that survive whatever ends it, and that cannot be mistaken for one another.

A checkpoint is written aside, synced and renamed, and the one before it is kept beside it. Its first line has the
format's version and a hash of all that follows, which holds the key of the work that it belongs to. One that is damaged
is put aside and the one before is used; one of other work is passed over.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from flex_job.distributed import Group
from flex_job.events import Events, StopRequested
from flex_job.files import put_aside, sync_folder, written_aside
from flex_job.plain_tensors import load_tensors
from flex_job.problems import InputProblems, one_line
from flex_job.shards import Index

__all__ = ["Checkpoint", "Saver"]

FORMAT = 1
SAVE_EVERY_S = 600.0
ASK_EVERY = 32  # checks: whether it is time to save is asked of all ranks, which takes half a millisecond
HEAD = re.compile(rb"flex-job checkpoint, format (\d{6}), sha256 ([0-9a-f]{64})\n")
HEAD_BYTES = len("flex-job checkpoint, format 000001, sha256 \n") + 64


class Checkpoint:
    """The two latest states of one piece of work: `path` and, before it, `path` with .previous in its name.

    `key` identifies the work: states saved with another are not loaded. A state is a dict of tensors, numbers, texts,
    lists and dicts of these. `message` is told of what is damaged.
    """

    def __init__(self, path: Path, key: str, message: Callable[[str], None] = lambda text: None) -> None:
        self.path, self.key, self.message = path, key, message
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")

    def part(self, name: str, more_key: str = "") -> Checkpoint:
        """The checkpoint of a part of this work, in a file of its own."""
        path = self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")
        return Checkpoint(path, f"{self.key} {more_key}".strip(), self.message)

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep `state`, and the one saved before it."""
        with written_aside(self.path) as file:
            file.write(bytes(HEAD_BYTES))
            payload = _Hashed(file)
            torch.save({"key": self.key, "state": dict(state)}, cast(BinaryIO, payload))
            file.seek(0)
            file.write(_head(payload.digest()))
            file.flush()
            os.fsync(file.fileno())  # the new one is safe before the old one loses its name
            if self.path.exists():
                os.replace(self.path, self.previous)

    def load(self, group: Group | None = None) -> dict[str, Any] | None:
        """The latest state that is whole, or None; the same on all ranks of `group`, together.

        Raises InputProblems for a checkpoint of a newer version of this software, and what says that memory ran out.
        """
        path = (group or Group()).first_does(self._latest)
        return None if path is None else _payload(path)["state"]

    def clear(self) -> None:
        """Remove both states, and those of parts."""
        for path in (self.path, self.previous, *self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}")):
            path.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _latest(self) -> Path | None:
        for path in (self.path, self.previous):
            try:
                if path.exists() and _payload(path).get("key") == self.key:
                    return path
            except _Newer as error:
                raise InputProblems(
                    [
                        f"{path}: a checkpoint of format {error}; this version reads format {FORMAT}: go on with the "
                        "newer version of flex-job that wrote it, or add --restart, which throws its work away"
                    ]
                ) from None
            except (ValueError, OSError) as error:
                where = put_aside(path)
                text = one_line(error)[:200]
                self.message(f"{path} is damaged ({text}); it is now {where.name}, and what was saved before is used")
        return None


class _Newer(Exception):
    """A checkpoint that is whole, of a format that came after this version."""


class _Hashed:
    """A file that is written to from front to back, with a hash of what went there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, _new_hash(FORMAT)

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()


def _new_hash(version: int) -> Any:
    return hashlib.sha256(f"format {version}".encode())


def _head(digest: str) -> bytes:
    return f"flex-job checkpoint, format {FORMAT:06d}, sha256 {digest}\n".encode()


def _payload(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its content checked first. Raises ValueError, OSError and _Newer."""
    with path.open("rb") as file:
        head = HEAD.fullmatch(file.read(HEAD_BYTES))
        if head is None:
            raise ValueError("its first line is not that of a checkpoint")
        version, digest = int(head[1]), _new_hash(int(head[1]))
        while block := file.read(1 << 20):
            digest.update(block)
        if digest.hexdigest().encode() != head[2]:
            raise ValueError("its content is not what was written")
        if version > FORMAT:
            raise _Newer(version)
        file.seek(HEAD_BYTES)
        payload = load_tensors(file)
        if not isinstance(payload, dict) or not isinstance(payload.get("state"), dict):
            raise ValueError("it holds no state")
        return payload


class Saver:
    """Calls `save` on all ranks of a group at once: when a stop is asked for, and every SAVE_EVERY_S."""

    def __init__(self, save: Callable[[], None], group: Group, events: Events) -> None:
        self.save, self.group, self.events = save, group, events
        self._asked, self._due = 0, time.monotonic() + SAVE_EVERY_S

    def check(self) -> None:
        """Save if it is time; save and raise StopRequested if the host wants a stop. Together."""
        try:
            self.group.check_stop(self.events)
        except StopRequested:
            self.save()
            raise
        self._asked += 1
        if self._asked % ASK_EVERY == 0 and self.group.any(time.monotonic() > self._due):
            self.save()
            self._due = time.monotonic() + SAVE_EVERY_S

    def checked(self, indices: Iterable[Index]) -> Iterator[Index]:
        """Those of `indices` that hold any particle; before each, `check`. Together."""
        for index in indices:
            self.check()
            if len(index):
                yield index
