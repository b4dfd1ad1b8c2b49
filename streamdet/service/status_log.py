"""What the log says of streams: a line when what a stream does, or why it is down, has changed; not one per attempt."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from streamdet.types import Reason, State, StreamStatus

SETTLED_SECONDS = 60.0
"""What has lasted so long is said, however often it was said before; longer than a capture waits between attempts."""

QUIET_SECONDS = 600.0
"""A stream that goes to and fro has each of its lines this often at most."""

_Condition = tuple[State, Reason | None]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    """What the log knows of a stream.

    Attributes:
        status: the newest; an attempt to connect again does not count, as its stream is down all the while.
        since: when its condition began, monotonic seconds.
        told: the condition that the newest line names.
        told_at: when the newest line of each condition was written, monotonic seconds.
        left_out: changes since that line.
    """

    status: StreamStatus
    since: float
    told: _Condition
    told_at: dict[_Condition, float] = field(default_factory=dict)
    left_out: int = 0


class StatusLog:
    """Logs how streams are. Thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def changed(self, status: StreamStatus) -> None:
        """Takes a stream's newest status, and logs it if that is due."""
        now = self._clock()
        condition = _condition_of(status)
        with self._lock:
            entry = self._entries.get(status.stream)
            if entry is None:
                entry = self._entries[status.stream] = _Entry(status, now, condition)
                self._write(entry, now)
                return
            before, lasted_seconds = _condition_of(entry.status), now - entry.since
            if condition == before or (status.state is State.CONNECTING and status.reason is not None):
                return
            entry.status, entry.since = status, now
            quiet_seconds = now - entry.told_at.get(condition, float("-inf"))
            if lasted_seconds >= SETTLED_SECONDS or quiet_seconds >= QUIET_SECONDS:
                self._write(entry, now, before, lasted_seconds)
            else:
                entry.left_out += 1

    def settle(self) -> None:
        """Logs what was left out and has lasted since; to be called now and then."""
        now = self._clock()
        with self._lock:
            for entry in self._entries.values():
                if entry.left_out and now - entry.since >= SETTLED_SECONDS:
                    if _condition_of(entry.status) == entry.told:
                        entry.left_out = 0
                    else:
                        self._write(entry, now)

    def forget(self, stream: str) -> None:
        """Forgets a stream that is gone."""
        with self._lock:
            self._entries.pop(stream, None)

    @staticmethod
    def _write(entry: _Entry, now: float, before: _Condition | None = None, lasted_seconds: float = 0.0) -> None:
        status = entry.status
        entry.told = _condition_of(status)
        entry.told_at[entry.told] = now
        text = status.state.value
        if status.reason is not None:
            text += f" ({status.reason.value}: {status.detail})"
        if status.state is State.UP and before is not None and before[0] is State.DOWN:
            text += f", after {_duration(lasted_seconds)}"
        if entry.left_out:
            text += f" ({entry.left_out} changes before it left out)"
        entry.left_out = 0
        level = logging.INFO if status.reason in (None, Reason.PAUSED) else logging.WARNING
        _log.log(level, "%s", text, extra={"stream": status.stream})


def _condition_of(status: StreamStatus) -> _Condition:
    return status.state, status.reason


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
