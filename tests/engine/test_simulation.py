"""The simulator against closed forms: Gaussians at general poses, mass, projection slices, SNR; then its project."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from scipy.spatial.transform import Rotation

from flex_job.consensus import OpticsGroup
from flex_job.ctf import ctf, ctf_parameters, odd_phase
from flex_job.map_model import model_density, read_model
from flex_job.simulation.atoms import Beads, default_sigma_A, load_antibody
from flex_job.simulation.images import amplitude_scale, noise_images, noise_power, recorded_images, signal_images
from flex_job.simulation.maps import consensus_maps, population
from flex_job.simulation.motion import MOTIONS, Conformations, antibody_motion
from flex_job.simulation.particles import Recording, draw_particles
from flex_job.simulation.project import exact_density, mean_density, project_beads
from flex_job.volume import Volume, read_volume
from integration.relion.simulate import SimulatedProject, simulate_project

BOX, PIXEL = 64, 4.0


@pytest.fixture(scope="module")
def antibody() -> Beads:
    return load_antibody(default_sigma_A(PIXEL))


@pytest.fixture(scope="module")
def hinge(antibody: Beads) -> Conformations:
    return antibody_motion(antibody, "one_hinge")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SimulatedProject:
    groups = [
        OpticsGroup("one", 64, 4.0, 300.0, 2.7, 0.1),
        OpticsGroup("two", 72, 3.5, 200.0, 1.4, 0.07, beam_tilt_mrad=(0.4, -0.3), odd_zernike=(0.0, 0.0, 2.0)),
    ]
    folder = tmp_path_factory.mktemp("relion") / "project"
    return simulate_project(
        folder, particles=300, optics=groups, seed=3, pose_error_deg=1.0, float16=True, phase_shift_deg=(20.0, 90.0)
    )


def one_bead(xyz: tuple[float, float, float], sigma_A: float = 3.0, mass: float = 7.0) -> Beads:
    return Beads(np.array([xyz]), np.array([mass]), sigma_A, np.array(["B"]), np.array([1]), np.array([True]))


def optics(**changes: object) -> OpticsGroup:
    return replace(OpticsGroup("g", BOX, PIXEL, 300.0, 2.7, 0.1), **changes)  # type: ignore[arg-type]


def grid() -> Volume:
    return Volume(np.zeros((BOX,) * 3, dtype=np.float32), PIXEL)


# --- the structure and its motion -----------------------------------------------------------------


def test_antibody_is_centred_and_has_the_mass_of_an_igg(antibody: Beads) -> None:
    assert np.abs(antibody.amplitude @ antibody.positions_A / antibody.amplitude.sum()).max() < 1e-9
    assert 130e3 < antibody.amplitude.sum() < 160e3
    assert np.isfinite(antibody.positions_A).all()
    with pytest.raises(ValueError, match="sigma_A"):
        load_antibody(0.0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_latent_zero_is_the_structure(antibody: Beads, motion: str) -> None:
    conformations = antibody_motion(antibody, motion)
    moved = conformations.positions(np.zeros((2, conformations.latent_dims)))
    np.testing.assert_allclose(moved, np.repeat(antibody.positions_A[None], 2, axis=0), atol=1e-12)


def test_arms_move_as_rigid_bodies_by_the_hinge_angle(antibody: Beads) -> None:
    both = antibody_motion(antibody, "two_hinges", (20.0, 15.0))
    latent = np.array([[0.7, -0.4]])
    moved = both.positions(latent)[0]
    for number, hinge in enumerate(both.hinges):
        arm = np.flatnonzero(hinge.weight == 1.0)
        before, after = (xyz[arm] - xyz[arm].mean(axis=0) for xyz in (antibody.positions_A, moved))
        turn, residual = Rotation.align_vectors(after, before)
        assert residual < 1e-6
        assert turn.magnitude() == pytest.approx(abs(both.angles_rad(latent)[0, number]), abs=1e-9)
    rest = sum(hinge.weight for hinge in both.hinges) == 0.0
    np.testing.assert_array_equal(moved[rest], antibody.positions_A[rest])
    assert not np.any((both.hinges[0].weight > 0) & (both.hinges[1].weight > 0))


def test_chain_bends_without_tearing(antibody: Beads) -> None:
    both = antibody_motion(antibody, "two_hinges")
    for latent in ([1.0, -1.0], [-1.0, 1.0]):
        moved = both.positions(np.array([latent]))[0]
        for chain in "ABCD":
            backbone = antibody.alpha_carbon & (antibody.chain == chain)
            steps = [np.linalg.norm(np.diff(xyz[backbone], axis=0), axis=1) for xyz in (antibody.positions_A, moved)]
            assert np.abs(steps[1] - steps[0]).max() < 0.3


def test_wrong_motion_and_wrong_latents_are_errors(antibody: Beads, hinge: Conformations) -> None:
    with pytest.raises(ValueError, match="one_hinge"):
        antibody_motion(antibody, "wobble")
    with pytest.raises(ValueError, match=r"expects \(n, 1\)"):
        hinge.positions(np.zeros((3, 2)))


# --- projections ----------------------------------------------------------------------------------


def test_projected_gaussian_has_its_closed_form_at_a_general_pose() -> None:
    bead = one_bead((11.0, -17.0, 23.0))
    turn = Rotation.from_euler("ZYZ", [40, 65, -110], degrees=True).as_matrix()
    shift = np.array([6.3, -3.1])
    axis = (np.arange(BOX) - BOX // 2) * PIXEL

    def closed_form(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
        x, y = (turn @ bead.positions_A[0])[:2] + shift
        square = (axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2
        return 7.0 * PIXEL**2 / (2 * np.pi * 9.0) * np.exp(-square / 18.0)

    image = project_beads(bead, bead.positions_A[None], turn[None], shift[None], BOX, PIXEL)[0]
    error = np.abs(image - closed_form(turn, shift)).max() / image.max()
    assert error < 1e-6
    for wrong in (closed_form(turn.T, shift), closed_form(turn, -shift), closed_form(turn, shift).T):
        assert np.abs(image - wrong).max() / image.max() > 0.5


def test_mass_is_conserved_under_any_pose_and_motion(hinge: Conformations) -> None:
    rng = np.random.default_rng(1)
    turns = Rotation.random(6, rng).as_matrix()
    images = project_beads(
        hinge.beads, hinge.positions(hinge.draw(6, rng)), turns, rng.normal(0, 5, (6, 2)), BOX, PIXEL
    )
    np.testing.assert_allclose(images.sum(axis=(1, 2)), hinge.beads.amplitude.sum(), rtol=1e-4)
    assert exact_density(hinge, np.array([0.5]), BOX, PIXEL).data.sum() == pytest.approx(
        hinge.beads.amplitude.sum(), rel=1e-4
    )


def test_density_has_the_closed_form_transform_up_to_nyquist(hinge: Conformations) -> None:
    rng = np.random.default_rng(3)
    latent, beads = np.array([0.6]), hinge.beads
    transform = np.fft.fftn(np.fft.ifftshift(exact_density(hinge, latent, BOX, PIXEL).data.astype(float)))
    h = rng.integers(-BOX // 2 + 1, BOX // 2, size=(60, 3))  # zyx
    h[:20, 0] = 0  # the plane that the sum along z sees
    k = h[:, ::-1] / (BOX * PIXEL)
    envelope = np.exp(-2 * np.pi**2 * beads.sigma_A**2 * (k**2).sum(axis=1))

    def closed_form(at: np.ndarray) -> np.ndarray:
        return envelope * (np.exp(-2j * np.pi * k @ hinge.positions(at[None])[0].T) @ beads.amplitude)

    expected, found = closed_form(latent), transform[tuple(h.T)]
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
    for wrong in (closed_form(-latent), np.conj(expected)):
        assert np.linalg.norm(found - wrong) > 0.1 * np.linalg.norm(expected)


def test_density_summed_along_z_is_the_projection(hinge: Conformations) -> None:
    """At the frequencies they share: the density is band-limited to its voxels, the samples are not."""
    latent, fine = np.array([0.6]), 2 * BOX
    density = exact_density(hinge, latent, BOX, PIXEL).data.sum(axis=0)
    samples = project_beads(
        hinge.beads, hinge.positions(latent[None]), np.eye(3)[None], np.zeros((1, 2)), fine, PIXEL / 2, PIXEL**2
    )[0]
    rows = slice(0, BOX // 2)
    both = np.fft.rfft2(density)[rows, :-1], np.fft.rfft2(samples)[rows, : BOX // 2] / 4
    assert np.linalg.norm(both[0] - both[1]) < 1e-4 * np.linalg.norm(both[0])


def test_one_conformation_for_all_images_and_another_area(hinge: Conformations) -> None:
    turns = Rotation.random(3, 5).as_matrix()
    xyz = hinge.positions(np.zeros((1, 1)))
    same = project_beads(hinge.beads, xyz, turns, np.zeros((3, 2)), BOX, PIXEL)
    each = project_beads(hinge.beads, np.repeat(xyz, 3, axis=0), turns, np.zeros((3, 2)), BOX, PIXEL, 4 * PIXEL**2)
    np.testing.assert_allclose(4 * same, each, rtol=1e-5)


def test_mean_density_is_linear(hinge: Conformations) -> None:
    latents = np.array([[-0.5], [0.9]])
    mean = mean_density(hinge, latents, BOX, PIXEL).data
    states = [exact_density(hinge, latent, BOX, PIXEL).data for latent in latents]
    np.testing.assert_allclose(mean, (states[0] + states[1]) / 2, atol=1e-5 * mean.max())


# --- recorded images ------------------------------------------------------------------------------


def test_signal_of_one_bead_is_the_shifted_point_spread(hinge: Conformations) -> None:
    """CTF times the bead's own transform at the place where R, the origin and M put it, computed by a plain DFT."""
    bead = one_bead((20.0, -12.0, 31.0), sigma_A=4.0)
    group = optics(magnification=((1.02, 0.01), (-0.005, 0.98)), beam_tilt_mrad=(1.0, -0.5))
    alone = Conformations(bead, ())
    drawn = draw_particles(alone, 3, (group,), Recording(shift_sigma_px=2.0), grid(), seed=4)
    true, index = drawn.true, np.arange(3)
    images = signal_images(alone, drawn.latents, true, index)

    padded = 2 * BOX
    ky, kx = np.fft.fftfreq(padded, PIXEL)[:, None], np.fft.rfftfreq(padded, PIXEL)[None, :]
    parameters = ctf_parameters(true)
    transfer = ctf(parameters, index, padded, PIXEL).numpy()
    phase = odd_phase(parameters, index, padded, PIXEL)
    assert phase is not None
    m = np.array(group.magnification)
    qx, qy = m[0, 0] * kx + m[0, 1] * ky, m[1, 0] * kx + m[1, 1] * ky
    for i in index:
        x, y = (true.rotations[i] @ bead.positions_A[0])[:2]
        left = -true.origins_A[i]
        slice_at = 7.0 * np.exp(-2 * np.pi**2 * 16.0 * (qx**2 + qy**2) - 2j * np.pi * (qx * x + qy * y))
        spectrum = (
            transfer[i] * np.exp(1j * phase[i].numpy()) * slice_at * np.exp(-2j * np.pi * (kx * left[0] + ky * left[1]))
        )
        spectrum[BOX, :] = spectrum[:, -1] = 0.0  # nothing is kept at Nyquist itself
        expected = np.fft.fftshift(np.fft.irfft2(spectrum, s=(padded, padded)))[32:96, 32:96]
        assert np.abs(images[i] - expected).max() < 2e-4 * np.abs(expected).max()


def test_delocalised_signal_does_not_wrap_round(antibody: Beads) -> None:
    bead = one_bead((100.0, 0.0, 0.0))
    alone = Conformations(bead, ())
    drawn = draw_particles(alone, 1, (optics(),), Recording(shift_sigma_px=0.0, defocus_A=(2e4, 2e4)), grid(), seed=1)
    true = replace(drawn.true, rotations=np.eye(3)[None])
    image = signal_images(alone, drawn.latents, true, np.array([0]))[0]
    assert np.abs(image[:, :8]).max() < 0.02 * np.abs(image).max()  # the far edge, where it would come in again


@pytest.mark.parametrize("noise", ["white", "coloured"])
@pytest.mark.parametrize("snr", [0.1, 0.4])
def test_snr_is_as_requested(antibody: Beads, noise: str, snr: float) -> None:
    conformations = antibody_motion(antibody, "one_hinge")
    how = Recording(snr=snr, noise=noise)
    drawn = draw_particles(conformations, 150, (optics(),), how, grid(), seed=2)
    scale = amplitude_scale(conformations, drawn.latents, drawn.true, snr, 2)
    scaled = replace(conformations, beads=conformations.beads.scaled(scale))
    index = np.arange(150)
    signal = signal_images(scaled, drawn.latents, drawn.true, index)
    rest = recorded_images(scaled, drawn.latents, drawn.true, index, how, 2) - signal
    assert signal.var() / rest.var() == pytest.approx(snr, rel=0.02)
    assert rest.var() == pytest.approx(1.0, rel=0.01)
    assert abs(np.mean(signal * rest)) < 0.002


def test_coloured_noise_has_the_stated_spectrum() -> None:
    images = noise_images("coloured", 400, BOX, PIXEL, np.random.default_rng(0))
    measured = (np.abs(np.fft.rfft2(images)) ** 2).mean(axis=0) / BOX**2
    expected = noise_power("coloured", BOX, PIXEL)
    assert expected[0, 0] / expected[BOX // 2, -1] > 3
    assert np.abs(measured / expected - 1).mean() < 0.06


def test_inverted_contrast_is_the_negative_and_noise_only_has_no_signal(hinge: Conformations) -> None:
    drawn = draw_particles(hinge, 20, (optics(),), Recording(), grid(), seed=5)
    index = np.arange(20)
    plain = recorded_images(hinge, drawn.latents, drawn.true, index, Recording(), 5)
    inverted = recorded_images(hinge, drawn.latents, drawn.true, index, Recording(inverted=True), 5)
    np.testing.assert_array_equal(plain, -inverted)
    noise = recorded_images(hinge, drawn.latents, drawn.true, index, Recording(snr=0.0), 5)
    signal = signal_images(hinge, drawn.latents, drawn.true, index)
    np.testing.assert_allclose(plain - noise, signal, atol=1e-3 * np.abs(signal).max())


def test_protein_is_white(antibody: Beads) -> None:
    """RELION's contrast: near focus, with all the contrast in amplitude, an image is the projection and positive."""
    conformations = Conformations(antibody, ())
    group = optics(amplitude_contrast=1.0)
    how = Recording(defocus_A=(0.0, 0.0), astigmatism_A=0.0, shift_sigma_px=0.0)
    drawn = draw_particles(conformations, 1, (group,), how, grid(), seed=1)
    image = signal_images(conformations, drawn.latents, drawn.true, np.array([0]))
    plain = project_beads(antibody, antibody.positions_A[None], drawn.true.rotations, np.zeros((1, 2)), BOX, PIXEL)
    assert np.corrcoef(image.ravel(), plain.ravel())[0, 1] > 0.95


def test_drawn_particles_are_what_was_asked_for(hinge: Conformations) -> None:
    how = Recording(pose_error_deg=2.0)
    drawn = draw_particles(hinge, 3001, (optics(), optics()), how, grid(), seed=6, images_per_stack=500)
    true, refined = drawn.true, drawn.refined
    assert abs(int((true.halves == 1).sum()) - int((true.halves == 2).sum())) == 1
    assert np.abs(true.rotations.mean(axis=0)).max() < 0.05
    angle = Rotation.from_matrix(refined.rotations @ true.rotations.transpose(0, 2, 1)).as_rotvec(degrees=True)
    assert angle.std() == pytest.approx(2.0, rel=0.05)
    assert true.origins_A.std() == pytest.approx(1.5 * PIXEL, rel=0.05)
    assert drawn.latents.min() > -1 and drawn.latents.max() < 1 and abs(drawn.latents.mean()) < 0.05
    places = set(zip(true.stack_index.tolist(), true.image_index.tolist(), strict=True))
    assert len(places) == 3001 and true.image_index.max() == 499
    for stack in range(len(true.stack_paths)):
        assert len(np.unique(true.optics_index[true.stack_index == stack])) == 1
    again = draw_particles(hinge, 3001, (optics(), optics()), how, grid(), seed=6)
    np.testing.assert_array_equal(again.true.rotations, true.rotations)


def test_all_bad_values_are_named_at_once(hinge: Conformations) -> None:
    bad = Recording(snr=-1, noise="pink", shift_sigma_px=-1, defocus_A=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"0 particles.*") as error:
        draw_particles(hinge, 0, (optics(),), bad, grid())
    assert all(word in str(error.value) for word in ("snr", "pink", "shift_sigma_px", "defocus_A"))
    mixed = draw_particles(hinge, 50, (optics(), optics()), Recording(), grid())
    with pytest.raises(ValueError, match="2 optics groups"):
        signal_images(hinge, mixed.latents, mixed.true, np.arange(50))
    squared = draw_particles(hinge, 2, (optics(premultiplied=True),), Recording(), grid())
    with pytest.raises(ValueError, match="premultiplied"):
        signal_images(hinge, squared.latents, squared.true, np.arange(2))


# --- consensus maps -------------------------------------------------------------------------------


def test_half_maps_reach_the_resolution_asked_for(hinge: Conformations) -> None:
    maps = consensus_maps(hinge, population(hinge), BOX, PIXEL, 10.0, seed=1)
    halves = [np.fft.fftn(volume.data) for volume in maps.half_maps]
    axis = np.fft.fftfreq(BOX, PIXEL)
    k = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    for low, high, least, most in ((0.0, 1 / 25, 0.9, 1.0), (0.095, 0.105, 0.08, 0.22)):
        here = (k >= low) & (k < high)
        a, b = (half[here] for half in halves)
        fsc = np.real(np.vdot(a, b)) / np.linalg.norm(a) / np.linalg.norm(b)
        assert least < fsc <= most
    noise = [volume.data - maps.exact.data for volume in maps.half_maps]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.01
    error = [np.linalg.norm(volume.data - maps.exact.data) for volume in (maps.filtered, maps.half_maps[0])]
    assert error[0] < error[1]


def test_mask_holds_every_conformation(hinge: Conformations) -> None:
    mask = consensus_maps(hinge, population(hinge), BOX, PIXEL, 10.0).mask.data
    assert mask.min() == 0.0 and mask.max() == 1.0
    assert (mask > 0).mean() < 0.1
    for latent in (-1.0, 0.0, 1.0):
        density = exact_density(hinge, np.array([latent]), BOX, PIXEL).data
        assert density[mask > 0.5].sum() / density.sum() > 0.995


# --- the RELION project ---------------------------------------------------------------------------


def test_project_on_disk_says_what_was_simulated(project: SimulatedProject) -> None:
    tables = starfile.read(project.particles_star)
    rows, groups, refined = tables["particles"], tables["optics"], project.particles.refined
    assert len(rows) == 300 and list(groups.rlnImageSize) == [64, 72] and list(groups.rlnImagePixelSize) == [4.0, 3.5]
    assert list(groups.rlnOddZernike) == ["[]", "[0.000000,0.000000,2.000000]"]
    angles = rows[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    back = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().transpose(0, 2, 1)
    np.testing.assert_allclose(back, refined.rotations, atol=1e-6)
    assert np.abs(back.transpose(0, 2, 1) - refined.rotations).max() > 0.5
    np.testing.assert_allclose(rows[["rlnOriginXAngst", "rlnOriginYAngst"]], refined.origins_A, atol=1e-5)
    np.testing.assert_allclose(np.deg2rad(rows.rlnPhaseShift), refined.phase_shift_rad, atol=1e-6)
    np.testing.assert_array_equal(rows.rlnRandomSubset, refined.halves)
    truth = np.load(project.folder / "truth" / "truth.npz")
    assert truth["latents"].shape == (300, 1)
    np.testing.assert_allclose(truth["angles_deg"], 20.0 * truth["latents"])
    np.testing.assert_array_equal(truth["rotations"], project.particles.true.rotations)
    model, rest = read_model(project.folder / "truth/model.cif"), read_volume(project.folder / "truth/state_001.mrc")
    built, seen = (np.fft.rfftn(each)[:4, :4, :4].ravel() for each in (model_density(model, rest, rest.box), rest.data))
    assert (built @ seen.conj()).real > 0.99 * np.linalg.norm(built) * np.linalg.norm(seen)  # in the same place
    for number, latent in enumerate(truth["state_latents"]):
        state = read_volume(project.folder / "truth" / f"state_{number:03d}.mrc")
        np.testing.assert_array_equal(state.data, project.density(latent).data)


def test_stacks_on_disk_hold_the_images(project: SimulatedProject) -> None:
    rows = starfile.read(project.particles_star)["particles"]
    true, latents = project.particles.true, project.particles.latents
    for name, members in rows.groupby(rows.rlnImageName.str.split("@").str[1]):
        group = true.optics[members.rlnOpticsGroup.iloc[0] - 1]
        with mrcfile.open(project.folder / str(name)) as stack:
            assert stack.is_image_stack() and stack.data.dtype == np.float16
            assert float(stack.voxel_size.x) == pytest.approx(group.pixel_size_A)
            images = stack.data.astype(np.float32)
        assert images.shape == (len(members), group.box, group.box)
        index = members.index.to_numpy(copy=True)
        signal = signal_images(project.conformations, latents, true, index)
        slices = members.rlnImageName.str.split("@").str[0].astype(int).to_numpy() - 1
        matched = np.mean(images[slices] * signal) / signal.var()
        assert matched == pytest.approx(1.0, abs=0.1)
        assert abs(np.mean(images[slices[::-1]] * signal) / signal.var()) < matched - 0.2


def test_project_paths_are_relative_and_exist(project: SimulatedProject) -> None:
    folder = project.folder
    optimiser = starfile.read(folder / "Refine3D/job001/run_optimiser.star")
    for label in ("rlnModelStarFile", "rlnExperimentalDataStarFile", "rlnSolventMaskName"):
        assert not Path(optimiser[label]).is_absolute() and (folder / optimiser[label]).is_file()
    nodes = starfile.read(folder / "default_pipeline.star")["pipeline_nodes"]
    assert all((folder / name).is_file() for name in nodes.rlnPipeLineNodeName)
    assert not list(folder.rglob(".*.part"))


def test_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    folders = [
        simulate_project(tmp_path / name, motion="two_hinges", particles=30, seed=seed).folder
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    for name in ("Refine3D/job001/run_data.star", "Refine3D/job001/run_half1_class001_unfil.mrc"):
        a, b, c = ((folder / name).read_bytes()[1024:] for folder in folders)
        assert a == b and a != c
    stacks = [mrcfile.read(folder / "Particles/particles_001.mrcs") for folder in folders]
    np.testing.assert_array_equal(stacks[0], stacks[1])
    assert not np.array_equal(stacks[0], stacks[2])


def test_all_particles_in_one_state_and_no_motion(tmp_path: Path) -> None:
    fixed = simulate_project(tmp_path / "fixed", particles=10, fixed_latent=(0.8,))
    assert (fixed.particles.latents == 0.8).all()
    still = simulate_project(tmp_path / "still", particles=10, motion="none")
    assert still.particles.latents.shape == (10, 0)
    assert (still.folder / "truth/state_000.mrc").is_file()


def test_odd_box_is_an_error(hinge: Conformations) -> None:
    with pytest.raises(ValueError, match="even"):
        exact_density(hinge, np.array([0.0]), 63, PIXEL)


def test_too_small_a_box_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 px of 4 A"):
        simulate_project(tmp_path / "small", particles=10, box=32)
    assert not (tmp_path / "small").exists()
