"""Subsets of the particles by their latents: laws of the division, and probabilities known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from flex_job.problems import InputProblems
from flex_job.subsets import divide

Floats = NDArray[np.float64]


def heaps(seed: int = 0, size: int = 200) -> tuple[Floats, NDArray[np.int64]]:
    """Three heaps in two dimensions and their numbers along the first; the first latent of each is -3, 0, 3."""
    rng = np.random.default_rng(seed)
    centres = np.array([[-3.0, 1.0], [0.0, -2.0], [3.0, 1.0]])
    order = rng.permutation(np.repeat(np.arange(3), size))
    return centres[order] + rng.normal(0, 0.3, (3 * size, 2)), order + 1


def test_heaps_are_found_and_numbered_along_the_first_latent() -> None:
    latents, heap = heaps()
    found = divide(latents, np.full_like(latents, 0.1), 3)
    assert (found.cluster == heap).all()
    assert found.probability.min() > 0.99
    assert (heap[found.central] == [1, 2, 3]).all()
    assert np.abs(latents[found.central, 0] - [-3, 0, 3]).max() < 0.2


def test_a_continuum_is_cut_where_it_is_nearest_to_another_centre() -> None:
    latents = np.random.default_rng(1).normal(size=(3000, 1))
    found = divide(latents, np.zeros_like(latents), 4)
    order = np.argsort(latents[:, 0])
    assert (np.diff(found.cluster[order]) >= 0).all()  # pieces, not shells that lie within one another
    assert np.bincount(found.cluster)[1:].min() > 300


@pytest.mark.parametrize("std", [0.05, 0.5, 2.0])
def test_probability_is_that_of_the_normal_distribution(std: float) -> None:
    """Two centres at -2 and 2, so that clusters part at 0, and a range up to 3."""
    rng = np.random.default_rng(2)
    latents = np.concatenate([rng.uniform(-2.5, -1.5, 500), rng.uniform(1.5, 2.5, 500)])[:, None]
    found = divide(latents, np.full_like(latents, std), 2, ((-np.inf, 3.0),))
    middle = 0.5 * (latents[found.cluster == 1].mean() + latents[found.cluster == 2].mean())
    below, within = norm.cdf((middle - latents[:, 0]) / std), norm.cdf((3.0 - latents[:, 0]) / std)
    expected = np.where(found.cluster == 1, below, within - below)
    assert np.abs(found.probability - expected).max() < 0.03


def test_uncertain_particles_are_left_out() -> None:
    latents, heap = heaps()
    std = np.full_like(latents, 0.1)
    std[::3] = 4.0
    found = divide(latents, std, 3, min_probability=0.9)
    assert (found.cluster[::3] == 0).all()
    assert (np.delete(found.cluster, slice(None, None, 3)) == np.delete(heap, slice(None, None, 3))).all()


def test_ranges_come_first() -> None:
    latents, _ = heaps()
    found = divide(latents, np.zeros_like(latents), 2, ((-1.5, np.inf),))
    assert ((found.cluster > 0) == (latents[:, 0] >= -1.5)).all()
    assert (found.probability[latents[:, 0] < -1.5] == 0).all()
    one = divide(latents, np.zeros_like(latents), 1, ((-np.inf, np.inf), (-1.0, 5.0)))
    assert ((one.cluster == 1) == (latents[:, 1] >= -1.0)).all()


def test_the_order_of_particles_and_the_seed_do_not_matter_for_heaps() -> None:
    latents, _ = heaps()
    turn = np.random.default_rng(3).permutation(len(latents))
    first, second = divide(latents, np.zeros_like(latents), 3), divide(latents[turn], np.zeros_like(latents), 3, seed=9)
    assert (first.cluster[turn] == second.cluster).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clusters": 601}, "at most 600"),
        ({"clusters": 2, "ranges": ((0, 1), (0, 1), (0, 1))}, "3 were given; expected at most 2"),
        ({"clusters": 2, "ranges": ((50.0, 60.0),)}, "the latents are -3"),
        ({"clusters": 2, "min_probability": 1.0, "std": 9.0}, "min_probability: 1 was given"),
    ],
)
def test_what_cannot_be_divided_is_told(options: dict[str, object], words: str) -> None:
    latents, _ = heaps()
    std = np.full_like(latents, options.pop("std", 0.0))
    with pytest.raises(InputProblems, match=words):
        divide(latents, std, **options)  # type: ignore[arg-type]
