"""`flex-job cryosparc refine`: the command of the cryoSPARC host."""

from __future__ import annotations

import click

from integration.cryosparc.command import HELP, OPTIONS
from integration.local.options import JobCommand, SectionOption, parameter_option
from job_specs.jobs import JOBS

__all__ = ["cryosparc_group"]


def _refine(**values: str | None) -> int:
    from integration.cryosparc.job import run

    return run({name: value for name, value in values.items() if value not in (None, "")})


def cryosparc_group() -> click.Group:
    """The group with its one job."""
    options: list[click.Parameter] = [
        SectionOption(f"--{name}", name, section="CryoSPARC", metavar=metavar, help=text)
        for name, (metavar, text) in OPTIONS.items()
    ]
    options += [parameter_option(declared, group) for group, declared in JOBS["refine"].parameters()]
    group = click.Group("cryosparc", help="Run as an external job of CryoSPARC.")
    group.add_command(
        JobCommand("refine", params=options, callback=_refine, help=HELP, short_help=JOBS["refine"].title)
    )
    return group
