"""The command line: `flex-job <job>` and one console script per RELION job, all the same code.

Nothing heavy is imported before a job starts, so --help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from integration.local.options import JobCommand, SectionOption, job_command, parameter_option
from job_specs.jobs import JOBS, pick
from job_specs.parameter import parameters_of
from job_specs.parameters import SimulateParameters

__all__ = ["generate", "main", "reconstruct", "refine", "select", "train", "validate"]

NO_JOBS = (["submit"], ["cryosparc"], ["explore"], ["status"])  # commands that run nothing in the folder that they name


def _run_job(job: str, options: Mapping[str, str]) -> int:
    from integration.relion.job import run

    return run(job, options)


def _simulate(**given: str | None) -> int:
    declared = {entry.name: entry for entry in parameters_of(SimulateParameters)}
    flags = {name: value for name, value in given.items() if name != "o" and value not in (None, "")}
    values, found = pick(declared, flags, "command line")
    if found:
        raise click.UsageError("\n".join(found))
    parameters = SimulateParameters(**values)
    from integration.relion.simulate import simulate_project

    folder = Path(given["o"] or ".")
    try:
        simulate_project(
            folder,
            motion=parameters.motion,
            structure=parameters.structure,
            domains=parameters.domains,
            micelle=parameters.micelle,
            two_states=parameters.two_states,
            particles=parameters.particles,
            box=parameters.box,
            pixel_size_A=parameters.pixel_size,
            snr=parameters.snr,
            pose_error_deg=parameters.pose_error,
            seed=parameters.seed,
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{parameters.particles} particles of {parameters.box} px in the RELION project {folder}")
    return 0


def _docs(names: bool) -> int:
    from integration.local.docs import cryosparc_names, parameter_tables

    click.echo(cryosparc_names() if names else parameter_tables(), nl=False)
    return 0


def _commands() -> click.Group:
    from integration.local.cryosparc import cryosparc_group
    from integration.local.explore import explore_command
    from integration.local.status_command import status_command
    from integration.local.submit import submit_group

    group = click.Group("flex-job", help="Motion-based flexible refinement of single-particle cryo-EM data.")
    for job in JOBS.values():
        group.add_command(job_command(job, _run_job))
    folder = SectionOption("--o", "o", section="Output", metavar="FOLDER", required=True, help="RELION project folder")
    simulated = [parameter_option(entry, "simulate") for entry in parameters_of(SimulateParameters)]
    group.add_command(
        JobCommand(
            "simulate",
            params=[folder, *simulated],
            callback=_simulate,
            help="Simulate particles of a moving antibody with noise, CTF, shifts and half-sets, as a RELION project.",
            short_help="Simulate a RELION project",
        )
    )
    names = click.Option(["--names"], is_flag=True, help="Those of docs/names.md: cryoSPARC's names and ours.")
    docs = "Print the parameter tables of docs/parameters.md."
    group.add_command(click.Command("docs", params=[names], callback=_docs, help=docs))
    from integration.relion.commands import commands as relion_commands

    group.add_command(relion_commands())
    group.add_command(submit_group())
    group.add_command(cryosparc_group())
    group.add_command(status_command())
    group.add_command(explore_command())
    # cryoSPARC's batch scripts may say {{ worker_bin_path }} run {{ run_args }}
    jobs = {name: group.commands[name] for name in JOBS}
    group.add_command(click.Group("run", commands=jobs, hidden=True))
    return group


def _execute(command: click.Command, args: Sequence[str], name: str) -> int:
    """Run a command; a usage error is shown, and also left to RELION as a failed job. Returns the exit code."""
    try:
        code = command.main(args=list(args), prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        if args[:1] not in NO_JOBS:
            _leave_failure(args)
        return error.exit_code
    except click.Abort:
        return 1
    except Exception:  # such as a library that cannot be loaded: it has its traceback, RELION its file
        if args[:1] not in NO_JOBS:
            _leave_failure(args)
        raise
    return code if isinstance(code, int) else 0


def _leave_failure(args: Sequence[str]) -> None:
    """Mark the job directory that the arguments name, if it is one, as failed: else RELION waits for ever. One that
    another run has is left alone."""
    from flex_job.lock import FolderInUse
    from integration.relion.host import leave_failure

    for token, following in zip(args, [*args[1:], ""], strict=True):
        folder = following if token == "--o" else token[4:] if token.startswith("--o=") else ""
        if folder and Path(folder).is_dir():
            try:
                leave_failure(Path(folder))
            except FolderInUse:
                click.echo(f"{folder}: another run works in this job directory, which is left as it is", err=True)
            except OSError as error:
                click.echo(f"{folder}: cannot leave RELION_JOB_EXIT_FAILURE ({error.strerror})", err=True)


def main() -> None:
    """Entry point of flex-job."""
    sys.exit(_execute(_commands(), sys.argv[1:], "flex-job"))


def _script(job: str) -> None:
    sys.exit(_execute(job_command(JOBS[job], _run_job), sys.argv[1:], f"relion_flex_{job}"))


def refine() -> None:
    """Entry point of relion_flex_refine."""
    _script("refine")


def train() -> None:
    """Entry point of relion_flex_train."""
    _script("train")


def validate() -> None:
    """Entry point of relion_flex_validate."""
    _script("validate")


def reconstruct() -> None:
    """Entry point of relion_flex_reconstruct."""
    _script("reconstruct")


def generate() -> None:
    """Entry point of relion_flex_generate."""
    _script("generate")


def select() -> None:
    """Entry point of relion_flex_select."""
    _script("select")


if __name__ == "__main__":
    main()
