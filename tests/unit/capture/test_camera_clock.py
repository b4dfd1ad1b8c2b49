from __future__ import annotations

import pytest

from streamdet.capture.sources.clocks import CameraClock

_NOW = 1_700_000_000.0


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Our own time, to be turned."""
    clock = [_NOW]
    monkeypatch.setattr("time.time", lambda: clock[0])
    return clock


def read(now: list[float], *frames: tuple[float, float | None, float | None]) -> list[tuple[float, str]]:
    """Seconds before our own time at which frames were captured, and whose clock says so.

    Args:
        now: our own time.
        frames: seconds since the frame before, presentation time, and the camera's time at presentation time 0 in
            seconds after `_NOW`; None for unknown.
    """
    clock, found = CameraClock(), []
    for later, pts_seconds, start in frames:
        now[0] += later
        microseconds = None if start is None else int((_NOW + start) * 1e6)
        captured_at, whose = clock.at(microseconds, pts_seconds)
        found.append((round(now[0] - captured_at, 3), str(whose)))
    return found


def test_camera_is_believed_as_soon_as_it_says_its_time(now: list[float]) -> None:
    frames = read(now, (0, None, None), (0.1, 5.0, None), (0.1, 5.1, -5.0), (0.1, 5.2, -5.0))
    assert frames == [(0, "daemon"), (0, "daemon"), (0.1, "source"), (0.1, "source")]


def test_frames_that_were_held_up_and_come_at_once_are_late(now: list[float]) -> None:
    frames = read(now, (0, 0.0, 0.0), (8, 0.1, 0.0), (0, 8.0, 0.0))
    assert frames == [(0, "source"), (7.9, "source"), (0, "source")]


@pytest.mark.parametrize("jump", [-5000, 5000, 40_000])
def test_jump_ends_the_belief_even_before_the_first_report(now: list[float], jump: float) -> None:
    after = [(0.1, 0.1 + jump, 0.0), (0.1, 0.2, 0.0)]
    assert read(now, (0, 0.0, 0.0), *after) == [(0, "source"), (0, "daemon"), (0, "daemon")]
    assert read(now, (0, 0.0, None), *after) == [(0, "daemon"), (0, "daemon"), (0, "daemon")]


@pytest.mark.parametrize("jump", [-5000, 5000])
def test_report_of_a_jump_that_comes_before_its_frames_ends_the_belief(now: list[float], jump: float) -> None:
    after = [(0.1, 0.2, -jump), (0.1, 0.3 + jump, -jump)]
    assert read(now, (0, 0.0, 0.0), (0.1, 0.1, 0.0), *after) == [(0, "source"), (0, "source"), *[(0, "daemon")] * 2]


def test_camera_that_sets_its_clock_right_is_believed_from_then_on(now: list[float]) -> None:
    wrong = [(0.1, number / 10, -600.0) for number in range(7)]
    frames = read(now, *wrong, (0.1, 0.7, -0.05), (0.1, 0.8, -0.05))
    assert [whose for _, whose in frames] == ["daemon"] * 5 + ["source"] * 4
    assert [seconds for seconds, _ in frames[5:]] == [600.1, 600.1, 0.15, 0.15]


@pytest.mark.parametrize("jump", [-5000, 5000])
def test_first_report_of_a_jump_that_comes_before_its_frames_is_not_believed(now: list[float], jump: float) -> None:
    after = [(0.1, 0.2, -jump), (0.1, 0.3, -jump), (0.1, 0.4 + jump, -jump), (0.1, 0.5 + jump, -jump)]
    assert read(now, (0, 0.0, None), (0.1, 0.1, None), *after) == [(0, "daemon")] * 6


def test_clock_that_is_a_day_off_says_nothing(now: list[float]) -> None:
    assert read(now, (0, 0.0, 90_000.0), (0.1, 0.1, 90_000.0)) == [(0, "daemon"), (0, "daemon")]
