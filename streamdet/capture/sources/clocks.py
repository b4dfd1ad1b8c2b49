"""When a frame was captured: by the camera's wall clock where that can be believed, else by ours."""

from __future__ import annotations

import time

from streamdet.types import Clock

# A camera's clock that is further off than this says nothing.
_LARGEST_ERROR_SECONDS = 86_400.0
# Frames may be late, and then come all at once; what changes by more is a jump of the camera's clock or timestamps.
_LARGEST_STEP_SECONDS = 10.0


class CameraClock:
    """The clock of one connection; after a jump it is not believed any more, since nobody knows what it counts from."""

    def __init__(self) -> None:
        self._has_jumped = False
        self._last: tuple[float, float] | None = None

    def at(self, start: int | None, pts_seconds: float | None) -> tuple[float, Clock]:
        """The capture of the frame that has just been decoded, and whose clock says so.

        Args:
            start: the camera's Unix time at presentation time 0, in microseconds, from its RTCP sender reports; None or
                0 where it has sent none.
            pts_seconds: presentation time of the frame; None where it has none.

        Returns:
            Unix time in seconds, and the clock.
        """
        now = time.time()
        if pts_seconds is None:
            return now, "daemon"
        self._has_jumped |= self._jumps(pts_seconds - now, now)
        captured_at = (start or 0) / 1e6 + pts_seconds
        if not start or self._has_jumped or abs(captured_at - now) > _LARGEST_ERROR_SECONDS:
            return now, "daemon"
        return captured_at, "source"

    def _jumps(self, lead_seconds: float, now: float) -> bool:
        """Whether presentation time has gone another way than ours since the frame before."""
        last_lead_seconds, last = self._last or (lead_seconds, now)
        self._last = lead_seconds, now
        return abs(lead_seconds - last_lead_seconds) > now - last + _LARGEST_STEP_SECONDS
