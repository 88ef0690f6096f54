"""Reading .cs files: the same consensus as the RELION reader gives, and every problem found in one go."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hosts.cryosparc_project import CsProject, convert, poses, save
from scipy.spatial.transform import Rotation

from flex_job.consensus import Consensus, OpticsGroup
from flex_job.ctf import ctf, ctf_parameters, electron_wavelength, frequencies, odd_phase
from flex_job.images import ImageReader
from flex_job.pose_corrections import PoseCorrections
from flex_job.problems import InputProblems
from flex_job.volume import Volume
from integration.cryosparc.aberrations import even_zernike, magnification, odd_zernike
from integration.cryosparc.dataset import find_passthroughs, join, read_cs, write_cs
from integration.cryosparc.read import latent_fields, read_consensus
from integration.cryosparc.write import latent_columns, write_particles, write_selection
from integration.relion.job import run
from integration.relion.read import read_consensus as read_relion
from integration.relion.simulate import simulate_project

PER_PARTICLE = (
    "rotations origins_A halves defocus_u_A defocus_v_A defocus_angle_rad phase_shift_rad ctf_bfactor_A2 ctf_scale"
).split()
# float32 has 7 digits; values are degrees to tens of thousands of angstroms
TOLERANCE = {"rotations": 1e-6, "origins_A": 1e-5, "defocus_u_A": 0.01, "defocus_v_A": 0.01}


@pytest.fixture(scope="module")
def relion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two optics groups of other pixel sizes and boxes, phase shifts and two half-sets."""
    folder = tmp_path_factory.mktemp("relion")
    optics = [OpticsGroup("a", 24, 10.0, 300.0, 2.7, 0.1), OpticsGroup("b", 32, 8.0, 200.0, 1.4, 0.07)]
    simulate_project(
        folder, particles=60, box=24, pixel_size_A=10.0, snr=0.5, seed=3, optics=optics, phase_shift_deg=(20.0, 80.0)
    )
    return folder


@pytest.fixture
def project(relion: Path, tmp_path: Path) -> CsProject:
    return convert(relion, tmp_path / "P3")


@pytest.fixture
def truth(relion: Path) -> Consensus:
    return read_relion(relion / "Refine3D/job001/run_data.star")


def differences(found: Consensus, truth: Consensus) -> dict[str, float]:
    """Largest difference of each per-particle array that is beyond float32's."""
    distance = {name: np.abs(getattr(found, name) - getattr(truth, name)).max() for name in PER_PARTICLE}
    return {name: float(value) for name, value in distance.items() if value > TOLERANCE.get(name, 1e-5)}


def test_the_consensus_is_that_of_the_relion_reader(project: CsProject, truth: Consensus) -> None:
    found = read_consensus(project.particles)
    assert differences(found, truth) == {}
    for group in (0, 1):
        assert np.array_equal(found.optics_index == group, truth.optics_index == group)
        ours, theirs = found.optics[group], truth.optics[group]
        assert (ours.box, ours.name) == (theirs.box, f"exposure_group{group + 5}")
        for name in ("pixel_size_A", "voltage_kV", "spherical_aberration_mm", "amplitude_contrast"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-6)
    assert np.array_equal(found.map.data, truth.map.data)
    assert found.half_maps is not None and truth.half_maps is not None
    assert all(np.array_equal(a.data, b.data) for a, b in zip(found.half_maps, truth.half_maps, strict=True))
    assert found.mask is None and found.latents is None
    some = np.flatnonzero(truth.optics_index == 1)[[3, 0, 7]]
    assert np.array_equal(ImageReader(found).read(some), ImageReader(truth).read(some))


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("rotations", lambda main: {"alignments3D__pose": -main["alignments3D/pose"]}),
        ("origins_A", lambda main: {"alignments3D__shift": -main["alignments3D/shift"]}),
        ("origins_A", lambda main: {"alignments3D__shift": main["alignments3D/shift"][:, ::-1]}),
        ("origins_A", lambda main: {"alignments3D__psize_A": 2 * main["alignments3D/psize_A"]}),
        ("halves", lambda main: {"alignments3D__split": 1 - main["alignments3D/split"]}),
        ("ctf_scale", lambda main: {"blob__sign": np.full(60, -1.0)}),
    ],
    ids=["transposed pose", "sign of shift", "axes of shift", "pixel size of shift", "other half", "sign"],
)
def test_any_other_convention_gives_another_consensus(
    project: CsProject, truth: Consensus, name: str, wrong: Callable[[Any], dict[str, Any]]
) -> None:
    project.changed(**wrong(project.main))
    assert list(differences(read_consensus(project.particles), truth)) == [name]


def test_a_pose_is_pyem_s() -> None:
    """Rodrigues' formula transposed, and RELION's matrix of the same angles written out (pyem's two formulas)."""
    alpha, beta, gamma = np.deg2rad([30.0, 70.0, -110.0])
    (pose,) = poses(np.array([30.0]), np.array([70.0]), np.array([-110.0]))
    angle = np.linalg.norm(pose)
    x, y, z = pose / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rodrigues = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    ca, cb, cg, sa, sb, sg = *np.cos([alpha, beta, gamma]), *np.sin([alpha, beta, gamma])
    matrix = np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )
    assert np.allclose(rodrigues.T, matrix, atol=1e-12)
    assert np.allclose(Rotation.from_rotvec(pose).as_matrix().T, matrix, atol=1e-12)


def test_contrast_is_sign_times_both_scales(project: CsProject) -> None:
    rng = np.random.default_rng(1)
    sign, alpha, scale = rng.choice([-1.0, 1.0], 60), rng.uniform(0.5, 2.0, 60), rng.uniform(0.5, 2.0, 60)
    project.changed(blob__sign=sign, alignments3D__alpha=alpha, ctf__scale=scale)
    assert np.allclose(read_consensus(project.particles).ctf_scale, sign * alpha * scale, rtol=1e-6)


def test_scales_of_zero_mean_that_none_was_set(project: CsProject) -> None:
    project.changed(alignments3D__alpha=np.zeros(60), ctf__scale=np.zeros(60))
    assert (read_consensus(project.particles).ctf_scale == 1).all()


def test_an_exposure_group_with_several_conditions_becomes_several(project: CsProject) -> None:
    project.changed(ctf__exp_group_id=np.ones(60), ctf__amp_contrast=np.where(np.arange(60) < 20, 0.1, 0.07))
    found = read_consensus(project.particles)
    contrast = np.array([group.amplitude_contrast for group in found.optics])[found.optics_index]
    pixel = np.array([group.pixel_size_A for group in found.optics])[found.optics_index]
    assert len(found.optics) == 4
    assert np.allclose(contrast, np.where(np.arange(60) < 20, 0.1, 0.07))
    assert np.allclose(pixel, project.main["alignments3D/psize_A"])


def test_random_half_sets_are_those_of_the_relion_reader(relion: Path, project: CsProject) -> None:
    project.changed(alignments3D__split=np.zeros(60))
    ours = read_consensus(project.particles, half_sets="random", seed=5)
    theirs = read_relion(relion / "Refine3D/job001/run_data.star", half_sets="random", seed=5)
    assert np.array_equal(ours.halves, theirs.halves)


TILT, TREFOIL, TETRA = np.array([800.0, -500.0]), np.array([300.0, 450.0]), np.array([9e3, -6e3, 4e3, 7e3])
WAVELENGTH = electron_wavelength(300.0)


def particle(**changes: Any) -> Consensus:
    """One particle in focus, of 64 px of 3 A."""
    group = replace(OpticsGroup("a", 64, 3.0, 300.0, 2.7, 0.1), **changes)
    one = np.ones(1)
    return Consensus(
        rotations=np.eye(3)[None],
        origins_A=np.zeros((1, 2)),
        halves=one.astype(np.int8),
        optics_index=np.zeros(1, np.int32),
        optics=(group,),
        defocus_u_A=0 * one,
        defocus_v_A=0 * one,
        defocus_angle_rad=0 * one,
        phase_shift_rad=0 * one,
        ctf_bfactor_A2=0 * one,
        ctf_scale=one,
        stack_paths=(Path("a"),),
        stack_index=np.zeros(1, np.int32),
        image_index=np.zeros(1, np.int64),
        map=Volume(np.zeros((2, 2, 2), np.float32), 1.0),
    )


def polar() -> tuple[torch.Tensor, torch.Tensor]:
    ky, kx = (k.double() for k in frequencies(64, 3.0))
    return torch.hypot(kx, ky), torch.atan2(ky, kx)


def test_odd_aberrations_follow_their_formula() -> None:
    k, angle = polar()
    found = odd_phase(ctf_parameters(particle(odd_zernike=odd_zernike(TILT, TREFOIL, WAVELENGTH))), [0], 64, 3.0)
    coma = TILT[0] * torch.cos(angle) + TILT[1] * torch.sin(angle)
    trefoil = TREFOIL[0] * torch.cos(3 * angle) + TREFOIL[1] * torch.sin(3 * angle)
    expected = -2 * math.pi * WAVELENGTH**2 * k**3 * (coma + trefoil / 3)
    assert found is not None
    assert expected.abs().max() > 0.01
    assert torch.allclose(found[0].double(), expected, atol=1e-5)


def test_axial_coma_is_the_beam_tilt_that_pyem_makes_of_it() -> None:
    tilt_mrad = tuple(1e3 * math.asin(value / 2.7e7) for value in TILT)
    coma = odd_phase(ctf_parameters(particle(odd_zernike=odd_zernike(TILT, 0 * TREFOIL, WAVELENGTH))), [0], 64, 3.0)
    tilted = odd_phase(ctf_parameters(particle(beam_tilt_mrad=tilt_mrad)), [0], 64, 3.0)
    assert coma is not None and tilted is not None
    assert torch.allclose(coma, tilted, atol=1e-5)
    assert not torch.allclose(coma, -tilted, atol=1e-3)


def test_even_aberrations_add_to_the_phase_of_the_spherical_one() -> None:
    """Without defocus and with all as amplitude contrast the CTF is the cosine of the rest of the phase."""
    k, angle = polar()
    cases = [
        (TETRA, [TETRA[0] * torch.cos(2 * angle), TETRA[1] * torch.sin(2 * angle),
                 TETRA[2] * torch.cos(4 * angle) / 4, TETRA[3] * torch.sin(4 * angle) / 4]),
        (0 * TETRA, []),
    ]  # fmt: skip
    for tetra, terms in cases:
        changes = {"amplitude_contrast": 1.0, "even_zernike": even_zernike(1e3 * tetra, WAVELENGTH)}
        found = ctf(ctf_parameters(particle(**changes)), [0], 64, 3.0)[0]
        phase = 0.5 * math.pi * 2.7e7 * WAVELENGTH**3 * k**4
        phase = phase + 2 * math.pi * WAVELENGTH**3 * k**4 * sum(1e3 * term for term in terms)
        assert torch.allclose(found.double(), torch.cos(phase), atol=1e-4)


def test_magnification_is_given_without_or_with_the_identity() -> None:
    assert magnification(np.zeros(4)) == ((1.0, 0.0), (0.0, 1.0))
    assert np.allclose(magnification(np.array([0.02, 0.01, -0.03, -0.01])), [[1.02, 0.01], [-0.03, 0.99]])
    assert np.allclose(magnification(np.array([1.02, 0.01, -0.03, 0.99])), [[1.02, 0.01], [-0.03, 0.99]])
    with pytest.raises(ValueError, match="anisotropic magnification"):
        magnification(np.array([0.5, 0.0, 0.0, 0.5]))


def test_aberrations_reach_the_consensus_and_are_told(
    project: CsProject, truth: Consensus, caplog: pytest.LogCaptureFixture
) -> None:
    group = project.main["alignments3D/psize_A"] == 8.0
    project.changed(
        ctf__tilt_A=np.where(group[:, None], TILT, 0),
        ctf__trefoil_A=np.where(group[:, None], TREFOIL, 0),
        ctf__tetra_A=np.where(group[:, None], TETRA, 0),
        ctf__anisomag=np.where(group[:, None], [0.01, 0, 0, -0.02], 0),
        ctf__shift_A=np.where(group[:, None], [3.0, -2.0], 0),
    )
    with caplog.at_level(logging.WARNING, "integration.cryosparc"):
        found = read_consensus(project.particles)
    plain, aberrated = sorted(found.optics, key=lambda optics: optics.name)
    assert (plain.odd_zernike, plain.even_zernike) == ((), ())
    assert np.allclose(aberrated.odd_zernike, odd_zernike(TILT, TREFOIL, electron_wavelength(200.0)), rtol=1e-5)
    assert np.allclose(aberrated.even_zernike, even_zernike(TETRA, electron_wavelength(200.0)), rtol=1e-5)
    assert np.allclose(aberrated.magnification, [[1.01, 0], [0, 0.98]])
    assert np.allclose(found.origins_A, truth.origins_A - np.where(group[:, None], [3.0, -2.0], 0), atol=1e-5)
    told = " ".join(caplog.messages)
    assert all(word in told for word in ("beam tilt", "tetrafoil", "magnification", "image shift", "not tried"))


# -- files ---------------------------------------------------------------------------------------------------------


def messages(path: Path, **options: Any) -> list[str]:
    with pytest.raises(InputProblems) as raised:
        read_consensus(path, **options)
    return raised.value.messages


def test_all_problems_come_in_one_message(project: CsProject) -> None:
    del project.main["alignments3D/pose"]
    project.changed(
        alignments3D__alpha=np.r_[0.0, np.ones(59)],
        ctf__df1_A=np.full(60, np.nan),
        ctf__scale_const=np.ones(60),
        ctf__anisomag=np.full((60, 4), 0.7),
        ctf__accel_kv=np.full(60, 3e5),
        blob__sign=np.zeros(60),
        alignments3D__split=np.zeros(60),
    )
    (project.job / "J2_003_volume_map.mrc").unlink()
    told = "\n".join(messages(project.particles))
    for words in (
        "no field alignments3D/pose; expected the particles of a 3D refinement",
        "alignments3D/alpha is zero or less for 1 particles",
        "ctf/df1_A is not finite for 60 particles",
        "ctf/scale_const is not zero",
        "ctf/anisomag is (0.7, 0.7, 0.7, 0.7)",
        "ctf/accel_kv (kV) is 300000; expected 1 to 10000",
        "blob/sign",
        "alignments3D/split holds 0; expected both 0 and 1",
        "no consensus map beside",
    ):
        assert words in told


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "J1/../../x.mrcs", ""])
def test_stacks_outside_the_project_are_not_opened(project: CsProject, path: str) -> None:
    project.changed(blob__path=np.full(60, path, dtype="S40"))
    (told,) = messages(project.particles)
    assert "60" not in told.split(":")[0] and f"outside the project, the first is {path!r}" in told


def test_stacks_that_are_not_there_are_told_once(project: CsProject) -> None:
    project.changed(blob__path=np.full(60, "S1/nowhere.mrcs", dtype="S40"))
    (told,) = messages(project.particles)
    assert "none of the 1 image stacks is found" in told and "J2" in told


def test_a_passthrough_of_other_particles_is_refused(project: CsProject) -> None:
    save(project.job / "J2_passthrough_particles.cs", {name: v[:50] for name, v in project.passthrough.items()})
    assert "no row for 10 of the 60 particles" in messages(project.particles)[0]


@pytest.mark.parametrize(
    "name, passthrough",
    [
        ("J2_003_particles.cs", "J2_passthrough_particles.cs"),
        ("J2_particles.cs", "J2_passthrough_particles.cs"),
        ("cryosparc_P3_J2_003_particles.cs", "cryosparc_P3_J2_passthrough_particles.cs"),
        ("J2_particles_selected.cs", "J2_passthrough_particles_selected.cs"),
        ("J2_particles_selected.cs", "J2_passthrough_particles_excluded.cs"),
        ("J2_particles.cs", "J21_passthrough_particles.cs"),
        ("particles.cs", "J2_passthrough_particles.cs"),
        ("J2_passthrough_particles.cs", "J2_passthrough_particles.cs"),
    ],
)
def test_the_passthrough_file_of_the_same_output_is_found(tmp_path: Path, name: str, passthrough: str) -> None:
    (tmp_path / passthrough).touch()
    belongs = name.replace("003_", "").replace("particles", "passthrough_particles") == passthrough and name[0] in "Jc"
    assert find_passthroughs(tmp_path / name) == ([tmp_path / passthrough] if belongs else [])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _lying(path: Path) -> None:
    with path.open("wb") as file:
        header = {"shape": (10**12,), "fortran_order": False, "descr": [("uid", "<u8")]}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(60 * 8))


def _objects(path: Path) -> None:
    np.save(path.open("wb"), np.zeros(2, [("uid", "u8"), ("blob/path", object)]), allow_pickle=True)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (Path.unlink, "no such cryoSPARC file"),
    "truncated": (_cut, "truncated, 57 of the 60 rows"),
    "header that lies": (_lying, "truncated, 60 of the 1000000000000 rows"),
    "text": (lambda path: path.write_text("uid 1\n"), "not a numpy file"),
    "pickle": (_objects, "Python objects, which are never read"),
    "stream format": (lambda path: path.write_bytes(b"\x95CSDAT\x00\x00"), "compressed stream format"),
    "plain array": (lambda path: np.save(path.open("wb"), np.zeros(3)), "not a table with a uid field"),
    "uids twice": (
        lambda path: np.save(path.open("wb"), np.zeros(2, [("uid", "u8")])), "some uids are there twice",
    ),
    "no rows": (lambda path: np.save(path.open("wb"), np.zeros(0, [("uid", "u8")])), "no particles"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_files_that_are_no_tables_are_refused(project: CsProject, case: str) -> None:
    damage, words = WRONG[case]
    damage(project.particles)
    assert words in messages(project.particles)[0]


# -- latents -------------------------------------------------------------------------------------------------------


def test_particles_come_back_with_latents_in_their_order(project: CsProject, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    latents, std = rng.normal(size=(60, 2)).astype(np.float32), rng.uniform(size=(60, 2)).astype(np.float32)
    target = write_particles(project.particles, tmp_path / "particles.cs", latents, std)
    table = np.load(target, allow_pickle=False)
    assert np.array_equal(table["uid"], project.main["uid"])
    assert np.array_equal(table["alignments3D/pose"], project.main["alignments3D/pose"])
    for mode in range(2):
        assert table.dtype[f"components_mode_{mode}/component"] == np.dtype("<u4")
        assert (table[f"components_mode_{mode}/component"] == mode).all()
        assert np.array_equal(table[f"components_mode_{mode}/value"], latents[:, mode])
        assert np.array_equal(table[f"flex_latent_std_{mode}/value"], std[:, mode])
    assert set(project.passthrough) <= set(table.dtype.names)
    again = read_consensus(
        target,
        latent_columns=latent_columns(target, 2),
        project=project.root,
        map_path=project.job / "J2_003_volume_map.mrc",
    )
    assert again.latents is not None
    assert np.array_equal(again.latents, np.c_[latents, std])
    assert latent_columns(project.particles, 2) == ()
    fewer = read_cs(write_particles(target, tmp_path / "fewer.cs", latents[:, :1], std[:, :1]))
    assert [name for name in fewer if "_1/" in name] == []


def test_refined_poses_and_scales_are_alignments(project: CsProject, tmp_path: Path) -> None:
    """What is read back is what was refined, in the engine's terms; the opposite corrections are not."""
    rng = np.random.default_rng(5)
    turn, shift = 0.1 * rng.normal(size=(60, 3)), 3 * rng.normal(size=(60, 2))
    contrast = rng.uniform(0.5, 1.5, 60).astype(np.float32)
    options = {"project": project.root, "map_path": project.job / "J2_003_volume_map.mrc"}
    before, latents = read_consensus(project.particles, **options), np.zeros((60, 1))
    for sign, holds in ((1, True), (-1, False)):
        corrections = PoseCorrections((sign * turn).astype(np.float32), (sign * shift).astype(np.float32), contrast)
        target = tmp_path / f"particles{sign}.cs"
        write_particles(project.particles, target, latents, latents, corrections=corrections, gains=np.arange(60.0))
        after = read_consensus(target, **options)
        expected = before.rotations @ Rotation.from_rotvec(turn).as_matrix()
        assert np.allclose(after.rotations, expected, atol=1e-5) == holds
        assert np.allclose(after.origins_A - before.origins_A, shift, atol=1e-4) == holds
        assert np.allclose(after.ctf_scale, before.ctf_scale * contrast, rtol=1e-5)
    assert np.array_equal(read_cs(target)["flex_likelihood_gain/value"], np.arange(60))
    again = read_cs(write_particles(target, tmp_path / "again.cs", latents, latents))
    assert "flex_likelihood_gain/value" not in again


@pytest.mark.parametrize("latents", [np.zeros((59, 2)), np.full((60, 2), np.nan)])
def test_latents_that_do_not_fit_are_not_written(project: CsProject, tmp_path: Path, latents: Any) -> None:
    with pytest.raises(ValueError, match=r"60 particles|not finite"):
        write_particles(project.particles, tmp_path / "particles.cs", latents, np.ones_like(latents))
    assert not (tmp_path / "particles.cs").exists()


def test_components_of_a_variability_job_start_the_latents(project: CsProject) -> None:
    rng = np.random.default_rng(3)
    values = {f"components_mode_{mode}/value": rng.normal(size=60).astype(np.float32) for mode in (0, 1, 2, 10)}
    save(project.particles, project.main | values)
    names = latent_fields(list(read_cs(project.particles)))
    assert names == [f"components_mode_{mode}/value" for mode in (0, 1, 2, 10)]
    found = read_consensus(project.particles, latent_columns=[names[0], "components_mode_10"])
    assert found.latents is not None
    assert np.array_equal(found.latents, np.c_[values[names[0]], values[names[3]]])
    assert "components_mode_5/value are not in" in messages(project.particles, latent_columns=["components_mode_5"])[0]


def test_the_command_line_reads_and_writes_them_without_a_server(
    project: CsProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same job as for RELION's files, here with a stand-in for the training."""

    class Trained:
        def __init__(self, consensus: Consensus, *others: Any) -> None:
            assert consensus.latents is None and consensus.mask is not None
            latents = consensus.origins_A.astype(np.float32)
            std = np.ones_like(latents)
            self.model = SimpleNamespace(latents=latents, latent_std=std, corrections=None)

        def planned(self, last: str) -> list[str]:
            return [last]

        def clean(self) -> None: ...

    monkeypatch.setattr("integration.relion.work.Refinement", Trained)
    mask = project.job / "J2_003_volume_mask_refine.mrc"
    options = {"o": str(tmp_path / "out"), "in_parts": str(project.particles), "in_mask": str(mask)}
    assert run("train", options) == 0
    written = read_cs(tmp_path / "out/particles.cs")
    assert np.array_equal(written["uid"], project.main["uid"])
    expected = project.main["alignments3D/shift"] * project.main["alignments3D/psize_A"][:, None]
    assert np.allclose(written["components_mode_1/value"], expected[:, 1], atol=1e-5)
    assert not (tmp_path / "out/particles.star").exists()
    del project.main["alignments3D/pose"]
    project.write()
    assert run("train", options) == 1
    assert "no field alignments3D/pose" in (tmp_path / "out/flex.log").read_text()


def test_our_files_load_in_cryosparc_s_own_tools(project: CsProject, tmp_path: Path) -> None:
    dataset = pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools is not installed")
    target = write_particles(project.particles, tmp_path / "particles.cs", np.ones((60, 1)), np.ones((60, 1)))
    loaded = dataset.Dataset.load(target)
    assert np.array_equal(loaded["uid"], project.main["uid"])
    assert loaded["components_mode_0/value"].tolist() == [1.0] * 60
    assert loaded["blob/path"][0].lstrip(">").startswith("J1/extract/particles_")
    loaded.save(tmp_path / "theirs.cs")
    assert {name: v.dtype.kind for name, v in read_cs(tmp_path / "theirs.cs").items()} == {
        name: v.dtype.kind for name, v in read_cs(target).items()
    }


def test_joining_keeps_what_the_first_table_has() -> None:
    main = {"uid": np.array([5, 3], np.uint64), "a": np.array([1, 2])}
    other = {"uid": np.array([3, 9, 5], np.uint64), "a": np.array([7, 7, 7]), "b": np.array([30, 90, 50])}
    joined = join(main, [(Path("x.cs"), other)])
    assert joined["a"].tolist() == [1, 2] and joined["b"].tolist() == [50, 30]


def test_long_headers_survive(tmp_path: Path) -> None:
    records = {"uid": np.arange(3, dtype=np.uint64)} | {f"field_{i}/{'x' * 60}": np.ones((3, 2)) for i in range(900)}
    assert list(read_cs(write_cs(tmp_path / "a.cs", records))) == list(records)


def test_a_selection_keeps_uids_order_and_all_fields(project: CsProject, tmp_path: Path) -> None:
    latents = np.random.default_rng(4).normal(size=(60, 2))
    whole_path = write_particles(project.particles, tmp_path / "particles.cs", latents, np.ones_like(latents))
    whole, kept = read_cs(whole_path), latents[:, 0] > 0.3
    found = read_cs(write_selection(whole_path, tmp_path / "selected.cs", kept))
    assert list(found) == list(whole) and 5 < len(found["uid"]) == kept.sum() < 55
    for name, column in whole.items():
        assert np.array_equal(found[name], column[kept]), name
    joined = read_cs(write_selection(project.particles, tmp_path / "given.cs", kept))
    assert np.array_equal(joined["uid"], project.main["uid"][kept])
    assert set(project.passthrough) <= set(joined)
