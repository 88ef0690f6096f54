"""Poses, shifts, CTF and aberrations agree with RELION's own programs, and each wrong convention is seen to fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.consensus import Consensus
from flex_job.ctf import ctf, ctf_parameters, odd_phase
from flex_job.images import ImageReader
from flex_job.volume import read_volume, write_volume
from integration.relion.read import read_consensus

pytestmark = pytest.mark.relion
BOX, PIXEL = 32, 2.5
OPTICS = {
    "rlnOpticsGroup": 1,
    "rlnOpticsGroupName": "krios",
    "rlnVoltage": 300.0,
    "rlnSphericalAberration": 2.7,
    "rlnAmplitudeContrast": 0.1,
    "rlnImagePixelSize": PIXEL,
    "rlnImageSize": BOX,
    "rlnImageDimensionality": 2,
}


def particle_table(count: int, stack: str, seed: int = 0) -> dict[str, Any]:
    """Random poses over the whole sphere, shifts, and CTFs with astigmatism, phase shift, B-factor and scale."""
    rng = np.random.default_rng(seed)
    rot, tilt, psi = Rotation.random(count, rng).as_euler("ZYZ", degrees=True).T
    defocus = rng.uniform(6000.0, 12000.0, count)
    return {
        "rlnImageName": [f"{number + 1:06d}@{stack}" for number in range(count)],
        "rlnAngleRot": rot,
        "rlnAngleTilt": tilt,
        "rlnAnglePsi": psi,
        "rlnOriginXAngst": rng.uniform(-8.0, 8.0, count),
        "rlnOriginYAngst": rng.uniform(-8.0, 8.0, count),
        "rlnDefocusU": defocus + 900.0,
        "rlnDefocusV": defocus - 900.0,
        "rlnDefocusAngle": rng.uniform(0.0, 180.0, count),
        "rlnPhaseShift": rng.uniform(20.0, 110.0, count),
        "rlnCtfBfactor": rng.uniform(0.0, 60.0, count),
        "rlnCtfScalefactor": rng.uniform(0.7, 1.3, count),
        "rlnOpticsGroup": [1] * count,
        "rlnRandomSubset": np.arange(count) % 2 + 1,
    }


def inside_nyquist(box: int = BOX) -> NDArray[np.bool_]:
    """Frequencies of the half plane (box, box // 2 + 1) where RELION does not interpolate with what is past Nyquist."""
    ky, kx = np.meshgrid(np.fft.fftfreq(box), np.fft.rfftfreq(box), indexing="ij")
    return np.asarray(np.hypot(ky, kx) < 0.46)


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def shell_correlations(found: NDArray[np.floating], expected: NDArray[np.floating]) -> NDArray[np.floating]:
    """Fourier shell correlation (box // 2,) of two maps, from shell 1."""
    a, b = np.fft.fftn(found), np.fft.fftn(expected)
    k = np.fft.fftfreq(len(found)) * len(found)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int).ravel()

    def sums(values: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.bincount(shell, values.ravel()).astype(np.float64)[1 : len(found) // 2]

    return sums((a * b.conj()).real) / np.sqrt(sums(abs(a) ** 2) * sums(abs(b) ** 2))


# --- the CTF: a point in the centre projects to the CTF itself, with no interpolation in the way -----------------

EVEN = "[0.2,3,-4,5,60,-40,150,30,-50]"
MAGNIFICATION = {"rlnMagMat00": 1.06, "rlnMagMat01": 0.03, "rlnMagMat10": -0.05, "rlnMagMat11": 0.95}


def recorded_ctf(folder: Path, write_star: Any, run_relion: Any, optics: dict[str, Any], *flags: str) -> Consensus:
    """A STAR file and RELION's projections of a point with these CTFs, read back."""
    point = np.zeros((BOX, BOX, BOX), dtype=np.float32)
    point[BOX // 2, BOX // 2, BOX // 2] = 1.0
    write_volume(folder / "point.mrc", point, PIXEL)
    table = particle_table(12, "point.mrcs") | {"rlnOriginXAngst": np.zeros(12), "rlnOriginYAngst": np.zeros(12)}
    star = write_star(folder / "point.star", table, OPTICS | optics)
    run_relion("relion_project", "--i", "point.mrc", "--o", "point", "--ang", "point.star", "--ctf", *flags, cwd=folder)
    return read_consensus(write_star(star, table, OPTICS | optics), map_path=folder / "point.mrc")


def transforms(consensus: Consensus) -> NDArray[np.complexfloating]:
    """Transforms of all images about the centre pixel box // 2, at frequencies below Nyquist (n, frequencies)."""
    images = ImageReader(consensus).read(np.arange(len(consensus)))
    return np.fft.rfft2(np.fft.ifftshift(images, axes=(1, 2)))[:, inside_nyquist(images.shape[-1])]


def our_ctf(consensus: Consensus, **changes: Any) -> NDArray[np.float32]:
    return ctf(replace(ctf_parameters(consensus), **changes), np.arange(len(consensus)), BOX, PIXEL).numpy()[
        :, inside_nyquist()
    ]


def test_ctf_is_relions(tmp_path: Path, write_star: Any, run_relion: Any) -> None:
    optics = {"rlnEvenZernike": EVEN, **MAGNIFICATION}
    consensus = recorded_ctf(tmp_path, write_star, run_relion, optics)
    recorded = transforms(consensus)
    assert relative_error(our_ctf(consensus), recorded) < 1e-4

    parameters = ctf_parameters(consensus)
    wrong = {
        "contrast inverted": our_ctf(consensus, scale=-parameters.scale),
        "overfocus": our_ctf(consensus, defocus_u_A=-parameters.defocus_u_A, defocus_v_A=-parameters.defocus_v_A),
        "astigmatism angle turned the other way": our_ctf(consensus, defocus_angle_rad=-parameters.defocus_angle_rad),
        "U and V exchanged": our_ctf(consensus, defocus_u_A=parameters.defocus_v_A, defocus_v_A=parameters.defocus_u_A),
        "phase shift of the other sign": our_ctf(consensus, phase_shift_rad=-parameters.phase_shift_rad),
        "B-factor of the other sign": our_ctf(consensus, bfactor_A2=-parameters.bfactor_A2),
        "magnification transposed": our_ctf(consensus, magnification=parameters.magnification.transpose(1, 2)),
        "magnification inverted": our_ctf(consensus, magnification=parameters.magnification.inverse()),
        "even Zernikes of the other sign": our_ctf(
            consensus, even_zernike=tuple(tuple(-c for c in row) for row in parameters.even_zernike)
        ),
        "even Zernikes in another order": our_ctf(
            consensus, even_zernike=tuple((row[0], *row[1:4][::-1], *row[4:][::-1]) for row in parameters.even_zernike)
        ),
    }
    for what, values in wrong.items():
        assert relative_error(values, recorded) > 1e-2, what


def test_phase_flipped_data_have_the_absolute_ctf(tmp_path: Path, write_star: Any, run_relion: Any) -> None:
    consensus = recorded_ctf(tmp_path, write_star, run_relion, {}, "--ctf_phase_flip")
    recorded = transforms(consensus)
    unsigned = ctf_parameters(consensus).unsigned
    assert not unsigned.any()
    assert relative_error(our_ctf(consensus, unsigned=~unsigned), recorded) < 1e-4
    assert relative_error(our_ctf(consensus), recorded) > 0.1


# --- poses and shifts ------------------------------------------------------------------------------------------


def test_poses_and_shifts_are_relions(tmp_path: Path, phantom: Any, write_star: Any, run_relion: Any) -> None:
    write_volume(tmp_path / "map.mrc", phantom.volume(BOX, PIXEL), PIXEL)
    table = particle_table(16, "views.mrcs")
    star = write_star(tmp_path / "views_in.star", table, OPTICS)
    run_relion("relion_project", "--i", "map.mrc", "--o", "views", "--ang", star.name, "--ctf", cwd=tmp_path)
    consensus = read_consensus(star, map_path=tmp_path / "map.mrc")
    recorded = ImageReader(consensus).read(np.arange(len(consensus)))
    contrast = ctf(ctf_parameters(consensus), np.arange(len(consensus)), BOX, PIXEL).numpy()

    def error(rotations: NDArray[np.float64], origins_A: NDArray[np.float64]) -> float:
        views = phantom.images(rotations[:, :2], origins_A, BOX, PIXEL, contrast)
        return min(
            relative_error(views * scale, recorded) for scale in [np.vdot(views, recorded) / np.vdot(views, views)]
        )

    rotations, origins = consensus.rotations, consensus.origins_A
    assert error(rotations, origins) < 0.04
    mirror = np.diag([1.0, 1.0, -1.0])
    wrong = {
        "rotation transposed": error(rotations.transpose(0, 2, 1), origins),
        "map of the other hand": error(rotations @ mirror, origins),
        "shift of the other sign": error(rotations, -origins),
        "shift along the other axis": error(rotations, origins[:, ::-1]),
        "shift in pixels": error(rotations, origins / PIXEL),
        "no shift": error(rotations, 0.0 * origins),
    }
    for what, value in wrong.items():
        assert value > 0.2, what


# --- whole image model, through relion_reconstruct ----------------------------------------------------------------


VIEWS = 160
TILT = {"rlnBeamTiltX": 9.0, "rlnBeamTiltY": -5.0}
ODD = {"rlnOddZernike": "[9,-6,150,0,0,-220]"}
FINE_BOX, FINE_PIXEL = 40, 2.0
AGREE = 0.99


@dataclass
class Reconstruction:
    """Writes images of the phantom by our model of them, and has relion_reconstruct turn them back into a map."""

    folder: Path
    phantom: Any
    write_star: Any
    run_relion: Any

    def consensus(self, optics: dict[str, Any], **columns: Any) -> Consensus:
        """The STAR file, its stacks still empty, as our reader has it."""
        write_stack(self.folder / "views.mrcs", np.zeros((VIEWS, BOX, BOX), dtype=np.float32))
        write_stack(self.folder / "fine.mrcs", np.zeros((VIEWS, FINE_BOX, FINE_BOX), dtype=np.float32))
        write_volume(self.folder / "map.mrc", self.phantom.volume(BOX, PIXEL), PIXEL)
        table = particle_table(VIEWS, "views.mrcs", seed=1) | columns
        star = self.write_star(self.folder / "views.star", table, OPTICS | optics)
        return read_consensus(star, map_path=self.folder / "map.mrc")

    def views(
        self,
        consensus: Consensus,
        group: int = 0,
        phase_sign: float = 1.0,
        magnification: NDArray[np.float64] | None = None,
        powers: int = 1,
        signed: bool = False,
    ) -> NDArray[np.float32]:
        """Images of all particles as if recorded in optics group `group`, in density per square angstrom."""
        index, optics = np.arange(VIEWS), consensus.optics[group]
        box, pixel = optics.box, optics.pixel_size_A
        parameters = ctf_parameters(replace(consensus, optics_index=np.full(VIEWS, group)))
        if signed:
            parameters = replace(parameters, unsigned=torch.zeros_like(parameters.unsigned))
        factor = ctf(parameters, index, box, pixel).numpy().astype(np.complex64) ** powers
        phase = odd_phase(parameters, index, box, pixel)
        if phase is not None:
            factor *= np.exp(1j * phase_sign * phase.numpy())
        matrix = np.array(optics.magnification) if magnification is None else magnification
        projections = matrix.T @ consensus.rotations[:, :2]
        return self.phantom.images(projections, consensus.origins_A, box, pixel, factor) / pixel**2

    def agreement(self, images: NDArray[np.float32], *flags: str) -> float:
        """Lowest correlation of RELION's map of `images` with the true one over shells up to 0.8 of Nyquist."""
        write_stack(self.folder / "views.mrcs", images)
        self.run_relion("relion_reconstruct", "--i", "views.star", "--o", "out.mrc", "--ctf", *flags, cwd=self.folder)
        found = read_volume(self.folder / "out.mrc").data
        return float(shell_correlations(found, self.phantom.volume(BOX, PIXEL))[: int(0.8 * BOX / 2)].min())


@pytest.fixture
def reconstruction(tmp_path: Path, phantom: Any, write_star: Any, run_relion: Any) -> Reconstruction:
    return Reconstruction(tmp_path, phantom, write_star, run_relion)


def write_stack(path: Path, images: NDArray[np.float32]) -> None:
    with mrcfile.new(path, images, overwrite=True) as mrc:
        mrc.set_image_stack()


@pytest.mark.parametrize("aberration", [TILT, ODD, TILT | ODD | MAGNIFICATION], ids=["tilt", "odd", "all"])
def test_odd_phase_is_relions(reconstruction: Reconstruction, aberration: dict[str, Any]) -> None:
    consensus = reconstruction.consensus(aberration)
    assert reconstruction.agreement(reconstruction.views(consensus)) > AGREE
    for sign in (-1.0, 0.0):
        assert reconstruction.agreement(reconstruction.views(consensus, phase_sign=sign)) < 0.9, sign


def test_magnification_is_relions(reconstruction: Reconstruction) -> None:
    consensus = reconstruction.consensus(MAGNIFICATION)
    matrix = np.array(consensus.optics[0].magnification)
    assert reconstruction.agreement(reconstruction.views(consensus)) > AGREE
    for wrong in (matrix.T, np.linalg.inv(matrix), np.eye(2)):
        assert reconstruction.agreement(reconstruction.views(consensus, magnification=wrong)) < 0.97


def test_premultiplied_data_are_relions(reconstruction: Reconstruction) -> None:
    consensus = reconstruction.consensus({"rlnCtfDataAreCtfPremultiplied": 1})
    assert ctf_parameters(consensus).premultiplied.all()
    premultiplied = reconstruction.views(consensus, powers=2)
    assert reconstruction.agreement(premultiplied) > AGREE
    assert reconstruction.agreement(reconstruction.views(consensus, signed=True)) < 0.0
    reconstruction.consensus({})
    assert reconstruction.agreement(premultiplied) < 0.0


def test_phase_flipped_data_are_relions(reconstruction: Reconstruction) -> None:
    consensus = reconstruction.consensus({})
    flipped = replace(consensus, optics=(replace(consensus.optics[0], phase_flipped=True),))
    assert reconstruction.agreement(reconstruction.views(flipped), "--ctf_phase_flipped") > AGREE
    assert reconstruction.agreement(reconstruction.views(consensus), "--ctf_phase_flipped") < 0.9


def test_optics_groups_of_other_pixel_and_box_are_relions(reconstruction: Reconstruction) -> None:
    """Groups of one extent (80 A): RELION takes images of density per area, whatever the pixel."""
    names = [f"{number + 1:06d}@{('views', 'fine')[number % 2]}.mrcs" for number in range(VIEWS)]
    optics = {label: [value, value] for label, value in OPTICS.items()}
    optics |= {"rlnOpticsGroup": [1, 7], "rlnImagePixelSize": [PIXEL, FINE_PIXEL], "rlnImageSize": [BOX, FINE_BOX]}
    optics |= {label: [0.0, value] for label, value in TILT.items()}
    groups = np.where(np.arange(VIEWS) % 2, 7, 1)
    consensus = reconstruction.consensus(optics, rlnImageName=names, rlnOpticsGroup=groups)
    assert [group.box for group in consensus.optics] == [BOX, FINE_BOX]
    fine = reconstruction.views(consensus, group=1)
    write_stack(reconstruction.folder / "fine.mrcs", fine)
    coarse = reconstruction.views(consensus)
    assert reconstruction.agreement(coarse) > AGREE
    write_stack(reconstruction.folder / "fine.mrcs", reconstruction.views(consensus, group=1, phase_sign=-1.0))
    assert reconstruction.agreement(coarse) < 0.97


def test_without_relion_these_tests_fail_in_ci_and_are_skipped_elsewhere(
    relion_program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for value, outcome in (("true", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("CI", value)
        with pytest.raises(outcome, match="relion_refine is not installed"):
            relion_program("relion_refine")
