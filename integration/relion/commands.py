"""`flex-job relion ...`: what helps users of RELION besides the jobs. Nothing heavy is imported before it is needed."""

from __future__ import annotations

from pathlib import Path

import click

from integration.relion.template import SCRIPTS
from job_specs.jobs import JOBS

__all__ = ["commands"]


def commands() -> click.Group:
    """The group `relion` of the command line."""
    group = click.Group("relion", help="Helpers for RELION users.")
    group.add_command(
        click.Command(
            "template",
            params=[
                click.Argument(["job"], type=click.Choice(SCRIPTS), default="refine"),
                click.Option(["--output"], metavar="FILE", help="File to write instead of printing"),
            ],
            callback=_template,
            help="Print a job.star for RELION's External job, to be filled in or added by relion_pipeliner.",
        )
    )
    group.add_command(
        click.Command(
            "install",
            params=[click.Argument(["project"], type=click.Path(path_type=Path))],
            callback=_install,
            help="Write a job.star for each job into a RELION project (FlexJobs/), with the inputs that are there "
            "filled in, for the GUI (Jobs > Load job.star) and relion_pipeliner. Nothing that exists is changed.",
        )
    )
    return group


def _template(job: str, output: str | None) -> int:
    from integration.relion.template import render

    text = render(JOBS[job])
    if output is None:
        click.echo(text, nl=False)
    else:
        Path(output).write_text(text)
    return 0


def _install(project: Path) -> int:
    from integration.relion.install import install

    try:
        for line in install(project):
            click.echo(line)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    return 0
