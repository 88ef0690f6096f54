"""Latents from images of the model itself: recovery, posterior, prior, and the linear start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

from flex_job.events import Events, StopRequested
from flex_job.flow import FlowGenerator
from flex_job.latents import MAX_STEP, coordinate_descent, gauss_newton, normal_equations
from flex_job.linear_start import expectation_maximisation, linear_latents, linear_start
from flex_job.particles import Batch

METHODS = [gauss_newton, coordinate_descent]


def infer(world, method: Callable, visits: int, batch: Batch | None = None, start: NDArray | None = None):
    """Latents, covariance and data term after some visits, from zero."""
    batch = world.stack.batch(np.arange(len(world.stack))) if batch is None else batch
    z = torch.zeros(len(batch), world.flow.latent_dims) if start is None else torch.from_numpy(start)
    for _ in range(visits):
        z, covariance, loss = method(world.model, world.values, world.flow, batch, world.vertices, z)
    return z.numpy(), covariance.numpy(), loss.numpy()


# -- particles ---------------------------------------------------------------------------------------------------


def test_the_model_predicts_its_own_particles(world_of) -> None:
    """Half the squared residual is nothing at the true latents and much at others; the fixture holds together."""
    world = world_of(count=20)
    _, _, right = infer(world, gauss_newton, 1, start=world.latents)
    _, _, wrong = infer(world, gauss_newton, 1, start=-world.latents)
    assert right.max() < 1e-3 * wrong.mean()


def test_data_term_of_pure_noise_is_half_per_real_number(world_of) -> None:
    """-log p of unit noise: one half for each of the (about pi/4 box^2) real numbers in the band."""
    world = world_of(count=100, signal=0.0, noise=1.0, seed=5)
    band = world.stack.band(0.8)
    batch = world.stack.batch(np.arange(100), band)
    numbers = 2 * len(band)
    assert numbers == pytest.approx(np.pi / 4 * (0.8 * world.stack.box) ** 2, rel=0.05)
    loss = 0.5 * torch.view_as_real(batch.data).square().sum((1, 2))
    assert float(loss.mean()) == pytest.approx(numbers / 2, rel=0.02)


def test_a_lower_band_is_the_beginning_of_a_higher_one(world_of) -> None:
    """Read from disk in a lower band, or read in full and cut: the same numbers, to the last bit."""
    world = world_of(count=20)
    index, band = np.array([3, 0, 17]), world.stack.band(8 / 12)
    full, low = world.stack.batch(index), world.stack.batch(index, band)
    assert low.data.shape == low.transfer.shape == (3, len(band))
    assert full.data.shape[1] == len(world.stack.band()) > len(band)
    cut = full.below(band)
    for name in ("data", "transfer", "projections", "origins_px"):
        assert torch.equal(getattr(cut, name), getattr(low, name)), name
    assert np.array_equal(cut.index, index) and np.array_equal(low.index, index)
    # Negative control: another particle's record begins with something else.
    assert not torch.equal(world.stack.batch(index[::-1].copy(), band).data, low.data)


# -- inference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, visits", [(gauss_newton, 6), (coordinate_descent, 10)])
@pytest.mark.parametrize("latent_dims", [1, 2])
def test_latents_are_recovered(world_of, method: Callable, visits: int, latent_dims: int) -> None:
    world = world_of(count=40, latent_dims=latent_dims, scale=1000.0)
    found, covariance, loss = infer(world, method, visits)
    error = np.abs(found - world.latents)
    assert np.median(error) < (0.01 if method is gauss_newton else 0.04)
    # A particle seen from where the motion does not show keeps its uncertainty, so judge by that too.
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert (error < np.maximum(0.1, 4 * sigma)).mean() > 0.95
    _, _, before = infer(world, method, 1)
    assert np.median(loss / before) < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_posterior_never_gets_less_likely(world_of, method: Callable) -> None:
    """Coordinate descent by construction; Gauss-Newton for nearly all particles of a smooth problem."""
    world = world_of(count=40, latent_dims=2, scale=60.0, noise=1.0)
    z, values = np.zeros((40, 2), np.float32), []
    for _ in range(6):
        following, _, loss = infer(world, method, 1, start=z)
        values.append(loss + 0.5 * (z**2).sum(1))
        z = following
    rises = np.diff(np.array(values), axis=0)
    allowed = 0.0 if method is coordinate_descent else 0.05
    assert (rises > 1e-3 * np.abs(values[0])).mean() <= allowed


@pytest.mark.parametrize("method", METHODS)
def test_without_information_the_prior_shrinks_latents_to_zero(world_of, method: Callable) -> None:
    world = world_of(count=20, latent_dims=2)
    batch = world.stack.batch(np.arange(20))
    blind = replace(batch, data=torch.zeros_like(batch.data), transfer=torch.zeros_like(batch.transfer))
    start = (0.4 * np.random.default_rng(0).uniform(-1, 1, (20, 2))).astype(np.float32)
    found, covariance, loss = infer(world, method, 1, blind, start)
    assert np.abs(found).max() < 1e-5
    assert np.abs(covariance - np.eye(2)).max() < 1e-4
    assert not loss.any()


def test_steps_are_cut_to_length(world_of) -> None:
    world = world_of(count=40, latent_dims=2)
    start = (3 + np.zeros((40, 2))).astype(np.float32)
    found, _, _ = infer(world, gauss_newton, 1, start=start)
    length = np.linalg.norm(found - start, axis=1)
    assert length.max() < MAX_STEP * 1.001 and (length > 0.99 * MAX_STEP).any()


def test_covariance_is_the_inverse_of_information_and_prior(world_of) -> None:
    """(J^T J + I)^-1 with J by central differences of the predicted coefficients."""
    world = world_of(count=12, latent_dims=2, scale=20.0)
    batch = world.stack.batch(np.arange(12))
    start = world.latents[:12] + 0.3
    _, covariance, _ = infer(world, gauss_newton, 1, batch, start)

    def predicted(z: NDArray) -> torch.Tensor:
        with torch.no_grad():
            u = world.flow(torch.from_numpy(z.astype(np.float32)))
        q = world.model.positions(batch, world.vertices + u)
        return torch.view_as_real(batch.transfer * world.model.transform(world.values, q)).flatten(1).double()

    h = 2e-3
    columns = [(predicted(start + h * axis) - predicted(start - h * axis)) / (2 * h) for axis in np.eye(2)]
    jacobian = torch.stack(columns, dim=2)
    expected = torch.linalg.inv(jacobian.transpose(1, 2) @ jacobian + torch.eye(2)).numpy()
    error = np.abs(covariance - expected).max((1, 2)) / np.abs(expected).max((1, 2))
    assert (error < 2e-3).mean() > 0.75  # a kink of the network may lie within h
    # Negative control: without the prior it is something else.
    assert np.abs(np.linalg.inv(np.linalg.inv(covariance) - np.eye(2)) - expected).max() > 1e-3


def test_posterior_is_calibrated(world_of) -> None:
    """Errors in units of the posterior's own deviations have unit variance, at a signal where the prior matters."""
    world = world_of(count=300, scale=100.0, noise=1.0, seed=3)
    found, covariance, _ = infer(world, gauss_newton, 8)
    sigma = np.sqrt(covariance[:, 0, 0])
    assert 0.05 < np.median(sigma) < 0.6  # else the test says little
    normal = (found - world.latents)[:, 0] / sigma
    assert 0.8 < np.median(np.abs(normal)) / 0.6745 < 1.25


def test_inference_does_not_depend_on_the_batch(world_of) -> None:
    world = world_of(count=20)
    whole, _, _ = infer(world, gauss_newton, 2)
    part, _, _ = infer(world, gauss_newton, 2, world.stack.batch(np.array([4, 11])))
    assert np.abs(whole[[4, 11]] - part).max() < 1e-4


# -- flow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent_dims, layers, units", [(1, 1, 8), (3, 2, 16), (2, 6, 32)])
def test_derivative_of_the_flow_equals_autograd(latent_dims: int, layers: int, units: int) -> None:
    torch.manual_seed(0)
    motion = torch.tensor([1.0, 0.0, 1.0, 0.5])
    flow = FlowGenerator(latent_dims, layers, units, motion)
    torch.nn.init.normal_(flow.last.weight)
    z = torch.randn(5, latent_dims)
    u, slopes = flow.with_derivative(z)
    assert not u.requires_grad and not slopes.requires_grad
    assert u.shape == (5, 4, 3) and slopes.shape == (5, latent_dims, 4, 3)
    assert torch.allclose(u, flow(z).detach(), atol=1e-6)
    for number, at in enumerate(z):
        jacobian = torch.autograd.functional.jacobian(lambda here: flow(here[None])[0], at)  # (V, 3, K)
        assert float((slopes[number] - jacobian.permute(2, 0, 1)).abs().max()) < 1e-4
    assert not u[:, 1].any() and not slopes[:, :, 1].any()


def test_a_straight_start_is_linear_in_the_latents() -> None:
    rng = np.random.default_rng(0)
    flow = FlowGenerator(2, 2, 16, torch.tensor([1.0, 1.0, 0.0]))
    fields = rng.normal(size=(2, 3, 3)).astype(np.float32)
    flow.start_straight(torch.from_numpy(fields))
    z = rng.normal(size=(6, 2)).astype(np.float32)
    expected = np.einsum("bk,kva->bva", z, fields) * np.array([1, 1, 0])[:, None]
    assert np.abs(flow(torch.from_numpy(z)).detach().numpy() - expected).max() < 1e-5


def test_a_change_of_latents_changes_no_displacement() -> None:
    torch.manual_seed(0)
    flow = FlowGenerator(3, 3, 16, torch.ones(5))
    torch.nn.init.normal_(flow.last.weight)
    torch.nn.init.normal_(flow.straight.weight)
    z, matrix = torch.randn(8, 3), torch.randn(3, 3) + 2 * torch.eye(3)
    before = flow(z).detach()
    flow.change_latents(matrix)
    after = flow(torch.linalg.solve(matrix, z.T).T).detach()
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())


# -- linear start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("information, limit", [(0.3, 0.15), (10.0, 0.05)])
def test_em_recovers_a_known_covariance(information: float, limit: float) -> None:
    rng = np.random.default_rng(0)
    n, m = 3000, 3
    factor = np.array([[1.0, 0, 0], [0.5, 0.4, 0], [-0.3, 0.2, 0.3]])
    truth = factor @ factor.T
    amplitudes = rng.normal(size=(n, m)) @ factor.T
    roots = np.sqrt(information) * rng.normal(size=(n, m, m))  # each particle sees something else
    hessians = roots @ roots.transpose(0, 2, 1)
    gradients = np.einsum("nij,nj->ni", hessians, amplitudes) + np.einsum("nij,nj->ni", roots, rng.normal(size=(n, m)))
    found = expectation_maximisation(
        torch.from_numpy(hessians), torch.from_numpy(gradients), torch.eye(m, dtype=torch.float64), 60
    ).numpy()
    assert np.linalg.norm(found - truth) < limit * np.linalg.norm(truth)


class Started(NamedTuple):
    """A linear start and the latents along it of all particles."""

    fields: NDArray
    spectrum: NDArray
    latents: NDArray
    covariance: NDArray


def start_of(world, latent_dims: int, events: Events | None = None, seed: int = 0) -> Started:
    model = world.lower(0.8)
    start = linear_start(world.stack, world.mesh, model, world.values, latent_dims, 100, seed, events or Events())
    vertices = torch.from_numpy(world.mesh.vertices_A.astype(np.float32))
    batch = world.stack.batch(np.arange(len(world.stack)), model.band)
    latents, covariance = linear_latents(model, world.values, batch, vertices, start.fields)
    return Started(start.fields.numpy(), start.spectrum, latents.numpy(), covariance.numpy())


def seen(world, fields: NDArray) -> NDArray:
    """Displacements of the voxels, weighted by density, one column per field: vertices without density do not count."""
    vertices, weights = world.domain.weights()
    at = np.einsum("nk,mnka->mna", weights, fields[:, vertices]) * world.values.numpy()[:, None]
    return at.reshape(len(fields), -1).T


TWO_MOTIONS = {"count": 250, "latent_dims": 2, "motion_A": 3.0, "scale": 150.0, "noise": 1.0, "seed": 2}


@pytest.fixture(scope="module")
def moving_start(world_of) -> Started:
    return start_of(world_of(**TWO_MOTIONS), 2)


def test_linear_start_finds_two_known_directions(world_of, moving_start: Started) -> None:
    """Both motions at once, from noisy images of molecules that bend beyond what is linear."""
    world, start = world_of(**TWO_MOTIONS), moving_start
    assert start.fields.shape == world.fields.shape
    assert start.latents.shape == (250, 2) and start.covariance.shape == (250, 2, 2)
    angles = np.degrees(subspace_angles(seen(world, start.fields), seen(world, world.fields)))
    assert angles.max() < 20, angles
    design = np.column_stack([start.latents, np.ones(250)])
    left = world.latents - design @ np.linalg.lstsq(design, world.latents, rcond=None)[0]
    explained = 1 - left.var(0) / world.latents.var(0)
    assert explained.min() > 0.85, explained
    assert start.spectrum[1] > 5 * start.spectrum[2], start.spectrum[:4]
    assert (np.diff(start.spectrum) <= 1e-9).all()
    # In units of the prior: unit variance, of which the posterior leaves a part uncertain.
    assert np.abs(start.latents.var(0) + start.covariance.mean(0).diagonal() - 1).max() < 0.15


def test_linear_start_finds_about_nothing_where_nothing_moves(world_of, moving_start: Started) -> None:
    """The same molecule at rest, as noisy. What is left is chance: thirty modes fitted to few particles."""
    still = start_of(world_of(**{**TWO_MOTIONS, "motion_A": 1e-3}), 2)
    assert still.spectrum[0] < 0.8 and still.spectrum[0] < 0.05 * moving_start.spectrum[0], still.spectrum[:3]


def test_linear_start_finds_about_nothing_in_pure_noise(world_of) -> None:
    """Images of noise alone, with the contrast that a fit of the map to noise gives: next to none."""
    noise = start_of(world_of(**{**TWO_MOTIONS, "scale": 2.0, "signal": 0.0}), 2)
    assert noise.spectrum[0] < 0.8, noise.spectrum[:3]


def test_linear_start_is_the_same_for_the_same_seed_and_stops_when_asked(world_of) -> None:
    world = world_of(count=60, latent_dims=2)
    first, second = start_of(world, 2), start_of(world, 2)
    assert np.array_equal(first.latents, second.latents) and np.array_equal(first.fields, second.fields)
    with pytest.raises(StopRequested):
        start_of(world, 2, Events(should_stop=lambda: True))


def test_normal_equations_are_the_gradient_of_the_data_term(world_of) -> None:
    """J^T r is minus the slope of |r|^2 / 2 along each direction of the vertices, by central differences."""
    world = world_of(count=20)
    batch = world.stack.batch(np.arange(20))
    q = world.model.positions(batch, world.vertices)
    dq = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 2, *q.shape[1:])).astype(np.float32))
    _, gradient, _ = normal_equations(world.model, world.values, batch, q, dq)
    h = 1e-2
    for k in range(2):
        ahead = normal_equations(world.model, world.values, batch, q + h * dq[:, k], dq)[2]
        behind = normal_equations(world.model, world.values, batch, q - h * dq[:, k], dq)[2]
        slope = (ahead - behind) / (2 * h)
        assert float((slope + gradient[:, k]).norm() / gradient[:, k].norm()) < 0.01


def test_gradient_to_vertices_is_that_of_the_data_term(world_of) -> None:
    """What the flow learns from: the operator's adjoint at the weighted residual equals -J^T r."""
    world = world_of(count=20)
    model = world.lower(0.8)
    batch = world.stack.batch(np.arange(20), model.band)
    q = model.positions(batch, world.vertices)
    dq = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 3, *q.shape[1:])).astype(np.float32))
    _, downhill, _ = normal_equations(model, world.values, batch, q, dq)
    residual = batch.transfer * model.transform(world.values, q) - batch.data
    _, gradient = model.gradient(batch.transfer * residual, q, world.values)
    assert gradient is not None
    found = torch.einsum("bkvc,bvc->bk", dq, gradient)
    assert float((found + downhill).norm() / downhill.norm()) < 1e-4
