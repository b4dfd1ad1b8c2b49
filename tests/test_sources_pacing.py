from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.sources.interrupt import Interrupt
from streamdet.sources.pacing import FileClock, Pacer


def test_clock_begins_at_zero_and_runs_over_loops() -> None:
    clock = FileClock(10)
    assert [clock.at(t) for t in (5.0, 5.1, 5.3)] == pytest.approx([0, 0.1, 0.3])
    clock.begin_again()
    assert [clock.at(t) for t in (5.0, 5.1)] == pytest.approx([0.4, 0.5])


def test_clock_without_timestamps_counts_frames() -> None:
    clock = FileClock(10)
    assert [clock.at(None) for _ in range(3)] == pytest.approx([0, 0.1, 0.2])


@given(st.lists(st.none() | st.floats(-1e6, 1e6)), st.sampled_from([None, 0.5, 25.0]))
def test_clock_never_goes_back(timestamps: list[float | None], fps: float | None) -> None:
    clock = FileClock(fps)
    times = [clock.at(t) for t in timestamps]
    assert all(a < b for a, b in itertools.pairwise(times))


def test_pacer_does_not_wait_for_a_broken_timestamp_or_run_after_a_delay() -> None:
    pacer = Pacer()
    started = time.monotonic()
    for at_seconds in (0.0, 3600.0, 3600.1):
        assert not pacer.wait(at_seconds)
    assert 0.1 <= time.monotonic() - started < 60


def test_interrupt_ends_the_wait() -> None:
    pacer = Pacer()
    interrupt = Interrupt()
    with interrupt.bound():
        pacer.wait(0.0)
        interrupt.set()
        assert pacer.wait(4.0)
