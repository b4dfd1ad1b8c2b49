from __future__ import annotations

import logging

import pytest

from streamdet.service.statuses import QUIET_SECONDS, StreamStatuses
from streamdet.types import Reason, State, StreamStatus


class Stream:
    """One whose hours pass at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.published: list[StreamStatus] = []
        self.statuses = StreamStatuses(self.published.append, lambda: self.now)
        self.statuses.set_stream("yard")

    def is_for(self, seconds: float, state: State, reason: Reason | None = None, detail: str = "as it is") -> None:
        """Reports a state, and lets it last; the daemon's pulse beats meanwhile."""
        self.statuses.put(StreamStatus("yard", state, reason, detail if reason else "", 0.0))
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            self.statuses.settle()

    def fails(self, reason: Reason, retry_seconds: float) -> None:
        """Is down, waits, tries again in vain."""
        self.is_for(retry_seconds, State.DOWN, reason)
        self.is_for(0.1, State.CONNECTING, reason)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname.lower()} {record.getMessage()}" for record in caplog.records]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_dead_camera_is_one_line_however_long_it_is_dead(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    stream.is_for(0.2, State.CONNECTING)
    for _ in range(24 * 120):
        stream.fails(Reason.REFUSED, 30)
    stream.is_for(100, State.UP)
    assert said(caplog) == ["info connecting", "warning down (refused: as it is)", "info up, after 24 h 4 min"]


def test_another_reason_is_another_line(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    stream.is_for(100, State.UP)
    for reason in (Reason.ENDED, Reason.REFUSED, Reason.REFUSED, Reason.TIMEOUT):
        stream.fails(reason, 1)
    assert said(caplog) == [
        "info up",
        "warning down (ended: as it is)",
        "warning down (refused: as it is)",
        "warning down (timeout: as it is)",
    ]


def test_a_camera_that_comes_and_goes_has_few_lines_and_the_last_one_is_true(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    while stream.now < 3600:
        stream.is_for(1, State.UP)
        stream.fails(Reason.DECODE_ERROR, 30)
    lines = said(caplog)
    # Each of the two at most every ten minutes; there were 120 of each.
    assert 4 <= len(lines) <= 2 * (3600 / QUIET_SECONDS + 1)
    assert sum("changes before it left out" in line for line in lines) >= 3
    stream.is_for(100, State.UP)
    assert said(caplog)[-1].startswith("info up")
    count = len(caplog.records)
    stream.is_for(1000, State.UP)
    assert len(caplog.records) == count


def test_what_settles_unsaid_is_said_later(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    for _ in range(2):
        stream.is_for(5, State.UP)
        stream.fails(Reason.TIMEOUT, 5)
    stream.is_for(59, State.UP)
    assert said(caplog)[-1] == "warning down (timeout: as it is)"
    stream.is_for(2, State.UP)
    assert said(caplog)[-1] == "info up (3 changes before it left out)"


def test_a_healthy_camera_that_breaks_now_and_then_has_every_line(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    for _ in range(5):
        stream.is_for(300, State.UP)
        stream.fails(Reason.ENDED, 1)
    assert sum("down (ended" in line for line in said(caplog)) == 5


def test_a_stream_that_is_gone_is_forgotten_and_its_late_status_ignored(caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream()
    stream.is_for(1, State.UP)
    stream.statuses.remove_stream("yard")
    stream.is_for(1, State.DOWN, Reason.ENDED)
    assert stream.statuses.snapshot() == {}
    stream.statuses.set_stream("yard")
    assert stream.statuses.snapshot() == {}
    stream.is_for(1, State.UP)
    assert said(caplog) == ["info up", "info up"]
    assert [status.state for status in stream.published] == [State.UP, State.UP]
    assert stream.statuses.snapshot() == {"yard": stream.published[-1]}
