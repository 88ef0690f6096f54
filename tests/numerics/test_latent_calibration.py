"""Calibrated posteriors of the latents: 68 % intervals hold the truth in 64 to 72 % of the cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flex_job.events import Events
from flex_job.latent_calibration import calibrated, noise_factor, told, widened
from flex_job.latents import gauss_newton
from flex_job.model import FlexModel
from flex_job.train import Trainer
from job_specs.parameters import TrainParameters

I2 = np.eye(2)
COUNT = 800


def inferred(
    z: NDArray[np.float64], hessian: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Posterior means and covariances from images linear in the latents, whose noise is `noise` times that believed."""
    covariance = np.linalg.inv(hessian + I2)
    gradient = np.einsum("nkl,nl->nk", hessian, z)
    gradient += noise * np.einsum("nkl,nl->nk", np.linalg.cholesky(hessian), rng.normal(size=z.shape))
    return np.einsum("nkl,nl->nk", covariance, gradient), covariance


def halves(
    information: float, noise: float, count: int = 8000
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any], NDArray[Any]]:
    """What two halves of the images, of unequal information, say of the same latents."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(count, 2))
    found = []
    for _ in range(2):
        slopes = rng.normal(size=(count, 2, 3)) * np.sqrt(information * rng.uniform(0.5, 2, (count, 1, 1)) / 3)
        found.append(inferred(z, slopes @ slopes.transpose(0, 2, 1) + 1e-6 * I2, noise, rng))
    return found[0][0], found[1][0], found[0][1], found[1][1]


@pytest.mark.parametrize("information", [0.3, 3.0, 100.0])
@pytest.mark.parametrize("noise", [1.0, 1.5])
def test_the_factor_is_that_of_the_noise_at_any_information(information: float, noise: float) -> None:
    """With the prior drawing both halves to zero, by unequal amounts."""
    assert noise_factor(*halves(information, noise)) == pytest.approx(noise**2, rel=0.06)


def test_a_few_latents_in_a_false_optimum_do_not_widen_all_intervals() -> None:
    first, second, *covariances = halves(30.0, 1.0)
    second = second.copy()
    second[::25] += 5
    assert np.square(first - second).mean() > 2 * np.square(np.delete(first - second, slice(0, None, 25), 0)).mean()
    assert 1 < noise_factor(first, second, *covariances) < 1.25


def test_the_factor_of_no_difference_at_all_is_small_and_finite() -> None:
    none = np.zeros((10, 2))
    at_prior = np.broadcast_to(I2, (10, 2, 2))
    assert 0 < noise_factor(none, none, at_prior, at_prior) < 0.1


def test_widening_leaves_the_prior_and_what_is_right() -> None:
    *_, covariance, _ = halves(3.0, 1.0, 50)
    np.testing.assert_allclose(widened(covariance, 1.0), covariance, rtol=1e-6)
    np.testing.assert_allclose(widened(np.broadcast_to(I2, (3, 2, 2)), 4.0), np.broadcast_to(I2, (3, 2, 2)))
    wide = widened(covariance, 4.0)
    assert (np.linalg.eigvalsh(wide) > np.linalg.eigvalsh(covariance)).all() and np.linalg.eigvalsh(wide).max() < 1.6
    sure = 1e-4 * np.broadcast_to(I2, (3, 2, 2))
    np.testing.assert_allclose(widened(sure, 4.0), 4 * sure, rtol=1e-3)


@pytest.mark.parametrize("latent_dims, noise", [(1, 1.0), (2, 1.6)])
def test_intervals_hold_the_truth_in_68_percent(world_of, noise: float, latent_dims: int) -> None:
    """On images of the model itself; where they are noisier than they promise, only after the calibration."""
    world = world_of(count=COUNT, latent_dims=latent_dims, scale=80.0, noise=noise, seed=4)
    parameters = TrainParameters(latent_dims=latent_dims, band_start=0.4, band_end=0.8, held_out=0.0)
    trainer = Trainer(world.stack, world.mesh, world.density, world.support, parameters, Events())
    level = trainer.levels.level(world.density, parameters.band_end)
    batch = world.stack.batch(np.arange(COUNT), level.model.band)
    z = torch.zeros(COUNT, latent_dims)
    for _ in range(5):
        z, covariance, _ = gauss_newton(level.model, level.values, world.flow, batch, trainer.vertices, z)
    names = ("loss",)
    model = FlexModel(
        world.mesh, world.flow, z.numpy(), covariance.numpy(), world.density, world.support, np.zeros((0, 1)), names
    )
    new, factor = calibrated(trainer, model)
    error = np.abs(z.numpy() - world.latents)
    before, after = ((error <= each.latent_std).mean() for each in (model, new))
    assert 0.64 < after < 0.72, (before, after, factor)
    assert factor == pytest.approx(noise**2, rel=0.2) and factor >= 1
    assert noise == 1.0 or before < 0.6
    np.testing.assert_array_equal(new.latents, model.latents)


def test_what_is_told() -> None:
    assert "1.50 times" in told(2.25) and "no more than" in told(1.0)
