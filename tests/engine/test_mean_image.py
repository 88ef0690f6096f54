"""Mean images of one side show what is there: the projection of the map, and of the state that the latents name."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.mean_image import SideViews, side_views
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[Path, Consensus, SideViews, NDArray[np.floating]]:
    folder = tmp_path_factory.mktemp("images")
    simulate_project(folder, motion="one_hinge", particles=1500, box=32, pixel_size_A=8.0, snr=0.3, seed=2)
    consensus = read_consensus(
        folder / "Refine3D/job001/run_data.star", mask_path=folder / "MaskCreate/job002/mask.mrc"
    )
    truth = np.load(folder / "truth/truth.npz")
    return folder, consensus, side_views(consensus), truth["latents"]


def projected(volume: NDArray[np.floating], view: NDArray[np.floating]) -> NDArray[np.floating]:
    """(b, b) of a volume (z, y, x) turned so that the rows of `view` are its axes x, y, z."""
    matrix = view.T[::-1, ::-1]
    centre = np.full(3, len(volume) // 2)
    return scipy.ndimage.affine_transform(volume, matrix, centre - matrix @ centre, order=1).sum(axis=0)


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Within the middle, of what is left of both by the filter of a typical CTF: no mean, little of the lowest."""
    high = [image - scipy.ndimage.gaussian_filter(image, 3.0) for image in (a, b)]
    return float(np.corrcoef(*(image[4:-4, 4:-4].ravel() for image in high))[0, 1])


def test_the_mean_is_the_projection_and_no_mirror_or_turn_of_it(simulated):
    _, consensus, sides, latents = simulated
    mean = sides.mean(latents, np.zeros(1), len(sides.index))
    there = projected(consensus.map.data, sides.view)
    assert correlation(mean, there) > 0.75
    for wrong in (there[::-1], there[:, ::-1], there.T, there[::-1, ::-1]):
        assert correlation(mean, wrong) < correlation(mean, there) - 0.1
    assert correlation(mean, -there) < -0.75


def test_the_mean_of_a_state_is_that_state(simulated):
    folder, _, sides, latents = simulated
    states = np.load(folder / "truth/truth.npz")["state_latents"]
    maps = [mrcfile.read(folder / f"truth/state_{number:03d}.mrc") for number in range(len(states))]
    ends = int(states[:, 0].argmin()), int(states[:, 0].argmax())
    change = projected(maps[ends[1]], sides.view) - projected(maps[ends[0]], sides.view)
    seen = sides.mean(latents, states[ends[1]], 40) - sides.mean(latents, states[ends[0]], 40)
    assert correlation(seen, change) > 0.4


def test_the_side_shows_the_motion(simulated):
    """A motion along one axis is looked at from across, unless hardly any particle is seen from there."""
    _, consensus, _, _ = simulated
    axis = np.array([0.6, 0.0, 0.8])
    sides = side_views(consensus, np.outer(np.linspace(-5, 5, 20), axis))
    assert abs(sides.view[2] @ axis) < 0.5
    assert len(sides.index) > 20 and len(np.unique(sides.index)) == len(sides.index)


def test_dark_particles_are_shown_bright(simulated):
    _, consensus, sides, _ = simulated
    assert np.allclose(side_views(consensus, sign=-1).images, -sides.images)
