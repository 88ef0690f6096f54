"""Imports point one way: job_specs <- flex_job <- integration, and what --help needs stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"job_specs", "flex_job", "integration", "tests"}
MAY_IMPORT = {
    "job_specs": {"job_specs"},
    "flex_job": {"job_specs", "flex_job"},
    "integration": {"job_specs", "flex_job", "integration"},
}
HEAVY = {"numpy", "torch", "numba", "scipy", "matplotlib", "pandas", "starfile", "skimage", "flex_job"}


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; expected full names"
            yield node.module or ""


def modules() -> list[Path]:
    return sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(path)} & OURS
    assert ours <= MAY_IMPORT[package]


def test_job_specs_need_the_standard_library_only() -> None:
    for path in (ROOT / "job_specs").rglob("*.py"):
        names = {name.split(".")[0] for name in imported(path)} - {"job_specs"}
        assert names <= set(sys.stdlib_module_names), path


def test_hosts_do_not_import_each_other_but_for_the_command_line() -> None:
    for path in (ROOT / "integration").rglob("*.py"):
        host = path.relative_to(ROOT / "integration").parts[0]
        others = {name.split(".")[1] for name in imported(path) if name.startswith("integration.")} - {host}
        assert not others - {"common"} or host == "local", f"{path} imports {others}"


@pytest.mark.parametrize(
    "arguments", [["refine", "--help"], ["--help"], ["docs"], ["status", "--help"], ["relion", "template"]]
)
def test_the_command_line_answers_without_heavy_imports(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from integration.local.cli import main\n"
        f"sys.argv = ['flex-job', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stderr
    assert done.stdout.strip()
