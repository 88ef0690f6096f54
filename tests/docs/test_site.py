"""The pages: they build without a warning, what they name exists, and the command lines in them run."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import gemmi
import pytest

from integration.local import cli
from integration.local.docs import cryosparc_names
from job_specs.jobs import JOBS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("integration/*/README.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("flex-job", *(f"relion_flex_{job}" for job in JOBS))

# What would take minutes on a page takes a second on this; flags of the page win over it.
TINY = {"particles": "120", "box": "24", "pixel_size": "10", "snr": "0.5"}
QUICK = {
    "tetra_cells": "6", "epochs": "2", "latent_dims": "1", "rigidity": "4", "band_end": "0.8", "max_iterations": "2",
    "locres_sampling": "0",
}  # fmt: skip


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    """Fenced blocks of these kinds, in their order."""
    return [(kind, text) for kind, text in FENCE.findall(page.read_text()) if kind in kinds]


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- the site ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", "docs", ".", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return target


def test_every_page_is_in_the_site_and_needs_no_network(site: Path) -> None:
    for page in PAGES:
        html = (site / page.relative_to(ROOT)).with_suffix(".html").read_text()
        loaded = re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="(https?:[^"]*)"', html)
        assert not loaded, (page, loaded)


def test_equations_are_drawn_and_links_between_pages_hold(site: Path) -> None:
    method = (site / "docs/method.html").read_text()
    assert method.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == 10
    assert "$$" not in method and "merror" not in method
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#?:]+\.html)', page.read_text()):
            assert (page.parent / link).exists(), (page, link)


def test_the_reference_has_what_the_modules_export(site: Path) -> None:
    html = (site / "docs/reference.html").read_text()
    for name in re.findall(r"automodule:: (\S+)", (DOCS / "reference.md").read_text()):
        module = importlib.import_module(name)
        for public in module.__all__:
            thing = getattr(module, public)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert f'id="{name}.{public}"' in html, (name, public)


# -- what pages name ---------------------------------------------------------------------------------------------------


def found(dotted: str) -> Any:
    """What a dotted name stands for: an attribute, or else a module."""
    first, *words = dotted.split(".")
    thing: Any = importlib.import_module(first)
    for word in words:
        thing = getattr(thing, word) if hasattr(thing, word) else importlib.import_module(f"{thing.__name__}.{word}")
    return thing


def test_each_equation_names_code_that_exists() -> None:
    text = (DOCS / "method.md").read_text()
    names = re.findall(r"`(flex_job\.[\w.]+)`", text)
    assert len(names) > 30 and all(callable(found(name)) for name in names)
    for section in text.split("\n## ")[1:]:
        assert "`flex_job." in section, section.splitlines()[0]
    with pytest.raises(ImportError):
        found("flex_job.rigidity.Rigidty")


def test_names_in_cryosparc_are_in_step_with_the_declarations() -> None:
    assert (DOCS / "names.md").read_text() == cryosparc_names(), "run: make docs"


def command_lines() -> list[tuple[str, list[str]]]:
    """Each command line of ours in a block or an indented example, by page."""
    found = []
    for page in PAGES:
        text = page.read_text()
        examples = [body for _, body in blocks(page, "bash", "text", "console")]
        examples += re.findall(r"(?:^    .*\n)+", FENCE.sub("", text), re.MULTILINE)
        for line in "\n".join(examples).replace("\\\n", " ").splitlines():
            words = shlex.split(re.split(r"[|;>]", line.strip().removeprefix("$ "))[0], comments=True)
            if words and Path(words[0]).name in PROGRAMS:
                found.append((relative(page), words))
    return found


def test_flags_on_the_pages_are_flags() -> None:
    lines = command_lines()
    assert len(lines) > 15
    group = cli._commands()
    for page, words in lines:
        name, rest = Path(words[0]).name, words[1:]
        command: click.Command = group if name == "flex-job" else group.commands[name.removeprefix("relion_flex_")]
        while isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        assert not isinstance(command, click.Group), (page, words)
        known = {flag for option in command.params for flag in option.opts}
        for word in rest:
            flag = word.split("=")[0]
            assert not flag.startswith("--") or flag in known or flag.replace("-", "_").lstrip("_") in {
                each.lstrip("-").replace("-", "_") for each in known
            } or page.startswith("integration/slurm"), (page, words, flag)  # fmt: skip


# -- examples ----------------------------------------------------------------------------------------------------------


def run_line(line: str) -> None:
    """One line of an example, by the functions that the console scripts call."""
    line, tolerant, _ = line.partition(" || true")
    line, redirects, target = line.partition(" > ")
    program, *words = shlex.split(line)
    name = words.pop(0) if program == "flex-job" else program.removeprefix("relion_flex_")
    command = cli._commands().commands[name]
    known = {option.name for option in command.params}
    quick = [
        word for key, value in (TINY if name == "simulate" else QUICK).items() if key in known
        for word in (f"--{key}", value)
    ]  # fmt: skip
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli._execute(command, [*quick, *words], program)
    assert code == 0 or tolerant, f"{line}\n{said.getvalue()}"
    if redirects:
        Path(target.strip()).write_text(said.getvalue())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the tutorial's commands have been run, and no others."""
    folder = tmp_path_factory.mktemp("examples")
    with contextlib.chdir(folder):
        run_page(DOCS / "tutorial.md")
        yield folder


def run_page(page: Path) -> None:
    for kind, text in blocks(page, "bash", "python"):
        if kind == "python":
            exec(compile(text, relative(page), "exec"), SHARED)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                run_line(line)


SHARED: dict[str, Any] = {}  # names that one block of Python leaves to the next


def test_the_tutorial_ends_with_what_it_promises(project: Path) -> None:
    job = project / "External/job003"
    for name in (
        "report.html",
        "flex_class001.mrc",
        "flex_half1_class001_unfil.mrc",
        "validation.json",
        "particles.star",
    ):
        assert (job / name).exists(), name
    assert (project / "External/job002/mesh.png").exists() and (project / "External/job004/latents.csv").exists()
    assert gemmi.read_structure(str(project / "External/job005/frames.cif"))[4].count_atom_sites() > 5000
    assert list((project / "External/job006").glob("*.star")) and list((project / "External/job007").glob("*.star"))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "tutorial.md" and blocks(page, "bash", "python")], ids=relative
)
def test_examples_run(page: Path, project: Path) -> None:
    run_page(page)


@pytest.mark.parametrize(
    "line", ["flex-job mesh --o External/x/ --tetra_cels 6", "relion_flex_generate --o External/y/ --in_model nowhere/"]
)
def test_an_example_that_does_not_work_is_noticed(line: str, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path), pytest.raises(AssertionError):
        run_line(line)
