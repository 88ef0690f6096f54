"""The plugin in the real ccpem-pipeliner: found, filled in, checked, run, failed, aborted, continued, shown.

Most jobs run a stand-in for `flex-job` that leaves given files; one runs the real thing.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from gemmi import cif

from integration.local.options import job_command
from integration.relion.flags import INPUT_FLAGS
from integration.relion.host import RelionJob
from job_specs.jobs import JOBS, build
from job_specs.parameter import Parameter

ROOT = Path(__file__).parents[2]
GROUP = "ccpem_pipeliner.jobs"
DATA = "Refine3D/job001/run_data.star"
HEAVY = {"torch", "numba", "llvmlite", "triton", "flex_job", "click"}
STAND_IN = """\
#!/bin/sh
printf '%s\\n' "$@" > "{folder}/arguments"
for argument; do case "$argument" in --o=*) out=${{argument#--o=}};; esac; done
cp -r "{folder}/leave/." "$out"
exit $(cat "{folder}/code")
"""
ABORTABLE = """\
#!{python}
import sys, time
from pathlib import Path
sys.path.insert(0, "{root}")
from integration.relion.host import RelionJob
folder = Path(next(text for text in sys.argv if text.startswith("--o="))[4:])
with RelionJob(folder, poll_seconds=0) as host:
    (folder / "working").touch()
    while not host.should_stop():
        time.sleep(0.02)
    sys.exit(host.finish("ABORTED") if {waits} else 2)
"""


@pytest.fixture(scope="session")
def pipeliner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The real ccpem-pipeliner and our installed entry points. Missing: skipped, or an error where CI=true."""
    missing = ""
    if importlib.util.find_spec("pipeliner") is None:
        missing = "ccpem-pipeliner is not installed (pip install ccpem-pipeliner)"
    elif not metadata.entry_points(group=GROUP, name="flex_job.refine"):
        missing = "our entry points are not installed (pip install -e .)"
    if missing:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        for name in [name for name in os.environ if name.startswith("PIPELINER_")]:
            patch.delenv(name)
        yield


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a `flex-job` first on the PATH: what it shall `leave/`, its exit `code`, and its `arguments` after."""
    folder = tmp_path / "stand_in"
    (folder / "leave").mkdir(parents=True)
    (folder / "code").write_text("0")
    write_program(folder, STAND_IN.format(folder=folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def write_program(folder: Path, text: str) -> None:
    (folder / "flex-job").write_text(text)
    (folder / "flex-job").chmod(0o755)


@pytest.fixture
def project(pipeliner: None, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project with particles, and a stand-in for `flex-job`."""
    folder = tmp_path / "project"
    (folder / DATA).parent.mkdir(parents=True)
    (folder / DATA).write_text("data_particles\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n\n")
    monkeypatch.chdir(folder)
    command("--new_project")
    return folder


def command(*arguments: str) -> None:
    """What the console script `pipeliner` does."""
    from pipeliner.api.command_line import main

    main(list(arguments))


def new_job(name: str, **options: object) -> Any:
    from pipeliner.job_factory import new_job_of_type

    job = new_job_of_type(f"flex_job.{name}")
    for option, value in options.items():
        job.joboptions[option].value = value
    return job


def run(name: str, **options: object) -> Path:
    """Run a job to its end; gives its folder."""
    from pipeliner.api.manage_project import PipelinerProject

    wanted = {"_rlnJobTypeLabel": f"flex_job.{name}", **options}
    return Path(PipelinerProject().run_job(wanted, run_in_foreground=True).output_dir)


def pipeline() -> tuple[dict[str, str], dict[str, str], set[tuple[str, str]]]:
    """(status by job, type by node, (node, job that reads it)) of the project's pipeline."""
    from pipeliner.project_graph import ProjectGraph

    with ProjectGraph(read_only=False) as graph:
        graph.check_process_completion()
    document = cif.read("default_pipeline.star")

    def rows(block: str, *columns: str) -> Any:
        return document.find_block(f"pipeline_{block}").find([f"_rlnPipeLine{column}" for column in columns])

    return (
        {row[0]: row[1] for row in rows("processes", "ProcessName", "ProcessStatusLabel")},
        {row[0]: row[1] for row in rows("nodes", "NodeName", "NodeTypeLabel")},
        {(row[0], row[1]) for row in rows("input_edges", "EdgeFromNode", "EdgeProcess")},
    )


def leave(stand_in: Path, *names: str) -> None:
    for name in names:
        path = stand_in / "leave" / name
        if name.endswith(".mrc"):
            with mrcfile.new(path) as file:
                file.set_data(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32))
        else:
            path.write_text("data_particles\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n\n")


def named_outputs(name: str) -> list[str]:
    return [output.file for output in JOBS[name].outputs if "*" not in output.file and not output.optional]


def other_value(declared: Parameter) -> Any:
    """A valid value that is not the default."""
    low, high = declared.bounds
    if declared.choices:
        return next(choice for choice in declared.choices if choice != declared.default)
    if declared.kind is bool:
        return not declared.default
    if declared.kind is str:
        return "--restart; $(touch x) 'y'"
    return declared.kind(next(value for value in (low, high, 1) if value is not None and value != declared.default))


# what is offered


def test_there_is_an_entry_point_for_every_job(pipeliner: None) -> None:
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    lines = declared["options.entry_points"][GROUP].split("\n")
    assert {line.split("=")[0].strip() for line in lines if line} == {f"flex_job.{name}" for name in JOBS}


def test_all_jobs_are_found_and_ready(pipeliner: None) -> None:
    from pipeliner.job_factory import get_job_types

    jobs = {job.PROCESS_NAME.removeprefix("flex_job."): job for job in get_job_types("flex_job")}
    assert set(jobs) == set(JOBS)
    for name, job in jobs.items():
        assert job.spec is JOBS[name]
        assert job.jobinfo.is_available, job.jobinfo.unavailable_message
        assert job.get_category_label() == "Continuous Heterogeneity"
        assert job.jobinfo.references[0].doi == "10.1038/s41592-023-01853-8"
        labels = [option.label for option in job.joboptions.values()]
        assert len(labels) == len(set(labels)), "run.job files tell options by their labels"
    assert len({job.OUT_DIR for job in jobs.values()}) == len(jobs)


def test_loading_it_needs_nothing_of_the_engine(pipeliner: None, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pipeliner.job_factory import get_job_types\n"
        "for job in get_job_types('flex_job'):\n"
        "    job.output_dir = 'FlexJob/job001/'\n"
        "    job.validate_joboptions(), job.get_commands(), job.create_results_display(), job.create_output_nodes()\n"
        "    print(job.PROCESS_NAME)\n"
        f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("flex_job.") == len(JOBS)
    assert "HEAVY []" in done.stdout


def test_the_default_job_star(project: Path) -> None:
    for name, spec in JOBS.items():
        command("--default_jobstar", f"flex_job.{name}")
        document = cif.read(f"flex_job_{name}_job.star")
        columns = ["_rlnJobOptionVariable", "_rlnJobOptionValue"]
        values = {row.str(0): row.str(1) for row in document.find_block("joboptions_values").find(columns)}
        declared = spec.declared()
        assert {INPUT_FLAGS[entry.kind] for entry in spec.inputs} <= set(values)
        assert set(declared) - set(values) == {"threads"}, "the pipeliner's own nr_threads stands for it"
        assert {"nr_threads", "other_args", "do_queue"} <= set(values)
        words = {True: "Yes", False: "No"}
        for key in set(declared) - {"threads"}:
            default = declared[key].default
            assert values[key] == (words[default] if isinstance(default, bool) else str(default)), key


@pytest.mark.parametrize("name", JOBS)
def test_an_option_takes_what_its_declaration_takes(pipeliner: None, name: str) -> None:
    job = new_job(name)
    for declared in JOBS[name].declared().values():
        if declared.name == "threads":
            continue
        option = job.joboptions[declared.name]
        assert option.value == declared.default and type(option.value) is declared.kind
        assert declared.help in option.help_text and declared.expected in option.help_text
        assert declared.unit in option.label and declared.cryosparc in option.help_text
        assert (option.jobop_group == "Main") is (declared.tier == "main")
        assert getattr(option, "choices", []) == list(declared.choices)
        if declared.kind in (int, float) and not declared.choices:
            for bound, step in ((declared.bounds[0], -1), (declared.bounds[1], 1)):
                for value in () if bound is None else (declared.kind(bound), declared.kind(bound) + step):
                    option.value = value
                    told = [problem for problem in option.validate() if problem.type == "error"]
                    assert bool(told) is (declared.problem(value) is not None), (declared.name, value)


# what is run


def test_our_flags(pipeliner: None) -> None:
    from integration.ccpem_pipeliner.options import FILE_NODES, INPUTS

    files = {declared.name for spec in JOBS.values() for declared in spec.declared().values() if declared.file}
    assert set(FILE_NODES) <= files
    assert {kind: shown.flag for kind, shown in INPUTS.items()} == INPUT_FLAGS


@pytest.mark.parametrize("name", JOBS)
def test_every_value_reaches_our_command_line_as_it_is(pipeliner: None, name: str) -> None:
    spec = JOBS[name]
    wanted = {key: other_value(declared) for key, declared in spec.declared().items() if key != "threads"}
    inputs = {INPUT_FLAGS[entry.kind]: "--a b;c" for entry in spec.inputs}
    job = new_job(name, **wanted, **inputs, nr_threads=3, other_args="--threads=4 --o='x y'")
    job.output_dir = f"Flex/{name}/job001/"
    (line,) = job.get_commands()
    assert line.cmd[1] == name and line.cmd[-2:] == ["--threads=4", "--o=x y"]
    got: dict[str, str] = {}
    parser = job_command(spec, lambda job, options: got.update(options))
    parser.main(args=[str(text) for text in line.cmd[2:-2]], standalone_mode=False)
    assert (got.pop("o"), got.pop("threads")) == (job.output_dir, "3")
    assert {flag: got.pop(flag) for flag in inputs} == inputs
    assert got.keys() == wanted.keys()
    _, problems = build(spec, {}, got)
    texts = {key: value for key, value in wanted.items() if isinstance(value, str)}
    assert {key: got[key] for key in texts} == texts
    assert not [line for line in problems if line.startswith("command line")]


def test_defaults_are_left_to_the_yaml_file(pipeliner: None) -> None:
    job = new_job("refine", in_parts=DATA, batch=100, config="values.yaml")  # the default
    job.joboptions["rigidity"].value = ""  # a field that was emptied
    job.output_dir = "FlexRefine/job002/"
    (line,) = job.get_commands()
    assert line.cmd[1:] == ["refine", "--o=FlexRefine/job002/", f"--in_parts={DATA}", "--config=values.yaml", "--j=1"]


def test_a_job_that_succeeds(project: Path, stand_in: Path) -> None:
    leave(stand_in, *named_outputs("refine"))
    folder = run("refine", in_parts=DATA, latent_dims=3)
    told = (stand_in / "arguments").read_text().splitlines()
    assert told == ["refine", f"--o={folder}/", f"--in_parts={DATA}", "--latent_dims=3", "--j=1"]
    status, nodes, read = pipeline()
    assert status == {f"{folder}/": "Succeeded"}
    assert (DATA, f"{folder}/") in read
    assert {name.removeprefix(f"{folder}/"): kind for name, kind in nodes.items() if name != DATA} == {
        "particles.star": "ParticleGroupMetadata.star.relion.flex_job",
        "flex_half1_class001_unfil.mrc": "DensityMap.mrc.relion.halfmap.flex_job",
        "flex_half2_class001_unfil.mrc": "DensityMap.mrc.relion.halfmap.flex_job",
        "flex_class001.mrc": "DensityMap.mrc.relion.flex_job",
        "rigid_half1_class001_unfil.mrc": "DensityMap.mrc.relion.halfmap.flex_job",
        "rigid_half2_class001_unfil.mrc": "DensityMap.mrc.relion.halfmap.flex_job",
        "mask.mrc": "Mask3D.mrc.relion.flex_job",
        "logfile.pdf": "LogFile.pdf.relion.flex_job",
        "flex_model.pt": "MlModel.pt.flex_job",
        "mesh.npz": "ProcessData.npz.flex_job.mesh",
        "fsc.star": "ProcessData.star.flex_job.fsc",
        "validation.json": "ProcessData.json.flex_job.validation",
        "manifest.json": "ProcessData.json.flex_job.manifest",
    }


def test_outputs_that_only_the_finished_job_knows(project: Path, stand_in: Path) -> None:
    Path("flex_model.pt").touch()
    leave(stand_in, *named_outputs("generate"), "frame_000.mrc", "frame_001.mrc", "frames.cif")
    folder = run("generate", in_model="flex_model.pt")
    _, nodes, read = pipeline()
    frames = {name: kind for name, kind in nodes.items() if "frame" in name}
    maps = {f"{folder}/frame_{i:03}.mrc": "DensityMap.mrc.relion.flex_job" for i in range(2)}
    assert frames == maps | {f"{folder}/frames.cif": "AtomCoords.cif.flex_job"}
    assert not any("canonical" in name or "geometry" in name for name in nodes), "what was not asked for"
    assert nodes["flex_model.pt"] == "MlModel.pt.flex_job" and ("flex_model.pt", f"{folder}/") in read


def test_a_job_that_fails(project: Path, stand_in: Path) -> None:
    leave(stand_in, "particles.star")
    (stand_in / "code").write_text("1")
    folder = run("refine", in_parts=DATA)
    status, nodes, _ = pipeline()
    assert status == {f"{folder}/": "Failed"}
    assert f"{folder}/particles.star" in nodes and f"{folder}/flex_model.pt" not in nodes, "only what is there"


@pytest.mark.parametrize("waits", [True, False])
def test_abort_and_continue(project: Path, stand_in: Path, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeliner.api.manage_project import PipelinerProject
    from pipeliner.scripts.job_runner import JobRunner

    monkeypatch.setattr(JobRunner.__init__, "__defaults__", (0.5,))  # seconds between its looks at the abort file
    before = (stand_in / "flex-job").read_text()
    write_program(stand_in, ABORTABLE.format(python=sys.executable, root=ROOT, waits=waits))
    folder = project / "FlexTrain" / "job001"

    def abort() -> None:
        while not (folder / "working").exists():
            time.sleep(0.02)
        (folder / "PIPELINER_JOB_ABORT_NOW").touch()  # as PipelinerProject.abort_job does

    thread = threading.Thread(target=abort, daemon=True)
    thread.start()
    run("train", in_parts=DATA)
    thread.join()
    assert not (folder / "PIPELINER_JOB_ABORT_NOW").exists()
    status, _, _ = pipeline()
    if not waits:  # a job that ends by itself counts as failed, whatever file is there: why ours waits to be ended
        assert status == {"FlexTrain/job001/": "Failed"}
        return
    assert status == {"FlexTrain/job001/": "Aborted"}
    assert [path.name for path in folder.glob("RELION_JOB_EXIT_*")] == ["RELION_JOB_EXIT_ABORTED"]

    write_program(stand_in, before)
    leave(stand_in, *named_outputs("train"))
    command("--set_status", "FlexTrain/job001/", "success")  # 1.6.1 continues no other job
    PipelinerProject().continue_job("FlexTrain/job001/", run_in_foreground=True)
    assert pipeline()[0] == {"FlexTrain/job001/": "Succeeded"}
    assert (stand_in / "arguments").read_text().splitlines()[:2] == ["train", "--o=FlexTrain/job001/"]


def test_an_aborted_job_waits_to_be_ended_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trigger = tmp_path / "PIPELINER_JOB_ABORT_NOW"
    with RelionJob(tmp_path, poll_seconds=0) as host:
        trigger.touch()
        assert host.should_stop()
        ending = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        ending.start()
        assert host.finish("ABORTED") == 2
        assert host.signal_name == "SIGTERM"  # it was waited for
        ending.join()
        assert trigger.exists(), "the pipeliner removes it, and must see it first"
    monkeypatch.setattr("integration.relion.host.PIPELINER_PATIENCE_S", 0.2)
    began = time.monotonic()
    with RelionJob(tmp_path) as host:
        assert host.aborted, "an abort that came while the program was being loaded"
        host.finish("ABORTED")
        assert not host.signal_name and 0.2 <= time.monotonic() - began < 10


# what is checked before


def problems(job: Any) -> list[tuple[str, str, str]]:
    return [
        (problem.type, problem.raised_by[0].label if problem.raised_by else "", problem.message)
        for problem in job.validate_joboptions()
    ]


@pytest.mark.parametrize(
    ("options", "label", "words"),
    [
        ({"latent_dims": 99}, "Latent dims:", "greater than 16"),
        ({"band_start": 0.9}, "Band start:", "expected at most band_end"),
        ({"rigidity": float("nan")}, "Rigidity:", "expected auto or a number from 0.001 to 1000"),
        ({"latent_start": "columns"}, "Latent start:", "name the columns"),
        ({"in_parts": ""}, "Particles STAR file:", "required"),
    ],
)
def test_bad_values_are_told_once_and_nothing_is_started(
    project: Path, stand_in: Path, options: dict[str, object], label: str, words: str
) -> None:
    options = {"in_parts": DATA, **options}
    errors = [problem[1:] for problem in problems(new_job("refine", **options)) if problem[0] == "error"]
    assert [told[0] for told in errors] == [label] and words in errors[0][1]
    with pytest.raises(ValueError, match=label.rstrip(":")):
        run("refine", **options)
    assert not (stand_in / "arguments").exists() and not Path("FlexRefine").exists()


def test_what_a_yaml_file_may_complete_is_left_to_the_job(project: Path) -> None:
    Path("values.yaml").write_text("band_end: 0.95\n")
    assert problems(new_job("refine", in_parts=DATA, band_start=0.9, config="values.yaml")) == []


def test_a_model_or_the_particles_beside_it(project: Path) -> None:
    assert [told[0] for told in problems(new_job("reconstruct"))] == ["error"]
    assert problems(new_job("reconstruct", in_parts=DATA)) == []


def test_particles_from_outside_the_project_come_without_what_lies_beside_them(project: Path) -> None:
    outside = str(project.parent / "run_data.star")
    Path(outside).write_text(Path(DATA).read_text())
    ((kind, label, text),) = problems(new_job("refine", in_parts=outside))
    assert (kind, label) == ("warning", "Particles STAR file:") and text.endswith("give as well: Map")
    Path("map.mrc").touch()
    assert problems(new_job("refine", in_parts=outside, in_3dref="map.mrc")) == []


def test_where_the_command_is_missing_or_incomplete(
    pipeliner: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert "flex-job" in new_job("refine").jobinfo.unavailable_message
    (tmp_path / "bin").mkdir()
    write_program(tmp_path / "bin", "#!/bin/sh\n")
    assert new_job("refine").get_commands()[0].cmd[0] == str(tmp_path / "bin" / "flex-job")
    assert new_job("refine").jobinfo.is_available
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "without its requirements" in new_job("refine").jobinfo.unavailable_message


# what is shown


def test_results(project: Path, stand_in: Path) -> None:
    from flex_job.fsc import FscCurves
    from integration.relion.write import write_fsc_star

    rng = np.random.default_rng(1)
    frequency = np.arange(5) / 80.0
    names = ("unmasked", "masked", "randomised", "corrected")
    curves = [
        FscCurves(frequency_per_A=frequency, **dict.fromkeys(names, np.linspace(1.0, low, 5))) for low in (0.0, 0.1)
    ]
    leave(stand_in, *named_outputs("refine"))
    left = stand_in / "leave"
    write_fsc_star(left / "fsc.star", *curves)
    summary = {"stages": {"report": {"results": {"summary": ["resolution 9 A", "motion 3 A"]}}}}
    (left / "manifest.json").write_text(json.dumps(summary))
    latents = rng.normal(size=(200, 2))
    rows = "\n".join(f"{i + 1}@a.mrcs {a:.4f} {b:.4f} 0.1" for i, (a, b) in enumerate(latents))
    columns = "_rlnImageName #1\n_flexLatent1 #2\n_flexLatent2 #3\n_flexLatentStd1 #4\n"
    (left / "particles.star").write_text(f"data_particles\n\nloop_\n{columns}{rows}\n\n")
    folder = run("refine", in_parts=DATA)
    job = new_job("refine")
    job.output_dir = f"{folder}/"
    shown = job.save_results_display_files()
    kinds = ["text", "graph", "montage", "mapmodel", "histogram", "histogram", "image", "html", "pdffile"]
    assert [entry.dobj_type for entry in shown] == kinds, [getattr(entry, "reason", "") for entry in shown]
    assert shown[0].display_data == "resolution 9 A\nmotion 3 A"
    assert shown[1].data_series_labels == ["with motion", "without motion"]
    assert np.allclose(shown[1].xvalues, frequency) and np.allclose(
        shown[1].yvalues, [curves[1].corrected, curves[0].corrected]
    )
    for entry, values in zip(shown[4:6], latents.T, strict=True):
        assert sum(entry.bins) == 200 and entry.bin_edges[0] == pytest.approx(values.min(), abs=1e-4)
    assert len(list(folder.glob(".results_display*"))) == len(shown), "all can be written for the interface"
    assert job.gather_metadata() == {
        "resolution_A with motion": pytest.approx(curves[1].resolution_A()),
        "resolution_A without motion": pytest.approx(curves[0].resolution_A()),
    }


def test_frames_are_shown_in_one_picture(project: Path, stand_in: Path) -> None:
    Path("flex_model.pt").touch()
    names = [f"frame_{i:03}.mrc" for i in range(30)]
    leave(stand_in, *names)
    job = new_job("generate")
    job.output_dir = f"{run('generate', in_model='flex_model.pt')}/"
    (montage,) = job.create_results_display()
    chosen = [Path(path).name for path in montage.associated_data]
    assert (len(chosen), chosen[0], chosen[-1]) == (12, names[0], names[-1])
    assert [Path(node.name).name for node in job.get_current_output_nodes()] == names


def test_a_job_that_left_nothing_shows_nothing(pipeliner: None, tmp_path: Path) -> None:
    for name in JOBS:
        job = new_job(name)
        job.output_dir = f"{tmp_path}/"
        assert (
            job.create_results_display() == [] and job.get_current_output_nodes() == [] and job.gather_metadata() == {}
        )


# the real thing


def test_a_real_run(pipeliner: None, small_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Refine3D", "MaskCreate", "Particles"):
        (tmp_path / name).symlink_to(small_project / name)
    monkeypatch.chdir(tmp_path)
    command("--new_project")
    command("--default_jobstar", "flex_job.train")
    star = cif.read("flex_job_train_job.star")
    wanted = {"in_parts": DATA, "epochs": "1", "tetra_cells": "6"}
    for row in star.find_block("joboptions_values").find(["_rlnJobOptionVariable", "_rlnJobOptionValue"]):
        row[1] = wanted.get(row.str(0), row[1])
    star.write_file("train.star")
    command("--run_job", "train.star")  # in the background
    folder = Path("FlexTrain/job001")
    limit = time.monotonic() + 240
    while not list(folder.glob("PIPELINER_JOB_EXIT_*")) and time.monotonic() < limit:
        time.sleep(0.1)
    status, nodes, read = pipeline()
    assert status == {f"{folder}/": "Succeeded"}, (folder / "run.err").read_text()
    assert (DATA, f"{folder}/") in read
    made = {name for name in nodes if name.startswith(str(folder))}
    assert len(made) == 5 and all(Path(name).is_file() for name in made)
    job = new_job("train")
    job.output_dir = f"{folder}/"
    assert [entry.dobj_type for entry in job.create_results_display()] == ["histogram", "histogram", "image"]
