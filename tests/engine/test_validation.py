"""Is the motion real? What training keeps aside stays aside, pose errors are no motion, and the verdict follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine.prepared import Prepared, one_moving_arm

from flex_job.gauge import standardised
from flex_job.held_out import held_out
from flex_job.train import train
from flex_job.turned_flow import TurnedFlow, rigid_unit
from flex_job.validation import Estimate, Verdict, compare, estimate, judge, simulate_rigid
from job_specs.parameter import settled
from job_specs.parameters import TrainParameters

QUICK = settled(TrainParameters(latent_dims=1, epochs=4, fixed_latent_epochs=1, map_every=2, batch=100, flow_units=16))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """1,000 particles of 32 px with one moving arm."""
    return one_moving_arm(tmp_path_factory.mktemp("validation"), 1000, 0.1)


def without_motion(data: Prepared, wobble_A: float, seed: int = 0) -> Prepared:
    """Rigid particles, turned and shifted by as much in each of the six ways as their poses do not tell."""
    trainer = data.trainer(QUICK)
    wobble = TurnedFlow(None, data.mesh, wobble_A * rigid_unit(data.mesh, trainer.device))
    level = trainer.levels.level(data.map, QUICK.band_end)
    path = data.folder / f"rigid_{wobble_A:g}_{seed}.f16"
    stack = simulate_rigid(data.stack, level, wobble, path, seed=seed, batch_size=200)
    return data._replace(stack=stack)


def verdict_on(data: Prepared) -> Verdict:
    trainer = data.trainer(QUICK)
    gain = compare(trainer, train(trainer)).gain
    return judge(estimate(gain.flex), estimate(gain.shuffled))


def test_a_motion_is_supported_and_shuffled_latents_are_not(prepared: Prepared) -> None:
    verdict = verdict_on(prepared)
    assert verdict.verdict == "supported"
    assert verdict.shuffled.mean < 0
    assert Verdict.of(verdict.record()) == verdict


@pytest.mark.parametrize("wobble_A", [0.0, 4.0], ids=["exact poses", "pose errors"])
def test_particles_without_motion_support_none(prepared: Prepared, wobble_A: float) -> None:
    assert verdict_on(without_motion(prepared, wobble_A)).verdict == "not supported"


def test_a_training_does_not_see_what_it_keeps_aside(prepared: Prepared) -> None:
    """Flow and map are the same, to the last bit, when those particles hold nothing but noise."""
    trainer = prepared.trainer(QUICK)
    path = prepared.folder / "spoiled.f16"
    spoiled = np.fromfile(prepared.stack.path, np.float16).reshape(len(prepared.stack), -1)
    spoiled[trainer.kept_aside] = np.random.default_rng(0).normal(size=(trainer.kept_aside.sum(), spoiled.shape[1]))
    spoiled.tofile(path)
    other = prepared._replace(stack=replace(prepared.stack, path=path)).trainer(QUICK)
    first, second = train(trainer), train(other)
    for one, two in zip(first.flow.parameters(), second.flow.parameters(), strict=True):
        assert torch.equal(one, two)
    np.testing.assert_array_equal(first.map.data, second.map.data)
    aside = trainer.kept_aside
    assert not np.allclose(first.latents[aside], second.latents[aside], atol=0.1)  # and yet they have latents


@pytest.mark.parametrize(
    "n, fraction, count", [(10, 0.05, 2), (1000, 0.05, 200), (10_000, 0.05, 500), (10**6, 0.05, 5000), (1000, 0.0, 0)]
)
def test_how_many_are_kept_aside(n: int, fraction: float, count: int) -> None:
    chosen = held_out(n, fraction, 0)
    assert chosen.shape == (n,) and chosen.sum() == count
    np.testing.assert_array_equal(chosen, held_out(n, fraction, 0))
    assert count < 10 or (chosen != held_out(n, fraction, 1)).any()


def made(mean: float, error: float) -> Estimate:
    return Estimate(mean, mean - 1.96 * error, mean + 1.96 * error, 200)


@pytest.mark.parametrize(
    "mean, error, nulls, word",
    [
        (1.0, 0.1, [], "supported"),
        (0.2, 0.1, [], "undecided"),
        (0.1, 0.1, [], "not supported"),
        (-1.0, 0.1, [], "not supported"),
        (1.0, 0.1, [-0.1, 0.1], "supported"),
        (1.0, 0.1, [-0.1, 0.9], "not supported"),
        (1.0, 0.1, [-5.0], "supported"),
    ],
)
def test_the_verdict(mean: float, error: float, nulls: list[float], word: str) -> None:
    verdict = judge(made(mean, error), made(-1.0, 0.1), [made(null, 0.1) for null in nulls])
    assert verdict.verdict == word
    assert f"{mean:.2g} nats per particle" in str(verdict)


def test_standardising_goes_by_those_it_is_told(prepared: Prepared) -> None:
    rng = np.random.default_rng(0)
    latents, covariance = rng.normal(size=(50, 2)), np.tile(0.1 * np.eye(2), (50, 1, 1))
    some = np.arange(50) < 30
    z, c, matrix = standardised(latents, covariance, some)
    np.testing.assert_allclose(z[some].T @ z[some] / 30 + c[some].mean(0), np.eye(2), atol=1e-5)
    np.testing.assert_allclose(z @ matrix.T, latents, atol=1e-5)
