"""The job `select`: clusters come back to RELION as STAR files and class numbers, with nothing else changed."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import starfile

from integration.relion.job import run
from integration.relion.request import read_request
from integration.relion.write import read_latents, write_particles

SOURCE = "External/job040/particles.star"
FOLDER = "External/job041/"
HEAPS = 3


@pytest.fixture(scope="module")
def project(small_project: Path) -> Path:
    """With a job directory whose particles have two latents in three heaps: particle i in heap i modulo 3."""
    star = small_project / SOURCE
    star.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    heap = np.arange(120) % HEAPS
    latents = np.stack([2.0 * heap - 2.0, rng.normal(0, 0.1, 120)], axis=1) + rng.normal(0, 0.1, (120, 2))
    write_particles(small_project / "Refine3D/job001/run_data.star", star, latents, np.full_like(latents, 0.2))
    return small_project


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


@pytest.fixture(scope="module")
def selected(project: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert run("select", {"o": FOLDER, "in_parts": SOURCE, "clusters": "3"}) == 0
    return project / FOLDER


def optics_bytes(path: Path) -> bytes:
    """All of the file before its particles' labels."""
    return path.read_bytes().partition(b"_rlnImageName")[0]


def test_class_numbers_and_a_file_per_cluster(selected: Path) -> None:
    before = starfile.read(SOURCE)["particles"]
    after = starfile.read(selected / "particles.star")["particles"]
    assert after["rlnClassNumber"].tolist() == [i % HEAPS + 1 for i in range(120)]
    assert after["flexClusterProbability"].between(0.9, 1).all()
    assert set(after.columns) == {*before.columns, "flexClusterProbability"}
    kept = [name for name in before.columns if name != "rlnClassNumber"]
    assert after[kept].equals(before[kept])
    for number in (1, 2, 3):
        part = starfile.read(selected / f"cluster_{number:03d}.star")["particles"]
        assert part.equals(after[after["rlnClassNumber"] == number].reset_index(drop=True))


def test_rows_and_optics_are_kept_byte_for_byte(selected: Path) -> None:
    names = ["particles.star", "cluster_001.star", "cluster_002.star", "cluster_003.star"]
    assert {optics_bytes(selected / name) for name in names} == {optics_bytes(Path(SOURCE))}
    rows = re.findall(rb"^\d+@.*$", Path(SOURCE).read_bytes(), flags=re.MULTILINE)
    after = re.findall(rb"^\d+@.*$", (selected / "particles.star").read_bytes(), flags=re.MULTILINE)
    assert [row.split()[0] for row in after] == [row.split()[0] for row in rows]
    assert after[0].split()[1:4] == rows[0].split()[1:4]


def test_nodes_and_centres(selected: Path) -> None:
    nodes = (selected / "RELION_OUTPUT_NODES.star").read_text()
    for name in ("particles", "cluster_001", "cluster_002", "cluster_003"):
        assert f"\n{FOLDER}{name}.star ParticleGroupMetadata.star.relion 3\n" in nodes
    with (selected / "clusters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["particles"] for row in rows] == ["40", "40", "40"]
    # generate takes them as they are: a map per cluster
    assert np.abs(read_latents(selected / "clusters.csv")[:, 0] - [-2, 0, 2]).max() < 0.2
    assert (selected / "clusters.png").read_bytes()[:4] == b"\x89PNG"


def test_a_second_run_with_fewer_clusters_leaves_no_old_files(project: Path) -> None:
    options = {"o": "External/job042/", "in_parts": SOURCE}
    assert run("select", {**options, "clusters": "3"}) == 0
    assert run("select", {**options, "clusters": "1", "latents_range": "-1:1"}) == 0
    folder = Path("External/job042")
    assert [path.name for path in folder.glob("cluster_*.star")] == ["cluster_001.star"]
    assert len(starfile.read(folder / "particles.star")["particles"]) == 40
    assert "cluster_002" not in (folder / "RELION_OUTPUT_NODES.star").read_text()


def test_a_selection_can_be_divided_again_and_knows_its_model(selected: Path) -> None:
    Path("External/job040/flex_model.pt").touch()
    assert run("select", {"o": "External/job043/", "in_parts": SOURCE, "clusters": "2"}) == 0
    again = {"o": "External/job044/", "in_parts": "External/job043/cluster_001.star", "clusters": "2"}
    assert run("select", again) == 0
    table = starfile.read("External/job044/particles.star")["particles"]
    assert list(table.columns).count("flexClusterProbability") == 1
    # half-maps of a cluster need no more than its file
    request, problems = read_request("reconstruct", {"o": "x", "in_parts": "External/job044/cluster_002.star"})
    assert problems == []
    assert request.inputs["model"] == Path("External/job040/flex_model.pt")


def test_every_problem_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"o": "External/job045/", "in_parts": "Refine3D/job001/run_data.star"}
    assert run("select", {**options, "clusters": "0", "latents_range": "1:-1"}) == 1
    told = capsys.readouterr().err
    assert "clusters: 0 was given" in told
    assert "latents_range: '1:-1' was given; expected low:high" in told
    assert "latent columns found: none" in told
    assert run("select", {"o": "External/job045/"}) == 1
    assert "--in_parts was not given" in capsys.readouterr().err
    tables = starfile.read(SOURCE)
    tables["particles"] = tables["particles"].drop(columns=["flexLatentStd2"])
    starfile.write(tables, "half.star", overwrite=True)
    assert run("select", {"o": "External/job045/", "in_parts": "half.star"}) == 1
    assert "no columns flexLatentStd2" in capsys.readouterr().err
    assert not list(Path("External/job045").glob("*.star"))


@pytest.mark.relion
def test_relion_selects_the_same_by_class_number(selected: Path, run_relion: Callable[..., str]) -> None:
    project = selected.parents[1]
    run_relion(
        "relion_star_handler", "--i", f"{FOLDER}particles.star", "--o", "by_class.star",
        "--select", "rlnClassNumber", "--minval", "2", "--maxval", "2", cwd=project,
    )  # fmt: skip
    theirs, ours = starfile.read("by_class.star"), starfile.read(selected / "cluster_002.star")
    assert theirs["particles"]["rlnImageName"].tolist() == ours["particles"]["rlnImageName"].tolist()
    assert "flexLatent2" in theirs["particles"].columns
    assert os.path.getsize("by_class.star") > 0


def test_only_particles_that_the_motion_explains_better(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"o": "External/job049/", "in_parts": SOURCE, "clusters": "1", "gain_range": "0:"}
    assert run("select", options) == 1
    assert "no column flexLikelihoodGain" in capsys.readouterr().err
    gains, latents = np.linspace(-1, 1, 120), read_latents(SOURCE)
    with_gains = Path(SOURCE).with_name("gains.star")
    write_particles(SOURCE, with_gains, latents, np.full_like(latents, 0.2), gains=gains)
    options["in_parts"] = str(with_gains)
    assert run("select", options) == 0
    kept = starfile.read(Path(options["o"]) / "particles.star")["particles"]
    assert np.allclose(kept["flexLikelihoodGain"], gains[gains >= 0])
    for wrong, words in (("2:", "no particle's likelihood gain lies within"), ("0:1,2:3", "expected one range")):
        assert run("select", options | {"gain_range": wrong}) == 1
        assert words in capsys.readouterr().err
