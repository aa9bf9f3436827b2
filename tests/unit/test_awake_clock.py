"""The clock that stands still while the process is stopped."""

from __future__ import annotations

import itertools
import math

import pytest

from http2tcp.command.awake_clock import AwakeClock


class Machine:
    """The system's clock, and a loop that waits as trio's does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = AwakeClock(lambda: self.now)
        self.start = self.clock.current_time()

    def wait_until(self, deadline: float, takes: float) -> float:
        """Wait, which takes so long: the time since the start."""
        self.clock.deadline_to_sleep_time(deadline + self.start)
        self.now += takes
        return self.since()

    def since(self) -> float:
        return self.clock.current_time() - self.start


def test_it_is_a_clock() -> None:
    machine = Machine()
    assert machine.wait_until(10, 3) == pytest.approx(3)
    assert machine.wait_until(10, 7.01) == pytest.approx(10.01)
    assert machine.wait_until(math.inf, 1e6) == pytest.approx(1e6 + 10.01)
    assert machine.wait_until(5, 0) == pytest.approx(1e6 + 10.01)
    machine.now += 0.4  # work, and no wait
    assert machine.since() == pytest.approx(1e6 + 10.41)


def test_a_stop_in_the_middle_of_work_does_not_count_either_but_work_goes_on() -> None:
    machine = Machine()
    machine.wait_until(10, 3)
    for turn in range(1, 4):
        machine.now += 60
        assert machine.wait_until(3.2, 0) == pytest.approx(3 + turn / 2)


def test_a_deadline_that_falls_into_a_stop_is_put_off_and_met_then() -> None:
    machine = Machine()
    assert machine.wait_until(6, 8) < 6
    left = 6 - machine.since()
    assert 0.1 < left <= 1
    assert machine.wait_until(6, left + 0.01) > 6


def test_later_deadlines_do_not_count_the_stop_either() -> None:
    machine = Machine()
    machine.wait_until(6, 3600)
    assert machine.since() < 6
    machine.now += 1
    assert machine.since() < 7


def test_a_machine_that_is_always_late_meets_its_deadlines_all_the_same() -> None:
    machine = Machine()
    for _ in range(3):
        machine.wait_until(6, 10)
    assert machine.since() > 6


def test_it_never_goes_back() -> None:
    machine = Machine()
    times = []
    for number in range(100):
        times.append(machine.wait_until(machine.since() + (number % 7) / 5, (number % 5) / 2))
    assert all(later - earlier > -1e-6 for earlier, later in itertools.pairwise(times))
