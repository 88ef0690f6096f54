"""RELION's conventions in a job directory: exit files, abort, signals, nodes, and what a user sees of a failure."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flex_job.events import Events, StopRequested
from flex_job.lock import LOCK_FILE
from flex_job.problems import InputProblems
from integration.common.log import LOG_FILE
from integration.common.progress_file import PROGRESS_FILE
from integration.common.requeue import RESUMABLE
from integration.relion.host import RelionJob, relion_version, without_alias, write_nodes
from integration.relion.job import run
from integration.relion.request import Request
from job_specs.jobs import JOBS

Work = Callable[[Request, list[str], Events], None]

JOB_STAR = {
    3: "\n# version 30001\n\ndata_job\n\n_rlnJobType 99\n_rlnJobIsContinue 0\n",
    4: "\n# version 30001\n\ndata_job\n\n_rlnJobTypeLabel relion.external\n_rlnJobIsContinue 0\n_rlnJobIsTomo 0\n",
    5: "\n# version 50001\n\ndata_job\n\n_rlnJobTypeLabel relion.external\n_rlnJobIsContinue 0\n_rlnJobIsTomo 0\n",
}


def exit_files(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("RELION_JOB_EXIT_") for path in folder.glob("RELION_JOB_EXIT_*"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Work], None]:
    """Put a stand-in where the work of a job is done."""

    def put(work: Work) -> None:
        monkeypatch.setattr("integration.relion.work.work", lambda *arguments: work(*arguments[:3]))

    return put


def start(folder: Path, **options: str) -> int:
    return run("refine", {"o": f"{folder}/", "in_parts": __file__, **options})


def nothing(request: Request, problems: list[str], events: Events) -> None:
    events.message("one line of progress")


def test_success(tmp_path: Path, engine: Callable[[Work], None], capsys: pytest.CaptureFixture[str]) -> None:
    engine(nothing)
    folder = tmp_path / "External" / "job002"
    folder.mkdir(parents=True)
    for left in ("RELION_JOB_EXIT_FAILURE", "RELION_JOB_ABORT_NOW"):
        (folder / left).touch()
    assert start(folder) == 0
    assert exit_files(folder) == ["SUCCESS"]
    assert not list(folder.glob("*ABORT_NOW"))
    assert (folder / "RELION_OUTPUT_NODES.star").is_file()
    shown = capsys.readouterr()
    assert "one line of progress" in shown.out
    assert shown.err == ""
    assert "one line of progress" in (folder / LOG_FILE).read_text()


def test_other_processes_of_a_job_keep_quiet(
    tmp_path: Path,
    engine: Callable[[Work], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "RELION_JOB_EXIT_ABORTED").touch()
    (tmp_path / "RELION_JOB_ABORT_NOW").touch()
    before = sorted(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    engine(nothing)
    assert start(tmp_path) == 0
    assert sorted(tmp_path.iterdir()) == before
    assert capsys.readouterr() == ("", "")


def test_another_process_that_cannot_tell_the_first_tells_the_user(
    tmp_path: Path,
    engine: Callable[[Work], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(request: Request, problems: list[str], events: Events) -> None:
        raise OSError(5, "Input/output error", "particles.mrcs")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    engine(fail)
    assert start(tmp_path) == 1
    assert exit_files(tmp_path) == []
    assert "rank 1: [Errno 5]" in capsys.readouterr().err
    assert "Traceback" in (tmp_path / "flex_rank1.log").read_text()


@pytest.mark.parametrize("devices, expected", [("gpu", "expected numbers of GPUs"), ("17", "'17' was given")])
def test_devices_that_are_not_there_are_told_with_all_else(
    tmp_path: Path, engine: Callable[[Work], None], devices: str, expected: str
) -> None:
    seen: list[str] = []
    engine(lambda request, problems, events: seen.extend(problems))
    start(tmp_path, devices=devices)
    assert any(expected in line for line in seen), seen


def test_exit_files_of_an_earlier_run_are_gone_while_the_job_runs(
    tmp_path: Path, engine: Callable[[Work], None]
) -> None:
    seen: list[list[str]] = []
    engine(lambda request, problems, events: seen.append(exit_files(tmp_path)))
    (tmp_path / "RELION_JOB_EXIT_SUCCESS").touch()
    start(tmp_path)
    assert seen == [[]]


def test_bad_input_is_told_at_once_and_nothing_else_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "flex_class001.mrc"
    kept.write_bytes(b"precious")
    config = tmp_path / "values.yaml"
    config.write_text("epoch: 3\nrigidity: soft\n")
    code = run(
        "refine",
        {
            "o": str(tmp_path),
            "in_parts": "nowhere.star",
            "in_mask": "no_mask.mrc",
            "latent_dims": "99",
            "config": str(config),
            "zero_motion_mask": "none.mrc",
            "scratch": str(tmp_path / "no_folder"),
        },
    )
    assert code == 1
    assert exit_files(tmp_path) == ["FAILURE"]
    told = capsys.readouterr().err
    for word in ("nowhere.star", "no_mask.mrc", "latent_dims", "rigidity", "epochs", "none.mrc", "no_folder"):
        assert word in told
    assert "Traceback" not in told
    assert "Traceback" in (tmp_path / LOG_FILE).read_text()
    assert kept.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {
        kept.name,
        config.name,
        LOG_FILE,
        PROGRESS_FILE,
        LOCK_FILE,
        "RELION_JOB_EXIT_FAILURE",
    }


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "3", "\x00"])
def test_a_config_file_that_is_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "values.yaml"
    config.write_text(text)
    assert run("refine", {"o": str(tmp_path / "job"), "config": str(config)}) == 1
    told = capsys.readouterr().err
    assert "expected lines such as latent_dims: 2" in told
    assert "--in_parts was not given" in told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputProblems(["the stack is short", "the mask is empty"]), ["2 problems", "stack is short", "mask is empty"]),
        (OSError(errno.ENOSPC, "No space left on device", "cache.f16"), ["disk is full", "cache.f16", "Continue"]),
        (MemoryError(), ["memory ran out", "training_box"]),
        (ValueError("box 3 is odd"), ["box 3 is odd", LOG_FILE]),
        (KeyError("oops"), ["unexpected KeyError", LOG_FILE]),
        (KeyboardInterrupt(), ["interrupted", "Continue"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_shows_no_traceback(
    error: BaseException,
    words: list[str],
    tmp_path: Path,
    engine: Callable[[Work], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(request: Request, problems: list[str], events: Events) -> None:
        raise error

    engine(fail)
    assert start(tmp_path) == 1
    assert exit_files(tmp_path) == ["FAILURE"]
    shown = capsys.readouterr()
    assert all(word in shown.err for word in words), shown.err
    assert "Traceback" not in shown.out + shown.err
    assert "Traceback" in (tmp_path / LOG_FILE).read_text()


def test_a_job_directory_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert start(tmp_path / "file" / "job002") == 1
    told = capsys.readouterr().err
    assert told.count("cannot be written") == 1
    assert "Traceback" not in told


def until_stopped(request: Request, problems: list[str], events: Events) -> None:
    for _ in range(1000):
        events.check_stop()
    raise AssertionError("nobody stopped this job")


def test_abort(tmp_path: Path, engine: Callable[[Work], None]) -> None:
    def work(request: Request, problems: list[str], events: Events) -> None:
        (tmp_path / "RELION_JOB_ABORT_NOW").touch()
        until_stopped(request, problems, events)

    engine(work)
    assert start(tmp_path) == 2
    assert exit_files(tmp_path) == ["ABORTED"]
    assert not (tmp_path / "RELION_JOB_ABORT_NOW").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("comes_back", [False, True])
def test_signals(
    number: signal.Signals,
    comes_back: bool,
    tmp_path: Path,
    engine: Callable[[Work], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(request: Request, problems: list[str], events: Events) -> None:
        os.kill(os.getpid(), number)
        until_stopped(request, problems, events)

    before = signal.getsignal(number)
    engine(work)
    monkeypatch.setattr("integration.relion.job.comes_back", lambda out_of_time: comes_back)
    assert start(tmp_path) == RESUMABLE
    assert exit_files(tmp_path) == ([] if comes_back else ["FAILURE"])
    assert ("press Continue to resume" in capsys.readouterr().err) is not comes_back
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    with RelionJob(tmp_path) as host:
        os.kill(os.getpid(), signal.SIGINT)
        assert host.should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_disk_is_looked_at_once_a_second_only(tmp_path: Path) -> None:
    with RelionJob(tmp_path, poll_seconds=3600) as host:
        assert not host.should_stop()
        (tmp_path / "RELION_JOB_ABORT_NOW").touch()
        assert not host.should_stop()
        assert host.aborted  # another process of the job may have seen it first
    with RelionJob(tmp_path, poll_seconds=0) as host:
        assert not host.should_stop()
        (tmp_path / "RELION_JOB_ABORT_NOW").touch()
        assert host.should_stop()


@pytest.mark.parametrize("version", [3, 4, 5])
def test_nodes(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemmi import cif

    monkeypatch.chdir(tmp_path)
    folder = Path("External/job002/")
    folder.mkdir(parents=True)
    (folder / "job.star").write_text(JOB_STAR[version])
    for name in ("particles.star", "flex_half1_class001_unfil.mrc", "flex_class001.mrc", "mask.mrc", "logfile.pdf"):
        (folder / name).touch()
    (folder / "fsc.star").touch()
    assert relion_version(folder) == version
    path = write_nodes(folder, JOBS["refine"].outputs, relion_version(folder))
    block = cif.read(str(path)).find_block("output_nodes")
    columns = ["_rlnPipeLineNodeName", "_rlnPipeLineNodeTypeLabel", "_rlnPipeLineNodeType"]
    particles = "ParticlesData" if version == 4 else "ParticleGroupMetadata"
    assert [list(row) for row in block.find(columns)] == [
        ["External/job002/particles.star", f"{particles}.star.relion", "3"],
        ["External/job002/flex_half1_class001_unfil.mrc", "DensityMap.mrc.halfmap", "10"],
        ["External/job002/flex_class001.mrc", "DensityMap.mrc", "6"],
        ["External/job002/mask.mrc", "Mask3D.mrc", "7"],
        ["External/job002/logfile.pdf", "LogFile.pdf.relion", "13"],
    ]


def test_nodes_of_an_absolute_job_directory_are_relative_to_the_project(
    tmp_path: Path, engine: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "External" / "job002"
    engine(lambda request, problems, events: (request.folder / "mask.mrc").touch())
    assert start(folder) == 0
    assert "\nExternal/job002/mask.mrc Mask3D.mrc 7\n" in (folder / "RELION_OUTPUT_NODES.star").read_text()


def test_aliases_give_way_to_the_job_directorys_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    disk = tmp_path / "other_disk"
    (disk / "job002").mkdir(parents=True)
    Path("External").symlink_to(disk)  # no alias: a folder on another disk
    Path("External/mine").symlink_to("../External/job002/")  # as RELION 3.1.3 makes them
    Path("External/data").symlink_to(tmp_path)
    Path("External/broken").symlink_to("../External/job009/")
    for given, expected in {
        "External/mine/": "External/job002",
        "External/mine/particles.star": "External/job002/particles.star",
        f"{tmp_path}/External/mine": f"{tmp_path}/External/job002",
        "External/job002": "External/job002",
        "External/data/run_data.star": "External/data/run_data.star",
        "External/broken/run_data.star": "External/broken/run_data.star",
        "nowhere/at/all.star": "nowhere/at/all.star",
    }.items():
        assert without_alias(Path(given)) == Path(expected)


def test_inputs_and_nodes_go_by_the_job_directorys_name(
    tmp_path: Path, engine: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("External/job002", "Refine3D/job001"):
        Path(name).mkdir(parents=True)
    Path("External/mine").symlink_to("../External/job002/")
    Path("Refine3D/best").symlink_to("../Refine3D/job001/")
    Path("Refine3D/job001/run_data.star").touch()
    seen: list[Request] = []

    def work(request: Request, problems: list[str], events: Events) -> None:
        seen.append(request)
        (request.folder / "mask.mrc").touch()

    engine(work)
    assert run("refine", {"o": "External/mine/", "in_parts": "Refine3D/best/run_data.star"}) == 0
    assert seen[0].inputs["particles"] == Path("Refine3D/job001/run_data.star")
    assert "\nExternal/job002/mask.mrc Mask3D.mrc 7\n" in Path("External/job002/RELION_OUTPUT_NODES.star").read_text()


def test_stop_without_signal_or_abort_can_be_continued(
    tmp_path: Path, engine: Callable[[Work], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def work(request: Request, problems: list[str], events: Events) -> None:
        raise StopRequested

    engine(work)
    assert start(tmp_path) == RESUMABLE
    assert exit_files(tmp_path) == ["FAILURE"]
    assert "press Continue to resume" in capsys.readouterr().err
