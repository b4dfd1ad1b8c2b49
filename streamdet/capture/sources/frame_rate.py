"""How many frames per second a stream sends, measured: what FFmpeg says of a live stream is a guess.

It takes the fields of H.264 for frames and says twice the truth, and invents 25 for MJPEG.
"""

from __future__ import annotations

_SHORTEST_SECONDS = 5.0
_FEWEST_STEPS = 10
# Frames that a server has kept for new clients come at once, and would count as fast ones where only arrival counts.
_BURST_SECONDS = 2.0
_LONGEST_STEP_SECONDS = 10.0


class FrameRate:
    """Measures once: over the first 5 s of a connection, or its first 10 frames if these take longer.

    Args:
        shortest_seconds: to measure at least.

    Attributes:
        fps: frames per second, to a tenth; None until it is known.
    """

    def __init__(self, shortest_seconds: float = _SHORTEST_SECONDS) -> None:
        self.fps: float | None = None
        self._shortest_seconds = shortest_seconds
        self._ignored_until: float | None = None
        self._first = self._last = 0.0
        self._steps = -1
        self._had_pts = False

    def add(self, pts_seconds: float | None, monotonic_seconds: float) -> bool:
        """Counts a frame; true with the frame that makes the rate known.

        Args:
            pts_seconds: its presentation time, which counts where there is one; None where there is none.
            monotonic_seconds: when it came.
        """
        if self.fps is not None:
            return False
        if self._ignored_until is None:
            self._ignored_until = monotonic_seconds + _BURST_SECONDS
        if pts_seconds is None and monotonic_seconds < self._ignored_until:
            return False
        at = monotonic_seconds if pts_seconds is None else pts_seconds
        begins = self._steps < 0 or self._had_pts != (pts_seconds is not None)
        if begins or not 0 <= at - self._last <= _LONGEST_STEP_SECONDS:
            self._first, self._steps, self._had_pts = at, -1, pts_seconds is not None
        self._last = at
        self._steps += 1
        if self._steps >= _FEWEST_STEPS and at - self._first >= self._shortest_seconds:
            fps = self._steps / (at - self._first)
            self.fps = round(fps, 1 if fps >= 1 else 3)
            return True
        return False
