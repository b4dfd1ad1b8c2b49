"""One camera cannot take the processor from all others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from streamdet.capture.load_limit import BURST_SECONDS, CPU_WINDOW_SECONDS, MOST_FRAMES_PER_SECOND, LoadLimit
from streamdet.errors import SourceError
from streamdet.types import Reason, State
from support.capturing import Recorder, stream_config
from support.mjpeg import PICTURES, camera
from support.waiting import wait_until


class Clocks:
    """Time, and what the thread has used of the processor, as a test sets them."""

    def __init__(self) -> None:
        self.now = self.cpu = 100.0

    def limit(self) -> LoadLimit:
        limit = LoadLimit(lambda: self.now, lambda: self.cpu)
        limit.begin()
        return limit


def frames(limit: LoadLimit, clocks: Clocks, fps: float, seconds: float, cores: float = 0.1) -> int:
    """How many pass."""
    for number in range(int(fps * seconds)):
        clocks.now += 1 / fps
        clocks.cpu += cores / fps
        try:
            limit.frame()
        except SourceError:
            return number
    return int(fps * seconds)


@pytest.mark.parametrize("fps", [1, 30, 120, 239])
def test_what_cameras_send_passes(fps: float) -> None:
    clocks = Clocks()
    assert frames(clocks.limit(), clocks, fps, 100) == fps * 100


def test_a_burst_passes_and_a_flood_does_not() -> None:
    clocks = Clocks()
    limit = clocks.limit()
    assert frames(limit, clocks, 30, 10) == 300
    assert frames(limit, clocks, 10_000, 0.1) == 1000
    assert frames(limit, clocks, 30, 10) == 300
    burst = MOST_FRAMES_PER_SECOND * BURST_SECONDS
    assert frames(limit, clocks, 10_000, 100) == pytest.approx(burst, rel=0.03)
    # The next connection has what has come together meanwhile, and no more.
    clocks.now += 1
    limit.begin()
    assert frames(limit, clocks, 10_000, 100) == pytest.approx(MOST_FRAMES_PER_SECOND, rel=0.03)


def test_a_stream_that_takes_a_whole_core() -> None:
    clocks = Clocks()
    assert frames(clocks.limit(), clocks, 30, 100, cores=0.9) == 3000
    assert frames(clocks.limit(), clocks, 30, 100, cores=0.99) == pytest.approx(30 * CPU_WINDOW_SECONDS, abs=2)


def test_a_camera_that_sends_as_fast_as_it_can_is_down_and_costs_little() -> None:
    def as_fast_as_it_can() -> Iterator[bytes]:
        return itertools.repeat((b"--f\r\n\r\n" + PICTURES[0] + b"\r\n") * 50)

    with (
        camera("multipart/x-mixed-replace; boundary=f", as_fast_as_it_can) as url,
        Recorder(stream_config(url)) as recorder,
    ):
        status = recorder.wait_for(State.DOWN, Reason.OVERLOAD)
        assert status.detail == "it sends more than 240 frames a second"
        began, before = time.monotonic(), len(recorder.frames)
        wait_until(lambda: time.monotonic() - began > 2, "two seconds")
        assert before <= MOST_FRAMES_PER_SECOND * (BURST_SECONDS + 5)
        assert len(recorder.frames) - before <= MOST_FRAMES_PER_SECOND * 3
        assert 'reason="overload"' in recorder.page()
