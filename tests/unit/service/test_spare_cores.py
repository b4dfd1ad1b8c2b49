from __future__ import annotations

import pytest

from streamdet.service.housekeeping import SpareCores


class Machine:
    """A process whose captures use so many cores."""

    def __init__(self) -> None:
        self.now = 100.0
        self.captures = 7.0

    def run(self, seconds: float, captures: float) -> None:
        self.now += seconds
        self.captures += seconds * captures

    def spare(self, cores: int) -> SpareCores:
        return SpareCores(cores, lambda: self.captures, lambda: self.now)


@pytest.mark.parametrize(
    ("cores", "captures", "fit"), [(2, 0.0, 2), (2, 0.9, 2), (2, 1.2, 1), (2, 2.5, 1), (16, 4.5, 12), (1, 0.5, 1)]
)
def test_detection_gets_what_captures_leave(cores: int, captures: float, fit: int) -> None:
    machine = Machine()
    spare = machine.spare(cores)
    for _ in range(40):
        machine.run(1.0, captures)
        found = spare.sample()
    assert found == fit


def test_one_busy_second_changes_little_and_ten_do() -> None:
    machine = Machine()
    spare = machine.spare(8)
    machine.run(1.0, 4.0)
    assert spare.sample() == 7
    for _ in range(10):
        machine.run(1.0, 4.0)
        found = spare.sample()
    assert found == 5


def test_samples_at_one_moment_are_no_division_by_zero() -> None:
    spare = Machine().spare(4)
    assert spare.sample() == spare.sample() == 4


def test_captures_that_end_take_their_time_with_them() -> None:
    machine = Machine()
    spare = machine.spare(4)
    machine.run(1.0, -7.0)
    assert spare.sample() == 4
