"""What the daemon does once a second: measures rates and cores, tells systemd how things are, gives memory back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from streamdet.detector.memory import TRIM_SECONDS, trim_memory
from streamdet.inference.thread import InferenceGroup
from streamdet.monitoring import systemd
from streamdet.monitoring.rates import Rates
from streamdet.service.streams import Streams
from streamdet.types import State

# Of what was measured last, in the mean that is used: some seconds count, not one of them.
_NEWEST_SHARE = 0.3


class SpareCores:
    """How many threads that detect the cores have room for; for one thread.

    More of them than that would take from captures what these need, and from each other: on two cores, beside 16
    captures that used 1.3, one detected 14 frames/s and two 10; beside captures that used 0.3, two 27 and one 20.

    What detection itself uses is not asked for: OpenVINO computes in threads of its own.

    Args:
        cores: that the process may use.
        captures_seconds: CPU time that captures have taken so far; it may fall when one ends.
        clock: monotonic seconds.
    """

    def __init__(
        self, cores: int, captures_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cores = cores
        self._captures_seconds = captures_seconds
        self._clock = clock
        self._measured_at = clock()
        self._seconds = captures_seconds()
        self._captures_cores = 0.0

    def sample(self) -> int:
        """The number of threads that fit, 1 to `cores`; a core of which captures use a part still counts.

        Call it about once a second.
        """
        now, seconds = self._clock(), self._captures_seconds()
        if now > self._measured_at:
            used = max(seconds - self._seconds, 0.0) / (now - self._measured_at)
            self._captures_cores += _NEWEST_SHARE * (used - self._captures_cores)
            self._measured_at, self._seconds = now, seconds
        return min(max(math.ceil(self._cores - self._captures_cores), 1), self._cores)


_TICK_SECONDS = 1.0
# How long frames may be due without one coming out, where no watchdog says it.
_STUCK_SECONDS = 60.0
# Frames per second that are left out, from which on it is said.
_NOTABLE = 0.1


class Housekeeping:
    """Beats while the daemon is up; for one thread.

    Args:
        rates: to be measured.
        streams: to be told of.
        inference: whose work feeds the watchdog.
        cores: that inference shares with captures; None to let all its workers detect at all times.
        trim: gives back memory that is not needed, once a minute.

    Attributes:
        tick_seconds: how long to wait between two beats at the most.
    """

    def __init__(
        self,
        rates: Rates,
        streams: Streams,
        inference: InferenceGroup,
        cores: int | None = None,
        trim: Callable[[], None] = trim_memory,
    ) -> None:
        interval = systemd.watchdog_interval_seconds()
        self.tick_seconds = min(_TICK_SECONDS, interval / 2) if interval else _TICK_SECONDS
        self._rates = rates
        self._streams = streams
        self._inference = inference
        self._spare = None if cores is None else SpareCores(cores, streams.cpu_seconds)
        self._fed_at = float("-inf")
        self._trim = trim
        self._trim_at = float("-inf")  # what the start has left behind goes first

    def beat(self) -> None:
        """Does all of it, as far as it is due."""
        self._rates.sample()
        if self._spare is not None:
            self._inference.limit(self._spare.sample())
        self._streams.settle_log()
        self._report()
        if time.monotonic() >= self._trim_at:
            self._trim()
            self._trim_at = time.monotonic() + TRIM_SECONDS

    def _report(self) -> None:
        """Tells systemd how things are; the watchdog is fed by work, so that a stuck detector starves it."""
        states = [status.state for status in self._streams.statuses().values()]
        rates = self._rates.fps().values()
        fps_in, fps_out = sum(fps.captured for fps in rates), sum(fps.published for fps in rates)
        up = f"{states.count(State.UP)} of {len(states)} streams up"
        limited, overload = sum(fps.rate_limited for fps in rates), sum(fps.overload for fps in rates)
        why = (
            f" ({limited:.1f} left out by max_fps, {overload:.1f} by overload)"
            if limited + overload >= _NOTABLE
            else ""
        )
        systemd.status(f"{up}, {fps_in:.1f} fps in, {fps_out:.1f} fps out{why}")
        self._feed_watchdog()

    def _feed_watchdog(self) -> None:
        """Feeds it once every worker with something to do has got on since the last time, however long that took."""
        now = time.monotonic()
        if now - self._inference.seconds_without_progress(now) > self._fed_at:
            systemd.watchdog()
            self._fed_at = now


def stuck_after_seconds() -> float:
    """When it is told that the detector is stuck: before systemd ends the process for it, so that it can be seen."""
    interval = systemd.watchdog_interval_seconds()
    return interval / 2 if interval else _STUCK_SECONDS
