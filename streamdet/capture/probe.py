"""Opens streams once, for `streamdet check --probe`, and reports what they send, or why they cannot be read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from streamdet.capture.sources import Source, SourceInfo, open_source, read_sound
from streamdet.capture.sources.clocks import FrameRate
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.capture.watchdog import StallWatch
from streamdet.config import StreamConfig
from streamdet.errors import SourceError
from streamdet.security.plain_text import plain
from streamdet.types import Reason

_MOST_AT_ONCE = 64
_MEASURE_SECONDS = 1.0
# A camera of few frames, or without timestamps, takes longer.
_LONGEST_MEASURE_SECONDS = 3.5


@dataclass(frozen=True, slots=True)
class Probe:
    """What one try has shown.

    Attributes:
        stream: its name.
        info: what the stream is, with the size of its first frame; None when it cannot be read.
        fps: frames per second as a file says, or as measured of a live stream; None when unknown.
        first_frame_seconds: from the start of the connection to the first decoded frame.
        reason: why it cannot be read; None when it can.
        detail: the same in one line, without secrets.
    """

    stream: str
    info: SourceInfo | None = None
    fps: float | None = None
    first_frame_seconds: float | None = None
    reason: Reason | None = None
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As programs read it."""
        if self.info is None:
            return {"name": self.stream, "reason": self.reason, "detail": self.detail}
        return {
            "name": self.stream,
            "reason": None,
            "codec": self.info.codec,
            "width": self.info.width,
            "height": self.info.height,
            "fps": self.fps,
            "first_frame_seconds": round(self.first_frame_seconds or 0.0, 3),
            "backend": self.info.backend,
            "transport": self.info.transport,
            "hwaccel": self.info.hwaccel,
            "live": self.info.live,
        }


def probe_all(configs: Sequence[StreamConfig]) -> list[Probe]:
    """Tries all streams at the same time; returns the results in the order of `configs`.

    The stream that detection runs on, if it is another one, follows that of which it is a smaller copy.
    """
    configs = [each for config in configs for each in _streams_of(config)]
    if not configs:
        return []
    with ThreadPoolExecutor(min(len(configs), _MOST_AT_ONCE), "probe") as pool:
        return list(pool.map(probe, configs))


def probe(config: StreamConfig, interrupt: Interrupt | None = None) -> Probe:
    """Opens a stream and waits for a frame, no longer than its time-outs allow, or until the interrupt is set."""
    interrupt = interrupt or Interrupt()
    with interrupt.bound(), StallWatch().watched(interrupt.set, _raise) as watched:
        watched.begin(config.connect_timeout_seconds + config.stall_seconds)
        try:
            return _try(config)
        except SourceError as error:
            return Probe(config.name, reason=error.reason, detail=plain(error.detail))


def _streams_of(config: StreamConfig) -> list[StreamConfig]:
    if config.detect_url is None:
        return [config]
    detected = config.detected.model_copy(update={"name": f"{config.name} (detect_url)"})
    return [config.model_copy(update={"detect_url": None}), detected]


def _raise(error: BaseException) -> None:
    """Ends the watch's thread, which checks nothing else."""
    raise error


def _measure(source: Source) -> float:
    """Frames per second, by the stream's own time where it has one."""
    rate, started, frames = FrameRate(_MEASURE_SECONDS), time.monotonic(), 0
    while rate.fps is None and time.monotonic() - started < _LONGEST_MEASURE_SECONDS:
        rate.add(read_sound(source).pts_seconds, time.monotonic())
        frames += 1
    return round(rate.fps or frames / (time.monotonic() - started), 1)


def _try(config: StreamConfig) -> Probe:
    started = time.monotonic()
    # What a stream sends is of interest, not what is decoded of it.
    source = open_source(config.model_copy(update={"decode": "all"}))
    try:
        picture = read_sound(source).picture
        first_frame_seconds = time.monotonic() - started
        found = source.info
        info = SourceInfo(
            found.codec, picture.width, picture.height, found.fps, found.backend, found.hwaccel, found.transport,
            found.live,
        )  # fmt: skip
        fps = info.fps
        if fps is None and info.live:
            fps = _measure(source)
        return Probe(config.name, info, fps, first_frame_seconds)
    finally:
        source.close()
