"""Ranks and shards: the order of particles, who owns them, and what a group of processes does together."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flex_job.distributed import Group, RankLost
from flex_job.events import Events, StopRequested
from flex_job.join import join
from flex_job.launch import Place, chosen_devices, place_of, wanted_devices
from flex_job.problems import InputProblems
from flex_job.shards import SHARDS, epoch_batches, owner

SIZES = (1, 2, 3, 5, 8, 64)


@pytest.mark.parametrize("n, batch", [(1, 500), (63, 10), (300, 100), (6000, 500), (6001, 499)])
def test_an_epoch_visits_every_particle_once(n: int, batch: int) -> None:
    batches = epoch_batches(n, batch, seed=3, epoch=2)
    assert len(batches) == max(1, round(n / batch))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(n))
    assert all((np.diff(part) > 0).all() for part in batches)
    assert np.ptp([len(part) for part in batches]) <= 1


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    first = np.concatenate(epoch_batches(5000, 500, 1, 4))
    np.testing.assert_array_equal(first, np.concatenate(epoch_batches(5000, 500, 1, 4)))
    for seed, epoch in ((2, 4), (1, 5)):
        assert (first != np.concatenate(epoch_batches(5000, 500, seed, epoch))).mean() > 0.9


def test_particles_meet_others_in_every_epoch() -> None:
    """Two particles share one of ten minibatches about one time in ten, whether or not they are of one shard."""
    together = np.zeros((2, 200))
    for epoch in range(200):
        number = np.empty(6400, int)
        for i, part in enumerate(epoch_batches(6400, 640, 0, epoch)):
            number[part] = i
        together[0, epoch] = (number[:3200] == number[3200:]).mean()  # i and i + 50 shards: the same shard
        together[1, epoch] = (number[:-1] == number[1:]).mean()
    assert np.abs(together.mean(1) - 0.1).max() < 0.01


@pytest.mark.parametrize("size", SIZES)
def test_every_minibatch_is_shared_out_evenly(size: int) -> None:
    shards = np.bincount(np.arange(SHARDS) % size, minlength=size)
    for part in epoch_batches(6100, 500, 0, 0):
        counts = np.bincount(owner(part, size), minlength=size)
        # whole rounds, and a part of a round at either end
        assert (np.abs(counts - len(part) / SHARDS * shards) <= 2).all()
        assert SHARDS % size or np.ptp(counts) <= 2


@pytest.mark.parametrize("size", SIZES)
def test_every_particle_has_one_owner(size: int) -> None:
    index = np.arange(1000)
    owned = [Group(rank=rank, members=tuple(range(size))).own(index) for rank in range(size)]
    np.testing.assert_array_equal(np.sort(np.concatenate(owned)), index)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [0, 1, 7, 640, 1001])
def test_batches_share_the_work(size: int, n: int) -> None:
    index = 3 * np.arange(n)
    parts = [Group(rank=rank, members=tuple(range(size))).batches(index, 20) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate([index[:0], *(part for rank in parts for part in rank)]), index)
    assert len({len(rank) for rank in parts}) == 1
    assert all(len(part) <= 20 for rank in parts for part in rank)
    assert all(len(part) for rank in parts for part in rank[:-1])
    assert np.ptp([sum(map(len, rank)) for rank in parts]) <= 1


def test_a_group_of_one_changes_nothing() -> None:
    group, values = Group(), torch.arange(5.0)
    group.sum_(values)
    group.complete_(values, np.arange(5))
    np.testing.assert_array_equal(values, np.arange(5))
    assert group.total(1.5, 2) == [1.5, 2] and group.gathered("x") == ["x"] and group.first_does(lambda: 7) == 7
    assert group.is_first and group.split(1) is group and group.owns(np.arange(9)).all()
    group.check_stop(Events())
    with pytest.raises(StopRequested):
        group.check_stop(Events(should_stop=lambda: True))
    group.leave()


# -- several processes -------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_ranks(size: int, work: Callable[[Group], Any], timeout: float = 100) -> list[Any]:
    """What `work` returns in each of `size` processes; None from one that did not end well."""
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), free_port()
    ranks = [context.Process(target=_rank, args=(rank, size, port, work, results)) for rank in range(size)]
    for process in ranks:
        process.start()
    found: list[Any] = [None] * size
    until = time.monotonic() + timeout
    while any(process.is_alive() for process in ranks) or not results.empty():
        assert time.monotonic() < until, "the ranks did not end"
        while not results.empty():
            rank, value = results.get()
            found[rank] = value
        time.sleep(0.05)
    return found


def _rank(rank: int, size: int, port: int, work: Callable[[Group], Any], results: Any) -> None:
    torch.set_num_threads(1)
    group = join(Place(rank, size, rank, "127.0.0.1", port), torch.device("cpu"))
    results.put((rank, work(group)))


def everything(group: Group) -> dict[str, Any]:
    said: dict[str, Any] = {"size": group.size, "owned": group.own(np.arange(100))}
    rng = np.random.default_rng(group.rank)
    a, b = torch.from_numpy(rng.normal(size=(3, 2))), torch.from_numpy(rng.normal(size=4))
    group.sum_(a, b)
    said["after"] = (a.numpy(), b.numpy())
    said["total"] = group.total(group.rank, 0.5)
    rows = torch.full((100, 2), np.nan)
    mine = group.own(np.arange(100))
    rows[mine] = torch.from_numpy(mine).float()[:, None]
    group.complete_(rows, mine)
    said["rows"] = rows.numpy()
    said["halves"] = group.both_halves(lambda half, those: (half, those.size, those.total(1.0)[0]))
    said["first"] = group.first_does(lambda: f"from {group.rank}")
    try:
        group.first_does(lambda: raise_problem(group.rank))
    except InputProblems as error:
        said["problem"] = error.messages
    half = group.split(group.rank % 2)
    said["half"] = (half.rank, half.size, half.total(float(group.rank))[0], half.gathered(group.rank))
    stops = 0
    for number in range(3):
        try:
            group.check_stop(Events(should_stop=lambda n=number: n == 2 and group.rank == group.size - 1))  # type: ignore[misc]
        except StopRequested:
            stops += 1
    said["stops"] = stops
    try:  # the word has reached the other groups of the job
        half.check_stop(Events())
    except StopRequested:
        said["told"] = True
    group.barrier()
    if group.rank == 2:
        group.tell_failure("out of luck")
        os._exit(1)
    began = time.monotonic()
    try:
        group.sum_(torch.ones(3))
    except RankLost:
        said["last words"], said["seconds"] = group.told_failure(), time.monotonic() - began
    return said


def raise_problem(rank: int) -> None:
    raise InputProblems([f"seen by {rank}", "and another"])


@pytest.fixture(scope="module")
def all_ranks() -> list[dict[str, Any]]:
    return in_ranks(3, everything)


@pytest.fixture
def ranks(all_ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each rank said that did not leave early."""
    return all_ranks[:2]


def test_sums_reach_all_ranks(ranks: list[dict[str, Any]]) -> None:
    draws = [np.random.default_rng(rank) for rank in range(3)]
    for part, shape in enumerate([(3, 2), (4,)]):
        expected = sum(rng.normal(size=shape) for rng in draws)
        for said in ranks:
            np.testing.assert_allclose(said["after"][part], expected, rtol=1e-14)
            np.testing.assert_array_equal(said["after"][part], ranks[0]["after"][part])
    assert all(said["total"] == [3, 1.5] for said in ranks)


def test_rows_are_completed_by_their_owners(ranks: list[dict[str, Any]]) -> None:
    for said in ranks:
        np.testing.assert_array_equal(said["rows"], np.repeat(np.arange(100.0)[:, None], 2, 1))


def test_the_first_rank_acts_for_all_and_fails_for_all(ranks: list[dict[str, Any]]) -> None:
    assert all(said["first"] == "from 0" for said in ranks)
    assert all(said["problem"] == ["seen by 0", "and another"] for said in ranks)


def test_groups_split_by_color(ranks: list[dict[str, Any]]) -> None:
    for rank, said in enumerate(ranks):
        members = [other for other in range(3) if other % 2 == rank % 2]
        assert said["half"] == (members.index(rank), len(members), sum(members), members)


def test_an_odd_number_of_ranks_does_the_halves_in_turn(ranks: list[dict[str, Any]]) -> None:
    assert all(said["halves"] == ((1, 3, 3), (2, 3, 3)) for said in ranks)


def test_a_stop_asked_of_one_stops_all_at_the_same_check(ranks: list[dict[str, Any]]) -> None:
    assert all(said["stops"] == 1 and said["told"] for said in ranks)


def test_a_rank_that_ends_is_noticed_at_once_and_its_last_words_heard(all_ranks: list[dict[str, Any]]) -> None:
    assert all_ranks[2] is None
    for said in all_ranks[:2]:
        assert said["last words"] == "rank 2: out of luck" and said["seconds"] < 5


# -- launchers ---------------------------------------------------------------------------------------------------------


def test_no_launcher() -> None:
    assert place_of({}) is None
    assert place_of({"WORLD_SIZE": "4"}) is None


def test_torchrun() -> None:
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "1234"}
    place = place_of(variables)
    assert place == Place(3, 4, 1, "node1", 1234)
    assert place.variables() == variables


STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}


def test_srun() -> None:
    place = place_of(STEP, lambda nodes: ["gpu07", "gpu08"] if nodes == "gpu[07-08]" else [])
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.address) == (2, 4, 0, "gpu07")
    again = place_of(STEP | {"SLURM_PROCID": "0"}, lambda nodes: ["gpu07"])
    other = place_of(STEP | {"SLURM_STEP_ID": "1"}, lambda nodes: ["gpu07"])
    assert again is not None and other is not None
    assert place.port == again.port != other.port
    assert 1024 < place.port < 32768


def test_srun_without_scontrol() -> None:
    one = place_of(STEP | {"SLURM_STEP_NODELIST": "gpu07"}, lambda nodes: [])
    fallen_back = place_of(STEP, lambda nodes: [])
    told = place_of(STEP | {"MASTER_ADDR": "gpu99", "MASTER_PORT": "5"}, lambda nodes: ["gpu07"])
    assert one is not None and fallen_back is not None and told is not None
    assert (one.address, fallen_back.address, told.address, told.port) == ("gpu07", "10.0.0.1", "gpu99", 5)
    with pytest.raises(ValueError, match="MASTER_ADDR"):
        place_of(STEP | {"SLURM_LAUNCH_NODE_IPADDR": ""}, lambda nodes: [])


def test_a_batch_script_or_a_step_of_one_task_is_no_launcher() -> None:
    """sbatch --ntasks=4 sets task variables for the script itself, which would wait for ever for three others."""
    script = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert place_of(script) is None
    assert place_of(STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    "text, gpus, expected",
    [
        ("", 0, ["cpu"]),
        ("", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cpu", 2, ["cpu"]),
        ("CPU:2", 0, ["cpu", "cpu"]),
        ("1", 2, ["cuda:1"]),
        ("0, 2", 3, ["cuda:0", "cuda:2"]),
    ],
)
def test_devices(text: str, gpus: int, expected: list[str]) -> None:
    assert chosen_devices(text, gpus) == expected


@pytest.mark.parametrize("text", ["gpu", "cpu:0", "cpu:65", "cpu:x", "0,0", "0,,1", "-1"])
def test_devices_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="devices: .* was given; expected"):
        wanted_devices(text)


@pytest.mark.parametrize("gpus", [0, 1])
def test_gpus_that_are_not_there(gpus: int) -> None:
    with pytest.raises(ValueError, match="devices: '1' was given"):
        chosen_devices("1", gpus)
