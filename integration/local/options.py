"""Click options made from job_specs, and the command that reads them the way RELION writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from integration.relion.flags import IGNORED_FLAGS, INPUT_FLAGS, THREADS_FLAG
from job_specs.jobs import JobSpec
from job_specs.parameter import Parameter

__all__ = ["JobCommand", "SectionOption", "job_command", "parameter_option"]

GROUP_TITLES = {
    "prep": "Particles",
    "mesh": "Mask and mesh",
    "train": "Training",
    "validate": "Validation",
    "reconstruct": "Reconstruction",
    "resolution": "Resolution",
    "generate": "Volume series",
    "select": "Selection",
    "run": "Run",
    "simulate": "Simulation",
    "submit": "Submission",
}


class SectionOption(click.Option):
    """An option that knows under which heading of the help page it belongs, and whether it may stand bare."""

    def __init__(self, *args: str, section: str, switch: bool = False, **kwargs: Any) -> None:
        super().__init__(list(args), **kwargs)
        self.section = section
        self.switch = switch


class JobCommand(click.Command):
    """A command that takes options as RELION passes them.

    Dashes and underscores, capitals and small letters mean the same (--latent-dims, --in_3Dref). RELION turns an
    empty value of its form into a bare label: such a label counts as not given, or as yes where yes/no is expected.
    """

    def make_context(self, info_name, args, parent=None, **extra):  # type: ignore[no-untyped-def]
        extra.setdefault("token_normalize_func", lambda token: token.replace("-", "_").lower())
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._without_bare_labels(ctx, args)))

    def _without_bare_labels(self, ctx: click.Context, args: list[str]) -> Iterable[str]:
        named = {name: option for option in self.get_params(ctx) for name in option.opts}
        takes_next = False
        for token, following in zip(args, [*args[1:], "--"], strict=True):
            is_value, takes_next = takes_next, False
            if is_value or not token.startswith("--"):
                yield token
                continue
            option = named.get("--" + token[2:].replace("-", "_").lower())
            if not isinstance(option, SectionOption):
                yield token
            elif not following.startswith("--"):
                takes_next = True
                yield token
            elif option.switch:
                yield f"{token}=yes"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(option, "section", "Other"), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def parameter_option(declared: Parameter, group: str) -> SectionOption:
    """The option of one parameter; its value stays text, so that all bad values can be told at once."""
    kind = "FILE" if declared.file else {int: "INTEGER", float: "NUMBER", bool: "YES|NO", str: "TEXT"}[declared.kind]
    metavar = "|".join(declared.choices) if declared.choices else kind
    unit = f", {declared.unit}" if declared.unit else ""
    default = declared.default_text
    shown = f"  [default: {default}{unit}]" if default != "" else ""
    names = [f"--{declared.name}", declared.name]
    if declared.name == "threads":
        names.insert(0, f"--{THREADS_FLAG}")
    return SectionOption(
        *names,
        section=GROUP_TITLES[group],
        switch=declared.kind is bool,
        metavar=metavar,
        help=declared.help + shown,
    )


def job_options(job: JobSpec) -> list[click.Parameter]:
    """--o, the job's inputs, its parameters, and (hidden) what RELION may pass besides."""
    section = "Input and output"
    options: list[click.Parameter] = [
        SectionOption("--o", "o", section=section, metavar="FOLDER", required=True, help="Job directory")
    ]
    for entry in job.inputs:
        flag = INPUT_FLAGS[entry.kind]
        required = "  [required]" if entry.required else ""
        options.append(SectionOption(f"--{flag}", flag, section=section, metavar="FILE", help=entry.help + required))
    options += [parameter_option(declared, group) for group, declared in job.parameters()]
    taken = {option.name for option in options}
    unused = [flag for flag in (*INPUT_FLAGS.values(), *IGNORED_FLAGS) if flag not in taken]
    options += [SectionOption(f"--{flag}", flag, section=section, hidden=True, expose_value=False) for flag in unused]
    return options


def job_command(job: JobSpec, callback: Callable[..., object]) -> JobCommand:
    """The command of a job; `callback` takes the options that were given, as text by name."""

    def given(**values: str | None) -> object:
        return callback(job.name, {name: value for name, value in values.items() if value not in (None, "")})

    return JobCommand(job.name, params=job_options(job), callback=given, help=job.help, short_help=job.title)
