"""What held-out gains choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from flex_job.choose import BEGIN, LADDERS, Choice, at_most, choose, is_open
from job_specs.parameters import TrainParameters

Gains = Callable[[TrainParameters], NDArray[np.float64]]
GIVEN = TrainParameters(latent_dims=3, rigidity=1.5, band_end=0.7, epochs=9)
NAMES = list(LADDERS)


def made(of: Mapping[str, Mapping[float, float]], seen: list[tuple[float, ...]] | None = None) -> Gains:
    """Gains of 500 particles that differ much from one another, and little from candidate to candidate: by what `of`
    says of each value, and by chance."""
    of_particle = np.random.default_rng(0).normal(scale=20, size=500)

    def gains(parameters: TrainParameters) -> NDArray[np.float64]:
        values = {name: getattr(parameters, name) for name in LADDERS}
        if seen is not None:
            seen.append(tuple(values.values()))
        noise = np.random.default_rng(int(sum(1000 * value for value in values.values()))).normal(scale=0.5, size=500)
        return of_particle + sum(of.get(name, {}).get(value, 0.0) for name, value in values.items()) + noise

    return gains


def open_for(*names: str) -> TrainParameters:
    values = {name: getattr(GIVEN, name) for name in LADDERS if name not in names}
    return TrainParameters(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, gains, best",
    [
        ("latent_dims", {1: 5, 2: 5}, 1),
        ("latent_dims", {1: 5, 2: 9, 3: 9}, 2),
        ("latent_dims", {k: k for k in range(20)}, 6),  # there is a last one
        ("rigidity", {4: 1}, 4.0),
        ("rigidity", {1: 1, 0.25: 2}, 0.25),
        ("rigidity", {1: 1}, 1.0),
        ("rigidity", {16: 1, 4: 0.5}, 16.0),
        ("band_end", {0.5: -1, 0.65: 1}, 0.65),
        ("band_end", {0.5: -1, 0.65: -1}, 0.8),
        ("epochs", {12: 0, 24: 5}, 6),  # one step at a time
        ("epochs", {12: 1, 24: 1}, 12),
    ],
)
def test_one_setting_goes_up_while_that_gains_and_down_while_that_loses_nothing(
    name: str, gains: dict[float, float], best: float
) -> None:
    choice = choose(open_for(name), made({name: gains}))
    assert getattr(choice, name) == best
    applied = choice.applied(open_for(name))
    assert [getattr(applied, other) for other in NAMES if other != name] == [
        getattr(GIVEN, other) for other in NAMES if other != name
    ]
    assert not is_open(applied)


def test_all_are_chosen_one_after_the_other() -> None:
    seen: list[tuple[float, ...]] = []
    true = {"latent_dims": {1: 0, 2: 4}, "rigidity": {1.0: 2, 0.25: 2}, "band_end": {0.65: -2}, "epochs": {12: 1}}
    true["latent_dims"] |= dict.fromkeys(range(3, 7), 4)
    choice = choose(TrainParameters(), made(true, seen))
    assert (choice.latent_dims, choice.rigidity, choice.band_end, choice.epochs) == (2, 1.0, 0.8, 12)
    assert len(seen) == len(set(seen)) == len(choice.tried)  # nothing is tried twice
    assert seen[0] == tuple(BEGIN.values())
    assert Choice.of(choice.record()) == choice
    assert "2 latents, rigidity 1, band limit 0.8, 12 epochs" in str(choice)
    assert [tried.more for tried in choice.tried if choice.is_of(tried)] == [0]
    assert choice.tried[0].more < 0 < choice.tried[0].more_error


def test_more_particles_need_fewer_epochs() -> None:
    choice = Choice(1, 2.0, 0.8, 24, ())
    epochs = [choice.applied(open_for("epochs"), part).epochs for part in (1, 0.5, 0.3, 0.01)]
    assert epochs == [24, 12, 8, 6]
    assert choice.applied(GIVEN, 0.5).epochs == GIVEN.epochs


def test_the_last_band_is_not_below_the_first() -> None:
    of_band = made({"band_end": {0.5: 2, 0.65: 1}})
    assert choose(open_for("band_end"), of_band).band_end == 0.5
    assert choose(TrainParameters(**{**vars(open_for("band_end")), "band_start": 0.6}), of_band).band_end == 0.65


def test_what_is_given_stays_and_nothing_is_tried() -> None:
    seen: list[tuple[float, ...]] = []
    choice = choose(GIVEN, made({}, seen))
    assert not is_open(GIVEN) and choice.applied(GIVEN) == GIVEN
    assert choice.tried == () and seen == []


def test_a_plan_is_for_the_most_that_may_be_chosen() -> None:
    assert is_open(TrainParameters())
    most = at_most(TrainParameters(rigidity=1.0))
    assert (most.latent_dims, most.rigidity, most.band_end) == (6, 1.0, 0.8)
