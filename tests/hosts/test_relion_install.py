"""`flex-job relion install`: forms filled in with what a project has, none overwritten, all problems told at once."""

from __future__ import annotations

import configparser
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from gemmi import cif

from flex_job.problems import InputProblems
from flex_job.volume import write_volume
from integration.local import cli
from integration.relion.install import install
from integration.relion.pipeline_file import finished_jobs
from integration.relion.template import SCRIPTS, executable
from job_specs.jobs import JOBS

ROOT = Path(__file__).parents[2]

# the same four jobs as 3.1 (numbers), 4.0 and 5.0 (words) write them; job 4 failed, job 5 is still running
NUMBERS = """
data_pipeline_general

_rlnPipeLineJobCounter 8

data_pipeline_processes

loop_
_rlnPipeLineProcessName #1
_rlnPipeLineProcessAlias #2
_rlnPipeLineProcessType #3
_rlnPipeLineProcessStatus #4
Refine3D/job002/ None 10 2
Refine3D/job003/ Refine3D/best/ 10 2
Refine3D/job004/ None 10 3
Refine3D/job005/ None 10 0
MaskCreate/job006/ None 12 2
External/job007/ None 99 2
"""
WORDS = (
    NUMBERS.replace("ProcessType", "ProcessTypeLabel")
    .replace("ProcessStatus", "ProcessStatusLabel")
    .replace(" 10 2", " relion.refine3d Succeeded")
    .replace(" 10 3", " relion.refine3d Failed")
    .replace(" 10 0", " relion.refine3d Running")
    .replace(" 12 2", " relion.maskcreate Succeeded")
    .replace(" 99 2", " relion.external Succeeded")
)


@pytest.fixture(autouse=True)
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python's folder with our executables, which is the only one on the PATH."""
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    for name in SCRIPTS:
        (folder / executable(JOBS[name])).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for job in ("Refine3D/job002", "Refine3D/job003", "Refine3D/job004", "Refine3D/job005"):
        (folder / job).mkdir(parents=True)
        (folder / job / "run_data.star").touch()
        write_volume(folder / job / "run_class001.mrc", np.zeros((8, 8, 8), dtype=np.float32), 2.0)
    (folder / "default_pipeline.star").write_text(NUMBERS)
    return folder


def form(path: Path) -> dict[str, str]:
    """The form's options, its rows by label."""
    table = cif.read(str(path)).find_block("joboptions_values").find(["_rlnJobOptionVariable", "_rlnJobOptionValue"])
    options = {row[0]: row.str(1) for row in table}
    rows = {label: options[name.replace("label", "value")] for name, label in options.items() if name.endswith("label")}
    return options | rows


def add_mask(project: Path, box: int = 8) -> None:
    (project / "MaskCreate/job006").mkdir(parents=True, exist_ok=True)
    write_volume(project / "MaskCreate/job006/mask.mrc", np.ones((box,) * 3, dtype=np.float32), 2.0)


def test_every_executable_is_one_that_is_installed() -> None:
    """RELION waits for ever for an executable that is not there."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    declared = config["options.entry_points"]["console_scripts"].split("\n")
    installed = {line.split("=")[0].strip(): line.split(":")[-1].strip() for line in declared if line}
    assert {executable(JOBS[name]): name for name in SCRIPTS}.items() <= installed.items()
    assert all(callable(getattr(cli, name)) for name in SCRIPTS)


@pytest.mark.parametrize("pipeline", [NUMBERS, WORDS], ids=["3.1", "4 and 5"])
def test_the_latest_finished_refinement_is_filled_in(project: Path, pipeline: str, scripts: Path) -> None:
    (project / "default_pipeline.star").write_text(pipeline)
    add_mask(project)
    told = list(install(project))
    for name in ("refine", "train"):
        options = form(project / "FlexJobs" / name / "job.star")
        assert options["in_part"] == "Refine3D/job003/run_data.star"
        assert options["in_3dref"] == "Refine3D/job003/run_class001.mrc"
        assert options["in_mask"] == "MaskCreate/job006/mask.mrc"
        assert options["fn_exe"] == str(scripts / f"relion_flex_{name}")
    assert form(project / ".gui_externaljob.star") == form(project / "FlexJobs/refine/job.star")
    assert form(project / "FlexJobs/select/job.star")["in_part"] == ""
    assert any("no finished flexible job" in line for line in told)
    # the latest but one, when the latest has no particles
    (project / "Refine3D/job003/run_data.star").unlink()
    shutil.rmtree(project / "FlexJobs")
    list(install(project))
    assert form(project / "FlexJobs/refine/job.star")["in_part"] == "Refine3D/job002/run_data.star"


def test_the_refinements_own_mask_comes_first_and_one_of_another_box_never(project: Path) -> None:
    add_mask(project, box=16)
    list(install(project))
    assert form(project / "FlexJobs/refine/job.star")["in_mask"] == ""
    shutil.rmtree(project / "FlexJobs")
    add_mask(project)
    write_volume(project / "own_mask.mrc", np.ones((8, 8, 8), dtype=np.float32), 2.0)
    (project / "Refine3D/job003/run_optimiser.star").write_text(
        "data_optimiser_general\n\n_rlnSolventMaskName own_mask.mrc\n"
    )
    list(install(project))
    assert form(project / "FlexJobs/refine/job.star")["in_mask"] == "own_mask.mrc"


def test_the_latest_flexible_job_is_filled_in(project: Path) -> None:
    (project / "External/job007").mkdir(parents=True)
    for name in ("particles.star", "flex_model.pt"):
        (project / "External/job007" / name).touch()
    list(install(project))
    for name in ("reconstruct", "generate"):
        options = form(project / "FlexJobs" / name / "job.star")
        assert (options["in_part"], options["in_model"]) == ("External/job007/particles.star", "External/job007/")
    assert form(project / "FlexJobs/select/job.star")["in_part"] == "External/job007/particles.star"
    assert form(project / "FlexJobs/refine/job.star")["in_part"] == "Refine3D/job003/run_data.star"


def test_nothing_is_overwritten(project: Path) -> None:
    (project / ".gui_externaljob.star").write_text("of another job")
    (project / "FlexJobs/train").mkdir(parents=True)
    (project / "FlexJobs/train/job.star").symlink_to("nowhere")
    told = list(install(project))
    assert (project / ".gui_externaljob.star").read_text() == "of another job"
    assert (project / "FlexJobs/train/job.star").is_symlink()
    left = [line for line in told if "left as it is" in line]
    assert [line.split()[0] for line in left] == ["FlexJobs/train/job.star", ".gui_externaljob.star"]
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    list(install(project))
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_an_executable_that_any_shell_finds_goes_by_its_name(
    project: Path, scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = tmp_path / "public"
    public.mkdir()
    (public / "relion_flex_refine").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{scripts}:{public}")
    list(install(project))
    assert form(project / "FlexJobs/refine/job.star")["fn_exe"] == "relion_flex_refine"
    assert form(project / "FlexJobs/train/job.star")["fn_exe"] == str(scripts / "relion_flex_train")


def test_all_problems_in_one_message_and_nothing_written(tmp_path: Path, scripts: Path) -> None:
    (scripts / "relion_flex_refine").unlink()
    (scripts / "relion_flex_select").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputProblems) as error:
        list(install(empty))
    told = str(error.value)
    assert "2 problems" in told
    assert "relion_flex_refine, relion_flex_select: neither on the PATH" in told
    assert "there is no default_pipeline.star in it" in told
    assert not list(empty.iterdir())
    with pytest.raises(InputProblems, match="no such folder"):
        list(install(tmp_path / "nowhere"))
    (empty / "default_pipeline.star").write_text("data_particles\n")
    with pytest.raises(InputProblems, match="no table pipeline_general"):
        list(install(empty))


def test_no_spaces_in_an_executable(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spaced = tmp_path / "my python"
    spaced.mkdir()
    for name in SCRIPTS:
        (spaced / executable(JOBS[name])).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(spaced / "python"))
    monkeypatch.setenv("PATH", str(spaced))
    with pytest.raises(InputProblems, match="no spaces"):
        list(install(project))


def test_a_project_without_any_job(tmp_path: Path) -> None:
    (tmp_path / "default_pipeline.star").write_text("data_pipeline_general\n_rlnPipeLineJobCounter 1\n")
    assert finished_jobs(tmp_path) == []
    told = list(install(tmp_path))
    assert sum("the inputs are left empty" in line for line in told) == 2


def test_the_command(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["flex-job", "relion", "install", str(project)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "FlexJobs/refine/job.star written" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["flex-job", "relion", "install", str(project / "nowhere")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "no such folder" in capsys.readouterr().err
