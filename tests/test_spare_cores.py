from __future__ import annotations

import pytest

from streamdet.spare_cores import SpareCores


class Machine:
    """A process whose captures use so many cores, and whose detection uses others."""

    def __init__(self) -> None:
        self.now = 100.0
        self.captures = 7.0
        self.detection = 3.0

    def run(self, seconds: float, captures: float, detection: float) -> None:
        self.now += seconds
        self.captures += seconds * captures
        self.detection += seconds * detection

    def spare(self, cores: int) -> SpareCores:
        return SpareCores(cores, lambda: self.detection, lambda: self.captures + self.detection, lambda: self.now)


@pytest.mark.parametrize(
    ("cores", "captures", "fit"), [(2, 0.0, 2), (2, 0.9, 2), (2, 1.2, 1), (2, 2.5, 1), (16, 4.5, 12), (1, 0.5, 1)]
)
def test_detection_gets_what_everything_else_leaves(cores: int, captures: float, fit: int) -> None:
    machine = Machine()
    spare = machine.spare(cores)
    for _ in range(40):
        machine.run(1.0, captures, detection=cores)
        found = spare.sample()
    assert found == fit


def test_one_busy_second_changes_little_and_ten_do() -> None:
    machine = Machine()
    spare = machine.spare(8)
    machine.run(1.0, 4.0, 4.0)
    assert spare.sample() == 7
    for _ in range(10):
        machine.run(1.0, 4.0, 4.0)
        found = spare.sample()
    assert found == 5


def test_samples_at_one_moment_are_no_division_by_zero() -> None:
    spare = Machine().spare(4)
    assert spare.sample() == spare.sample() == 4


def test_the_real_clocks_fit_together() -> None:
    spare = SpareCores(2, lambda: 0.0)
    assert 1 <= spare.sample() <= 2
