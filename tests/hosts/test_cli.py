"""The command line as users and RELION's pipeliner write it."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from flex_job import lock
from flex_job.lock import FolderLock
from integration.local import cli
from integration.local.options import job_command
from job_specs.jobs import JOBS


def given(arguments: str, job: str = "refine") -> dict[str, str]:
    """The options that reach the job for a command line."""
    seen: list[dict[str, str]] = []
    command = job_command(JOBS[job], lambda name, options: seen.append(options))
    command.main(args=arguments.split(), prog_name="test", standalone_mode=False)
    return seen[0]


@pytest.mark.parametrize("flag", ["--latent_dims", "--latent-dims", "--Latent_Dims"])
def test_dashes_underscores_and_capitals(flag: str) -> None:
    assert given(f"--o External/job002/ {flag} 3") == {"o": "External/job002/", "latent_dims": "3"}


def test_relion_flags() -> None:
    options = given(
        "--o External/job002/ --in_movies m.star --in_mics c.star --in_parts p.star --in_coords x.star "
        "--in_3dref r.mrc --in_mask k.mrc --latent_dims 1 --j 4 --pipeline_control External/job002/"
    )
    assert options == {
        "o": "External/job002/",
        "in_parts": "p.star",
        "in_3dref": "r.mrc",
        "in_mask": "k.mrc",
        "latent_dims": "1",
        "threads": "4",
    }
    assert given("--o a --in_3Dref r.mrc --pipeline-control a/") == {"o": "a", "in_3dref": "r.mrc"}
    assert given("--o a --threads 3") == given("--o a --j 3")


def test_bare_labels_of_empty_rows() -> None:
    options = given("--o a --scratch --stiffen_low_density --epochs --zero-motion-mask --in_parts p.star --config")
    assert options == {"o": "a", "in_parts": "p.star", "stiffen_low_density": "yes"}
    assert given("--o a --stiffen_low_density No --scratch=/fast") == {
        "o": "a",
        "stiffen_low_density": "No",
        "scratch": "/fast",
    }
    assert given("--o a --bfactor -80") == {"o": "a", "bfactor": "-80"}


def test_a_job_ignores_inputs_that_are_none_of_its_own() -> None:
    assert given("--o a --in_mask k.mrc --in_model b", "generate") == {"o": "a", "in_model": "b"}


def test_unknown_options_are_told_with_near_matches() -> None:
    with pytest.raises(click.NoSuchOption) as error:
        given("--o a --latent_dim 3")
    assert "--latent_dims" in error.value.format_message()


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | None:
    monkeypatch.setattr(sys, "argv", ["flex-job", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code  # type: ignore[return-value]


@pytest.mark.parametrize("typo", [["--latent_dim", "3"], ["stray", "words"]])
def test_a_usage_error_is_a_failed_job_for_relion(
    typo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "refine", "--o", str(tmp_path), *typo) == 2
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "RELION_JOB_EXIT_FAILURE"}
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_that_another_run_has_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """RELION would take the exit file for news of the run that goes on there."""
    monkeypatch.setattr(lock, "WAIT_S", 0.1)
    typo = ["refine", "--o", str(tmp_path), "--latent_dim", "3"]
    with FolderLock(tmp_path), monkeypatch.context() as stranger:
        stranger.delenv(lock.SHARED)
        assert run_main(monkeypatch, *typo) == 2
        assert "another run works in this job directory" in capsys.readouterr().err
        stranger.setenv("WORLD_SIZE", "two")  # a launcher that cannot be understood
        assert run_main(monkeypatch, "refine", "--o", str(tmp_path)) == 1
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert run_main(monkeypatch, *typo) == 2  # negative control: it has ended
    assert (tmp_path / "RELION_JOB_EXIT_FAILURE").exists()


def test_a_job_that_cannot_be_loaded_is_a_failed_job_for_relion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: str, options: dict[str, str]) -> int:
        raise ImportError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr("integration.relion.job.run", broken)
    monkeypatch.setattr(sys, "argv", ["flex-job", "refine", "--o", str(tmp_path)])
    with pytest.raises(ImportError, match="libtorch"):
        cli.main()
    assert (tmp_path / "RELION_JOB_EXIT_FAILURE").exists()


@pytest.mark.parametrize("name", ["refine", "train", "reconstruct", "generate", "select"])
def test_console_scripts_call_their_job(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, dict[str, str]]] = []

    def run(job: str, options: dict[str, str]) -> int:
        called.append((job, options))
        return 7

    monkeypatch.setattr("integration.relion.job.run", run)
    monkeypatch.setattr(sys, "argv", [f"relion_flex_{name}", "--o", "External/job001/"])
    with pytest.raises(SystemExit) as end:
        getattr(cli, name)()
    assert end.value.code == 7
    assert called == [(name, {"o": "External/job001/"})]


def test_simulate_passes_typed_values_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[Path, dict[str, object]]] = []
    monkeypatch.setattr(
        "integration.relion.simulate.simulate_project", lambda folder, **values: called.append((folder, values))
    )
    assert run_main(monkeypatch, "simulate", "--o", str(tmp_path), "--motion", "none", "--pixel-size", "3") == 0
    assert called == [
        (
            tmp_path,
            {"motion": "none", "particles": 6000, "box": 64, "pixel_size_A": 3.0, "snr": 0.1, "seed": 0}
            | {"structure": "", "domains": "", "micelle": False, "two_states": False, "pose_error_deg": 0.0},
        )
    ]


def test_simulate_tells_all_bad_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "simulate", "--o", str(tmp_path), "--motion", "dance", "--box", "3") == 2
    told = capsys.readouterr().err
    assert "one of one_hinge, two_hinges, none" in told
    assert "from 16 to 1024" in told


def test_help_shows_every_parameter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "refine", "--help") == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in JOBS["refine"].declared())
    assert "--in_movies" not in shown


def test_template_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "job.star"
    assert run_main(monkeypatch, "relion", "template", "train", "--output", str(path)) == 0
    assert "relion_flex_train" in path.read_text()


def test_simulate_tells_what_cannot_be_simulated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path, **values: object) -> None:
        raise ValueError("the box of 16 px is too small")

    monkeypatch.setattr("integration.relion.simulate.simulate_project", fail)
    assert run_main(monkeypatch, "simulate", "--o", str(tmp_path / "new"), "--box", "16") == 1
    assert "too small" in capsys.readouterr().err


def test_docs_and_template_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "docs") == 0
    assert "| `latent_dims` | `auto` | auto or a whole number from 1 to 16 |" in capsys.readouterr().out
    assert run_main(monkeypatch, "relion", "template") == 0
    assert "fn_exe         relion_flex_refine" in capsys.readouterr().out


def test_a_usage_error_in_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(host: object, status: str) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("integration.relion.host.RelionJob.finish", fail)
    assert run_main(monkeypatch, "refine", f"--o={tmp_path}", "--latent_dim", "3") == 2
    assert "cannot leave RELION_JOB_EXIT_FAILURE (Read-only file system)" in capsys.readouterr().err
