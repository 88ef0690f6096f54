"""kill -9 at random moments of the whole job: the same command again goes on, and ends with the same bytes.

Jobs run in processes forked from one that has the imports done, so that a moment hits work and not an import. It is
told by the processor time that the job has used: on a busy machine it comes later and at the same place.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from end_to_end.conftest import environment

from integration.relion.simulate import simulate_project

OPTIONS = {
    "in_parts": "Refine3D/job001/run_data.star", "in_mask": "MaskCreate/job002/mask.mrc", "latent_dims": "1",
    "epochs": "4", "map_every": "2", "tetra_cells": "10", "batch": "50", "fixed_latent_epochs": "1", "j": "1",
    "half_sets": "random", "devices": "cpu", "mask_soft": "8",
}  # fmt: skip
MOMENTS = np.random.default_rng(20).uniform(0.02, 0.98, 20)
FEW = (0,)  # of the moments, in the common run of the tests
SAME = ("particles.star", "fsc.star", "mask.mrc", "mesh.npz", "prep.npz", "flex_model.pt")

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["integration.relion.job", "integration.relion.work", "end_to_end.without_report"])


def job(project: Path, folder: str, options: dict[str, str], save_every_s: float, said: Path) -> None:
    """The job as a process of its own does it, with checkpoints as often as `save_every_s`."""
    from end_to_end.without_report import leave_out_reports

    from flex_job import checkpoint
    from integration.relion.job import run

    leave_out_reports()
    os.chdir(project)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    checkpoint.SAVE_EVERY_S, checkpoint.ASK_EVERY = save_every_s, 1
    sys.exit(run("refine", {"o": folder, "threads": options["j"], **{k: v for k, v in options.items() if k != "j"}}))


def started(project: Path, name: str, save_every_s: float = 0.2) -> tuple[BaseProcess, Path]:
    said = project / f"{name}.out"
    process = forkserver.Process(target=job, args=(project, f"External/{name}/", OPTIONS, save_every_s, said))
    process.start()
    return process, said


def processor_time(pid: int | None) -> float:
    """Seconds that a process has worked; those of one that is gone are as many as anybody asks for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finished(project: Path, name: str) -> tuple[str, float]:
    """Run a job to success; what it said, and the processor time that it took."""
    process, said = started(project, name)
    used = 0.0
    while process.is_alive():
        used = max(used, min(processor_time(process.pid), 1e6))
        process.join(0.02)
    assert process.exitcode == 0, said.read_text()
    return said.read_text(), used


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 particles of 24 px; their half-sets are drawn at random, for the STAR file is made to have none."""
    folder = tmp_path_factory.mktemp("kill")
    simulate_project(folder, motion="one_hinge", particles=200, box=24, pixel_size_A=10.0, snr=0.3, seed=1)
    drop_half_sets(folder / "Refine3D/job001/run_data.star")
    return folder


def drop_half_sets(star: Path) -> None:
    lines = star.read_text().splitlines(keepends=True)
    label = next(line for line in lines if line.startswith("_rlnRandomSubset"))
    column = int(label.split("#")[1]) - 1
    kept = []
    for line in lines:
        if line is label:
            continue
        if match := re.match(r"(_rln\w+ #)(\d+)", line):
            number = int(match[2])
            after = lines.index(line) > lines.index(label)
            line = f"{match[1]}{number - 1}\n" if after else line
        elif "@" in line:
            words = line.split()
            line = " ".join(words[:column] + words[column + 1 :]) + "\n"
        kept.append(line)
    star.write_text("".join(kept))


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> tuple[dict[str, bytes], float]:
    """The results of a job that nothing happens to, and the processor time that it took."""
    finished(project, "warm")  # numba's cache
    _, used = finished(project, "undisturbed")
    return results(project / "External/undisturbed"), used


def results(folder: Path) -> dict[str, bytes]:
    """What a job leaves that does not tell the time."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name in SAME or path.suffix == ".mrc":
            content = path.read_bytes()
            if path.suffix == ".npz":  # a zip archive has times
                with np.load(io.BytesIO(content)) as arrays:
                    content = b"".join(name.encode() + arrays[name].tobytes() for name in arrays)
            elif path.suffix == ".star":
                content = b"".join(line for line in content.splitlines(True) if not line.startswith(b"#"))
            found[path.name] = content
    return found


def assert_same(folder: Path, expected: dict[str, bytes]) -> None:
    found = results(folder)
    assert list(found) == list(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    assert (folder / "RELION_JOB_EXIT_SUCCESS").exists()
    assert not [*folder.glob(".*.part"), *folder.glob("checkpoint*.pt")]


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n in FEW else pytest.mark.science) for n in range(len(MOMENTS))]
)
def test_killed_at_a_random_moment(project: Path, undisturbed: tuple[dict[str, bytes], float], number: int) -> None:
    expected, whole = undisturbed
    name = f"killed{number}"
    process, said = started(project, name)
    while processor_time(process.pid) < MOMENTS[number] * whole:
        time.sleep(0.002)
    process.kill()
    process.join()
    before = said.read_text() if said.exists() else ""
    assert not list((project / "External" / name).glob("RELION_JOB_EXIT_*")) or process.exitcode == 0
    after, _ = finished(project, name)
    resumed = after[len(before) :].splitlines()[:2]
    print(f"killed at {MOMENTS[number]:.2f}: after {before.splitlines()[-1:]}, then {resumed}")
    assert "damaged" not in after and "Traceback" not in after
    assert_same(project / "External" / name, expected)


@pytest.mark.science
def test_killed_again_and_again(project: Path, undisturbed: tuple[dict[str, bytes], float]) -> None:
    """Each start may work for a little longer than the one before; what one has done the next does not do again."""
    expected, whole = undisturbed
    starts = 0
    while not (project / "External/often/RELION_JOB_EXIT_SUCCESS").exists():
        process, _ = started(project, "often", save_every_s=-1.0)
        until = processor_time(process.pid) + (0.2 + 0.05 * starts) * whole
        while processor_time(process.pid) < until:
            time.sleep(0.005)
        process.kill()
        process.join()
        starts += 1
        assert starts < 30
    assert starts > 2
    assert_same(project / "External/often", expected)


@pytest.mark.science
@pytest.mark.parametrize("moment", [0.3, 0.55, 0.8])
def test_two_ranks_killed(project: Path, tmp_path_factory: pytest.TempPathFactory, moment: float) -> None:
    """The starter of two ranks is killed; they end with it. Sums over ranks are the same but for rounding."""
    words = [f"--{name}={value}" for name, value in (OPTIONS | {"devices": "cpu:2"}).items()]
    program = [sys.executable, "-c", "from integration.local.cli import refine; refine()"]
    expected = results_of_two(project, program, words)
    folder = project / f"External/two{moment}"
    command = [*program, f"--o={folder.relative_to(project)}/", *words]
    process = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = int(moment * 22)
    for _, _line in zip(range(lines), process.stdout, strict=False):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "Traceback" not in again.stdout + again.stderr, again.stdout + again.stderr
    print(again.stdout.splitlines()[:4])
    found = results(folder)
    assert list(found) == list(expected)
    for name in expected:
        if name.endswith(".mrc"):
            a, b = (np.frombuffer(each[name][1024:], np.float32) for each in (found, expected))
            assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max(), name


def results_of_two(project: Path, program: list[str], words: list[str]) -> dict[str, bytes]:
    folder = project / "External/two"
    if not (folder / "RELION_JOB_EXIT_SUCCESS").exists():
        command = [*program, f"--o={folder.relative_to(project)}/", *words]
        subprocess.run(command, cwd=project, env=environment(), check=True, timeout=300, capture_output=True)
    return results(folder)


# -- damage at rest ----------------------------------------------------------------------------------------------------

RESTS = {
    "training": "epoch 2/4",
    "half-maps": "flex: iteration 2",
    "end": "",
}  # what a job said before it rested
DAMAGES = {
    "flipped": lambda content: content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 0x10])
    + content[len(content) // 2 + 1 :] if content else b"x",
    "cut": lambda content: content[: len(content) // 3],
}  # fmt: skip


def _kill_in(project: Path, folder: Path, rest: str) -> None:
    process, said = started(project, folder.name, save_every_s=-1.0)
    while process.is_alive() and not (said.exists() and RESTS[rest] in said.read_text()):
        time.sleep(0.005)
    process.kill()
    process.join()
    assert RESTS[rest] in said.read_text()


def rested(project: Path, rest: str) -> Path:
    """A job directory as it is after a kill in that stage, or at the job's end."""
    folder = project / f"External/rest-{rest}"
    if not folder.exists():
        if not RESTS[rest]:
            finished(project, folder.name)
        else:
            _kill_in(project, folder, rest)
            while rest == "training" and not (folder / "checkpoint_train.pt").exists():  # between two renames
                shutil.rmtree(folder)
                _kill_in(project, folder, rest)
    return folder


def damaged_and_run(project: Path, rest: str, name: str, files: list[str], damage: str) -> str:
    """What the job says in a copy of that directory in which some files are damaged."""
    folder = project / "External" / name
    shutil.copytree(rested(project, rest), folder)
    for file in files:
        path = folder / file
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    return finished(project, name)[0]


@pytest.mark.parametrize("damage", ["flipped", pytest.param("cut", marks=pytest.mark.science)])
def test_all_of_the_latest_generation_damaged_at_once(
    project: Path, undisturbed: tuple[dict[str, bytes], float], damage: str
) -> None:
    files = ["manifest.json", "checkpoint_train.pt", "mesh.npz", "prep.npz", "cache/prep.f16", "mask.mrc"]
    said = damaged_and_run(project, "training", f"damaged-{damage}", files, damage)
    assert said.count("manifest.json is damaged") == 1 and said.count("checkpoint_train.pt is damaged") == 1
    assert "training goes on after epoch" in said and "Traceback" not in said
    assert_same(project / f"External/damaged-{damage}", undisturbed[0])


@pytest.mark.science
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("rest", RESTS)
def test_any_file_damaged_at_rest(
    project: Path, undisturbed: tuple[dict[str, bytes], float], rest: str, damage: str
) -> None:
    """Whatever a disk does to one of the files that a job leaves: the results are the same."""
    folder = rested(project, rest)
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 8
    for number, file in enumerate(files):
        name = f"damaged-{rest}-{damage}-{number}"
        said = damaged_and_run(project, rest, name, [file], damage)
        print(f"{rest}, {file} {damage}: {[line for line in said.splitlines() if 'damaged' in line]}")
        assert "Traceback" not in said and "unexpected" not in said, file
        if rest == "end" and file == "prep.npz":  # a finished job does not read it; what needs it checks it first
            shutil.copy(folder / file, project / "External" / name / file)
        assert_same(project / "External" / name, undisturbed[0])
