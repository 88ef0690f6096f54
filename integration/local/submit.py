"""`flex-job submit`: every job's command once more, with what a scheduler has to know besides."""

from __future__ import annotations

from pathlib import Path

import click

from integration.local.options import JobCommand, job_options, parameter_option
from job_specs.jobs import JOBS, JobSpec
from job_specs.parameter import parameters_of

__all__ = ["submit_group"]

RELION = ("partition", "gpus", "time", "nodes", "mem", "account", "qos", "requeue", "warn")


def submit_group() -> click.Group:
    """The group of commands."""
    from integration.slurm.options import SubmitOptions

    group = click.Group("submit", help="Submit a job to SLURM or another scheduler, by a batch script from a template.")
    declared = parameters_of(SubmitOptions)
    for job in JOBS.values():
        options = [*(parameter_option(entry, "submit") for entry in declared), *job_options(job)]
        group.add_command(
            JobCommand(
                job.name,
                params=options,
                callback=_callback(job),
                help=f"Submit: {job.help} --j is the threads of each process.",
                short_help=job.title,
            )
        )
    group.add_command(
        JobCommand(
            "relion_template",
            params=[parameter_option(entry, "submit") for entry in declared if entry.name in RELION],
            callback=lambda **given: _relion_template(_given(given)),
            help="Print the script that RELION's GUI takes as 'Standard submission script', for sbatch.",
            short_help="Print a submission script for RELION's GUI",
        )
    )
    return group


def _given(values: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value not in (None, "")}  # type: ignore[misc]


def _callback(job: JobSpec):  # type: ignore[no-untyped-def]
    return lambda **values: _submit(job, _given(values))


def _submit(job: JobSpec, given: dict[str, str]) -> int:
    """Check all that can be checked here, before the job waits in a queue; then submit, or print the script."""
    from integration.relion.request import read_request
    from integration.slurm.options import SubmitOptions, read_options
    from integration.slurm.script import Submission, TemplateProblem, render
    from integration.slurm.submit import SubmitFailed, submit

    names = {entry.name for entry in parameters_of(SubmitOptions)}
    options, problems = read_options({name: value for name, value in given.items() if name in names})
    flags = {name: value for name, value in given.items() if name not in names}
    _, found = read_request(job.name, flags)
    folder = Path(flags.pop("o"))
    if options.template and not Path(options.template).is_file():
        problems.append(f"template: {options.template} was given, and there is no such file")
    if problems or found:
        raise click.ClickException("\n".join([*problems, *found]))
    submission = Submission(job.name, folder, flags, options)
    try:
        if options.dry_run:
            click.echo(render(submission), nl=False)
        else:
            job_id = submit(submission)
            click.echo(f"{job_id}  {folder}: {job.title}; what it says goes to {folder / 'run.out'}")
    except (TemplateProblem, SubmitFailed) as error:
        raise click.ClickException(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{folder}: the script cannot be written or read ({error})") from error
    return 0


def _relion_template(given: dict[str, str]) -> int:
    from integration.slurm.options import read_options
    from integration.slurm.script import relion_template

    options, problems = read_options(given)
    if problems:
        raise click.ClickException("\n".join(problems))
    click.echo(relion_template(options), nl=False)
    return 0
