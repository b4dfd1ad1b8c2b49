"""The time of frames: when they were captured, when they are due, and their rate."""

from __future__ import annotations

import time

from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.types import Clock

# Timestamps that repeat, or go back by no more, are badly rounded; what goes back further begins another timeline.
_JITTER_SECONDS = 0.5

# A camera's clock that is further off than this is ignored.
_LARGEST_ERROR_SECONDS = 86_400.0
# Frames may be late, and then come all at once; what changes by more is a jump of the camera's clock or timestamps.
_LARGEST_STEP_SECONDS = 10.0
# The first report may be of presentation times after a jump, and come before the frames that show the jump: where it
# says that so many frames were captured at another time than ours, these are too few to believe it.
_DOUBTED_FRAMES = 5

_DEFAULT_FPS = 25.0
_TICK_SECONDS = 1e-3
# Timestamps that have not changed for this number of frames are not used.
_MOST_REPEATED = 8
# A jump forward that is longer is a discontinuity where discontinuities are to be expected.
_LARGEST_PACED_STEP_SECONDS = 10.0

_LONGEST_GAP_SECONDS = 5.0
# Frames of a file that are later than this start a new schedule instead of running after the old one; a live stream
# runs after it, so that it does not stay late after an interruption.
_LATEST_SECONDS = 1.0
_LATEST_LIVE_SECONDS = 30.0

_SHORTEST_SECONDS = 5.0
_FEWEST_STEPS = 10
# Frames that a server has kept for new clients come at once, and would count as fast ones where only arrival counts.
_BURST_SECONDS = 2.0
_LONGEST_STEP_SECONDS = 10.0


class CameraClock:
    """When frames were captured: by the camera's wall clock if it is plausible, otherwise by this machine's.

    For one connection. After a jump the camera's clock is no longer used, because its origin is not known. A camera
    that has set its clock, so that it is nearer to ours than before, is still believed.
    """

    def __init__(self) -> None:
        self._has_jumped = False
        self._last: tuple[float, float] | None = None
        self._last_error: tuple[int, float] | None = None
        self._reported_frames = 0

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
        error_seconds = abs(captured_at - now)
        if start:
            self._has_jumped |= self._report_jumps(start, error_seconds)
            self._reported_frames += 1
        is_doubted = error_seconds > _LARGEST_STEP_SECONDS and self._reported_frames <= _DOUBTED_FRAMES
        if not start or self._has_jumped or is_doubted or error_seconds > _LARGEST_ERROR_SECONDS:
            return now, "daemon"
        return captured_at, "source"

    def _jumps(self, lead_seconds: float, now: float) -> bool:
        """Whether presentation time has gone another way than ours since the frame before."""
        last_lead_seconds, last = self._last or (lead_seconds, now)
        self._last = lead_seconds, now
        return abs(lead_seconds - last_lead_seconds) > now - last + _LARGEST_STEP_SECONDS

    def _report_jumps(self, start: int, error_seconds: float) -> bool:
        """Whether a report is of presentation times that are yet to come, after a jump of which no frame has shown."""
        last_start, last_error_seconds = self._last_error or (start, error_seconds)
        self._last_error = start, error_seconds
        return (
            abs(start - last_start) > 1e6 * _LARGEST_STEP_SECONDS
            and error_seconds > last_error_seconds + _LARGEST_STEP_SECONDS
        )


class LiveClock:
    """Keeps the timestamps of one live connection from going back.

    They are those of the stream. Where they start again, as they do when an encoder is started again behind a server
    that keeps the connection, the clock goes on by the time that has passed here.
    """

    def __init__(self) -> None:
        self._offset_seconds = 0.0
        self._last: tuple[float, float] | None = None

    def at(self, pts_seconds: float) -> float:
        """The time of the frame that has just come, in seconds."""
        now, due = time.monotonic(), pts_seconds + self._offset_seconds
        if self._last is not None and due < self._last[0] - _JITTER_SECONDS:
            due = self._last[0] + max(_TICK_SECONDS, now - self._last[1])
            self._offset_seconds = due - pts_seconds
        self._last = due, now
        return due


class FileClock:
    """Turns timestamps into one clock that starts at 0 and never goes back.

    The steps are those of the timestamps themselves. Where another timeline begins (another loop, timestamps that go
    back, a discontinuity of HLS) the clock goes on by the step that came last. A frame without a timestamp comes one
    step after the frame before.

    Args:
        fps: frames per second, for the first steps of a file that has no timestamps; None for 25.
        joins_jumps: whether timestamps that jump forward by more than 10 s begin another timeline. In HLS they do; in
            a file they are gaps.

    Attributes:
        has_jumped: whether another timeline has begun with the newest frame.
    """

    def __init__(self, fps: float | None, *, joins_jumps: bool = False) -> None:
        self.has_jumped = False
        self._step_seconds = 1 / (fps or _DEFAULT_FPS)
        self._joins_jumps = joins_jumps
        self._offset_seconds: float | None = None
        self._last_seconds: float | None = None
        self._repeated = 0

    def begin_again(self) -> None:
        """The next frame is the first of another loop."""
        self._offset_seconds = None

    def at(self, pts_seconds: float | None) -> float:
        """The time of the next frame, in seconds since the first frame of the first loop."""
        self.has_jumped = False
        if self._last_seconds is None:
            due = 0.0
            self._offset_seconds = None if pts_seconds is None else -pts_seconds
        elif pts_seconds is None:
            due = self._last_seconds + self._step_seconds
        elif self._offset_seconds is None:
            due = self._last_seconds + self._step_seconds
            self._offset_seconds = due - pts_seconds
        else:
            due = self._next(self._last_seconds, self._offset_seconds, pts_seconds)
        self._last_seconds = due
        return due

    def ahead(self, pts_seconds: float | None) -> float | None:
        """The time of a picture that is not decoded; None where it is not after the newest frame, or not known.

        Nothing changes: pictures come out of a decoder in another order than they go in.
        """
        if pts_seconds is None or self._offset_seconds is None or self._last_seconds is None:
            return None
        step_seconds = pts_seconds + self._offset_seconds - self._last_seconds
        jumps = self._joins_jumps and step_seconds > _LARGEST_PACED_STEP_SECONDS
        return None if step_seconds <= 0 or jumps else self._last_seconds + step_seconds

    def _next(self, last_seconds: float, offset_seconds: float, pts_seconds: float) -> float:
        step_seconds = pts_seconds + offset_seconds - last_seconds
        jumps = step_seconds < -_JITTER_SECONDS or (self._joins_jumps and step_seconds > _LARGEST_PACED_STEP_SECONDS)
        if jumps or (step_seconds < _TICK_SECONDS and self._repeated >= _MOST_REPEATED):
            self.has_jumped = jumps
            step_seconds = self._step_seconds
            self._offset_seconds = last_seconds + step_seconds - pts_seconds
        elif step_seconds < _TICK_SECONDS:
            self._repeated += 1
            step_seconds = _TICK_SECONDS
        else:
            self._repeated = 0
            self._step_seconds = min(step_seconds, _LARGEST_PACED_STEP_SECONDS)
        return last_seconds + step_seconds


class Pacer:
    """Waits until a frame is due.

    Args:
        longest_gap_seconds: longer waits between two frames are cut to it.
        is_live: whether to catch up with the schedule when late, up to 30 s: late frames have already arrived.
    """

    def __init__(self, longest_gap_seconds: float = _LONGEST_GAP_SECONDS, *, is_live: bool = False) -> None:
        self._longest_gap_seconds = min(longest_gap_seconds, _LONGEST_GAP_SECONDS)
        self._latest_seconds = _LATEST_LIVE_SECONDS if is_live else _LATEST_SECONDS
        self._start: float | None = None

    def begin_again(self) -> None:
        """The next frame is due now."""
        self._start = None

    def due_at(self, at_seconds: float) -> float:
        """The moment in monotonic seconds, not before now; as in `wait`."""
        now = time.monotonic()
        return now if self._start is None else max(now, self._start + at_seconds)

    def wait(self, at_seconds: float) -> bool:
        """Waits until the moment; true when the wait was interrupted.

        Args:
            at_seconds: on the clock of the file.
        """
        now = time.monotonic()
        if self._start is None or now - self._start - at_seconds > self._latest_seconds:
            self._start = now - at_seconds
        wait_seconds = self._start + at_seconds - now
        if wait_seconds > self._longest_gap_seconds:
            self._start -= wait_seconds - self._longest_gap_seconds
            wait_seconds = self._longest_gap_seconds
        return current_interrupt().wait(max(0.0, wait_seconds))


class FrameRate:
    """Measures how many frames per second a stream sends.

    What FFmpeg says of a live stream is a guess: it takes the fields of H.264 for frames and reports twice the rate,
    and invents 25 for MJPEG. The rate is measured once: over the first 5 s of a connection, or its first 10 frames if
    these take longer.

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
        self._left_out = 0
        self._had_pts = False

    def add_left_out(self) -> None:
        """Counts a picture that is not decoded, between two frames."""
        if self._steps >= 0:
            self._left_out += 1

    def add(self, pts_seconds: float | None, monotonic_seconds: float) -> bool:
        """Counts a frame; true with the frame that makes the rate known.

        Args:
            pts_seconds: its presentation time, which is used if there is one; None otherwise.
            monotonic_seconds: when it came.
        """
        if self.fps is not None:
            return False
        self._steps += self._left_out
        self._left_out = 0
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
