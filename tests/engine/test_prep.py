"""From raw stacks to whitened particles: noise, contrast and scale are found, and what a stack has been through is
undone, seen in the map that comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flex_job.band import Band
from flex_job.calibration import Calibration
from flex_job.consensus import Consensus, OpticsGroup
from flex_job.ctf import ctf, ctf_parameters
from flex_job.events import Events, StopRequested
from flex_job.fourier import centred_window, fourier_resize
from flex_job.fsc import fsc_masked
from flex_job.images import ImageReader
from flex_job.imaging import ImageModel
from flex_job.operator import make_operator, rigid_domain
from flex_job.particles import ParticleStack
from flex_job.prep import prepare, restore
from flex_job.problems import InputProblems
from flex_job.reconstruct import reconstruct
from flex_job.simulation.images import noise_power, signal_images
from flex_job.volume import Volume, read_volume
from integration.relion.simulate import SimulatedProject, simulate_project
from job_specs.parameters import PrepParameters, ReconstructParameters

BOX, PIXEL = 48, 5.2


@dataclass(frozen=True)
class Data:
    """A simulated project of a molecule at rest, its particles, and the exact map."""

    project: SimulatedProject
    consensus: Consensus
    truth: Volume

    def images(self) -> NDArray[np.float32]:
        return ImageReader(self.consensus).read(np.arange(len(self.consensus)))


def simulate(folder: Path, particles: int, groups: list[OpticsGroup] | None = None, **values: Any) -> Data:
    """`particles` particles, in one optics group of the map's box when no others are given."""
    project = simulate_project(
        folder,
        **{"motion": "none", "optics": groups, "box": BOX, "pixel_size_A": PIXEL, "snr": 4.0, "seed": 1} | values,
        particles=particles,
    )
    truth = read_volume(project.folder / "truth" / "consensus.mrc")
    return Data(project, project.particles.refined, truth)


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Little noise: what goes wrong shows."""
    return simulate(tmp_path_factory.mktemp("strong"), 240)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """As much noise as there really is, coloured, in a box larger than the prepared one."""
    return simulate(tmp_path_factory.mktemp("noisy"), 300, box=64, pixel_size_A=4.0, snr=0.1, noise="coloured")


def run(
    consensus: Consensus, folder: Path, box: int = BOX, events: Events | None = None, **values: Any
) -> tuple[ParticleStack, Calibration]:
    assert consensus.mask is not None
    cache, record = folder / "cache.f16", folder / "prep.npz"
    folder.mkdir(exist_ok=True)
    prepare(consensus, consensus.mask, box, PrepParameters(**values), cache, record, events or Events())
    return restore(consensus, box, cache, record)


def new_stack(consensus: Consensus, images: NDArray[np.floating], path: Path, **optics: Any) -> Consensus:
    """The same particles with these images, all of one optics group changed by `optics`."""
    with mrcfile.new(path, images.astype(np.float32), overwrite=True) as mrc:
        mrc.set_image_stack()
    count = len(consensus)
    return replace(
        consensus,
        stack_paths=(path,),
        stack_index=np.zeros(count, np.int32),
        image_index=np.arange(count),
        optics_index=np.zeros(count, np.int32),
        optics=(replace(consensus.optics[0], box=images.shape[-1], **optics),),
    )


def first_half_map(stack: ParticleStack, mask: Volume) -> Volume:
    mask = fourier_resize(mask, stack.box)
    support = Volume((mask.data > 0.05).astype(np.float32), mask.pixel_size_A)
    return reconstruct(stack, support, None, ReconstructParameters(max_iterations=3), Events()).maps[0]


def lowest_fsc(a: Volume, b: Volume, mask: Volume, up_to: float) -> float:
    """Lowest FSC inside the mask over shells up to `up_to` of Nyquist."""
    weight = np.clip(fourier_resize(mask, a.box).data, 0, 1)
    return float(fsc_masked(a.data, b.data, weight)[1 : int(up_to * a.box / 2)].min())


def shell_means(values: torch.Tensor, box: int) -> NDArray[np.floating]:
    """Mean over shells 0 to box // 2 of values (b, box, box // 2 + 1)."""
    shell = np.hypot(np.fft.fftfreq(box, 1 / box)[:, None], np.arange(box // 2 + 1)).round().astype(int).ravel()
    mean = values.mean(0).numpy().ravel()
    return (np.bincount(shell, mean) / np.bincount(shell))[: box // 2 + 1]


# --- noise --------------------------------------------------------------------------------------------------------


def test_noise_spectrum_is_found_and_whitened_to_variance_one(noisy: Data, tmp_path: Path) -> None:
    stack, calibration = run(noisy.consensus, tmp_path)
    # power per coefficient of the images, cut from 64 pixels to 48
    expected = shell_means(torch.from_numpy(noise_power("coloured", 64, 4.0))[None], 64)[: BOX // 2] * (BOX / 64) ** 2
    found = stack.noise[0, : BOX // 2] ** 2
    assert np.abs(found[4:] / expected[4:] - 1).max() < 0.05
    assert np.abs(found[1:4] / expected[1:4] - 1).max() < 0.12  # few coefficients there
    assert expected[1] > 2.5 * expected[-1]
    assert calibration.noise_level.mean() == pytest.approx(1.0, abs=0.01)

    # what the exact map leaves of the whitened images is noise of variance 1 in every shell
    exact = fourier_resize(noisy.truth, BOX)
    domain, vertices = rigid_domain(Volume(np.ones_like(exact.data), exact.pixel_size_A))
    band = stack.band()
    model = ImageModel(
        make_operator(domain), BOX, band, stack_box=BOX, stack_pixel_size_A=stack.pixel_size_A, oversampling=2
    )
    batch = stack.batch(np.arange(len(stack)))
    q = model.positions(batch, torch.from_numpy(vertices))
    # a density per voxel of 4 A has 64 / 48 times the sum along z in voxels of 64 / 48 times the size
    images = batch.transfer * model.transform(torch.from_numpy(domain.gather(exact.data)) * (64 / BOX), q)

    def variance(scale: float) -> NDArray[np.floating]:
        """Of real and imaginary parts, shells 1 to BOX // 2 - 1."""
        left = 0.5 * ((batch.data - scale * images).abs() ** 2).mean(0).numpy()
        shells = band.shells.numpy()
        return (np.bincount(shells, left)[1:] / np.bincount(shells)[1:])[: BOX // 2 - 1]

    assert np.abs(variance(1.0) - 1.0).max() < 0.06
    for wrong in (0.0, -1.0):
        assert variance(wrong)[:8].min() > 1.3, wrong


def test_every_optics_group_has_its_own_noise(tmp_path: Path) -> None:
    """Even a group of a few particles among many."""
    group = OpticsGroup("a", BOX, PIXEL, 300.0, 2.7, 0.1)
    data = simulate(tmp_path / "project", 300, [group], snr=0.1)
    factor = np.where(np.arange(300) < 260, 1.0, 3.0)
    consensus = new_stack(data.consensus, data.images() * factor[:, None, None], tmp_path / "mixed.mrcs")
    groups = replace(consensus, optics_index=(factor > 1).astype(np.int32), optics=(group, group))
    stack, calibration = run(groups, tmp_path, noise_particles=10)
    assert stack.noise[1, 1:24] / stack.noise[0, 1:24] == pytest.approx(3.0, rel=0.15)
    assert np.abs(calibration.noise_level - 1).max() < 0.15
    assert calibration.contrast[260:] / calibration.contrast[:260].mean() == pytest.approx(3.0, rel=0.2)
    alone, calibration = run(consensus, tmp_path)
    assert (calibration.noise_level[260:] / calibration.noise_level[:260].mean()) == pytest.approx(3.0, rel=0.1)


# --- contrast -----------------------------------------------------------------------------------------------------


def test_inverted_contrast_is_found_and_undone(strong: Data, tmp_path: Path) -> None:
    dark = new_stack(strong.consensus, -strong.images(), tmp_path / "dark.mrcs")
    said: list[str] = []
    stack, calibration = run(dark, tmp_path / "dark", events=Events(message=said.append))
    plain, plain_calibration = run(strong.consensus, tmp_path / "plain")
    assert (calibration.sign, plain_calibration.sign) == (-1, 1)
    assert any("darker" in line and "-0." in line for line in said)
    np.testing.assert_array_equal(*(np.fromfile(each.path, np.float16) for each in (plain, stack)))
    kept, calibration = run(dark, tmp_path / "kept", contrast="keep")
    assert calibration.sign == 1
    assert kept.batch(np.arange(5)).data == pytest.approx(-plain.batch(np.arange(5)).data, abs=0.02)
    assert run(dark, tmp_path / "inverted", contrast="invert")[1].sign == -1


def test_images_of_something_else_are_an_error_where_the_sign_is_to_be_found(noisy: Data, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((len(noisy.consensus), 64, 64))
    consensus = new_stack(noisy.consensus, noise, tmp_path / "noise.mrcs")
    with pytest.raises(InputProblems, match="no sign of the consensus map"):
        run(consensus, tmp_path)
    assert run(consensus, tmp_path, contrast="keep")[1].sign == 1


def signal_scaled(data: Data, factor: NDArray[np.floating], noise: float, path: Path) -> Consensus:
    """New images: the signal times a factor per particle, white noise of this standard deviation."""
    index = np.arange(len(data.consensus))
    signal = signal_images(data.project.conformations, data.project.particles.latents, data.consensus, index)
    rng = np.random.default_rng(7)
    return new_stack(data.consensus, factor[:, None, None] * signal + noise * rng.standard_normal(signal.shape), path)


def test_contrast_of_each_particle_is_found(strong: Data, tmp_path: Path) -> None:
    factor = np.random.default_rng(6).uniform(0.6, 1.4, len(strong.consensus))
    stack, calibration = run(signal_scaled(strong, factor, 1.0, tmp_path / "s.mrcs"), tmp_path)
    relative = calibration.contrast / calibration.contrast.mean() * factor.mean()
    assert np.abs(relative / factor - 1).max() < 0.1
    assert np.abs(calibration.noise_level - 1).max() < 0.15
    assert stack.scale == pytest.approx(calibration.contrast / calibration.noise_level)
    off = run(strong.consensus, tmp_path, per_particle_scale=False)[1]
    np.testing.assert_array_equal(off.contrast, 1.0)


def test_factor_on_a_whole_image_is_contrast_and_noise_level(strong: Data, tmp_path: Path) -> None:
    """As images normalised in another way have it: nothing changes but the units."""
    factor = np.random.default_rng(6).uniform(0.6, 1.4, len(strong.consensus))
    scaled = new_stack(strong.consensus, strong.images() * factor[:, None, None], tmp_path / "f.mrcs")
    stack, calibration = run(scaled, tmp_path)
    assert np.corrcoef(calibration.noise_level, factor)[0, 1] > 0.99
    assert stack.scale == pytest.approx(stack.scale.mean(), rel=0.12)


def test_contrast_is_shrunk_where_images_tell_little(strong: Data, tmp_path: Path) -> None:
    factor = np.random.default_rng(6).uniform(0.6, 1.4, len(strong.consensus))
    spread = []
    for sigma in (1.0, 10.0, 100.0):
        _, calibration = run(signal_scaled(strong, factor, sigma, tmp_path / "s.mrcs"), tmp_path)
        error = calibration.contrast / calibration.contrast.mean() - factor / factor.mean()
        spread.append(calibration.contrast.std())
        assert np.sqrt((error**2).mean()) < 1.1 * (factor / factor.mean()).std()
    assert spread[0] > spread[1] > spread[2]
    assert spread[2] < 0.1


# --- bad input ----------------------------------------------------------------------------------------------------


def test_images_that_are_nan_or_constant_are_named_and_nothing_is_left(strong: Data, tmp_path: Path) -> None:
    images = strong.images()
    images[17, 3, 4] = np.nan
    images[120] = 5.0
    path = tmp_path / "bad.mrcs"
    with pytest.warns(RuntimeWarning):  # mrcfile's, of the NaN
        consensus = new_stack(strong.consensus, images, path)
    folder = tmp_path / "job"
    with pytest.raises(InputProblems) as error:
        run(consensus, folder)
    text = str(error.value)
    assert "2 particle images" in text
    assert f"18@{path}" in text and f"121@{path}" in text
    assert list(folder.iterdir()) == []


def test_one_nan_in_an_image_that_no_sample_holds_is_found(
    strong: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, count = tmp_path / "one.mrcs", len(strong.consensus)
    consensus = new_stack(strong.consensus, strong.images(), path)
    with mrcfile.mmap(path, mode="r+") as mrc:
        mrc.data[69, 20, 30] = np.nan
    missed = next(seed for seed in range(100) if 69 not in np.random.default_rng(seed).permutation(count)[:64])
    assert ImageReader(consensus).check(seed=missed) == []
    with pytest.raises(InputProblems, match=rf"1 particle images are constant or not finite.* 70@{path}; .*take them"):
        run(consensus, tmp_path / "job")
    assert caplog.messages[-1] == f"bad particle images:\n70@{path}"
    with mrcfile.mmap(path, mode="r+") as mrc:  # negative control
        mrc.data[69, 20, 30] = 0.0
    run(consensus, tmp_path / "job")


def test_reading_ends_where_many_images_are_bad(
    strong: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = strong.images()
    images[100:] = 0.0
    consensus = new_stack(strong.consensus, images, tmp_path / "half.mrcs")
    monkeypatch.setattr("flex_job.prep.MANY_BAD", 30)
    monkeypatch.setattr("flex_job.raw_images.BATCH_PIXELS", 10 * BOX**2)
    with pytest.raises(InputProblems, match="30 particle images of the first 130 read are"):
        run(consensus, tmp_path / "job")
    assert len(caplog.messages[-1].splitlines()) == 1 + 30
    assert list((tmp_path / "job").iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, 0.0, 5.0])
def test_a_stack_of_nothing_but_bad_images_is_told_so(strong: Data, tmp_path: Path, value: float) -> None:
    consensus = strong.consensus.select(np.arange(20))
    path = tmp_path / "bad.mrcs"
    images = np.zeros((20, BOX, BOX), np.float32)
    consensus = new_stack(consensus, images, path)
    with mrcfile.mmap(path, mode="r+") as mrc:
        mrc.data[:] = value
    with pytest.raises(InputProblems, match="20 particle images are constant or not finite"):
        run(consensus, tmp_path / "job")


def test_nothing_is_left_after_a_stop_and_an_earlier_cache_is_kept(strong: Data, tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        run(strong.consensus, tmp_path / "job", events=Events(should_stop=lambda: True))
    assert list((tmp_path / "job").iterdir()) == []
    stack, _ = run(strong.consensus, tmp_path / "job")
    before = stack.path.read_bytes()
    with pytest.raises(StopRequested):
        run(strong.consensus, tmp_path / "job", box=32, events=Events(should_stop=lambda: True))
    assert stack.path.read_bytes() == before
    assert {path.name for path in (tmp_path / "job").iterdir()} == {"cache.f16", "prep.npz"}


# --- what a stack has been through --------------------------------------------------------------------------------


def test_premultiplied_and_phase_flipped_images_give_the_same_map(strong: Data, tmp_path: Path) -> None:
    consensus, mask = strong.consensus, strong.consensus.mask
    assert mask is not None
    transfer = ctf(ctf_parameters(consensus), np.arange(len(consensus)), BOX, PIXEL)
    plain = first_half_map(run(consensus, tmp_path)[0], mask)
    assert lowest_fsc(plain, strong.truth, mask, 0.8) > 0.9
    spectrum = torch.fft.rfft2(torch.from_numpy(strong.images()))
    for kind, factor in (("premultiplied", transfer), ("phase_flipped", transfer.sign())):
        images = torch.fft.irfft2(spectrum * factor, s=(BOX, BOX)).numpy()
        treated = new_stack(consensus, images, tmp_path / f"{kind}.mrcs", **{kind: True})
        found = first_half_map(run(treated, tmp_path)[0], mask)
        assert lowest_fsc(found, plain, mask, 0.8) > 0.99, kind
        untold = new_stack(consensus, images, tmp_path / f"{kind}.mrcs")
        wrong = first_half_map(run(untold, tmp_path, contrast="keep")[0], mask)
        assert lowest_fsc(wrong, plain, mask, 0.8) < 0.5, kind


def test_magnification_and_beam_tilt_are_corrected(tmp_path: Path) -> None:
    turned = ((1.05, 0.09), (-0.05, 0.96))
    group = OpticsGroup("a", BOX, PIXEL, 300.0, 2.7, 0.1, beam_tilt_mrad=(40.0, -30.0), magnification=turned)
    data = simulate(tmp_path / "project", 240, [group])
    mask = data.consensus.mask
    assert mask is not None

    def quality(**changes: Any) -> float:
        consensus = replace(data.consensus, optics=(replace(group, **changes),))
        return lowest_fsc(first_half_map(run(consensus, tmp_path)[0], mask), data.truth, mask, 0.8)

    assert quality() > 0.9
    assert quality(magnification=((1.0, 0.0), (0.0, 1.0))) < 0.85
    assert quality(beam_tilt_mrad=(0.0, 0.0)) < 0.85


def test_odd_box(strong: Data, tmp_path: Path) -> None:
    """Images and maps of 47 pixels, centred at pixel 23, prepared at 46."""
    consensus = new_stack(strong.consensus, centred_window(strong.images(), BOX - 1), tmp_path / "odd.mrcs")
    inside = slice(1, None)
    assert consensus.mask is not None

    def cut(volume: Volume) -> Volume:
        return Volume(np.ascontiguousarray(volume.data[inside, inside, inside]), PIXEL)

    consensus = replace(consensus, map=cut(consensus.map), mask=cut(consensus.mask))
    stack, _ = run(consensus, tmp_path, box=46)
    assert stack.pixel_size_A == pytest.approx(47 / 46 * PIXEL)
    mask = consensus.mask
    assert mask is not None
    found = first_half_map(stack, mask)
    truth = fourier_resize(cut(strong.truth), 46)
    assert lowest_fsc(found, truth, mask, 0.8) > 0.9
    moved = Volume(np.roll(truth.data, 1, axis=2), truth.pixel_size_A)
    assert lowest_fsc(found, moved, mask, 0.8) < 0.5


def test_groups_of_other_extents_are_put_on_one_scale(tmp_path: Path) -> None:
    """Windows of 249.6, 250.8 and (padded from 264) 288 A."""
    groups = [
        OpticsGroup("map's own", BOX, PIXEL, 300.0, 2.7, 0.1),
        OpticsGroup("fraction of a pixel", 80, 3.3, 300.0, 2.7, 0.1),
        OpticsGroup("coarse", 44, 6.0, 300.0, 2.7, 0.1),
    ]
    data = simulate(tmp_path / "project", 360, groups)
    consensus, mask = data.consensus, data.consensus.mask
    assert mask is not None
    stack, calibration = run(consensus, tmp_path)
    np.testing.assert_allclose(np.unique(stack.pixel_sizes_A), [PIXEL, 76 * 3.3 / BOX, 6.0])
    contrast = [calibration.contrast[consensus.optics_index == number].mean() for number in range(3)]
    assert contrast == pytest.approx([contrast[0]] * 3, rel=0.03)
    found = first_half_map(stack, mask)
    assert lowest_fsc(found, data.truth, mask, 0.8) > 0.9


def test_images_off_zero_make_no_step_at_the_border_of_a_larger_window(tmp_path: Path) -> None:
    data = simulate(tmp_path / "project", 120, [OpticsGroup("small", 42, 6.0, 300.0, 2.7, 0.1)])
    lifted = new_stack(data.consensus, data.images() + 1000.0, tmp_path / "lifted.mrcs")
    stacks = [run(consensus, tmp_path / name)[0] for name, consensus in (("a", data.consensus), ("b", lifted))]
    plain, other = (stack.batch(np.arange(120)).data for stack in stacks)
    assert (other - plain).abs().max() < 0.05


# --- the cache ----------------------------------------------------------------------------------------------------


def test_cache_is_half_precision_and_restores_the_same_stack(strong: Data, tmp_path: Path) -> None:
    stack, calibration = run(strong.consensus, tmp_path)
    count = len(strong.consensus)
    band = Band.below(BOX / 2)
    assert stack.path.stat().st_size == count * len(band) * 2 * 2
    assert len(band) < BOX * (BOX // 2 + 1) * np.pi / 4  # no corners
    again, same = restore(strong.consensus, BOX, tmp_path / "cache.f16", tmp_path / "prep.npz")
    index = np.array([5, 100, 7])
    for name in ("data", "transfer", "projections", "origins_px"):
        torch.testing.assert_close(getattr(again.batch(index), name), getattr(stack.batch(index), name), rtol=0, atol=0)
    np.testing.assert_array_equal(same.contrast, calibration.contrast)
    # by hand: unit-variance coefficients of the image about its centre
    images = np.fft.ifftshift(strong.images()[index], axes=(1, 2))
    expected = np.fft.rfft2(images)[:, band.ky.numpy(), band.kx.numpy()] * np.sqrt(2) / BOX
    expected /= stack.noise[0][band.shells.numpy()] * calibration.noise_level[index, None]
    found = stack.batch(index).data.numpy()
    assert np.abs(found - expected).max() < 1e-3 * np.abs(found).max()


def resident_file_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssFile:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the resident memory from Linux' /proc")
def test_reading_batches_does_not_keep_the_cache_in_memory(strong: Data, tmp_path: Path) -> None:
    stack, _ = run(strong.consensus, tmp_path)
    copies = 100
    with (tmp_path / "large.f16").open("wb") as file:
        for _ in range(copies):
            file.write(stack.path.read_bytes())
    count = copies * len(stack)
    names = [field for field in ("projections", "origins_px", "halves", "optics_index", "pixel_sizes_A", "scale")]
    arrays = {name: np.concatenate([getattr(stack, name)] * copies) for name in names}
    parameters = stack.ctf.select(np.tile(np.arange(len(stack)), copies))
    large = replace(stack, path=tmp_path / "large.f16", ctf=parameters, **arrays)
    size = large.path.stat().st_size
    low = large.band(1 / 3)
    large.batch(np.arange(200))
    before = resident_file_bytes()
    for band in (low, None):
        for start in range(0, count, 1000):
            large.batch(np.arange(start, min(start + 1000, count)), band)
        assert resident_file_bytes() - before < 0.05 * size
    mapped = np.memmap(large.path, dtype=np.uint8, mode="r")
    assert int(mapped[::4096].sum()) > 0
    assert resident_file_bytes() - before > 0.9 * size
