"""The surface that a page bends: it goes where the model says, and the page holds what the surface needs."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from engine.report_data import full_data, moving_model, two_chains

from flex_job.mesh.locate import locate
from flex_job.report.interactive import moving_section, scripts
from flex_job.report.moving import MOST_POINTS, STEPS, moving_surface
from flex_job.report.scene import build_scene
from flex_job.volume import Volume


@pytest.fixture(params=[1, 2, 3])
def case(request):
    data = full_data(request.param)
    model = moving_model(data)
    return data, model, moving_surface(model, data.flex_map, data.mask)


def test_modes_say_what_the_model_says(case):
    """At every point of the grids, by way of the mesh's own weights; other amounts would not do."""
    _, model, moving = case
    cell, weights = locate(model.mesh, moving.surface.points_A)
    rng = np.random.default_rng(1)
    for plane in moving.planes:
        index = tuple(rng.integers(STEPS, size=(len(plane.latents), 20)))
        z = np.repeat(np.median(model.latents, axis=0)[None], 20, axis=0)
        for k, values, at in zip(plane.latents, plane.values, index, strict=True):
            z[:, k] = values[at]
        exact = np.einsum("npva,pv->npa", model.displacement(z)[:, model.mesh.cells[cell]], weights)
        found = np.einsum("nm,mpa->npa", plane.amounts[index], moving.modes)
        assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)
        assert np.linalg.norm(found[::-1] - exact) > 0.3 * np.linalg.norm(exact)


def test_the_thread_of_an_atomic_model_moves_with_the_map(case, tmp_path):
    """One point a residue, a gap between the chains, each moved as the mesh moves it there."""
    data, model, _ = case
    moving = moving_surface(model, data.flex_map, data.mask, two_chains(data, tmp_path / "two.pdb"))
    points, modes = moving.trace.points_A, moving.trace.modes
    assert np.isnan(points[5]).all() and np.isnan(modes[:, 5]).all() and len(points) == 11
    there = np.isfinite(points[:, 0])
    assert np.allclose(points[there][:, 0], [-8, -4, 0, 4, 8] * 2) and np.allclose(
        points[there][:, 1], [-4] * 5 + [6] * 5
    )
    plane, at = moving.planes[0], (STEPS - 1,) * len(moving.planes[0].latents)
    z = np.median(model.latents, axis=0)
    for k, values in zip(plane.latents, plane.values, strict=True):
        z[k] = values[-1]
    cell, weights = locate(model.mesh, points[there])
    exact = np.einsum("pva,pv->pa", model.displacement(z[None])[0][model.mesh.cells[cell]], weights)
    found = np.einsum("m,mpa->pa", plane.amounts[at], modes[:, there])
    assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)
    section = moving_section(replace(data, moving=moving), build_scene(data))
    assert 'id="moving-shown"' in section and "thread of the atomic model" in section


def test_planes_are_the_pairs_and_hold_the_particles(case):
    data, _, moving = case
    dims = data.latents.shape[1]
    assert [plane.latents for plane in moving.planes] == {1: [(0,)], 2: [(0, 1)], 3: [(0, 1), (0, 2), (1, 2)]}[dims]
    for plane in moving.planes:
        assert plane.near.shape == (STEPS,) * len(plane.latents)
        assert plane.near.max() > 3 * plane.near[(0,) * len(plane.latents)]  # more in the middle than in a corner


def test_the_surface_is_small_and_lies_at_the_level_of_the_pictures(case):
    data, _, moving = case
    assert 0.3 * MOST_POINTS < len(moving.surface.points_A) < 1.3 * MOST_POINTS
    scene = build_scene(data)
    low, high = moving.surface.points_A.min(axis=0), moving.surface.points_A.max(axis=0)
    assert np.abs(low - scene.reference.points_A.min(axis=0)).max() < 4
    assert np.abs(high - scene.reference.points_A.max(axis=0)).max() < 4


def test_nothing_to_show_is_no_section():
    data = full_data(1)
    model = moving_model(data)
    assert moving_surface(model, Volume(0 * data.flex_map.data, 4.0), None) is None
    assert moving_section(data, build_scene(data)) == ""


def test_the_page_holds_the_numbers_and_nothing_from_elsewhere(case):
    data, _, moving = case
    gains = np.linspace(-1, 3, len(data.latents))
    data = replace(data, moving=moving, gains=gains, cluster_centres=data.latents[:5])
    section = moving_section(data, build_scene(data))
    content = json.loads(re.search(r'id="moving-data">(.*?)</script>', section)[1])
    assert content["count"] == len(moving.modes) and len(content["planes"]) == len(moving.planes)
    assert set(content["planes"][0]["maps"]) == {"", "uncertainty", "likelihood gain"}
    assert ('id="moving-plane"' in section) == (len(moving.planes) > 1)
    assert "</script" not in json.dumps(content)
    assert "src=" not in scripts()[:200] and scripts().count("<script") >= 2
