"""Hand a batch script to the scheduler, and keep in the job directory what was submitted."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import jinja2

from integration.slurm.script import SCRIPT_FILE, Submission, render

__all__ = ["RECORD_FILE", "SubmitFailed", "submit"]

RECORD_FILE = "flex_submission.json"
JOB_ID = re.compile(r"\b\d[\w.\[\]-]*")  # 4711 of "Submitted batch job 4711", 4711.server of PBS
SUBMIT_S, ASK_S = 120.0, 20.0


class SubmitFailed(RuntimeError):
    """The scheduler did not take the job; the text says why and what to try."""


def submit(submission: Submission) -> str:
    """Write <folder>/run_submit.script, submit it from the current folder, the project's; returns the job's id.

    The id and what was submitted are kept in <folder>/flex_submission.json. Raises TemplateProblem, and SubmitFailed
    when an earlier submission of the folder is still queued or the scheduler refuses this one.
    """
    text = render(submission)
    folder = submission.folder
    _refuse_second(folder)
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / SCRIPT_FILE
    script.write_text(text)
    script.chmod(0o755)
    command = _submit_command(submission.options.submit_command, script)
    job_id = _submitted(command)
    record = {
        "id": job_id,
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "submit_command": command,
        "scheduler": "slurm" if submission.uses_slurm else "other",
        "arguments": submission.arguments,
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return job_id


def _submit_command(template: str, script: Path) -> list[str]:
    """The site's command as tokens, no shell between: with the script's path in its place, or at the end."""
    path = str(script.absolute())
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    # {{ script_path_abs }} holds spaces, and must stay one token with what stands beside it
    spaced = re.sub(r"\{\{\s*(\w+)\s*\}\}", r"{{\1}}", template)
    try:
        tokens = shlex.split(spaced)
        rendered = [environment.from_string(token).render(script_path_abs=path) for token in tokens]
    except (ValueError, jinja2.TemplateError) as error:
        raise SubmitFailed(
            f"submit_command: {template!r} was given ({error}); expected a command such as sbatch, "
            "or 'sbatch {{ script_path_abs }}'"
        ) from error
    if not rendered:
        raise SubmitFailed("submit_command: nothing was given; expected a command such as sbatch")
    return rendered if rendered != tokens else [*rendered, path]


def _submitted(command: list[str]) -> str:
    """Run the submit command; the id that it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SUBMIT_S, check=False)
    except OSError as error:
        raise SubmitFailed(
            f"{command[0]} cannot be run ({error.strerror}): submit from a computer where the scheduler's commands "
            "are, or name another by --submit_command"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SubmitFailed(
            f"{command[0]} did not answer within {SUBMIT_S:.0f} s; see in the queue whether the job is there"
        ) from error
    said = " ".join((done.stderr + done.stdout).split())
    if done.returncode:
        raise SubmitFailed(f"{command[0]} refused the job (exit code {done.returncode}): {said or 'without a word'}")
    found = JOB_ID.search(done.stdout)
    if found is None:
        raise SubmitFailed(f"{command[0]} printed no job id: {said!r}; see in the queue whether the job is there")
    return found[0]


def _refuse_second(folder: Path) -> None:
    """Raise SubmitFailed when the job that was last submitted for the folder is still in SLURM's queue."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text())
        job_id, scheduler = str(record["id"]), record["scheduler"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if scheduler != "slurm" or not job_id.isdecimal():
        return
    try:
        command = ["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return  # sbatch will say what is wrong
    if done.returncode == 0 and done.stdout.strip():
        raise SubmitFailed(
            f"{folder}: job {job_id} of this folder is {done.stdout.split()[0]}; wait for it, or scancel {job_id} first"
        )
