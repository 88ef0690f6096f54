"""State of a make-believe CryoSPARC instance, and what clients may do to it.

Project P3 in a folder, workspace W1, jobs with outputs to connect to. What clients did is found in `Instance.jobs`. The
fields of slots are those that cryoSPARC's files have, which for `components` and `mesh` is not published.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["SLOT_FIELDS", "Group", "Instance", "Job", "Refused", "Table"]

FILE = [("path", "O"), ("shape", "3u4"), ("psize_A", "f4")]
SLOT_FIELDS = {
    **{name: FILE for name in ("map", "map_half_A", "map_half_B", "mask_refine", "mask")},
    "mesh": [("path", "O"), ("psize_A", "f4")],
    "components": [("component", "u4"), ("value", "f4")],
    "alignments3D": [("pose", "3f4"), ("shift", "2f4"), ("psize_A", "f4"), ("alpha", "f4"), ("split", "u4")],
}
Table = dict[str, NDArray[Any]]


class Refused(Exception):
    """An answer with an error code."""


@dataclass
class Group:
    """An input or output of a job."""

    kind: str
    title: str
    slots: list[tuple[str, str, bool]]
    passthrough: str | None = None
    connections: list[tuple[str, str]] = field(default_factory=list)
    table: Table | None = None


@dataclass
class Job:
    uid: str
    kind: str
    title: str = ""
    status: str = "building"
    error: str = ""
    inputs: dict[str, Group] = field(default_factory=dict)
    outputs: dict[str, Group] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def lines(self, level: str = "text") -> list[str]:
        return [event["text"] for event in self.events if event["type"] == level]


class Instance:
    """State and what may be done to it. `refuse` is called with (operation, job) and may raise Refused; `seen` has
    the path of every request. `told_folder` is where clients are told that the project lies, `version` which
    version the instance is; empty for that of the tools."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.told_folder = folder
        self.jobs: dict[str, Job] = {}
        self.assets: dict[str, tuple[str, bytes]] = {}
        self.refuse: Callable[[str, Job | None], None] = lambda operation, job: None
        self.seen: list[str] = []
        self.version = ""
        self.lock = threading.RLock()

    def add_source(self, uid: str, **outputs: tuple[str, Table]) -> None:
        """A finished job with outputs (kind, table) by name."""
        job = self.jobs[uid] = Job(uid, "nonuniform_refine_new", status="completed")
        for name, (kind, table) in outputs.items():
            slots = {key.split("/")[0] for key in table if "/" in key}
            job.outputs[name] = Group(kind, name, [(slot, slot, True) for slot in sorted(slots)], table=table)

    def do(self, operation: str, *arguments: Any, **options: Any) -> Any:
        with self.lock:
            job = self.jobs.get(arguments[0]) if arguments else None
            self.refuse(operation, job)
            if operation != "create" and arguments and job is None:
                raise Refused(f"no job {arguments[0]}")
            return getattr(self, operation)(*([job] if operation != "create" else []), *arguments[1:], **options)

    def create(self, title: str) -> Job:
        job = Job(f"J{max((int(uid[1:]) for uid in self.jobs), default=0) + 1}", "snowflake", title)
        self.jobs[job.uid] = job
        (self.folder / job.uid).mkdir(exist_ok=True)
        return job

    def add_input(self, job: Job, name: str, kind: str, title: str, slots: list[tuple[str, str, bool]]) -> None:
        self._building(job)
        job.inputs[name] = Group(kind, title, slots)

    def add_output(
        self, job: Job, name: str, kind: str, title: str, slots: list[tuple[str, str, bool]], passthrough: str | None
    ) -> None:
        if passthrough is not None and passthrough not in job.inputs:
            raise Refused(f"no input {passthrough} to pass through")
        unknown = [dtype for _, dtype, _ in slots if dtype not in SLOT_FIELDS]
        if unknown:
            raise Refused(f"unknown slot types {unknown}")
        job.outputs[name] = Group(kind, title, slots, passthrough)

    def connect(self, job: Job, name: str, source_job: str, source_output: str) -> None:
        self._building(job)
        source = self.jobs.get(source_job)
        if source is None or source_output not in source.outputs:
            raise Refused(f"{source_job} has no output {source_output}")
        output, target = source.outputs[source_output], job.inputs[name]
        missing = {slot for slot, _, required in target.slots if required} - {slot for slot, _, _ in output.slots}
        if missing or output.kind != target.kind:
            raise Refused(f"{source_job}.{source_output} is {output.kind} without {sorted(missing)}")
        target.connections.append((source_job, source_output))

    def load_input(self, job: Job, name: str) -> Table:
        if name not in job.inputs or not job.inputs[name].connections:
            raise Refused(f"no input {name}")
        ((source, output),) = job.inputs[name].connections
        table = self.jobs[source].outputs[output].table
        assert table is not None
        return table

    def output_fields(self, job: Job, name: str) -> list[tuple[str, str]]:
        slots = job.outputs[name].slots
        return [(f"{slot}/{column}", dtype) for slot, kind, _ in slots for column, dtype in SLOT_FIELDS[kind]]

    def save_output(self, job: Job, name: str, table: Table) -> None:
        if job.status not in ("running", "waiting"):
            raise Refused(f"{job.uid} is {job.status}, not running")
        if [key for key in table if key != "uid"] != [key for key, _ in self.output_fields(job, name)]:
            raise Refused(f"fields {list(table)} of {name}")
        job.outputs[name].table = table

    def set_status(self, job: Job, status: str, error: str = "") -> None:
        job.status, job.error = status, error
        if error:
            self.log(job, error, "error")

    def log(self, job: Job, text: str, kind: str = "text", images: Any = (), event: str = "") -> str:
        if event:
            job.events[int(event)].update(text=text)
            return event
        job.events.append({"type": kind, "text": text, "images": list(images)})
        return str(len(job.events) - 1)

    def add_asset(self, name: str, content: bytes) -> str:
        self.assets[str(len(self.assets))] = (name, content)
        return str(len(self.assets) - 1)

    def _building(self, job: Job) -> None:
        if job.status != "building":
            raise Refused(f"{job.uid} is {job.status}, not building")
