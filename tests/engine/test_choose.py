"""What held-out gains choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from flex_job.choose import LARGEST_K, RIGIDITIES, Choice, choose, is_open
from job_specs.parameters import TrainParameters

Gains = Callable[[TrainParameters], NDArray[np.float64]]


def made(by_dims: list[float], by_rigidity: dict[float, float], seen: list[tuple[int, float]] | None = None) -> Gains:
    """Gains of 500 particles that differ much from one another, and little from candidate to candidate."""
    of_particle = np.random.default_rng(0).normal(scale=20, size=500)

    def gains(parameters: TrainParameters) -> NDArray[np.float64]:
        k, rigidity = parameters.latent_dims, parameters.rigidity
        if seen is not None:
            seen.append((k, rigidity))
        noise = np.random.default_rng(int(1000 * rigidity) + k).normal(scale=0.5, size=500)
        return of_particle + by_dims[min(k, len(by_dims)) - 1] + by_rigidity.get(rigidity, 0.0) + noise

    return gains


@pytest.mark.parametrize("by_dims, dims", [([5.0, 5.0], 1), ([5.0, 9.0, 9.0], 2), ([1, 2, 3, 3.01], 3)])
def test_latents_are_added_while_they_gain(by_dims: list[float], dims: int) -> None:
    choice = choose(TrainParameters(latent_dims=0, rigidity=2.0), made(by_dims, {}))
    assert (choice.latent_dims, choice.rigidity) == (dims, 2.0)
    assert [each.latent_dims for each in sorted(choice.tried, key=lambda t: t.latent_dims)] == [*range(1, dims + 2)]
    assert Choice.of(choice.record()) == choice and f"{dims} latents" in str(choice)


def test_there_is_a_last_latent() -> None:
    assert choose(TrainParameters(latent_dims=0), made(list(range(20)), {})).latent_dims == LARGEST_K


@pytest.mark.parametrize(
    "by_rigidity, best", [({}, RIGIDITIES[0]), ({0.5: 1.0}, 0.5), ({2.0: 1.0, 0.5: 1.0}, 2.0), ({8.0: -1.0}, 2.0)]
)
def test_the_stiffest_of_the_best(by_rigidity: dict[float, float], best: float) -> None:
    assert choose(TrainParameters(latent_dims=2, rigidity=0), made([0, 0], by_rigidity)).rigidity == best


def test_what_is_given_stays_and_nothing_is_tried_twice() -> None:
    seen: list[tuple[int, float]] = []
    given = TrainParameters(latent_dims=3, rigidity=1.5)
    assert not is_open(given)
    choice = choose(given, made([0], {}, seen))
    assert (choice.latent_dims, choice.rigidity, choice.tried, seen) == (3, 1.5, (), [])
    choose(TrainParameters(latent_dims=0, rigidity=0), made([0, 4, 4], {}, seen))
    assert len(seen) == len(set(seen)) == 5
