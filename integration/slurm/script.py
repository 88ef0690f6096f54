"""A batch script from a Jinja2 template: ours, or one that a site has for cryoSPARC, whose variables are all there.

No value that a user gives reaches a shell as anything but itself. Our template quotes; a site's may put a value
anywhere, so with one of those only such values are accepted as need no quotes wherever they stand.
Source of the variables' names: cryoSPARC Guide, cluster integration (cluster_script.sh, cluster_info.json).
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from jinja2 import meta

from integration.common.requeue import RESUMABLE, SELF_REQUEUE
from integration.slurm.options import SubmitOptions, memory_gb

__all__ = ["SCRIPT_FILE", "Submission", "TemplateProblem", "relion_template", "render"]

SCRIPT_FILE = "run_submit.script"  # as RELION calls its own
OUT_FILE, ERR_FILE = "run.out", "run.err"
EXECUTABLE = "flex-job"
DEFAULT_RAM_GB = 32.0  # cryoSPARC always states one
PLAIN = re.compile(r"[\w@+=:,./-]*")  # the same in bash inside and outside of any quotes; no % for sbatch's file names


class TemplateProblem(ValueError):
    """A script cannot be made; each line of the text is a problem."""


@dataclass(frozen=True)
class Submission:
    """A job as it is to be started: `flags` are texts by flag name, without --o, which is `folder`."""

    job: str
    folder: Path
    flags: Mapping[str, str]
    options: SubmitOptions

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        given = self.flags.get("threads", "")
        return int(float(given)) if given else max(1, self.options.cpus // self.options.tasks_per_node)

    @property
    def arguments(self) -> list[str]:
        """What follows the executable. One token for flag and value: a value may begin with dashes."""
        flags = {**self.flags, "threads": str(self.threads)}
        return [self.job, f"--o={self.folder.as_posix()}/", *(f"--{name}={value}" for name, value in flags.items())]

    @property
    def uses_slurm(self) -> bool:
        tokens = shlex.split(self.options.submit_command)
        return bool(tokens) and Path(tokens[0]).name == "sbatch"


def render(submission: Submission) -> str:
    """The batch script. Raises TemplateProblem for a template that is none, names a variable that there is not, or
    would put a value where it does harm."""
    path = submission.options.template
    environment = _environment()
    source = Path(path).read_text() if path else (files("integration.slurm") / "templates" / "batch.sh").read_text()
    name = path or "batch.sh"
    try:
        used = meta.find_undeclared_variables(environment.parse(source))
        values = _values(submission)
        unknown = sorted(used - set(values) - set(environment.globals))
        if unknown:
            raise TemplateProblem(
                f"{name}: there is no variable {', '.join(unknown)}; known are {', '.join(sorted(values))}; "
                "others can be given as --variables name=value,..."
            )
        _refuse_harm(submission, {key: values[key] for key in used & set(values)}, name)
        return environment.from_string(source).render(values)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateProblem(f"{name}, line {error.lineno}: {error.message}; expected a Jinja2 template") from error
    except TemplateProblem:
        raise
    except Exception as error:  # a template computes: it may divide by zero
        raise TemplateProblem(f"{name}: {type(error).__name__}: {error}") from error


def relion_template(options: SubmitOptions) -> str:
    """Our template as RELION's GUI takes it for queue submission: with its XXX strings for what differs by job."""
    values = _resources(options) | {
        "job_name": "XXXnameXXX",
        "out_file": "XXXoutfileXXX",
        "err_file": "XXXerrfileXXX",
        "job_dir": "XXXnameXXX",
        "partition": options.partition or "XXXqueueXXX",
        "cpus_per_task": "XXXthreadsXXX",
        "launcher": shlex.join(_srun(options, "XXXthreadsXXX")),
        "command": "XXXcommandXXX",
    }
    source = (files("integration.slurm") / "templates" / "batch.sh").read_text()
    return _environment().from_string(source).render(values)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment


def _resources(options: SubmitOptions) -> dict[str, object]:
    """What does not depend on the job."""
    return {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "mem": options.mem,
        "nodes": options.nodes,
        "tasks_per_node": options.tasks_per_node,
        "num_gpu": options.gpus,
        "requeue": options.requeue,
        "warn_s": options.warn_s,
        "resumable": RESUMABLE,
    }


def _values(submission: Submission) -> dict[str, object]:
    """Every variable of a template: those of ours, cryoSPARC's, and what the user adds."""
    options, folder = submission.options, submission.folder
    project, job_dir = Path.cwd(), folder.absolute()
    cpus = options.cpus or submission.threads * options.tasks_per_node
    executable = _executable()
    launcher = _srun(options, submission.threads) if submission.uses_slurm else []
    again = ["env", f"{SELF_REQUEUE}=yes"] if options.requeue and submission.uses_slurm else []
    ours = _resources(options) | {
        "job_name": options.job_name or _word(f"{submission.job}_{folder.name}"),
        "out_file": f"{folder.as_posix()}/{OUT_FILE}",
        "err_file": f"{folder.as_posix()}/{ERR_FILE}",
        "job_dir": folder.as_posix(),
        "cpus_per_task": max(1, cpus // options.tasks_per_node),
        "launcher": shlex.join(launcher),
        "command": shlex.join([executable, *submission.arguments]),
    }
    return {
        **ours,
        "script_path_abs": str(job_dir / SCRIPT_FILE),
        "run_cmd": shlex.join([*again, *launcher, executable, *submission.arguments]),
        "run_args": shlex.join(submission.arguments),
        "worker_bin_path": executable,
        "num_cpu": cpus,
        "ram_gb": memory_gb(options.mem) or DEFAULT_RAM_GB,
        "job_dir_abs": str(job_dir),
        "project_dir_abs": str(project),
        "job_log_path_abs": str(job_dir / OUT_FILE),
        "project_uid": _word(project.name),
        "job_uid": _word(folder.name),
        "job_type": f"flex_{submission.job}",
        "job_creator": _user(),
        "cryosparc_username": _user(),
        **options.further,
    }


def _srun(options: SubmitOptions, threads: int | str) -> list[str]:
    """One process on one node, or one per GPU on several. A step hears of USR1, and of a preemption while there is
    grace; what a batch script runs without srun does not."""
    tasks = options.nodes * options.tasks_per_node
    return [
        "srun",
        f"--nodes={options.nodes}",
        f"--ntasks={tasks}",
        f"--cpus-per-task={threads}",
        "--kill-on-bad-exit=1",
    ]


def _executable() -> str:
    """The command on the compute nodes: the one beside this Python, which is on a disk that they share."""
    beside = Path(sys.executable).parent / EXECUTABLE
    return str(beside) if beside.is_file() else shutil.which(EXECUTABLE) or EXECUTABLE


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "flex"


def _refuse_harm(submission: Submission, used: Mapping[str, object], name: str) -> None:
    """Raise TemplateProblem for values that the script could not hold as what they are."""
    arguments = submission.arguments
    problems = [
        f"{argument.partition('=')[0]}: {argument.partition('=')[2]!r} was given; expected no control characters"
        for argument in arguments
        if not argument.isprintable()
    ]
    if submission.options.template:
        commands = ("run_cmd", "run_args", "launcher", "command")
        given: Sequence[tuple[str, object]] = [
            *((key, value) for key, value in used.items() if key not in commands),
            *((argument.partition("=")[0], argument.partition("=")[2] or argument) for argument in arguments),
            ("the executable", _executable()),
        ]
        problems += [
            f"{key}: {value!r} needs quotes in a shell, and {name} may quote as it likes; expected letters, digits and "
            "@+=:,./_- only (leave --template out, or rename it)"
            for key, value in given
            if isinstance(value, str) and PLAIN.fullmatch(value) is None
        ]
    elif PLAIN.fullmatch(submission.folder.as_posix()) is None:
        problems.append(
            f"--o {str(submission.folder)!r} was given; expected a job directory of letters, digits and @+=:,./_- only"
        )
    if problems:
        raise TemplateProblem("\n".join(problems))
