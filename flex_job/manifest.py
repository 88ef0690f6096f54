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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from flex_job.files import file_hash, put_aside, written_aside
from flex_job.problems import InputProblems

__all__ = [
    "Change",
    "Manifest",
    "Settings",
    "file_hash",
    "key_of",
    "peak_memory_MiB",
    "recorded",
    "stacks_hash",
    "versions",
]

SCHEMA = 2
Settings = Mapping[str, Any]  # what a stage depends on: numbers and texts by name
END_BYTES = 1 << 12  # the header, with the images' statistics, and the last image's end
READERS = 8  # that wait for a file system together


class Manifest:
    """Inputs, parameters, versions and stages of a job directory; rewritten whole, aside and renamed, at each change.

    A stage has settings: all that its result depends on, by name. It is complete when its record says so for the same
    settings and its outputs are what it wrote. The file holds a hash of its content, and the one before it is kept.
    Files that are not what was written are put aside, and `damage` has a line about each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "manifest.json"
        self.damage: list[str] = []
        self.previous = folder / "manifest.previous.json"  # not hidden: RELION overwrites a job by "rm -rf <folder>/*"
        self.record: dict[str, Any] = {"schema": SCHEMA, "stages": {}}
        for path in (self.path, self.previous):
            record = read_record(path)
            if record is not None:
                _refuse_newer(path, record)
                self.record = record
                break
            if path.exists():
                self.damage.append(f"{path} is damaged; it is now {put_aside(path).name}, and the one before is used")

    def describe(self, **entries: Any) -> None:
        """Record inputs, parameters, versions and seeds."""
        self.record.update(entries)
        self._write()

    def is_complete(self, stage: str, settings: Settings) -> bool:
        """Whether a stage need not be run. An output that is not what the stage wrote is put aside."""
        done = self.record["stages"].get(stage)
        if not done or "outputs" not in done or done["settings"] != _plain(settings):
            return False
        return all([self._is_whole(stage, self.folder / name, content) for name, content in done["outputs"].items()])

    def changes(self, stage: str, settings: Settings) -> list[Change]:
        """How `settings` differ from those that the stage was last begun with; nothing when it never was."""
        begun = self.record["stages"].get(stage)
        if not begun:
            return []
        before, now = begun["settings"], _plain(settings)
        names = [*before, *(name for name in now if name not in before)]
        return [Change(name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)]

    @contextmanager
    def stage(self, name: str, settings: Settings, outputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Run a stage: timed, its peak memory taken, recorded as complete only if it ends well. Yields a dict of
        results."""
        self.record["stages"][name] = {"settings": _plain(settings)}
        self._write()
        began = time.monotonic()
        _reset_peak_memory()
        results: dict[str, Any] = {}
        try:
            yield results
        except InputProblems:  # nothing to keep, and the input is going to change
            del self.record["stages"][name]
            self._write()
            raise
        self.record["stages"][name] |= {
            "outputs": {output: file_hash(self.folder / output) for output in sorted(outputs)},
            "seconds": round(time.monotonic() - began, 2),
            "peak_MiB": round(peak_memory_MiB(), 1),
            "results": results,
        }
        self._write()

    def results(self, stage: str) -> Mapping[str, Any]:
        """What a complete stage kept."""
        kept: Mapping[str, Any] = self.record["stages"][stage]["results"]
        return kept

    def forget(self) -> None:
        """Drop the record, and the files that its stages wrote."""
        for stage in self.record["stages"].values():
            for name in stage.get("outputs", ()):
                (self.folder / name).unlink(missing_ok=True)
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)
        self.record = {"schema": SCHEMA, "stages": {}}

    def _is_whole(self, stage: str, path: Path, content: str) -> bool:
        if not path.exists():
            return False
        if file_hash(path) != content:
            self.damage.append(
                f"{path} is not what was written there; it is now {put_aside(path).name}, and the stage {stage} is "
                "run again"
            )
            return False
        return True

    def _write(self) -> None:
        self.record.pop("sha256", None)
        text = json.dumps(self.record | {"sha256": _record_hash(self.record)}, indent=2, default=str)
        with written_aside(self.path) as file:
            file.write(f"{text}\n".encode())
            if self.path.exists():
                os.replace(self.path, self.previous)


@dataclass(frozen=True)
class Change:
    """A setting that was one value and is another now; None where there was, or is, no such setting."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        if self.name.startswith("input "):
            if self.before is not None and self.now is not None:
                return f"{self.name}: another content than before"
            before, now = ("not used" if value is None else "one content" for value in (self.before, self.now))
            return f"{self.name}: {before} before, {now} now"
        before, now = ("nothing" if value in (None, "") else value for value in (self.before, self.now))
        return f"{self.name}: {before} before, {now} now"


def recorded(folder: Path) -> dict[str, Any]:
    """The record of another job's directory, which is left as it is; empty where there is none. Raises ValueError for
    one that is damaged."""
    paths = [path for path in (folder / "manifest.json", folder / "manifest.previous.json") if path.exists()]
    found = [record for path in paths if (record := read_record(path)) is not None]
    if paths and not found:
        raise ValueError(
            f"{paths[0]}: damaged, or of an older version, so it is not known what the job there was made from; "
            "run that job again"
        )
    return found[0] if found else {}


def read_record(path: Path) -> dict[str, Any] | None:
    """What a manifest holds; None when it is missing, damaged, or of an older version."""
    try:
        record = json.loads(path.read_text())
        whole = record.pop("sha256") == _record_hash(record) and record["schema"] >= SCHEMA
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    return record if whole else None


def _refuse_newer(path: Path, record: dict[str, Any]) -> None:
    if record["schema"] > SCHEMA:
        raise InputProblems(
            [
                f"{path}: written by a newer version of flex-job (schema {record['schema']}, this version reads "
                f"{SCHEMA}): go on with that version, or delete the file, which throws away the work it describes"
            ]
        )


def _record_hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as they come back from the file."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    return plain


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
