"""Embeddings of other programs: which array is taken, in what order, and how it is reduced."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.embeddings import given_embedding, read_embedding
from flex_job.problems import InputProblems
from job_specs.parameters import TrainParameters

RNG = np.random.default_rng(0)


def rows(dims: int, count: int = 40) -> NDArray[np.float32]:
    return RNG.normal(size=(count, dims)).astype(np.float32)


def read(path: Path, dims: int) -> tuple[NDArray[np.float64], list[str]]:
    """Latents, and what was told."""
    told: list[str] = []
    return read_embedding(path, 40, dims, told.append), told


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_of_cryodrgns_two_pickles_the_means_are_read(protocol: int, tmp_path: Path) -> None:
    means, variances = rows(2), rows(2)
    path = tmp_path / "z.19.pkl"
    path.write_bytes(pickle.dumps(means, protocol) + pickle.dumps(variances, protocol))
    found, told = read(path, 2)
    np.testing.assert_allclose(found, means - means.mean(axis=0, dtype=float), atol=1e-6)
    assert told == []


@pytest.mark.parametrize("name", ["latent_coords", "zs"])
@pytest.mark.parametrize("dims, taken", [(2, 4), (4, 4), (5, 10), (10, 10)])
def test_of_recovars_sizes_the_next_is_read(name: str, dims: int, taken: int, tmp_path: Path) -> None:
    by_size = {4: rows(4), 10: rows(10), "10_noreg": rows(10)}
    path = tmp_path / "embeddings.pkl"
    path.write_bytes(pickle.dumps({name: by_size, "contrasts": {4: np.ones(40)}, "more": [1]}))
    np.save(tmp_path / "latent_coords.npy", by_size[taken])
    np.savez(tmp_path / "z.npz", other=rows(3), z=by_size[taken])
    np.savez(tmp_path / "only.npz", name=by_size[taken], text=np.array("x"))
    expected, _ = read(tmp_path / "latent_coords.npy", dims)
    for other in (path, tmp_path / "z.npz", tmp_path / "only.npz"):
        np.testing.assert_array_equal(read(other, dims)[0], expected)


def test_rows_keep_their_order_and_columns_may_come_first(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(40.0)[:, None] * [1.0, -2.0] + np.arange(40)[:, None] ** 2 * [0, 0.1])
    np.save(tmp_path / "z.npy", values)
    np.testing.assert_allclose(read(tmp_path / "z.npy", 2)[0], values - values.mean(axis=0))
    np.save(tmp_path / "one.npy", values[:, 0].astype(int))
    np.testing.assert_allclose(read(tmp_path / "one.npy", 1)[0][:, 0], values[:, 0] - values[:, 0].mean())


def test_more_dimensions_are_reduced_to_the_directions_of_largest_variance(tmp_path: Path) -> None:
    """Two coordinates turned into eight dimensions, with noise, come out up to a turn; the loss is told."""
    coordinates = RNG.normal(size=(40, 2)) * [3.0, 2.0]
    turn = np.linalg.qr(RNG.normal(size=(8, 8)))[0][:2]
    np.save(tmp_path / "z.npy", coordinates @ turn + 0.05 * RNG.normal(size=(40, 8)) + 7)
    found, told = read(tmp_path / "z.npy", 2)
    coordinates = coordinates - coordinates.mean(axis=0)
    left = coordinates - found @ np.linalg.lstsq(found, coordinates, rcond=None)[0]
    assert np.abs(left).max() < 0.3
    np.testing.assert_allclose(found.T @ found, np.diag((found**2).sum(axis=0)), atol=1e-9)
    assert len(told) == 1 and "8 dimensions, reduced to the 2" in told[0] and "hold 100 %" in told[0]
    # negative control: the first two columns as they stand are not the motion
    first = np.load(tmp_path / "z.npy")[:, :2]
    first = first - first.mean(axis=0)
    assert np.abs(coordinates - first @ np.linalg.lstsq(first, coordinates, rcond=None)[0]).max() > 0.6


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    values = rows(1)
    values[3] = np.nan
    np.save(tmp_path / "z.npy", values)
    with pytest.raises(InputProblems) as caught:
        read_embedding(tmp_path / "z.npy", 41, 2, print)
    text = "\n".join(caught.value.messages)
    assert "40 rows; expected 41" in text and "1 dimensions; expected at least" in text and "1 of 40 rows" in text


def test_a_pickle_that_holds_itself_is_read_and_one_that_grows_does_not(tmp_path: Path) -> None:
    path = tmp_path / "z.pkl"
    itself: dict[object, object] = {"z": rows(2)}
    itself["again"] = itself
    path.write_bytes(pickle.dumps(itself))
    assert read(path, 2)[0].shape == (40, 2)
    wide: dict[object, object] = {}
    for _ in range(4):
        wide = {number: wide for number in range(2000)}
    path.write_bytes(pickle.dumps(wide | {"z": rows(2)}))
    assert read(path, 2)[0].shape == (40, 2)


def test_given_only_where_it_is_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", rows(2))
    asked = TrainParameters(latent_file=str(tmp_path / "z.npy"), latent_start="columns", latent_dims=2)
    found = given_embedding(asked, None, print)
    assert found is not None and found.shape == (40, 2)
    for other in (
        replace(asked, latent_start="zero"),
        replace(asked, latent_file=""),
        replace(asked, latent_file=str(tmp_path / "none.npy")),
    ):
        assert given_embedding(other, None, print) is None


def test_the_number_of_rows_is_that_of_the_particles(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", rows(2))
    asked = TrainParameters(latent_file=str(tmp_path / "z.npy"), latent_start="columns", latent_dims=2)
    with pytest.raises(InputProblems, match="40 rows; expected 41"):
        given_embedding(asked, cast(Consensus, range(41)), print)
