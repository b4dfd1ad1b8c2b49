from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.capture.sources.clocks import FileClock, Pacer
from streamdet.capture.sources.interrupt import Interrupt


def test_clock_begins_at_zero_and_runs_over_loops() -> None:
    clock = FileClock(10)
    assert [clock.at(t) for t in (5.0, 5.1, 5.3)] == pytest.approx([0, 0.1, 0.3])
    clock.begin_again()
    assert [clock.at(t) for t in (5.0, 5.1)] == pytest.approx([0.5, 0.6])


def test_clock_without_timestamps_counts_frames() -> None:
    clock = FileClock(10)
    assert [clock.at(None) for _ in range(3)] == pytest.approx([0, 0.1, 0.2])


@given(st.lists(st.none() | st.floats(-1e6, 1e6)), st.sampled_from([None, 0.5, 25.0]))
def test_clock_never_goes_back(timestamps: list[float | None], fps: float | None) -> None:
    clock = FileClock(fps)
    times = [clock.at(t) for t in timestamps]
    assert all(a < b for a, b in itertools.pairwise(times))


def test_pacer_does_not_wait_for_a_broken_timestamp_or_run_after_a_delay() -> None:
    pacer = Pacer(0.2)
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


def test_the_step_is_that_of_the_stream_also_after_it_begins_again_at_another_rate() -> None:
    # FFmpeg says 25; 10 a second came, then another encoder sends 30 from 0 on.
    clock = FileClock(25, joins_jumps=True)
    before = [clock.at(100 + n / 10) for n in range(10)]
    after = [clock.at(n / 30) for n in range(1, 31)]
    assert before == pytest.approx([n / 10 for n in range(10)])
    assert after == pytest.approx([1 + n / 30 for n in range(30)])


def test_jumps_forward_are_joined_in_hls_and_gaps_in_files() -> None:
    times = [0.0, 0.1, 5000.0, 5000.1]
    hls, file = FileClock(None, joins_jumps=True), FileClock(None)
    assert [hls.at(t) for t in times] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [file.at(t) for t in times] == pytest.approx(times)


def test_rounded_timestamps_keep_the_pace_and_those_that_stand_still_do_not_stop_it() -> None:
    clock = FileClock(25)
    # 50 frames a second whose timestamps are whole 25ths.
    assert [clock.at(n // 2 / 25) for n in range(101)][-1] == pytest.approx(2.0)
    clock = FileClock(25)
    assert [clock.at(7.0) for _ in range(110)][-1] == pytest.approx(4.0, abs=0.1)


def test_a_long_gap_is_cut_and_a_live_stream_runs_after_its_schedule() -> None:
    pacer = Pacer(0.1)
    started = time.monotonic()
    for at_seconds in (0.0, 3600.0, 7200.0):
        pacer.wait(at_seconds)
    assert 0.2 <= time.monotonic() - started < 20
    live, file = Pacer(is_live=True), Pacer()
    for pacer in (live, file):
        pacer.wait(0.0)
        assert pacer._start is not None
        pacer._start -= 1.5
    waited_seconds = []
    for pacer in (live, file):
        started = time.monotonic()
        pacer.wait(0.1)
        pacer.wait(1.4)
        waited_seconds.append(time.monotonic() - started)
    assert waited_seconds[0] < waited_seconds[1]
