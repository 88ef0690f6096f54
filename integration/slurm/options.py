"""What a submission can be asked for besides the job itself: declared like the parameters of a job, standard library
only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from job_specs.jobs import pick
from job_specs.parameter import check, parameter, parameters_of

__all__ = ["SubmitOptions", "read_options", "seconds_of"]

# sbatch's --time: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]
TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+))?(?::(?P<seconds>\d+))?|(?P<plain>\d+(?::\d+){0,2}))"
)
WORD = re.compile(r"[A-Za-z0-9_.,:=+@/%-]*")  # of the script's #SBATCH lines: nothing there is quoted


@dataclass(frozen=True)
class SubmitOptions:
    """Resources and the way of a submission. Counts are for each node, as `--gres` and `--mem` count."""

    partition: str = parameter("", help="Partition (queue)", tier="main")
    gpus: int = parameter(0, help="GPUs on each node", bounds=(0, 64), tier="main")
    time: str = parameter(
        "", help="Time limit as sbatch takes it: minutes, H:MM:SS or D-HH:MM:SS; empty for the site's", tier="main"
    )
    nodes: int = parameter(1, help="Nodes; with several, one process per GPU is started by srun", bounds=(1, 64))
    cpus: int = parameter(0, help="CPU cores on each node; 0 takes --j for each process", bounds=(0, 1024))
    mem: str = parameter("", help="Memory of each node, as 64G; empty for the site's default")
    account: str = parameter("", help="Account to charge")
    qos: str = parameter("", help="Quality of service")
    job_name: str = parameter("", help="Name in the queue; empty makes one of job and job directory")
    requeue: bool = parameter(
        True, help="Start the job again after preemption or when its time runs out, until it is done"
    )
    warn: int = parameter(
        300,
        help="How long before the time limit the job is told to save its work; at most a tenth of it",
        unit="s",
        bounds=(10, 36_000),
    )
    template: str = parameter(
        "", help="Jinja2 template of the batch script, such as cryoSPARC's cluster_script.sh", file=True
    )
    variables: str = parameter("", help="Further variables of the template, as time_requested=4:00:00,lane=gpu")
    submit_command: str = parameter(
        "sbatch", help="Command that takes the script's path, as sbatch or 'qsub {{ script_path_abs }}'"
    )
    dry_run: bool = parameter(False, help="Print the script instead of submitting it")

    @property
    def tasks_per_node(self) -> int:
        """One process per GPU on several nodes; on one node the job starts its processes itself."""
        return max(1, self.gpus) if self.nodes > 1 else 1

    @property
    def warn_s(self) -> int:
        """Seconds before the time limit at which USR1 is wanted."""
        limit = seconds_of(self.time) if self.time else None
        return self.warn if limit is None else max(10, min(self.warn, limit // 10))

    @property
    def further(self) -> dict[str, str]:
        """The further variables of a template."""
        pairs = (item.partition("=") for item in self.variables.split(",") if item.strip())
        return {name.strip(): value.strip() for name, _, value in pairs}


def seconds_of(time: str) -> int | None:
    """Seconds of a time limit as sbatch takes it; None for what is none, such as UNLIMITED."""
    found = TIME.fullmatch(time)
    if found is None:
        return None
    if found["plain"]:
        parts = [int(part) for part in found["plain"].split(":")]
        weights = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(parts)]
    else:
        parts = [int(found[name] or 0) for name in ("days", "hours", "minutes", "seconds")]
        weights = (86400, 3600, 60, 1)
    return sum(part * weight for part, weight in zip(parts, weights, strict=True))


def read_options(given: Mapping[str, str]) -> tuple[SubmitOptions, list[str]]:
    """Options from texts by name, and everything wrong with them, one line each."""
    values, problems = pick({entry.name: entry for entry in parameters_of(SubmitOptions)}, given, "command line")
    options = SubmitOptions(**values)
    problems += check(options)
    for name in ("partition", "time", "mem", "account", "qos", "job_name"):
        text = getattr(options, name)
        if WORD.fullmatch(text) is None:
            problems.append(f"{name}: {text!r} was given; expected letters, digits and _.,:=+@/%- only")
    if options.time and seconds_of(options.time) is None and options.time.upper() not in ("UNLIMITED", "INFINITE"):
        problems.append(f"time: {options.time!r} was given; expected a time limit such as 90, 4:00:00 or 2-12:00:00")
    if seconds_of(options.time) == 0:
        problems.append(f"time: {options.time!r} was given; expected more than none")
    if options.mem and memory_gb(options.mem) is None:
        problems.append(f"mem: {options.mem!r} was given; expected a size such as 64G or 16000M")
    try:
        shlex.split(options.submit_command)
    except ValueError as error:
        problems.append(f"submit_command: {options.submit_command!r} was given ({error}); expected one such as sbatch")
    for item in filter(str.strip, options.variables.split(",")):
        name, sign, _ = item.partition("=")
        if not sign or not name.strip().isidentifier():
            problems.append(f"variables: {item.strip()!r} was given; expected name=value")
    return options, problems


def memory_gb(text: str) -> float | None:
    """Gigabytes of a size as sbatch takes it (megabytes without a unit); None for what is none."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    return None if found is None else int(found[1]) * 1024.0 ** ("KMGT".index(found[2] or "M") - 2)
