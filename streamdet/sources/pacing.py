"""The time of a file: one clock over all its loops, and frames that come when a live stream would bring them."""

from __future__ import annotations

import time

from streamdet.sources.interrupt import current_interrupt

_DEFAULT_FPS = 25.0
# A longer gap between two frames is a broken timestamp rather than something to wait for.
_LONGEST_GAP_SECONDS = 5.0
# Who is later than this starts a new schedule instead of running after the old one.
_LATEST_SECONDS = 1.0


class FileClock:
    """Turns a file's timestamps into one clock that starts at 0 and never goes back.

    A file that begins again goes on one frame period after its last frame. Timestamps that are missing or go back
    are replaced by that of the frame before plus one period.

    Args:
        fps: frames per second, for these periods; None for 25.
    """

    def __init__(self, fps: float | None) -> None:
        self._period_seconds = 1 / (fps or _DEFAULT_FPS)
        self._offset_seconds: float | None = None
        self._last_seconds: float | None = None

    def begin_again(self) -> None:
        """The next frame is the first of another loop."""
        self._offset_seconds = None

    def at(self, pts_seconds: float | None) -> float:
        """The time of the next frame, in seconds since the first frame of the first loop."""
        due = 0.0 if self._last_seconds is None else self._last_seconds + self._period_seconds
        if pts_seconds is not None:
            if self._offset_seconds is None:
                self._offset_seconds = due - pts_seconds
            elif self._last_seconds is None or pts_seconds + self._offset_seconds > self._last_seconds:
                due = pts_seconds + self._offset_seconds
        self._last_seconds = due
        return due


class Pacer:
    """Waits until a frame of a file is due."""

    def __init__(self) -> None:
        self._start: float | None = None

    def wait(self, at_seconds: float) -> bool:
        """Waits until the moment; true when the wait was interrupted.

        Args:
            at_seconds: on the clock of the file.
        """
        now = time.monotonic()
        if self._start is None:
            self._start = now - at_seconds
        wait_seconds = self._start + at_seconds - now
        if wait_seconds < -_LATEST_SECONDS or wait_seconds > _LONGEST_GAP_SECONDS:
            self._start = now - at_seconds
            return current_interrupt().is_set()
        return current_interrupt().wait(max(0.0, wait_seconds))
