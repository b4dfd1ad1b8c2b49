"""The states of the streams: keeps the current ones, publishes them, and logs changes.

A line is logged when the state of a stream, or the reason why it is down, has changed, but not for each attempt to
connect. A state that changes repeatedly is left out, and logged when it has lasted for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from streamdet.config.values import in_words
from streamdet.types import Reason, State, StreamStatus

SETTLED_SECONDS = 60.0
"""What has lasted this long is logged, however often it was before; longer than a capture waits between attempts."""

QUIET_SECONDS = 600.0
"""A stream that changes all the time has each of its lines at most once in this time."""

_Condition = tuple[State, Reason | None]

_log = logging.getLogger(__name__)


class StreamStatuses:
    """The newest status of each stream. Thread-safe.

    Args:
        publish: takes each status; must not block.
        clock: monotonic seconds.
    """

    def __init__(self, publish: Callable[[StreamStatus], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._publish = publish
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: dict[str, StreamStatus | None] = {}
        self._logged: dict[str, _Logged] = {}

    def set_stream(self, stream: str) -> None:
        """Takes the statuses of a stream from now on."""
        with self._lock:
            self._newest.setdefault(stream, None)

    def remove_stream(self, stream: str) -> None:
        """Forgets a stream; a late status of it, from a capture that a library still holds, is ignored."""
        with self._lock:
            self._newest.pop(stream, None)
            self._logged.pop(stream, None)

    def put(self, status: StreamStatus) -> None:
        """Takes the newest status of a stream."""
        with self._lock:
            if status.stream in self._newest:
                self._newest[status.stream] = status
                self._publish(status)
                self._log_if_due(status)

    def snapshot(self) -> dict[str, StreamStatus]:
        """The newest status of each stream that has one."""
        with self._lock:
            return {stream: status for stream, status in self._newest.items() if status is not None}

    def settle(self) -> None:
        """Logs what was left out and has lasted since; to be called about once a second."""
        now = self._clock()
        with self._lock:
            for entry in self._logged.values():
                if entry.left_out and now - entry.since >= SETTLED_SECONDS:
                    if _condition_of(entry.status) == entry.logged:
                        entry.left_out = 0
                    else:
                        entry.write(now)

    def _log_if_due(self, status: StreamStatus) -> None:
        now = self._clock()
        condition = _condition_of(status)
        entry = self._logged.get(status.stream)
        if entry is None:
            entry = self._logged[status.stream] = _Logged(status, now, condition)
            entry.write(now)
            return
        before, lasted_seconds = _condition_of(entry.status), now - entry.since
        if condition == before or (status.state is State.CONNECTING and status.reason is not None):
            return
        entry.status, entry.since = status, now
        quiet_seconds = now - entry.logged_at.get(condition, float("-inf"))
        if lasted_seconds >= SETTLED_SECONDS or quiet_seconds >= QUIET_SECONDS:
            entry.write(now, before, lasted_seconds)
        else:
            entry.left_out += 1


@dataclass(slots=True)
class _Logged:
    """What the log has of a stream.

    Attributes:
        status: the newest; an attempt to connect again does not count, as its stream is down all the while.
        since: when its condition began, monotonic seconds.
        logged: the condition in the newest line.
        logged_at: when the newest line of each condition was written, monotonic seconds.
        left_out: changes since that line.
    """

    status: StreamStatus
    since: float
    logged: _Condition
    logged_at: dict[_Condition, float] = field(default_factory=dict)
    left_out: int = 0

    def write(self, now: float, before: _Condition | None = None, lasted_seconds: float = 0.0) -> None:
        """Logs the status; `before` is the condition that it follows, which lasted `lasted_seconds`."""
        status = self.status
        self.logged = _condition_of(status)
        self.logged_at[self.logged] = now
        text = status.state.value
        if status.reason is not None:
            text += f" ({status.reason.value}: {status.detail})"
        if status.state is State.UP and before is not None and before[0] is State.DOWN:
            text += f", after {in_words(lasted_seconds)}"
        if self.left_out:
            text += f" ({self.left_out} changes before it left out)"
        self.left_out = 0
        level = logging.INFO if status.reason in (None, Reason.PAUSED) else logging.WARNING
        _log.log(level, "%s", text, extra={"stream": status.stream})


def _condition_of(status: StreamStatus) -> _Condition:
    return status.state, status.reason
