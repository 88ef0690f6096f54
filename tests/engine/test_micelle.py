"""A micelle about the part that stays, and latents that take two values only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flex_job.simulation.atoms import load_antibody
from flex_job.simulation.maps import population
from flex_job.simulation.micelle import DENSITY, GAP_A, HALF_HEIGHT_A, OUTER_A, with_micelle
from flex_job.simulation.motion import Conformations, antibody_motion
from integration.relion.simulate import simulate_project

ENDS = np.array([[-1.0], [0.0], [1.0]])


@pytest.fixture(scope="module")
def bare() -> Conformations:
    return antibody_motion(load_antibody(3.0), "one_hinge")


@pytest.fixture(scope="module")
def dressed(bare: Conformations) -> Conformations:
    return with_micelle(bare)


def test_a_micelle_changes_nothing_of_the_protein(bare: Conformations, dressed: Conformations) -> None:
    count = len(bare.beads)
    assert len(dressed.beads) > count
    np.testing.assert_array_equal(dressed.positions(ENDS)[:, :count], bare.positions(ENDS))
    np.testing.assert_array_equal(dressed.beads.amplitude[:count], bare.beads.amplitude)


def test_a_micelle_does_not_move_and_nothing_goes_through_it(bare: Conformations, dressed: Conformations) -> None:
    count = len(bare.beads)
    belt = dressed.positions(ENDS)[:, count:]
    np.testing.assert_array_equal(belt, np.repeat(belt[:1], len(ENDS), axis=0))
    for protein in bare.positions(ENDS):
        assert np.linalg.norm(belt[0][:, None] - protein[None], axis=-1).min() > GAP_A
    assert np.abs(np.diff(bare.positions(ENDS), axis=0)).max() > 10  # while the arm does


def test_a_micelle_is_a_flat_body_of_its_density(bare: Conformations, dressed: Conformations) -> None:
    belt = dressed.beads.positions_A[len(bare.beads) :]
    spread = np.linalg.svd(belt - belt.mean(axis=0))[1] / np.sqrt(len(belt))
    assert spread[2] < 0.5 * spread[1]
    volume = 4 / 3 * np.pi * OUTER_A**2 * HALF_HEIGHT_A
    mass = dressed.beads.amplitude[len(bare.beads) :].sum()
    assert 0.4 * DENSITY * volume < mass < DENSITY * volume  # less what the protein takes


def test_a_molecule_that_moves_as_a_whole_has_no_place_for_a_micelle(bare: Conformations) -> None:
    hinge = replace(bare.hinges[0], weight=np.ones(len(bare.beads)))
    with pytest.raises(ValueError, match="every bead"):
        with_micelle(replace(bare, hinges=(hinge,)))


def test_two_states_have_nothing_between(bare: Conformations) -> None:
    discrete = replace(bare, levels=(-1.0, 1.0))
    drawn = discrete.draw(2000, np.random.default_rng(0))
    assert set(drawn.ravel()) == {-1.0, 1.0} and abs(drawn.mean()) < 0.1
    np.testing.assert_array_equal(population(discrete), [[-1.0], [1.0]])
    np.testing.assert_array_equal(population(discrete, np.array([1.0])), [[1.0]])
    assert len(np.unique(bare.draw(2000, np.random.default_rng(0)))) == 2000  # negative control


def test_a_project_of_two_states_in_a_micelle(tmp_path: Path) -> None:
    small = {"box": 32, "pixel_size_A": 8.0, "particles": 20}
    project = simulate_project(tmp_path / "dressed", micelle=True, two_states=True, **small)  # type: ignore[arg-type]
    assert set(project.particles.latents.ravel()) <= {-1.0, 1.0}
    np.testing.assert_array_equal(project.state_latents, [[-1.0], [1.0]])
    truth = np.load(tmp_path / "dressed/truth/truth.npz")
    np.testing.assert_array_equal(truth["state_latents"], project.state_latents)
    bare = simulate_project(tmp_path / "bare", **small)  # type: ignore[arg-type]
    volumes = [(each.particles.true.mask.data > 0.5).sum() for each in (project, bare)]
    assert volumes[0] > 1.1 * volumes[1]  # the mask holds the micelle too
