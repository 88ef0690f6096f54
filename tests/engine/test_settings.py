"""What a job directory with work in it lets change: what costs little. All else asks, with old and new values."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flex_job.consensus import Consensus
from flex_job.events import Events, StopRequested
from flex_job.manifest import Manifest
from flex_job.problems import InputProblems
from flex_job.refine import Refinement
from flex_job.settings import StageSettings, check_settings
from integration.relion.simulate import simulate_project
from job_specs.parameters import RefineParameters

ALL = ("mesh", "prep", "train", "prep_full", "rigid", "flex", "report")


@pytest.fixture(scope="module")
def consensus(tmp_path_factory: pytest.TempPathFactory) -> Consensus:
    folder = tmp_path_factory.mktemp("settings")
    refined = simulate_project(folder, particles=20, box=16, pixel_size_A=15.0, snr=1.0, seed=1, motion="none")
    star = folder / "run_data.star"
    star.write_text("particles")
    return replace(refined.particles.refined, source_files=(star,))


def settings_of(consensus: Consensus, **changes: Any) -> StageSettings:
    """`changes` are of parameters, as train_epochs=3."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        group, _, parameter = name.partition("_")
        groups.setdefault(group, {})[parameter] = value
    parameters = RefineParameters()
    for group, values in groups.items():
        parameters = replace(parameters, **{group: replace(getattr(parameters, group), **values)})
    return StageSettings(consensus, parameters, 16, parameters.reconstruct.reconstruct_box or 16)


def begun(folder: Path, settings: StageSettings, *stages: str) -> Manifest:
    manifest = Manifest(folder)
    for stage in stages:
        with manifest.stage(stage, getattr(settings, stage), []):
            pass
    return manifest


def outcome(manifest: Manifest, settings: StageSettings, stage: str) -> str:
    """kept, again (run again, and said so), or refused."""
    said: list[str] = []
    try:
        check_settings(manifest, settings, stage, said.append)
    except InputProblems as error:
        assert "--restart" in str(error) and "choose another --o" in str(error)
        return "refused"
    return "again" if said else "kept"


@pytest.mark.parametrize(
    "change, refused, again",
    [
        ({}, "", ""),
        ({"run_threads": 8, "run_devices": "0,1", "run_tf32": True, "prep_scratch": "/scratch"}, "", ""),
        ({"run_max_hours": 3.0, "run_config": "x.yaml", "run_restart": True, "generate_frames": 5}, "", ""),
        ({"reconstruct_tolerance": 0.5}, "", "rigid flex report"),
        ({"reconstruct_reconstruct_box": 12}, "", "prep_full rigid flex report"),
        ({"train_epochs": 20}, "train flex report", ""),
        ({"train_epochs": 20, "reconstruct_tolerance": 0.5}, "train flex report", "rigid"),
        ({"mesh_tetra_cells": 14}, "train flex report", "mesh"),
        ({"mesh_mask_soft": 9.0}, "prep train prep_full rigid flex report", "mesh"),
        ({"prep_contrast": "invert"}, "prep train prep_full rigid flex report", ""),
        ({"run_seed": 2}, " ".join(ALL[1:]), "mesh"),
    ],
)
def test_what_a_changed_parameter_does(
    consensus: Consensus, tmp_path: Path, change: dict[str, Any], refused: str, again: str
) -> None:
    manifest = begun(tmp_path, settings_of(consensus), *ALL)
    now = settings_of(consensus, **change)
    found = {stage: outcome(manifest, now, stage) for stage in ALL}
    expected = {stage: "refused" if stage in refused.split() else "kept" for stage in ALL}
    expected |= dict.fromkeys(again.split(), "again")
    assert found == expected


def test_what_has_not_begun_may_change(consensus: Consensus, tmp_path: Path) -> None:
    manifest = begun(tmp_path, settings_of(consensus), "mesh", "prep")
    now = settings_of(consensus, train_epochs=20, mesh_tetra_cells=14)
    assert [outcome(manifest, now, stage) for stage in ALL] == ["again", *["kept"] * 6]


def _other_star(consensus: Consensus) -> Consensus:
    star = consensus.source_files[0].with_name("changed") / "run_data.star"
    star.parent.mkdir(exist_ok=True)
    star.write_text("particles of another selection")
    return replace(consensus, source_files=(star,))


def _other_halves(consensus: Consensus) -> Consensus:
    return replace(consensus, halves=(3 - consensus.halves).astype(np.int8))


def _another_map_too(consensus: Consensus) -> Consensus:
    path = consensus.source_files[0].with_name("map.mrc")
    path.write_text("map")
    return replace(consensus, source_files=(*consensus.source_files, path))


@pytest.mark.parametrize(
    "change, said",
    [
        (_other_star, "input run_data.star: another content than before"),
        (_other_halves, "input half-sets: another content than before"),
        (_another_map_too, "input map.mrc: not used before, one content now"),
    ],
)
@pytest.mark.parametrize("stage", ALL[1:])
def test_changed_inputs_are_refused_by_every_stage_but_the_mesh(
    consensus: Consensus, tmp_path: Path, change: Callable[[Consensus], Consensus], said: str, stage: str
) -> None:
    manifest = begun(tmp_path, settings_of(consensus), stage)
    with pytest.raises(InputProblems, match=said):
        check_settings(manifest, settings_of(change(consensus)), stage, lambda text: None)


def test_the_message_has_old_and_new_values(consensus: Consensus, tmp_path: Path) -> None:
    manifest = begun(tmp_path, settings_of(consensus, train_epochs=12), "train")
    with pytest.raises(InputProblems, match=r"latent_dims: auto before, 3 now; epochs: 12 before, 20 now") as error:
        check_settings(manifest, settings_of(consensus, train_latent_dims=3, train_epochs=20), "train", print)
    assert str(tmp_path) in str(error.value) and "what the stage train has done" in str(error.value)


def test_the_same_file_from_another_place_is_the_same(consensus: Consensus, tmp_path: Path) -> None:
    manifest = begun(tmp_path, settings_of(consensus), *ALL)
    copy = tmp_path / "run_data.star"
    copy.write_bytes(consensus.source_files[0].read_bytes())
    now = settings_of(replace(consensus, source_files=(copy,)))
    assert {outcome(manifest, now, stage) for stage in ALL} == {"kept"}


# -- restart -----------------------------------------------------------------------------------------------------------


def opened(consensus: Consensus, folder: Path, **changes: Any) -> Refinement:
    return Refinement(consensus, settings_of(consensus, **changes).parameters, folder, Events(message=print))


def with_work(consensus: Consensus, folder: Path, **changes: Any) -> None:
    """A directory with a mesh and a half-done training."""
    settings = opened(consensus, folder, **changes).settings
    manifest = Manifest(folder)
    with manifest.stage("mesh", settings.mesh, ["mesh.npz"]):
        (folder / "mesh.npz").write_text("mesh")
    with pytest.raises(StopRequested), manifest.stage("train", settings.train, ["flex_model.pt"]):
        (folder / "checkpoint_train.pt").write_text("state")
        raise StopRequested


def work_in(folder: Path) -> set[str]:
    return {name for name in ("mesh.npz", "checkpoint_train.pt", "notes.txt") if (folder / name).exists()}


def test_restart_throws_work_away_and_other_settings_do_not_unasked(consensus: Consensus, tmp_path: Path) -> None:
    with_work(consensus, tmp_path)
    (tmp_path / "notes.txt").write_text("the user's")
    with pytest.raises(InputProblems, match="epochs: auto before, 20 now"):
        opened(consensus, tmp_path, train_epochs=20)
    assert len(work_in(tmp_path)) == 3
    assert set(opened(consensus, tmp_path).manifest.record["stages"]) == {"mesh", "train"}
    assert opened(consensus, tmp_path, train_epochs=20, run_restart=True).manifest.record["stages"] == {}
    assert work_in(tmp_path) == {"notes.txt"}


def test_an_interrupted_restart_goes_on_when_its_command_is_repeated(consensus: Consensus, tmp_path: Path) -> None:
    """Continue and a scheduler's requeue repeat the command as it was, --restart included."""
    with_work(consensus, tmp_path)
    with_work(consensus, tmp_path, run_restart=True)
    run = opened(consensus, tmp_path, run_restart=True)
    assert set(run.manifest.record["stages"]) == {"mesh", "train"} and len(work_in(tmp_path)) == 2
    assert opened(consensus, tmp_path, run_restart=True, train_epochs=20).manifest.record["stages"] == {}
    with_work(consensus, tmp_path, run_restart=True, train_epochs=20)
    opened(consensus, tmp_path, run_restart=True, train_epochs=20).clean()  # it has come to its end
    assert opened(consensus, tmp_path, run_restart=True, train_epochs=20).manifest.record["stages"] == {}


def test_the_directory_is_the_runs_alone_while_it_lives(consensus: Consensus, tmp_path: Path) -> None:
    run = opened(consensus, tmp_path)
    other = "import os, sys; os.environ.pop('FLEX_JOB_LOCK'); from flex_job import lock; lock.WAIT_S = 0\n"
    other += "from pathlib import Path; lock.FolderLock(Path(sys.argv[1])).take()"
    command = [sys.executable, "-c", other, str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "another run works in this job directory" in refused.stderr and str(os.getpid()) in refused.stderr
    del run
    other = other.replace("os.environ.pop('FLEX_JOB_LOCK'); ", "")
    subprocess.run([sys.executable, "-c", other, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
