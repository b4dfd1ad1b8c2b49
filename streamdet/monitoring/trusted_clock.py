"""The wall clock, and whether it can be trusted: events are not deleted for their age because a clock is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable

# Clocks are set when the network comes up, so a wrong one is mostly right within minutes.
_DISTRUST_SECONDS = 3600.0
# Clocks are kept right in steps of less than that.
_JUMP_SECONDS = 60.0
# So long may nothing have been published without it looking like a jump.
_SILENCE_SECONDS = 3600.0


def _boot_seconds() -> float:
    """Goes on evenly, also while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TrustedClock:
    """Says what time it is, and why that is not to be believed; for one thread.

    Args:
        wall: Unix time in seconds, which can be set.
        steady: seconds that go on evenly.

    Attributes:
        wall: the same.
        doubt: why the time is not believed, for people; empty where it is.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _boot_seconds) -> None:
        self.wall = wall
        self._steady = steady
        self._offset_seconds = wall() - steady()
        self._doubted_until = float("-inf")
        self.doubt = ""

    def compare(self, newest_at: float, what: str = "event") -> None:
        """Compares it with the time of the newest event, or other thing, that was kept before, in Unix time."""
        ahead_seconds = self.wall() - newest_at
        if ahead_seconds > _SILENCE_SECONDS:
            self._distrust(f"the clock is {_text(ahead_seconds)} ahead of the newest {what}")
        elif ahead_seconds < -_JUMP_SECONDS:
            self._distrust(f"the clock is {_text(-ahead_seconds)} behind the newest {what}")

    def now(self) -> float | None:
        """Unix time in seconds; None where it is not to be believed."""
        offset_seconds = self.wall() - self._steady()
        jump_seconds = offset_seconds - self._offset_seconds
        self._offset_seconds = offset_seconds
        if abs(jump_seconds) > _JUMP_SECONDS:
            self._distrust(f"the clock was set {_text(abs(jump_seconds))} {'forward' if jump_seconds > 0 else 'back'}")
        if self._steady() < self._doubted_until:
            return None
        self.doubt = ""
        return self.wall()

    def _distrust(self, doubt: str) -> None:
        self.doubt = doubt
        self._doubted_until = self._steady() + _DISTRUST_SECONDS


def _text(seconds: float) -> str:
    for unit, unit_seconds in (("days", 86400), ("hours", 3600)):
        if seconds >= 1.5 * unit_seconds:
            return f"{seconds / unit_seconds:.1f} {unit}"
    return f"{seconds / 60:.0f} minutes"
