"""What we write, RELION reads; and what it wrote before is kept to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile

from flex_job.fsc import FscCurves
from flex_job.problems import InputProblems
from integration.relion.write import read_latents, write_fsc_star, write_particles

# RELION's own layout, which ends lines of data and labels, and tables, with a blank.
STAR = """
# version 30001

data_optics

loop_~
_rlnOpticsGroup #1~
_rlnOpticsGroupName #2~
           1 "my group"~
~

# version 30001

data_particles

loop_~
_rlnImageName #1~
_rlnAngleRot #2~
_rlnComment #3~
000002@Extract/job003/a.mrcs    12.300000 "a note"~
000001@Extract/job003/a.mrcs -1.000000e-03 b~
# a comment
000007@Extract/job003/b.mrcs        1e300 None~
~
""".replace("~", " ")
LATENTS = np.array([[0.5, -1.25], [1 / 3, 2.0], [0.0, 1e-7]])
STD = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "run_data.star"
    path.write_text(STAR)
    return path


def test_all_but_the_new_columns_is_kept_to_the_byte(source: Path, tmp_path: Path) -> None:
    target = write_particles(source, tmp_path / "particles.star", LATENTS, STD)
    labels = [f"_flexLatent{k}" for k in (1, 2)] + [f"_flexLatentStd{k}" for k in (1, 2)]
    before, after = STAR.splitlines(), target.read_text().splitlines()
    new = [line for line in after if line.startswith("_flex")]
    assert new == [f"{label} #{4 + k} " for k, label in enumerate(labels)]
    after = [line for line in after if line not in new]
    assert len(before) == len(after)
    for old, line in zip(before, after, strict=True):
        if "@" in old:
            assert line.startswith(old) and len(line[len(old) :].split()) == 4
        else:
            assert line == old
    tables = starfile.read(target)
    assert np.allclose(tables["particles"][[label[1:] for label in labels]], np.hstack([LATENTS, STD]), rtol=1e-8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["particles.star", "run_data.star"]


def test_columns_of_an_earlier_run_are_replaced(source: Path, tmp_path: Path) -> None:
    once = write_particles(source, tmp_path / "once.star", LATENTS, STD).read_text()
    write_particles(source, tmp_path / "twice.star", np.ones((3, 4)), np.ones((3, 4)))
    assert write_particles(tmp_path / "twice.star", tmp_path / "twice.star", LATENTS, STD).read_text() == once
    # not only at the end of the row
    text = STAR.replace("_rlnAngleRot #2 ", "_flexLatent1 #2 ").replace("_rlnComment #3", "_rlnComment #3")
    source.write_text(text)
    tables = starfile.read(write_particles(source, tmp_path / "middle.star", LATENTS, STD))
    assert list(tables["particles"])[:3] == ["rlnImageName", "rlnComment", "flexLatent1"]
    assert list(tables["particles"]["rlnComment"]) == ["a note", "b", "None"]
    assert "_rlnComment #2" in (tmp_path / "middle.star").read_text()


def test_relion_3_0_file_and_windows_line_ends(source: Path, tmp_path: Path) -> None:
    body = STAR[STAR.index("data_particles") :].replace("data_particles", "data_").rstrip()
    source.write_bytes(body.replace("\n", "\r\n").encode())
    target = write_particles(source, tmp_path / "particles.star", LATENTS, STD)
    raw = target.read_bytes()
    assert raw.count(b"\r\n") == raw.count(b"\n") - 5  # our labels, and the last row, which had no line end
    assert np.allclose(read_latents(target), LATENTS)


def test_particles_that_do_not_match_are_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "particles.star"
    target.write_text("precious")
    for latents, std, text in (
        (LATENTS[:2], STD[:2], "3 lines of particles for 2 values of flexLatent1"),
        (LATENTS, STD[:, :1], "expected one shape"),
        (LATENTS * np.nan, STD, "not finite"),
    ):
        with pytest.raises(ValueError, match=text):
            write_particles(source, target, latents, std)
    source.write_text("data_x\n\nloop_\n_a #1\n1\n")
    with pytest.raises(ValueError, match="no table with an rlnImageName"):
        write_particles(source, target, LATENTS, STD)
    assert target.read_text() == "precious"


@pytest.mark.relion
def test_relion_keeps_the_latents(source: Path, tmp_path: Path, write_star: Any, run_relion: Any) -> None:
    """RELION 3.1.3 behaviour: a column it does not know passes through, with a warning."""
    optics = {"rlnOpticsGroup": 1, "rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnImagePixelSize": 1.5}
    particles = {"rlnImageName": ["1@a.mrcs", "2@a.mrcs", "1@b.mrcs"], "rlnOpticsGroup": [1, 1, 1]}
    write_star(source, particles, optics)
    write_particles(source, tmp_path / "particles.star", LATENTS, STD)
    run_relion("relion_star_handler", "--i", "particles.star", "--o", "out.star", cwd=tmp_path)
    assert np.allclose(read_latents(tmp_path / "out.star"), LATENTS, atol=1e-6)


def test_fsc_curves(tmp_path: Path) -> None:
    frequency = np.arange(9) / 32.0
    falling = np.linspace(1.0, -0.1, 9)
    flex = FscCurves(falling, falling**2, falling * 0, falling, frequency)
    rigid = FscCurves(falling / 2, falling, falling * 0, falling - 0.2, frequency)
    path = write_fsc_star(tmp_path / "fsc.star", rigid, flex)
    tables = starfile.read(path)
    assert np.allclose(tables["fsc"]["rlnFourierShellCorrelationCorrected"], falling, atol=1e-6)
    assert np.allclose(tables["fsc"]["flexRigidFourierShellCorrelationUnmaskedMaps"], falling / 2, atol=1e-6)
    assert np.allclose(tables["fsc"]["rlnResolution"], frequency, atol=1e-6)
    assert np.allclose(tables["fsc"]["rlnAngstromResolution"][1:] * frequency[1:], 1.0, atol=1e-5)
    assert float(tables["general"]["rlnFinalResolution"]) < float(tables["general"]["flexRigidFinalResolution"])
    assert [path.name for path in tmp_path.iterdir()] == ["fsc.star"]


def test_latents_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("name,flexLatent2, flexLatent1,flexLatentStd1\na,1,2,9\nb,3.5,-4e-1,9\n")
    assert np.array_equal(read_latents(path), [[2.0, 1.0], [-0.4, 3.5]])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x,y\n1,2\n", "found: none; expected flexLatent1"),
        ("flexLatent1,flexLatent3\n1,2\n", "with no gap"),
        ("flexLatent1\nabc\n", "not a table of numbers"),
        ("flexLatent1,flexLatent2\n1\n", "not a table of numbers"),
        ("flexLatent1\nnan\n", "finite numbers only"),
        ("", "found: none"),
    ],
)
def test_latents_that_are_none(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(content)
    with pytest.raises(InputProblems, match=text):
        read_latents(path)


def test_latents_from_a_bad_star_or_no_file(tmp_path: Path) -> None:
    path = tmp_path / "points.star"
    with pytest.raises(InputProblems, match="no such STAR file"):
        read_latents(path)
    path.write_text("data_\n\nloop_\n_flexLatent1 #1\nabc\n")
    with pytest.raises(InputProblems, match="not finite numbers"):
        read_latents(path)
    path.write_text("data_\n\nloop_\n_x #1\nabc\n")
    with pytest.raises(InputProblems, match="found: none"):
        read_latents(path)
    with pytest.raises(InputProblems, match="no such file; expected a CSV"):
        read_latents(tmp_path / "none.csv")
