"""The wall-clock budget of a run: how early it asks for the end."""

from __future__ import annotations

import pytest

from flex_job.distributed import Group
from flex_job.events import CLOSING_S, HOUR_S, Events, StopRequested


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("flex_job.events.time.monotonic", lambda: self.now)

    def run(self, max_hours: float) -> Events:
        return Events(max_hours=max_hours, started=self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def seconds_until_stop(clock: Clock, events: Events, step_s: float) -> float:
    began = clock.now
    while not events.stop_wanted():
        clock.now += step_s
        assert clock.now < began + 1e6, "nothing stops this run"
    return clock.now - began


@pytest.mark.parametrize("step_s", [0.1, 3.0, 120.0])
def test_two_more_steps_and_a_checkpoint_still_fit(step_s: float, clock: Clock) -> None:
    events = clock.run(4.0)
    used = seconds_until_stop(clock, events, step_s)
    assert events.out_of_time
    left = 4 * HOUR_S - used
    assert left - 2 * step_s - CLOSING_S <= 1e-6  # it does not end before it has to
    assert left + step_s - 2 * step_s - CLOSING_S > 0  # and one step earlier there was time


def test_one_long_step_is_remembered_and_the_start_is_not(clock: Clock) -> None:
    patient, quick = clock.run(1.0), clock.run(1.0)
    clock.now += 600.0  # imports, mesh
    for events in (patient, quick):
        assert not events.stop_wanted()
    clock.now += 300.0
    assert not patient.stop_wanted()
    now = clock.now
    assert seconds_until_stop(clock, quick, 1.0) > 0
    clock.now = now
    assert HOUR_S - 900.0 - seconds_until_stop(clock, patient, 1.0) == pytest.approx(600.0 + CLOSING_S, abs=2.0)


def test_a_short_budget_is_not_all_margin(clock: Clock) -> None:
    assert seconds_until_stop(clock, clock.run(60 / HOUR_S), 0.5) > 50.0


def test_no_budget_never_ends(clock: Clock) -> None:
    events = Events()
    for _ in range(100):
        clock.now += 1e5
        assert not events.stop_wanted()
    assert not events.out_of_time


def test_the_time_that_is_up_stops_like_a_host_that_asks(clock: Clock) -> None:
    events = clock.run(1.0)
    events.check_stop()
    Group().check_stop(events)
    clock.now += HOUR_S
    for check in (events.check_stop, lambda: Group().check_stop(events)):
        with pytest.raises(StopRequested):
            check()
    with pytest.raises(StopRequested):
        Events(should_stop=lambda: True).check_stop()
