"""What we write, RELION reads; and what it wrote before is kept to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile

from flex_job.fsc import FscCurves
from flex_job.pose_corrections import PoseCorrections
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


TURN = np.deg2rad([[3.0, -2.0, 5.0], [0.0, 0.0, 0.0], [-4.0, 1.0, 1.0]]).astype(np.float32)
SHIFT = np.array([[2.0, -1.0], [0.0, 0.0], [0.5, 3.0]], np.float32)
CONTRAST = np.array([0.8, 1.0, 1.3], np.float32)
POSES = {
    "rlnImageName": ["1@a.mrcs", "2@a.mrcs", "1@b.mrcs"],
    "rlnAngleRot": [10.0, -120.0, 77.0],
    "rlnAngleTilt": [30.0, 95.0, 170.0],
    "rlnAnglePsi": [-40.0, 5.0, 160.0],
}


def seen(table: Any, origin: str, pixel_A: float, points: np.ndarray) -> np.ndarray:
    """Where RELION sees `points` (m, 3): its matrix of rot, tilt and psi as in the source of Euler_angles2matrix, less
    the origin that it would shift the image by."""
    rot, tilt, psi = (np.deg2rad(table[f"rlnAngle{name}"].to_numpy()) for name in ("Rot", "Tilt", "Psi"))
    cr, sr, ct, st, cp, sp = (f(angle) for angle in (rot, tilt, psi) for f in (np.cos, np.sin))
    first = np.stack([cp * ct * cr - sp * sr, cp * ct * sr + sp * cr, -cp * st], axis=1)
    second = np.stack([-sp * ct * cr - cp * sr, -sp * ct * sr + cp * cr, sp * st], axis=1)
    origins = pixel_A * np.stack([table[origin.format(axis)].to_numpy() for axis in "XY"], axis=1)
    return points @ np.stack([first, second], axis=2) - origins[:, None]


@pytest.mark.parametrize("version", [3.0, 3.1])
def test_refined_poses_show_the_turned_particle(tmp_path: Path, write_star: Any, version: float) -> None:
    """RELION sees a point through the new columns where it saw the turned and shifted point through the old ones; with
    the opposite turn or shift it does not."""
    origin, pixel_A = ("rlnOrigin{}", 1.25) if version == 3.0 else ("rlnOrigin{}Angst", 1.0)
    particles = POSES | {origin.format("X"): [1.0, 0.0, -2.0], origin.format("Y"): [0.0, 3.0, 0.5]}
    optics = {"rlnOpticsGroup": 1, "rlnImagePixelSize": 1.5}
    if version == 3.0:
        particles |= {"rlnDetectorPixelSize": [5.0] * 3, "rlnMagnification": [40000.0] * 3}
    else:
        particles["rlnOpticsGroup"] = [1, 1, 1]
    source = tmp_path / "in.star"
    write_star(source, particles, None if version == 3.0 else optics)
    points = np.random.default_rng(0).normal(0, 50, (20, 3))
    angle = np.linalg.norm(TURN, axis=1)[:, None]
    axis = TURN / np.where(angle > 0, angle, 1)  # Rodrigues' formula
    turned = points * np.cos(angle)[..., None] + np.cross(axis[:, None], points) * np.sin(angle)[..., None]
    turned += axis[:, None] * (points @ axis.T).T[..., None] * (1 - np.cos(angle))[..., None]

    def read(path: Path) -> Any:
        tables = starfile.read(path)
        return tables if version == 3.0 else tables["particles"]

    expected = seen(read(source), origin, pixel_A, turned) - SHIFT[:, None]
    for sign, holds in ((1, True), (-1, False)):
        target = tmp_path / f"out{sign}.star"
        write_particles(source, target, LATENTS, STD, corrections=PoseCorrections(sign * TURN, sign * SHIFT))
        table = read(target)
        off = np.abs(seen(table, origin, pixel_A, points) - expected).max(axis=(1, 2))
        assert (off < 1e-3).tolist() == [holds, True, holds]
        assert table["rlnAngleTilt"].between(0, 180).all()
        assert list(table).count("rlnAngleRot") == 1 and "rlnCtfScalefactor" not in table


def test_refined_contrasts_and_gains_are_columns(source: Path, tmp_path: Path, write_star: Any) -> None:
    write_star(
        source, POSES | {"rlnCtfScalefactor": [1.0, 0.5, 1.0], "rlnOpticsGroup": [1, 1, 1]}, {"rlnOpticsGroup": 1}
    )
    still = np.zeros_like(TURN), np.zeros_like(SHIFT)
    corrections = PoseCorrections(*still, CONTRAST)
    gains = np.array([3.5, -0.25, 0.0])
    write_particles(source, tmp_path / "out.star", LATENTS, STD, corrections=corrections, gains=gains)
    table = starfile.read(tmp_path / "out.star")["particles"]
    assert np.allclose(table["rlnCtfScalefactor"], [0.8, 0.5, 1.3])
    assert np.array_equal(table["rlnAngleRot"], POSES["rlnAngleRot"])  # not refined, not touched
    assert np.array_equal(table["flexLikelihoodGain"], gains)
    again = write_particles(tmp_path / "out.star", tmp_path / "again.star", LATENTS, STD)
    assert "flexLikelihoodGain" not in again.read_text()
    with pytest.raises(ValueError, match="not finite"):
        write_particles(source, tmp_path / "out.star", LATENTS, STD, gains=gains * np.nan)
    with pytest.raises(ValueError, match="of 2 particles"):
        short = PoseCorrections(TURN[:2], SHIFT[:2])
        write_particles(source, tmp_path / "out.star", LATENTS, STD, corrections=short)


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
