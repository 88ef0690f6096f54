"""The cache of prepared particles, written in parts that are known by their hashes.

So it can be gone on with after an interruption, and what a disk has damaged is seen and made again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.checkpoint import Checkpoint
from flex_job.distributed import Group
from flex_job.files import sync_folder
from flex_job.problems import InputProblems
from flex_job.shards import Index

__all__ = ["CacheParts", "is_intact"]

PART_PARTICLES = 1024  # records of 4 bytes a coefficient: this many of any length are whole pages of 4096 bytes
BLOCK_BYTES = 1 << 22


class CacheParts:
    """Records of `n` particles, `length` bytes each, in parts of PART_PARTICLES, and three numbers per particle.

    Parts begin at whole pages, so that two hosts never write to one page. The ranks of `group` share those that are
    still to be written.
    """

    def __init__(self, n: int, length: int, group: Group) -> None:
        self.n, self.length, self.group = n, length, group
        self.digests = [""] * -(-n // PART_PARTICLES)  # empty: not written yet
        self.values = np.zeros((n, 3))
        self._ours: set[int] = set()
        self._hash = hashlib.sha256()
        self._descriptor = -1
        self.todo = n  # particles that are to be written, by all ranks
        self.count = self.most = 0  # those that this rank has written, and is to write

    @contextmanager
    def written(self, path: Path, before: Mapping[str, Any] | None, *, keep: bool) -> Iterator[None]:
        """While open, `write` works; then the file takes the name `path`. `before` is what `collected` gave to an
        earlier call, whose parts are kept where they are still the same. With `keep`, an interruption leaves the parts
        that are written for a later call. Together."""
        aside = path.with_name(f".{path.name}.part")
        self.group.first_does(lambda: self._make_ready(path, aside, before is not None))
        if before is not None:
            whole = check_parts(aside, before["digests"], self.n, self.length, self.group)
            self.digests = [digest if good else "" for digest, good in zip(before["digests"], whole, strict=True)]
            self.values = before["values"].numpy()
        self._descriptor = os.open(aside, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield
            os.fsync(self._descriptor)
            self.group.barrier()
            self.group.first_does(lambda: os.replace(aside, path))
            sync_folder(path.parent)
        except BaseException as error:
            if self.group.is_first and (not keep or isinstance(error, InputProblems)):
                aside.unlink(missing_ok=True)
            raise
        finally:
            os.close(self._descriptor)

    def batches(self, size: int) -> list[Index]:
        """This rank's particles that are to be written, at most `size` at a time, none across the end of a part. There
        are as many batches on every rank; the last may be empty."""
        todo = np.array([number for number, digest in enumerate(self.digests) if not digest], dtype=int)
        shares = [
            [batch for number in share for batch in self._of_part(int(number), size)]
            for share in np.array_split(todo, self.group.size)
        ]
        ours = shares[self.group.rank]
        self.most = sum(len(batch) for batch in ours)
        self.todo = sum(len(batch) for share in shares for batch in share)
        return ours + [np.arange(0)] * (max(len(share) for share in shares) - len(ours))

    def _of_part(self, number: int, size: int) -> list[Index]:
        end = min(self.n, (number + 1) * PART_PARTICLES)
        return [np.arange(start, min(start + size, end)) for start in range(number * PART_PARTICLES, end, size)]

    def write(self, index: Index, records: NDArray[np.float16], values: NDArray[np.float64]) -> None:
        """Write the particles `index`, the next of `batches`: their records, and their numbers (b, 3)."""
        content = memoryview(records.tobytes())
        first = int(index[0])
        if first % PART_PARTICLES == 0:
            self._hash = hashlib.sha256()
        self._hash.update(content)
        place = first * self.length
        while content:
            written = os.pwrite(self._descriptor, content, place)
            content, place = content[written:], place + written
        self.values[index] = values
        self.count += len(index)
        end = int(index[-1]) + 1
        if end % PART_PARTICLES == 0 or end == self.n:
            self.digests[first // PART_PARTICLES] = self._hash.hexdigest()
            self._ours.add(first // PART_PARTICLES)

    def collected(self) -> dict[str, Any]:
        """What all ranks have written, safe on disk: hashes of the parts and numbers of the particles. Together."""
        os.fsync(self._descriptor)
        ours = [(number, self.digests[number], self.values[self._rows(number)]) for number in sorted(self._ours)]
        for share in self.group.gathered(ours):
            for number, digest, values in share:
                self.digests[number], self.values[self._rows(number)] = digest, values
        return {"digests": list(self.digests), "values": torch.from_numpy(self.values.copy())}

    def _rows(self, number: int) -> slice:
        return slice(number * PART_PARTICLES, (number + 1) * PART_PARTICLES)

    def _make_ready(self, path: Path, aside: Path, go_on: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if go_on and not aside.exists() and path.exists():
            os.replace(path, aside)  # whole once, and damaged since
        with aside.open("r+b" if go_on and aside.exists() else "wb") as file:
            file.truncate(self.n * self.length)


def check_parts(path: Path, digests: list[str], n: int, length: int, group: Group) -> list[bool]:
    """Which parts of a cache are what was written; the ranks of `group` share the reading. Together."""
    ours = np.array_split(np.arange(len(digests)), group.size)[group.rank]
    found = []
    with path.open("rb") as file:
        for number in ours.tolist():
            file.seek(number * PART_PARTICLES * length)
            left = min(PART_PARTICLES, n - number * PART_PARTICLES) * length if digests[number] else 0
            content = hashlib.sha256()
            while left and (block := file.read(min(left, BLOCK_BYTES))):
                content.update(block)
                left -= len(block)
            found.append(content.hexdigest() == digests[number])
    return [good for share in group.gathered(found) for good in share]


def is_intact(path: Path, checkpoint: Checkpoint, n: int, length: int, group: Group) -> bool:
    """Whether a cache is still what `prepare` wrote, as its checkpoint tells. Together."""
    found = checkpoint.load(group)
    if found is None or not group.first_does(lambda: path.exists() and path.stat().st_size == n * length):
        return False
    return all(check_parts(path, found["parts"]["digests"], n, length, group))
