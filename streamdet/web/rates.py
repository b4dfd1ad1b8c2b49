"""Frames per second and latency of one stream, counted from its events, second by second."""

from __future__ import annotations

import statistics
from collections import deque
from typing import NamedTuple

from streamdet.types import DetectionEvent

HISTORY_SAMPLES = 90
_WINDOW_SECONDS = 5.0
_MAX_MARKS = 16
# A second of a very fast stream; the median of so many is as good as that of all.
_MAX_LATENCIES = 120
# Silence of so many times the usual distance between two events means that nothing comes any more.
_SILENCE_INTERVALS = 3.0
_SHORTEST_SILENCE_SECONDS = 2.0


class Sample(NamedTuple):
    """What one second showed; rates are means over about five, so that slow streams do not jump.

    Attributes:
        fps_in: frames captured per second, by their numbers and times of capture.
        fps_out: events published per second, by theirs.
        latency_seconds: median from capture to publication; None without events.
        latency_p95_seconds: what 95 of 100 events did not exceed; None without events.
    """

    fps_in: float
    fps_out: float
    latency_seconds: float | None
    latency_p95_seconds: float | None


class _Mark(NamedTuple):
    """The last event of a second in which one came; `came_at` is monotonic, the others are Unix times."""

    came_at: float
    captured_at: float
    frame_seq: int
    published_at: float
    event_seq: int


class Rates:
    """Counts the events of one stream.

    Attributes:
        samples: the newest last.
    """

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=HISTORY_SAMPLES)
        self._marks: deque[_Mark] = deque(maxlen=_MAX_MARKS)
        self._newest: _Mark | None = None
        self._latencies: list[float] = []
        self._epoch = ""

    def note(self, event: DetectionEvent, now: float) -> None:
        """Counts an event that came at this monotonic time in seconds."""
        frame = event.frame
        mark = _Mark(now, frame.captured_at, frame.seq, event.published_at, event.seq)
        if event.epoch != self._epoch or not self._marks:
            # Nothing to compare with: this event is where counting begins.
            self._epoch = event.epoch
            self._marks.clear()
            self._marks.append(mark)
        self._newest = mark
        if len(self._latencies) < _MAX_LATENCIES:
            self._latencies.append(event.published_at - frame.captured_at)

    def tick(self, now: float) -> Sample:
        """Closes the second that ends at this monotonic time; called about once a second."""
        if self._newest is not None:
            self._marks.append(self._newest)
            self._newest = None
        while len(self._marks) > 2 and now - self._marks[1].came_at >= _WINDOW_SECONDS:
            self._marks.popleft()
        fps_in, fps_out = self._rates(now)
        latencies, self._latencies = sorted(self._latencies), []
        sample = Sample(
            fps_in=fps_in,
            fps_out=fps_out,
            latency_seconds=statistics.median(latencies) if latencies else None,
            latency_p95_seconds=latencies[int(len(latencies) * 0.95)] if latencies else None,
        )
        self.samples.append(sample)
        return sample

    def newest_latency(self) -> tuple[float | None, float | None]:
        """Median and 95 of 100 of the newest second that had events; None for a stream that is silent."""
        for sample in reversed(self.samples):
            if sample.fps_out == 0:
                break
            if sample.latency_seconds is not None:
                return sample.latency_seconds, sample.latency_p95_seconds
        return None, None

    def _rates(self, now: float) -> tuple[float, float]:
        if len(self._marks) < 2:
            return 0.0, 0.0
        first, last = self._marks[0], self._marks[-1]
        captured_seconds = last.captured_at - first.captured_at
        published_seconds = last.published_at - first.published_at
        events = last.event_seq - first.event_seq
        if captured_seconds <= 0 or published_seconds <= 0 or events <= 0:
            return 0.0, 0.0
        silence = max(_SILENCE_INTERVALS * published_seconds / events, _SHORTEST_SILENCE_SECONDS)
        if now - last.came_at > silence:
            # Counting begins anew with the next event, or the silence would count as slowness.
            self._marks.clear()
            return 0.0, 0.0
        frames = max(last.frame_seq - first.frame_seq, 0)
        return frames / captured_seconds, events / published_seconds
