"""How far a job is: parts of parts add up to the whole, time left follows the pace, and nothing goes backwards."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace

import pytest
from engine.prepared import Prepared, one_moving_arm
from hypothesis import given
from hypothesis import strategies as st

from flex_job.events import Events
from flex_job.progress import FIGURES, Progress, duration
from flex_job.reconstruct import reconstruct
from flex_job.train import train
from flex_job.training_schedule import TrainingSchedule
from job_specs.parameters import ReconstructParameters, TrainParameters

TRAINING = TrainParameters(latent_dims=1, band_end=0.8, rigidity=1.0, batch=25)
SHARES = st.floats(0.0, 1.0)
STRETCHES = st.tuples(SHARES, SHARES).map(sorted)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("flex_job.progress.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def watched() -> tuple[Events, list[Progress]]:
    seen: list[Progress] = []
    return Events(message=lambda line: None, show=seen.append), seen


@given(st.lists(STRETCHES, max_size=4), SHARES)
def test_a_part_of_a_part_is_where_it_should_be(stretches: list[list[float]], done: float) -> None:
    events, seen = watched()
    with events.stage("train"), ExitStack() as parts:
        begin, width = 0.0, 1.0
        for low, high in stretches:
            parts.enter_context(events.part(low, high))
            begin, width = begin + low * width, (high - low) * width
        events.progress(done)
    assert seen[1].part == pytest.approx(begin + done * width)
    assert not seen[1].at_least and seen[-1].ended and seen[-1].part == 1.0


def test_labels_join_and_an_upper_bound_holds_for_all_within() -> None:
    events, seen = watched()
    with events.stage("choose"):
        with events.part(0.2, 0.4, "candidate 2", at_least=True), events.part(0.5, 1.0, "map"):
            events.progress(0.5, "pass 2")
        events.progress(0.5)
    assert seen[1].step == "candidate 2, map, pass 2" and seen[1].at_least and seen[1].part == pytest.approx(0.35)
    assert seen[2].step == "" and not seen[2].at_least


@pytest.mark.parametrize("resumed_at", [0.0, 0.6])
def test_time_left_is_told_by_the_pace_of_this_run(resumed_at: float, clock: Clock) -> None:
    events, seen = watched()
    with events.stage("train"):
        clock.now += 50.0  # of which the pace knows nothing
        events.progress(resumed_at)
        for part in (0.7, 0.9):
            clock.now += 10.0
            events.progress(part)
    assert [seen[1].left_s, seen[2].left_s] == [None, pytest.approx(10.0 / (0.7 - resumed_at) * 0.3)]
    assert seen[3].left_s == pytest.approx(20.0 / (0.9 - resumed_at) * 0.1) and seen[3].seconds == 70.0
    assert seen[4].ended and seen[4].seconds == 70.0 and seen[4].left_s == 0.0


def test_figures_stay_for_their_stage_and_those_that_are_no_numbers_are_dropped() -> None:
    events, seen = watched()
    with events.stage("flex"):
        events.progress(0.1, flex_A=math.inf, change=0.5)
        events.progress(0.2, flex_A=7.0)
    with events.stage("gain"):
        events.progress(0.1)
    assert [look.figures for look in seen[1:4]] == [{"change": 0.5}, *[{"change": 0.5, "flex_A": 7.0}] * 2]
    assert all(not look.figures for look in seen[4:])


def test_a_stage_that_fails_has_not_ended_and_one_inside_another_gives_it_back() -> None:
    events, seen = watched()
    with pytest.raises(ValueError), events.stage("train"):
        raise ValueError
    assert [look.ended for look in seen] == [False]
    with events.stage("train"), events.part(0.5, 1.0):
        with events.stage("rigid"):
            events.progress(0.5)
        events.progress(0.5)
    assert [(look.stage, look.part) for look in seen[-3:-1]] == [("rigid", 1.0), ("train", 0.75)]


def test_lines_say_what_is_known_and_no_more() -> None:
    full = Progress("train", "epoch 3/12", 0.409, False, 60.0, 200.0, {"motion_A": 2.0, "loss": 0.98765})
    assert str(full) == "train: epoch 3/12, 40%, 3 min left, loss 0.98765, motion 2.00 A rms"
    bound = Progress("flex", "pass 2 of at most 41", 0.05, True, left_s=100.0, planned=("rigid", "flex"))
    assert str(bound) == "flex: pass 2 of at most 41, at least 5%, at most 2 min left"
    assert bound.place() == "stage 2 of 2" and full.place() == ""
    assert str(Progress("report")) == "report: begins" and Progress("report").percent() == ""
    assert str(Progress("report", part=1.0, seconds=12.3, ended=True)) == "report: done in 12 s"
    assert [duration(s) for s in (0, 99, 120, 7200, 3e5)] == ["0 s", "99 s", "2 min", "2.0 h", "3.5 days"]


@pytest.mark.parametrize("start", ["linear", "random"])
@pytest.mark.parametrize("map_every, fixed", [(0, 0), (3, 2)])
def test_the_stretches_of_a_training_fill_it_in_order(start: str, map_every: int, fixed: int) -> None:
    p = replace(TRAINING, epochs=7, latent_start=start, map_every=map_every, fixed_latent_epochs=fixed)
    schedule = TrainingSchedule(p, 5000)
    stretches = [schedule.start]
    for epoch in range(7):
        stretches += [schedule.epoch(epoch), schedule.map(epoch)]
    stretches.append(schedule.last)
    for (_, end), (begin, _) in zip(stretches, stretches[1:], strict=False):
        assert end == pytest.approx(begin)
    assert all(begin <= end + 1e-9 for begin, end in stretches) and stretches[-1][1] == pytest.approx(1.0)
    assert (stretches[0][0] > 0) == (start == "linear")
    first, last = (end - begin for begin, end in (schedule.epoch(0), schedule.epoch(6)))
    assert last > 1.5 * first  # its band is finer
    maps = [begin < end - 1e-9 for begin, end in map(schedule.map, range(7))]
    assert maps == ([False] * 7 if not map_every else [False, True, False, False, True, False, True])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return one_moving_arm(tmp_path_factory.mktemp("progress"), 100, 0.5)


def test_a_real_training_and_reconstruction_go_forward_to_their_end(prepared: Prepared) -> None:
    events, seen = watched()
    trainer = prepared.trainer(replace(TRAINING, epochs=3, map_every=1, fixed_latent_epochs=0))
    trainer.events = events
    with events.stage("train"):
        model = train(trainer)
    parts = [look.part for look in seen if look.part is not None]
    assert parts == sorted(parts) and parts[0] < 0.01 and 0.9 < parts[-2] <= 1.0
    epochs = [look for look in seen if look.landmark]
    assert [look.step for look in epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all(set(look.figures) == {"band_A", "loss", "rigidity", "latent_spread", "motion_A"} for look in epochs)
    assert any(look.step.startswith("map after epoch 1, pass 1 of 3") for look in seen)

    seen.clear()
    few = ReconstructParameters(max_iterations=2)
    support = prepared.mask
    with events.stage("flex"):
        reconstruct(prepared.stack, support, [model], few, events)
    parts = [look.part for look in seen if look.part is not None]
    assert parts == sorted(parts) and all(look.at_least for look in seen[1:-1])
    assert [look.step for look in seen if look.landmark] == ["iteration 1", "iteration 2"]
    assert {"flex_A", "change"} <= set(seen[-1].figures) <= set(FIGURES)
