"""Ways through the latents: evenly, through clusters, where the particles are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flex_job.latent_paths import latent_series, listed
from flex_job.problems import InputProblems


def model_of(latents: NDArray[np.floating]) -> Any:
    """What the paths need of a model."""
    return SimpleNamespace(latents=latents.astype(np.float32), latent_std=np.full(latents.shape, 0.1, np.float32))


def arch(count: int = 1500, spread: float = 0.05) -> NDArray[np.float64]:
    """Particles on a half circle from (-1, 0) over (0, 1) to (1, 0): the straight way between its ends is empty."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, count)
    return np.stack([-np.cos(angle), np.sin(angle)], axis=1) + rng.normal(0, spread, (count, 2))


def test_along_each_latent_in_turn() -> None:
    z = np.random.default_rng(0).normal(size=(400, 2))
    series = latent_series(model_of(z), "latents", 5, 3, 0)
    assert series.points.shape == (10, 2) and series.lengths == (5, 5) and series.titles == ("latent 1", "latent 2")
    assert [part.start for part in series.parts()] == [0, 5]
    assert np.ptp(series.points[:5, 1]) == 0 == np.ptp(series.points[5:, 0])
    assert series.points[[0, 4], 0] == pytest.approx(np.percentile(z[:, 0], [5, 95]), rel=1e-4)


@pytest.mark.parametrize("path", ["density", "clusters"])
def test_paths_stay_where_particles_are(path: str) -> None:
    """On an arch they go over it, evenly, and end at its ends; the straight line crosses the void below."""
    points = latent_series(model_of(arch()), path, 15, 7, 0).points
    assert points.shape == (15, 2)
    assert np.abs(np.linalg.norm(points, axis=1) - 1).max() < 0.15
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.max() < 1.3 * steps.min()
    assert np.linalg.norm(points[0] - points[-1]) > 1.5 and points[:, 1].max() > 0.85
    straight = np.linspace(points[0], points[-1], 15)
    assert np.linalg.norm(straight, axis=1).min() < 0.3  # negative control


def test_a_gap_between_heaps_is_crossed() -> None:
    rng = np.random.default_rng(0)
    heaps = np.concatenate([rng.normal(-4, 0.2, (200, 2)), rng.normal(4, 0.2, (200, 2))])
    points = latent_series(model_of(heaps), "density", 9, 2, 0).points
    assert points[0] == pytest.approx(-np.sign(points[-1, 0]) * np.array([4, 4]), abs=0.5)
    assert points[-1] == pytest.approx(-points[0], abs=0.5)


def test_one_latent_is_followed_from_end_to_end() -> None:
    z = np.random.default_rng(0).normal(size=(500, 1))
    for path in ("density", "clusters"):
        points = latent_series(model_of(z), path, 11, 5, 0).points
        assert (np.abs(np.diff(points[:, 0])) > 0.05).all() and np.ptp(points) > 2


def test_particles_are_some_of_those_there_and_the_seed_says_which() -> None:
    z = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    drawn = latent_series(model_of(z), "particles", 8, 5, 1).points
    assert len(drawn) == 8 and all((z == point.astype(np.float32)).all(axis=1).any() for point in drawn)
    assert len(np.unique(drawn, axis=0)) == 8
    assert np.array_equal(drawn, latent_series(model_of(z), "particles", 8, 5, 1).points)
    assert not np.array_equal(drawn, latent_series(model_of(z), "particles", 8, 5, 2).points)
    assert len(latent_series(model_of(z), "particles", 80, 5, 1).points) == 50


def test_more_clusters_than_particles_are_refused() -> None:
    with pytest.raises(InputProblems, match="path_clusters: 9 was given; expected at most 4"):
        latent_series(model_of(np.arange(4.0)[:, None]), "clusters", 5, 9, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_particles_will_do(count: int) -> None:
    z = np.arange(float(count))[:, None]
    points = latent_series(model_of(z), "density", 4, 2, 0).points
    assert points.shape == (4, 1) and points.min() >= 0 and points.max() <= count - 1


def test_points_that_are_given_are_one_part() -> None:
    assert listed(np.zeros((3, 2))).parts() == [slice(0, 3)]
