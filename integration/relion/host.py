"""RELION's side of a job directory: exit files, abort file, signals, output nodes. Standard library only.

Without one of the exit files RELION believes for ever that the job runs, so exactly one is left at the end; the
exception is a job that its scheduler will start again, which is still running as far as RELION is concerned.
Sources: RELION ver3.1, ver4.0, ver5.0 (pipeline_jobs, pipeliner); exit codes as in RELION's pipeline_control.h.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from flex_job.files import written_aside
from flex_job.lock import FolderLock
from integration.common.signals import StopSignals
from job_specs.jobs import Output

__all__ = ["EXIT_CODES", "RelionJob", "leave_failure", "relion_version", "without_alias", "write_nodes"]

EXIT_CODES = {"SUCCESS": 0, "FAILURE": 1, "ABORTED": 2}
ABORT_FILE, PIPELINER_ABORT_FILE = "RELION_JOB_ABORT_NOW", "PIPELINER_JOB_ABORT_NOW"
PIPELINER_PATIENCE_S = 15.0  # ccpem-pipeliner looks for its file every 5 s
NODES_FILE = "RELION_OUTPUT_NODES.star"

# output kind -> (integer of 3.1, label of 4.0, label of 5.0); kinds that RELION has no node for are not listed
NODE_TYPES: dict[str, tuple[int, str, str]] = {
    "particles": (3, "ParticlesData.star.relion", "ParticleGroupMetadata.star.relion"),
    "map": (6, "DensityMap.mrc", "DensityMap.mrc"),
    "mask": (7, "Mask3D.mrc", "Mask3D.mrc"),
    "half_map": (10, "DensityMap.mrc.halfmap", "DensityMap.mrc.halfmap"),
    "logfile": (13, "LogFile.pdf.relion", "LogFile.pdf.relion"),
}


class RelionJob:
    """A job directory while its job runs: a context that takes signals and watches for RELION's Abort.

    `folder` is created when missing. Raises OSError from `__enter__` where the folder cannot be written. Of several
    processes at one job only the `first` touches the exit files.
    """

    def __init__(self, folder: Path, poll_seconds: float = 1.0, *, first: bool = True) -> None:
        self.folder, self.first = folder, first
        self._poll_seconds = poll_seconds
        self._next_poll = 0.0
        self._abort_seen = False
        self._signals = StopSignals()

    def __enter__(self) -> RelionJob:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.first:
            # RELION clears these before it starts a job, a scheduler's requeue does not
            for name in (*(_exit_file(status) for status in EXIT_CODES), ABORT_FILE):
                (self.folder / name).unlink(missing_ok=True)
        probe = self.folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._signals.__exit__(kind, error, where)

    @property
    def signal_name(self) -> str:
        """The signal that asked for a stop, or nothing."""
        return self._signals.name

    @property
    def aborted(self) -> bool:
        """Whether RELION's (or ccpem-pipeliner's) Abort button was pressed."""
        self._abort_seen = self._abort_seen or any(
            (self.folder / name).exists() for name in (ABORT_FILE, PIPELINER_ABORT_FILE)
        )
        return self._abort_seen

    def should_stop(self) -> bool:
        """Whether the work should be checkpointed and ended: TERM, USR1, Ctrl-C, or Abort; for that it looks at the
        disk once a second."""
        now = time.monotonic()
        if self.signal_name or now < self._next_poll:
            return bool(self.signal_name) or self._abort_seen
        self._next_poll = now + self._poll_seconds
        return self.aborted

    def finish(self, status: str) -> int:
        """Leave the exit file of `status` (a key of EXIT_CODES) as the only one; returns the exit code."""
        if not self.first:
            return EXIT_CODES[status]
        for other in EXIT_CODES:
            if other != status:
                (self.folder / _exit_file(other)).unlink(missing_ok=True)
        (self.folder / _exit_file(status)).touch()
        (self.folder / ABORT_FILE).unlink(missing_ok=True)
        if status == "ABORTED":
            self._wait_for_pipeliner()
        return EXIT_CODES[status]

    def _wait_for_pipeliner(self) -> None:
        """Stay until ccpem-pipeliner ends this job by TERM: it takes one that ended by itself for failed, abort file or
        not. It removes the file."""
        limit = time.monotonic() + PIPELINER_PATIENCE_S
        while not self.signal_name and (self.folder / PIPELINER_ABORT_FILE).exists() and time.monotonic() < limit:
            time.sleep(0.1)

    @property
    def finished(self) -> bool:
        """Whether an exit file is there."""
        return any((self.folder / _exit_file(status)).exists() for status in EXIT_CODES)


def _exit_file(status: str) -> str:
    return f"RELION_JOB_EXIT_{status}"


def leave_failure(folder: Path) -> None:
    """Leave the exit file of a job that failed before it began; without one RELION waits for ever.

    Raises FolderInUse, and leaves all as it is, where another run has the folder: the file would be news of that one.
    Raises OSError where the folder cannot be written.
    """
    with FolderLock(folder):
        RelionJob(folder).finish("FAILURE")


def without_alias(path: Path) -> Path:
    """The path by the names of job directories (External/job003), where it was given by RELION's aliases for them.

    An alias is a link beside the job directory; it can be changed at any time, and in RELION's pipeline nothing goes by
    it.
    """
    real = Path()
    for part in path.parts:
        name = part
        if os.path.islink(real / part):
            target = Path(os.readlink(real / part)).name
            same = re.fullmatch(r"job\d+", target) and os.path.isdir(real / target)
            if same and os.path.samefile(real / target, real / part):
                name = target
        real /= name
    return real


def relion_version(folder: Path) -> int:
    """Major version of the RELION that started this job, from <folder>/job.star: 3, 4 or 5; 5 when there is none."""
    try:
        text = (folder / "job.star").read_text(errors="replace")
    except OSError:
        return 5
    if "_rlnJobTypeLabel" not in text:
        return 3
    stamp = re.search(r"#\s*version\s+(\d+)", text)
    return 4 if stamp is not None and int(stamp[1]) < 50000 else 5


def write_nodes(folder: Path, outputs: Iterable[Output], version: int) -> Path:
    """Write RELION_OUTPUT_NODES.star for the outputs that exist in `folder`; returns its path.

    Both node columns always stand together: 3.1 reads the integer, 4.0 and 5.0 the label, whose name for particles
    differs between the two. Node names are `folder` as given (relative to the project) plus the file.
    """
    rows = []
    for output in outputs:
        if output.kind not in NODE_TYPES:
            continue
        number, label_4, label_5 = NODE_TYPES[output.kind]
        label = label_4 if version == 4 else label_5
        rows += [f"{folder.as_posix()}/{path.name} {label} {number}" for path in sorted(folder.glob(output.file))]
    columns = ("_rlnPipeLineNodeName", "_rlnPipeLineNodeTypeLabel", "_rlnPipeLineNodeType")
    header = [f"{name} #{number}" for number, name in enumerate(columns, start=1)]
    path = folder / NODES_FILE
    with written_aside(path) as file:
        file.write("\n".join(["", "data_output_nodes", "", "loop_", *header, *rows, "", ""]).encode())
    return path
