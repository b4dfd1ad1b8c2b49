from __future__ import annotations

import pytest

from streamdet.rate_limit import Rate, Share


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_so_many_pass_a_second() -> None:
    clock = Clock()
    rate = Rate(5, clock)
    assert [rate.passes() for _ in range(7)] == [True] * 5 + [False] * 2
    clock.seconds += 0.5
    assert [rate.passes() for _ in range(3)] == [True, True, False]


def test_work_takes_its_share_of_the_time_and_no_more() -> None:
    clock = Clock()
    share = Share(0.1, 0.5, clock)
    worked = 0.0
    for _ in range(1000):
        clock.seconds += share.wait_seconds()
        assert share.wait_seconds() == pytest.approx(0.0, abs=1e-9)
        clock.seconds += 0.02
        share.worked(0.02)
        worked += 0.02
    assert worked / (clock.seconds - 1000.0) == pytest.approx(0.1, rel=0.03)


def test_after_a_pause_a_burst_is_done_at_once_however_long_the_pause_was() -> None:
    clock = Clock()
    share = Share(0.1, 0.5, clock)
    share.worked(2.0)
    assert share.wait_seconds() == pytest.approx(15.0)
    clock.seconds += 1e6
    for _ in range(5):
        assert share.wait_seconds() == 0.0
        share.worked(0.1)
    clock.seconds += 1e-6
    share.worked(0.1)
    assert share.wait_seconds() == pytest.approx(1.0, rel=1e-3)
