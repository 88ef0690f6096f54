"""Optics groups that do not fit the others are told by name; those with more noise or few particles are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray

from flex_job.calibration import odd_groups
from flex_job.consensus import Consensus, OpticsGroup
from flex_job.events import Events
from flex_job.images import ImageReader
from flex_job.prep import prepare
from integration.relion.simulate import simulate_project
from job_specs.parameters import PrepParameters

BOX, PIXEL = 32, 7.5
GROUP = OpticsGroup("first", BOX, PIXEL, 300.0, 2.7, 0.1)


def said(matches: list[NDArray[np.floating]]) -> str:
    """Of groups whose particles have these matches; the contrast's own unit does not matter."""
    index = np.concatenate([np.full(len(each), number) for number, each in enumerate(matches)])
    error = np.random.default_rng(3).uniform(0.5, 2.0, len(index))
    optics = [replace(GROUP, name=f"group{number}") for number in range(len(matches))]
    order = np.random.default_rng(4).permutation(len(index))
    raw = np.concatenate(matches) * error
    return odd_groups(raw[order], (error**2)[order], index[order].astype(np.int32), optics)


def drawn(seed: int, *groups: tuple[float, int]) -> list[NDArray[np.floating]]:
    """Matches of groups of (mean, particles)."""
    rng = np.random.default_rng(seed)
    return [rng.normal(mean, np.hypot(1.0, 0.15 * mean), count) for mean, count in groups]


@pytest.mark.parametrize("mean", [0.0, 0.05, 0.5, 3.0, 20.0])
def test_equal_groups_are_never_told(mean: float) -> None:
    """Large and small ones, at any signal, none included: a thousand draws of twelve groups each, per signal."""
    sizes = (3000, 1000, 300, 100, 100, 30, 30, 10, 3, 2, 1, 1)
    assert [seed for seed in range(1000) if said(drawn(seed, *((mean, size) for size in sizes)))] == []


def test_a_group_of_other_particles_is_told_even_where_no_single_image_shows_anything() -> None:
    """A match of half a standard deviation: one particle in three looks as good as one of the other group."""
    for seed in range(50):
        text = said(drawn(seed, (0.5, 4000), (0.0, 2000), (0.5, 1000)))
        assert "group1 (2000 particles, 7.5 A pixels)" in text and "group0" not in text and "group2" not in text
        assert all(word in text for word in ("pixel size", "contrast", "hand", "star"))
    # too few to be sure
    assert [seed for seed in range(50) if said(drawn(seed, (0.5, 4000), (0.0, 10)))] == []


def test_inverted_groups_and_many_are_told_in_one_message() -> None:
    text = said(drawn(0, (8.0, 5000), *[(-8.0, 200)] * 8))
    assert "group1 (200 particles" in text and "-8." in text and "and 3 more groups" in text


def test_more_noise_is_no_mistake() -> None:
    """Two thirds of the amplitude is less than half of the signal's power."""
    assert said(drawn(0, (9.0, 3000), (6.0, 3000))) == ""
    assert "group1" in said(drawn(0, (9.0, 3000), (4.5, 3000)))


def test_one_group_has_none_to_be_compared_with() -> None:
    assert said(drawn(0, (0.0, 100))) == ""
    assert odd_groups(np.ones(5), np.ones(5), np.ones(5, np.int32), [GROUP, GROUP, GROUP]) == ""


@pytest.fixture(scope="module")
def two_groups(tmp_path_factory: pytest.TempPathFactory) -> Consensus:
    project = simulate_project(
        tmp_path_factory.mktemp("groups") / "project",
        motion="none", optics=[GROUP, replace(GROUP, name="second")], box=BOX, pixel_size_A=PIXEL, snr=0.1, seed=1,
        particles=240,
    )  # fmt: skip
    return project.particles.refined


def warnings(consensus: Consensus, folder: Path) -> list[str]:
    """What is told while the particles are read."""
    lines: list[str] = []
    assert consensus.mask is not None
    folder.mkdir(exist_ok=True)
    events = Events(lines.append)
    prepare(consensus, consensus.mask, BOX, PrepParameters(), folder / "cache", folder / "prep.npz", events)
    return [line for line in lines if line.startswith("warning")]


def test_what_is_wrong_with_a_group_of_a_simulated_project_is_told(two_groups: Consensus, tmp_path: Path) -> None:
    assert warnings(two_groups, tmp_path) == []  # negative control
    first, second = two_groups.optics
    members = np.flatnonzero(two_groups.optics_index == 1)
    for pixel_A in (1.3 * PIXEL, 2.0 * PIXEL, 0.6 * PIXEL):
        (line,) = warnings(replace(two_groups, optics=(first, replace(second, pixel_size_A=pixel_A))), tmp_path)
        assert f"second ({len(members)} particles, {pixel_A:g} A pixels)" in line and "first (" not in line
    rotations = two_groups.rotations.copy()
    rotations[members] = rotations[np.roll(members, 1)]
    assert len(warnings(replace(two_groups, rotations=rotations), tmp_path)) == 1


def test_groups_that_differ_in_what_is_their_right_are_not_told(two_groups: Consensus, tmp_path: Path) -> None:
    """Images normalised in another way, which have another contrast, and a few of a group alone."""
    path = tmp_path / "copy.mrcs"
    consensus = two_groups
    other = consensus.optics_index == 1
    images = np.concatenate([ImageReader(consensus).read([number]) for number in range(len(consensus))])
    images[other] *= 30.0
    with mrcfile.new(path, images) as mrc:
        mrc.set_image_stack()
    count = len(consensus)
    scaled = replace(
        consensus, stack_paths=(path,), stack_index=np.zeros(count, np.int32), image_index=np.arange(count)
    )
    assert warnings(scaled, tmp_path) == []
    few = np.sort(np.concatenate([np.flatnonzero(~other), np.flatnonzero(other)[:3]]))
    assert warnings(consensus.select(few), tmp_path) == []
