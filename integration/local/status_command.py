"""The command `flex-job status`; what it needs is imported when it runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

__all__ = ["status_command"]


def _status(folder: str, as_json: bool) -> int:
    from integration.local.status import EXIT_CODES, status_of

    status = status_of(Path(folder))
    if status is None:
        raise click.UsageError(f"{folder}: no job has run here; expected the directory of one, such as External/job003")
    if as_json:
        click.echo(json.dumps(status.record(), indent=2))
    else:
        click.echo("\n".join(status.lines(time.time())))
    return EXIT_CODES[status.state]


def status_command() -> click.Command:
    """Its options and help."""
    return click.Command(
        "status",
        params=[
            click.Argument(["folder"], metavar="DIR", type=click.Path(exists=True, file_okay=False)),
            click.Option(["--json", "as_json"], is_flag=True, help="Print all that is known, as JSON."),
        ],
        callback=_status,
        short_help="Tell how far a job is, from its directory",
        help="Tell how far the job in DIR is, from outside: state, stage, percent, time left, likelihood and "
        "resolution so far.\n\nExit code: 0 done, 1 failed, 2 no job there, 3 running, 4 stopped (the same command "
        "goes on), 5 stale (its process is gone and left no word; the same command goes on from its last checkpoint).",
    )
