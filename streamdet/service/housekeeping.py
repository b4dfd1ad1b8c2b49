"""The daemon's tasks once a second: measures rates and cores, reports to systemd, returns memory to the kernel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from streamdet.detector.memory import TRIM_SECONDS
from streamdet.inference.thread import InferenceGroup
from streamdet.monitoring import systemd
from streamdet.monitoring.rates import Rates
from streamdet.service.streams import Streams
from streamdet.types import State

_TICK_SECONDS = 1.0
# How long frames may be due without one coming out, where systemd does not watch.
_STUCK_SECONDS = 60.0
# Dropped frames per second from which on the status names them.
_NOTABLE_FPS = 0.1
# Of the newest measurement in the mean: several seconds count, not one.
_NEWEST_SHARE = 0.3


class Housekeeping:
    """Beats while the daemon is up; for one thread.

    Args:
        rates: are sampled.
        streams: their states are reported.
        inference: its work feeds the watchdog.
        cores: that inference shares with captures; None to let all its workers detect at all times.
        trim: gives memory back.
        trim_seconds: how often that is done.
        clock: monotonic seconds.

    Attributes:
        tick_seconds: the longest wait between two beats.
    """

    def __init__(
        self,
        rates: Rates,
        streams: Streams,
        inference: InferenceGroup,
        cores: int | None,
        trim: Callable[[], None],
        *,
        trim_seconds: float = TRIM_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        interval = systemd.watchdog_interval_seconds()
        self.tick_seconds = min(_TICK_SECONDS, interval / 2) if interval else _TICK_SECONDS
        self._rates = rates
        self._streams = streams
        self._inference = inference
        self._spare = None if cores is None else SpareCores(cores, streams.cpu_seconds, clock)
        self._trim_seconds = trim_seconds
        self._trim = trim
        self._clock = clock
        self._fed_at = float("-inf")
        self._trim_at = float("-inf")  # what the start has left behind goes first

    def beat(self) -> None:
        """Does what is due."""
        self._rates.sample()
        if self._spare is not None:
            self._inference.limit(self._spare.sample())
        self._streams.settle_log()
        systemd.status(self._status())
        self._feed_watchdog()
        if self._clock() >= self._trim_at:
            self._trim()
            self._trim_at = self._clock() + self._trim_seconds

    def _status(self) -> str:
        """One line for `systemctl status`."""
        states = [status.state for status in self._streams.statuses().values()]
        rates = self._rates.fps().values()
        fps_in, fps_out = sum(fps.captured for fps in rates), sum(fps.published for fps in rates)
        limited, overload = sum(fps.rate_limited for fps in rates), sum(fps.overload for fps in rates)
        text = f"{states.count(State.UP)} of {len(states)} streams up, {fps_in:.1f} fps in, {fps_out:.1f} fps out"
        not_decoded, gated = sum(fps.not_decoded for fps in rates), sum(fps.gated for fps in rates)
        if limited + overload + not_decoded + gated >= _NOTABLE_FPS:
            also = f", {not_decoded:.1f} not decoded" if not_decoded >= _NOTABLE_FPS else ""
            also += f", {gated:.1f} by the motion gate" if gated >= _NOTABLE_FPS else ""
            text += f" ({limited:.1f} left out by max_fps, {overload:.1f} by overload{also})"
        return text

    def _feed_watchdog(self) -> None:
        """Feeds it once every worker with something to do has made progress since the last time, however long it took.

        So the watchdog follows work: a stuck detector starves it.
        """
        now = self._clock()
        if now - self._inference.seconds_without_progress(now) > self._fed_at:
            systemd.watchdog()
            self._fed_at = now


def stuck_after_seconds() -> float:
    """When the detector counts as stuck: before systemd ends the process for it, so that it can be seen."""
    interval = systemd.watchdog_interval_seconds()
    return interval / 2 if interval else _STUCK_SECONDS


class SpareCores:
    """How many threads that detect the cores have room for; for one thread.

    More of them than that would take from captures what these need, and from each other: on two cores, beside 16
    captures that used 1.3, one detected 14 frames/s and two 10; beside captures that used 0.3, two 27 and one 20.

    What detection itself uses is not measured: OpenVINO computes in threads of its own.

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
