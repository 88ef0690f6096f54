"""External jobs with the real clients, 4.7 and 5.0, talking HTTP to a loopback server: a run, a failure, a kill."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from end_to_end.without_report import short_report
from hosts.cryosparc_project import CsProject, convert
from hosts.cryosparc_server import EMAIL, LICENSE, PASSWORD, TOKEN, Instance, Job, Refused, serve
from PIL import Image

import integration.cryosparc.work
from flex_job.consensus import Consensus
from flex_job.events import Events
from flex_job.mesh import TetMesh, read_cryosparc_mesh
from flex_job.refine import RefineResult
from flex_job.volume import read_volume
from integration.cryosparc.client import without_secrets
from integration.cryosparc.command import OPTIONS
from integration.cryosparc.dataset import join, read_cs
from integration.cryosparc.job import run
from integration.cryosparc.request import read_request
from integration.local.status import status_of
from job_specs.parameters import RefineParameters

QUICK = {"latent_dims": "1", "epochs": "2", "tetra_cells": "6", "max_iterations": "3", "map_every": "0"}
SOURCES = {"particles": "J2.particles", "volume": "J2.volume"}
OLD = "4.7.1"


@pytest.fixture(scope="session")
def old_tools(request: pytest.FixtureRequest) -> Path:
    """A folder with cryosparc-tools 4.7, which cannot be installed beside 5.0; fetched once and kept."""
    folder = Path(request.config.cache.mkdir(f"cryosparc-tools-{OLD}"))  # type: ignore[union-attr]
    if not (folder / "cryosparc").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
        done = subprocess.run([*command, f"cryosparc-tools=={OLD}"], capture_output=True, text=True)
        if done.returncode:
            text = f"pip cannot get cryosparc-tools {OLD}: {done.stderr[-300:]}"
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(text)
            pytest.skip(text)
    return folder


LOADED: dict[int, dict[str, ModuleType]] = {}


@contextmanager
def imported(major: int, folder: Path | None) -> Iterator[None]:
    """Have `import cryosparc` mean the tools in `folder`, or those installed."""

    def theirs() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "cryosparc"}

    before = theirs()
    for name in before:
        del sys.modules[name]
    sys.modules.update(LOADED.get(major, {}))
    path = list(sys.path)
    sys.path[:0] = [str(folder)] if folder else []
    try:
        yield
    finally:
        LOADED[major] = theirs()
        sys.path[:] = path
        for name in LOADED[major]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.fixture(params=[5, 4], ids=["5.0", "4.7"])
def major(request: pytest.FixtureRequest) -> Iterator[int]:
    """The version of the tools, which `import cryosparc` then means."""
    if request.param == 4:
        with imported(4, request.getfixturevalue("old_tools")):
            yield 4
        return
    if os.environ.get("CI", "").lower() != "true":
        pytest.importorskip("cryosparc.tools", reason="cryosparc-tools is not installed")
    with imported(5, None):
        yield 5


@pytest.fixture
def project(small_project: Path, tmp_path: Path) -> CsProject:
    return convert(small_project, tmp_path / "P3")


@pytest.fixture
def instance(project: CsProject, major: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """The project behind a server, with the refinement J2 and a mask job J3."""
    found = Instance(project.root)
    map_file = {
        f"{slot}/{field}": value
        for slot, name in (("map", "map"), ("map_half_A", "map_half_A"), ("map_half_B", "map_half_B"))
        for field, value in (
            ("path", np.array([f"J2/J2_003_volume_{name}.mrc".encode()])),
            ("shape", np.array([[24, 24, 24]], np.uint32)),
            ("psize_A", np.array([10.0], np.float32)),
        )
    }
    particles = join(project.main, [(Path("passthrough"), project.passthrough)])
    uid = {"uid": np.array([7], np.uint64)}
    found.add_source("J2", particles=("particle", particles), volume=("volume", {**uid, **map_file}))
    mask = {"mask/path": np.array([b">J2/J2_003_volume_mask_refine.mrc"])}
    found.add_source("J3", mask=("mask", {**uid, **mask}))
    url, servers = serve(found, major)
    for name in ("CRYOSPARC_BASE_URL", "CRYOSPARC_MASTER_HOSTNAME", "CRYOSPARC_BASE_PORT", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    login = {"EMAIL": EMAIL, "PASSWORD": PASSWORD, "LICENSE_ID": LICENSE, "BASE_URL": url}
    for name, value in login.items():
        monkeypatch.setenv(f"CRYOSPARC_{name}", value)
    monkeypatch.setattr("integration.cryosparc.host.POLL_S", 0.0)
    yield found
    for server in servers:
        server.shutdown()
        server.server_close()


def start(**options: str) -> int:
    return run({"project": "P3", "workspace": "W1", **SOURCES, **QUICK, **options})


Refine = Callable[[Consensus, RefineParameters, Path, Events, Any], RefineResult]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Refine], None]:
    """Put a stand-in where the engine is called."""
    return lambda stand_in: monkeypatch.setattr(integration.cryosparc.work, "refine", stand_in)


REAL = integration.cryosparc.work.refine
DONE: list[tuple[Path, RefineResult]] = []


@pytest.fixture
def refined(
    engine: Callable[[Refine], None], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The real engine the first time; after that, what it left then."""

    def once(consensus: Consensus, parameters: Any, folder: Path, events: Events, group: Any) -> RefineResult:
        if not DONE:
            result = REAL(consensus, parameters, folder, events, group)
            kept = tmp_path_factory.mktemp("refined") / "kept"
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("inputs", "flex.log"))
            DONE.append((kept, result))
        kept, result = DONE[0]
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        for number in (1, 2, 3):
            with events.stage(f"stage {number}"):
                for step in range(5):
                    events.progress(step / 5, f"step {step}")
        return result

    monkeypatch.setattr("flex_job.refine.write_run_report", short_report)
    engine(once)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes a second."""
    monkeypatch.setattr(integration.cryosparc.work, "result_figures", lambda result, folder: [])


def made(instance: Instance) -> Job:
    (job,) = [job for job in instance.jobs.values() if job.kind == "snowflake"]
    return job


def test_a_whole_run(instance: Instance, project: CsProject, major: int, refined: None, capsys: Any) -> None:
    assert start(mask="J3.mask") == 0, capsys.readouterr().err
    job, result = made(instance), DONE[0][1]
    folder = instance.folder / job.uid
    assert (job.status, job.error, job.title) == ("completed", "", "3D Flex (flex-job)")
    assert {name: group.connections for name, group in job.inputs.items()} == {
        "particles": [("J2", "particles")], "volume": [("J2", "volume")], "mask": [("J3", "mask")],
    }  # fmt: skip

    particles = job.outputs["particles"]
    assert (particles.kind, particles.passthrough) == ("particle", "particles")
    assert particles.slots == [("components_mode_0", "components", True)]
    table = particles.table
    assert table is not None
    assert list(table) == ["uid", "components_mode_0/component", "components_mode_0/value"]
    assert table["uid"].dtype == np.uint64 and np.array_equal(table["uid"], project.main["uid"])
    assert table["components_mode_0/component"].dtype == np.uint32
    assert (table["components_mode_0/component"] == 0).all()
    assert np.array_equal(table["components_mode_0/value"], result.model.latents[:, 0])

    for name, kind, mask in (("volume", "flex", True), ("volume_rigid", "rigid", False)):
        files = {
            "map": f"{kind}_class001.mrc",
            "map_half_A": f"{kind}_half1_class001_unfil.mrc",
            "map_half_B": f"{kind}_half2_class001_unfil.mrc",
            **({"mask_refine": "mask.mrc"} if mask else {}),
        }
        assert job.outputs[name].kind == "volume"
        saved = job.outputs[name].table
        assert saved is not None and len(saved["uid"]) == 1
        for slot, file in files.items():
            assert saved[f"{slot}/path"].astype(str).tolist() == [f"{job.uid}/{file}"]
            assert saved[f"{slot}/shape"].tolist() == [[24, 24, 24]]
            assert saved[f"{slot}/psize_A"].tolist() == [10.0]
            assert read_volume(instance.folder / f"{job.uid}/{file}").box == 24
        assert len(saved) == 1 + 3 * len(files)

    mesh = job.outputs["flex_mesh"].table
    assert mesh is not None and mesh["mesh/path"].astype(str).tolist() == [f"{job.uid}/flex_mesh.p"]
    assert mesh["mesh/psize_A"].tolist() == [10.0]
    assert np.array_equal(read_cryosparc_mesh(folder / "flex_mesh.p").cells, TetMesh.load(folder / "mesh.npz").cells)

    lines = job.lines()
    assert any("mean corrected FSC" in line for line in lines)
    assert len(lines) < 40
    for number in (1, 2, 3):  # 5.x updates one line, 4.7 cannot
        (line,) = (line for line in lines if line.startswith(f"stage {number}: "))
        assert re.fullmatch(r"stage \d: done in \d+ s", line)
    status = status_of(folder)
    assert status is not None and status.state == "done"
    curves, latents, movie = [event for event in job.events if event["images"]]
    assert curves["text"].startswith("FSC of the half-maps") and latents["text"] == "Latents of the particles"
    assert instance.assets[curves["images"][0]["fileid"]][1].startswith(b"\x89PNG")
    assert movie["text"] == "The motion along each latent" and len(movie["images"]) == 1
    kept = instance.assets[movie["images"][0]["fileid"]][1]
    assert kept == (folder / "motion.gif").read_bytes() and Image.open(io.BytesIO(kept)).n_frames == 18  # 10 and back

    written = read_cs(folder / "particles.cs")
    assert np.array_equal(written["uid"], project.main["uid"]) and "blob/path" in written
    assert np.array_equal(written["flex_latent_std_0/value"], result.model.latent_std[:, 0])
    log = (folder / "flex.log").read_text()
    shown = capsys.readouterr()
    assert "mean corrected FSC" in log and "mean corrected FSC" in shown.out
    for secret in (PASSWORD, LICENSE, TOKEN):
        assert secret not in log + shown.out + shown.err + "".join(map(str, job.events)) + " ".join(instance.seen)


def test_what_the_engine_gets_is_the_connected_refinement(
    instance: Instance, project: CsProject, engine: Callable[[Refine], None]
) -> None:
    seen: list[tuple[Consensus, RefineParameters]] = []

    def look(consensus: Consensus, parameters: RefineParameters, *others: Any) -> RefineResult:
        seen.append((consensus, parameters))
        raise ValueError("enough")

    engine(look)
    particles = instance.jobs["J2"].outputs["particles"].table
    assert particles is not None
    rng = np.random.default_rng(0)
    modes = {f"components_mode_{mode}/value": rng.normal(size=120).astype(np.float32) for mode in range(2)}
    particles |= modes
    start(mask="J3.mask", threads="2")
    ((consensus, parameters),) = seen
    assert np.allclose(consensus.origins_A, 10.0 * project.main["alignments3D/shift"], atol=1e-4)
    assert consensus.half_maps is not None and consensus.mask is not None
    assert consensus.mask.data.max() == 1.0
    assert consensus.latents is not None
    assert np.array_equal(consensus.latents[:, 0], modes["components_mode_0/value"])
    assert parameters.train.latent_start == "columns" and parameters.run.threads == 2
    assert any("starting latents: components_mode_0/value" in line for line in made(instance).lines())
    # fewer modes than latents, or another start asked for, and the engine finds its own
    start(latent_dims="3")
    start(latent_start="zero")
    assert [consensus.latents for consensus, _ in seen[1:]] == [None, None]


def test_conventions_taken_on_trust_are_warnings_in_the_event_log(
    instance: Instance, engine: Callable[[Refine], None], major: int
) -> None:
    def warnings(**fields: Any) -> list[str]:
        """Of a run with these fields changed; those of flex.log."""
        particles = instance.jobs["J2"].outputs["particles"].table
        assert particles is not None
        particles |= {name.replace("__", "/"): value for name, value in fields.items()}
        before = set(instance.jobs)
        start()
        (uid,) = set(instance.jobs) - before
        job = instance.jobs[uid]
        events = [event for event in job.events if "not tried" in event["text"]]
        if major == 5:
            assert all(event["type"] == "warning" for event in events)
        else:  # 4.7 has only text and errors, and this is none
            assert all(event["type"] == "text" and event["text"].startswith("warning: ") for event in events)
        shown = [event["text"].removeprefix("warning: ") for event in events]
        log = (instance.folder / uid / "flex.log").read_text().splitlines()
        assert [line.partition("WARNING ")[2] for line in log if "not tried" in line] == shown
        return shown

    engine(ended_early)
    assert warnings() == []  # negative control: a refinement without any
    rng = np.random.default_rng(0)
    found = warnings(
        ctf__trefoil_A=np.full((120, 2), 900.0, np.float32),
        ctf__tetra_A=np.full((120, 4), 900.0, np.float32),
        ctf__shift_A=np.full((120, 2), 1.5, np.float32),
        ctf__anisomag=np.full((120, 4), 0.01, np.float32),
        ctf__bfactor=np.full(120, 20.0, np.float32),
        alignments3D__alpha=rng.uniform(0.8, 1.2, 120).astype(np.float32),
        blob__sign=rng.choice([-1.0, 1.0], 120).astype(np.float32),
    )
    for what in ("trefoil", "tetrafoil", "image shift", "magnification", "bfactor", "alpha", "blob/sign"):
        assert sum(what in line for line in found) == 1, what
    assert len(found) == 7


def ended_early(*others: Any) -> RefineResult:
    raise ValueError("enough")


def kill_in_interface(instance: Instance) -> Refine:
    def wait(consensus: Consensus, parameters: Any, folder: Path, events: Events, group: Any) -> RefineResult:
        events.check_stop()
        made(instance).status = "killed"
        events.check_stop()
        raise AssertionError("not stopped")

    return wait


def test_a_kill_in_the_interface_stops_the_run(
    instance: Instance, engine: Callable[[Refine], None], capsys: Any
) -> None:
    engine(kill_in_interface(instance))
    assert start() == 1
    job = made(instance)
    assert job.status == "killed" and job.outputs["particles"].table is None
    assert f"killed in cryoSPARC; start again with --job {job.uid}" in capsys.readouterr().err


def raising(error: BaseException) -> Refine:
    def fail(*arguments: Any) -> RefineResult:
        raise error

    return fail


def signalled(number: signal.Signals) -> Refine:
    def stop(consensus: Consensus, parameters: Any, folder: Path, events: Events, group: Any) -> RefineResult:
        events.check_stop()
        os.kill(os.getpid(), number)
        events.check_stop()
        raise AssertionError("not stopped")

    return stop


ENDS: dict[str, tuple[Refine, str]] = {
    "error": (raising(RuntimeError("a bug")), "unexpected RuntimeError: a bug"),
    "bad input": (raising(ValueError("a bad value")), "a bad value"),
    "memory": (raising(MemoryError()), ""),
    "Ctrl-C": (raising(KeyboardInterrupt()), "interrupted; start again with --job"),
    "SIGTERM": (signalled(signal.SIGTERM), "stopped by SIGTERM; start again with --job"),
    "SIGINT": (signalled(signal.SIGINT), "stopped by SIGINT"),
    "SIGUSR1": (signalled(signal.SIGUSR1), "stopped by SIGUSR1"),
}


@pytest.mark.parametrize("end", ENDS)
def test_whatever_ends_a_run_leaves_the_job_failed(
    instance: Instance, engine: Callable[[Refine], None], end: str, capsys: Any
) -> None:
    stand_in, words = ENDS[end]
    engine(stand_in)
    assert start() == 1
    job = made(instance)
    assert job.status == "failed"
    assert words in "\n".join(job.lines("error")) and words in capsys.readouterr().err
    assert all(group.table is None for group in job.outputs.values())
    assert "Traceback" not in "\n".join(job.lines("error"))


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_leaves_the_job_failed(instance: Instance, engine: Callable[[Refine], None], code: int) -> None:
    engine(raising(SystemExit(code)))
    with pytest.raises(SystemExit):
        start()
    assert made(instance).status == "failed"


def test_the_tools_own_way_would_leave_it_completed(instance: Instance, major: int) -> None:
    """The reason for all of this."""
    from integration.cryosparc.client import connect

    job = connect().create_job("P3", "W1", "trap").job
    with pytest.raises(SystemExit), job.run():
        raise SystemExit(3)
    assert made(instance).status == "completed"


def test_an_instance_that_does_not_answer_costs_lines_not_the_run(
    instance: Instance, refined: None, no_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(operation: str, job: Job | None) -> None:
        if operation == "log" and job is not None and len(job.events) > 2:
            raise Refused("out of order")

    instance.refuse = refuse
    assert start() == 0
    job = made(instance)
    assert job.status == "completed" and len(job.events) == 3
    assert "cryoSPARC does not answer" in (instance.folder / job.uid / "flex.log").read_text()


def test_a_mesh_that_is_refused_stays_a_file(instance: Instance, refined: None, no_figures: None) -> None:
    def refuse(operation: str, job: Job | None) -> None:
        if operation == "add_output" and job is not None and len(job.outputs) == 3:
            raise Refused("no such kind")

    instance.refuse = refuse
    assert start() == 0
    job = made(instance)
    assert list(job.outputs) == ["particles", "volume", "volume_rigid"]
    assert any("the mesh is the file flex_mesh.p only" in line for line in job.lines())
    assert (instance.folder / job.uid / "flex_mesh.p").is_file()


def test_a_project_elsewhere_is_downloaded_and_results_are_uploaded(
    instance: Instance, refined: None, no_figures: None, tmp_path: Path, capsys: Any
) -> None:
    instance.told_folder = Path("/nowhere/P3")
    assert start() == 1
    assert "/nowhere/P3/J4: the job's folder is not seen by this machine" in capsys.readouterr().err
    assert instance.jobs.pop("J4").status == "failed"
    assert start(o=str(tmp_path / "work"), mask="J3.mask") == 0, capsys.readouterr().err
    job = made(instance)
    assert any("5 files are downloaded to" in line for line in job.lines())
    assert (tmp_path / "work/inputs/J1/extract/particles_001.mrcs").is_file()
    for name in ("flex_class001.mrc", "report.html", "particles.cs", "flex_mesh.p"):
        assert (instance.folder / job.uid / name).read_bytes() == (tmp_path / "work" / name).read_bytes()


def test_a_job_goes_on_in_its_folder(
    instance: Instance, engine: Callable[[Refine], None], refined: None, no_figures: None
) -> None:
    engine_of_refined = integration.cryosparc.work.refine
    engine(raising(KeyboardInterrupt()))
    assert start(mask="J3.mask") == 1
    uid = made(instance).uid
    engine(engine_of_refined)
    assert run({"project": "P3", "job": uid, **QUICK}) == 0
    job = made(instance)
    assert (job.uid, job.status) == (uid, "completed")
    assert job.outputs["particles"].table is not None


# -- before there is a job -----------------------------------------------------------------------------------------


def test_all_problems_come_in_one_message_and_no_job_is_made(instance: Instance, capsys: Any) -> None:
    code = run(
        {
            "project": "project 3",
            "workspace": "1",
            "particles": "J12",
            "mask": "J3/mask",
            "latent_dims": "99",
            "devices": "17",
            "scratch": "/no/such/folder",
        }
    )
    told = capsys.readouterr().err
    assert code == 1
    for words in (
        "--project project 3: expected such as P3",
        "--workspace 1: expected such as W1",
        "--particles J12: expected job and output, as in J12.particles",
        "--volume was not given",
        "--mask J3/mask",
        "latent_dims: 99",
        "devices: '17'",
        "scratch: /no/such/folder",
    ):
        assert words in told
    assert sorted(instance.jobs) == ["J2", "J3"]


def test_the_number_of_latents_is_known_before() -> None:
    sources = {"project": "P3", "workspace": "W1", "particles": "J2.particles", "volume": "J2.volume"}
    request, problems = read_request({**sources, "latent_dims": "auto"})
    assert not problems and request.parameters.train.latent_dims == 2


@pytest.mark.parametrize(
    "options, words",
    [
        ({"workspace": "W9"}, "workspace W9"),
        ({"project": "P4"}, "project P4"),
        ({"job": "J2", "workspace": ""}, "--job J2: no external job of P3"),
    ],
)
def test_places_that_are_not_there(instance: Instance, options: dict[str, str], words: str, capsys: Any) -> None:
    assert start(**options) == 1
    assert words in capsys.readouterr().err
    assert sorted(instance.jobs) == ["J2", "J3"]


def test_sources_that_do_not_connect_fail_the_job(instance: Instance, capsys: Any) -> None:
    assert start(particles="J2.volume", volume="J9.volume") == 1
    job = made(instance)
    assert job.status == "failed"
    error = "\n".join(job.lines("error"))
    assert "--particles J2.volume cannot be connected" in error and "--volume J9.volume cannot be" in error


@pytest.mark.parametrize("variable", ["PASSWORD", "LICENSE_ID", "BASE_URL"])
def test_a_login_that_fails_tells_no_secret(
    instance: Instance, major: int, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any
) -> None:
    wrong = {"PASSWORD": "hunter2hunter2", "LICENSE_ID": "not-a-licence-at-all", "BASE_URL": "http://"}[variable]
    if (major, variable) == (5, "LICENSE_ID"):
        pytest.skip("5.0 needs no licence")
    monkeypatch.setenv(f"CRYOSPARC_{variable}", wrong)
    with caplog.at_level("DEBUG"):
        assert start() == 1
    shown = capsys.readouterr()
    told = shown.out + shown.err + caplog.text
    assert ("not an address" if variable == "BASE_URL" else "no login at http://127.0.0.1") in told
    for secret in (PASSWORD, LICENSE, *([wrong] if variable != "BASE_URL" else [])):
        assert secret not in told and without_secrets(f"x {secret} y", {"CRYOSPARC_TOKEN": secret}) not in told
    assert sorted(instance.jobs) == ["J2", "J3"]


@pytest.mark.parametrize(
    "url", ["localhost:39000", "http://host:port", "ftp://host", "http://ali:opensesame@host:39000"]
)
def test_addresses_that_are_none_are_told_without_their_login(
    instance: Instance, url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert start(url=url) == 1
    told = capsys.readouterr().err
    assert "opensesame" not in told
    assert ("holds a login" if "@" in url else "not an address") in told


def test_other_versions_are_told(instance: Instance, engine: Callable[[Refine], None]) -> None:
    instance.version = "v6.1.0"
    engine(raising(ValueError("enough")))
    start()
    assert any("CryoSPARC is version 6.1.0" in line and "~=6.1.0" in line for line in made(instance).lines())


def test_a_job_that_was_shot_is_taken_up_again(instance: Instance, engine: Callable[[Refine], None]) -> None:
    engine(raising(ValueError("enough")))
    start()
    made(instance).status = "running"  # as SIGKILL leaves it
    assert run({"project": "P3", "job": made(instance).uid, **QUICK}) == 1
    assert made(instance).lines("error")[-1].startswith("enough")


def test_secrets_are_blotted_out_in_every_form_that_is_sent() -> None:
    from hashlib import sha256

    environment = {"CRYOSPARC_PASSWORD": "opensesame", "CRYOSPARC_LICENSE_ID": ""}
    text = f"login opensesame {sha256(b'opensesame').hexdigest()} failed"
    assert without_secrets(text, environment) == "login <CRYOSPARC_PASSWORD> <CRYOSPARC_PASSWORD> failed"


def test_no_option_takes_a_secret() -> None:
    assert not [name for name in OPTIONS if any(word in name for word in ("pass", "token", "licen", "email"))]


def test_without_the_tools_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "cryosparc", None)
    assert start() == 1
    assert 'pip install "cryosparc-tools~=5.0.0"' in capsys.readouterr().err


def test_under_a_launcher_it_asks_to_be_started_once(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert start() == 1
    assert "start it once" in capsys.readouterr().err


# -- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.science
@pytest.mark.parametrize("major", [5], indirect=True)
def test_two_processes_work_on_one_job(instance: Instance, project: CsProject, capfd: Any) -> None:
    assert start(devices="cpu:2", threads="2") == 0, capfd.readouterr().err
    job = made(instance)
    table = job.outputs["particles"].table
    assert job.status == "completed" and table is not None
    assert np.array_equal(table["uid"], project.main["uid"])
    assert table["components_mode_0/value"].std() > 0
    assert len([line for line in job.lines() if "mean corrected FSC" in line]) == 1


@pytest.mark.science
@pytest.mark.parametrize("major", [5], indirect=True)
def test_a_process_that_fails_fails_the_job(instance: Instance, capfd: Any) -> None:
    (instance.folder / "J2/J2_003_volume_map_half_A.mrc").write_bytes(b"no map")
    assert start(devices="cpu:2", threads="2") == 1
    job = made(instance)
    assert job.status == "failed" and "J2_003_volume_map_half_A.mrc" in "\n".join(job.lines("error"))
