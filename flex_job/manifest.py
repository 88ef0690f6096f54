"""`manifest.json`: what a job directory was made from, and which of its stages are complete and need no second run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Manifest", "file_hash", "key_of", "peak_memory_MiB", "versions"]

SCHEMA = 1


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


def file_hash(path: Path, whole_below: int = 1 << 28) -> str:
    """SHA-256 of a file; of size and both ends for files so large that reading them would cost minutes."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        if size <= whole_below:
            while block := file.read(1 << 20):
                digest.update(block)
        else:
            digest.update(file.read(1 << 20))
            file.seek(-(1 << 20), os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


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
