"""`manifest.json`: what a job directory was made from, and which of its stages are complete and need no second run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Manifest", "file_hash", "key_of", "peak_memory_MiB", "stacks_hash", "versions"]

SCHEMA = 1
END_BYTES = 1 << 12  # the header, with the images' statistics, and the last image's end
READERS = 8  # that wait for a file system together


class Manifest:
    """Inputs, parameters, versions and stages of a job directory; rewritten whole, aside and renamed, at each change.

    A stage is complete when its record is there, its key (a hash of what it depends on) is the same, and its outputs
    still exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "manifest.json"
        self.record: dict[str, Any] = {"schema": SCHEMA, "stages": {}}
        if self.path.exists():
            try:
                record = json.loads(self.path.read_text())
            except ValueError:
                record = None  # a damaged manifest only costs the work that it described
            if isinstance(record, dict) and record.get("schema") == SCHEMA and isinstance(record.get("stages"), dict):
                self.record = record

    def describe(self, **entries: Any) -> None:
        """Record inputs, parameters, versions and seeds."""
        self.record.update(entries)
        self._write()

    def is_complete(self, stage: str, key: str) -> bool:
        done = self.record["stages"].get(stage)
        return bool(done) and done["key"] == key and all((self.folder / name).exists() for name in done["outputs"])

    @contextmanager
    def stage(self, name: str, key: str, outputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Run a stage: timed, its peak memory taken, recorded only if it ends well. Yields a dict of results."""
        self.record["stages"].pop(name, None)
        self._write()
        began = time.monotonic()
        _reset_peak_memory()
        results: dict[str, Any] = {}
        yield results
        self.record["stages"][name] = {
            "key": key,
            "outputs": sorted(outputs),
            "seconds": round(time.monotonic() - began, 2),
            "peak_MiB": round(peak_memory_MiB(), 1),
            "results": results,
        }
        self._write()

    def results(self, stage: str) -> Mapping[str, Any]:
        """What a complete stage kept."""
        kept: Mapping[str, Any] = self.record["stages"][stage]["results"]
        return kept

    def _write(self) -> None:
        aside = self.path.with_name(f".{self.path.name}.part")
        aside.write_text(json.dumps(self.record, indent=2, default=str) + "\n")
        os.replace(aside, self.path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stacks_hash(paths: Sequence[Path]) -> str:
    """One hash for image stacks in their order, which may be tens of thousands or hundreds of gigabytes.

    Each is known by size, time of modification and END_BYTES at either end: seconds for all, where their contents
    would take hours. A stack that was only touched, or copied without its time, counts as another one, and costs a
    preparation of the particles once more.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(READERS, thread_name_prefix="stacks") as pool:
        for mark in pool.map(_stack_mark, paths, chunksize=1):
            digest.update(mark)
    return digest.hexdigest()


def _stack_mark(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} ".encode())
        digest.update(os.pread(descriptor, END_BYTES, 0))
        if status.st_size > END_BYTES:
            digest.update(os.pread(descriptor, END_BYTES, max(END_BYTES, status.st_size - END_BYTES)))
    finally:
        os.close(descriptor)
    return str(path).encode() + b"\0" + digest.digest()


def key_of(*parts: object) -> str:
    """A short hash of what a stage depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = ("flex-job", "numpy", "torch", "numba", "scipy", "tetgen", "mrcfile")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def peak_memory_MiB() -> float:
    """Peak resident memory of this process since the last reset, MiB (0 where the system does not tell)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def _reset_peak_memory() -> None:
    with suppress(OSError):  # elsewhere than on Linux the peak is that of the whole run
        Path("/proc/self/clear_refs").write_text("5")
