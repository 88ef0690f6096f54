"""`flex-job explore DIR`: the landscape of a finished job, as a page of this machine."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

__all__ = ["explore_command"]


def explore_command() -> click.Command:
    """The command; nothing heavy is imported before it runs."""
    return click.Command(
        "explore",
        params=[
            click.Argument(["folder"], type=click.Path(path_type=Path)),
            click.Option(["--port"], type=click.IntRange(0, 65535), default=0, help="Port; 0 takes a free one."),
            click.Option(["--browser/--no-browser"], default=True, help="Open the page in this machine's browser."),
        ],
        callback=_explore,
        help="Look at the latents of a finished job: bend the map by pointing, select particles with a lasso, draw "
        "paths. The page is served to this machine alone; from elsewhere, forward the port with ssh -L.",
        short_help="Look at the latents of a finished job",
    )


def _explore(folder: Path, port: int, browser: bool) -> int:
    from flex_job.problems import InputProblems
    from integration.local.landscape.app import serve
    from integration.local.landscape.view import JobView

    try:
        view = JobView.load(folder)
        server, address = serve(view, port)
    except InputProblems as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"port {port} cannot be used ({error.strerror}); try another, or 0") from error
    forward = f"{server.server_port}:127.0.0.1:{server.server_port}"
    click.echo(f"{address}\nCtrl-C ends it. To see it from another machine: ssh -L {forward} ...")
    if browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0
