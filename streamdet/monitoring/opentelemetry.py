"""Follows single frames from capture to publication, as OpenTelemetry traces.

One trace per sampled frame: a span `frame` with the children `decode`, `queue`, the seven stages of its batch, and
`publish`. The frame's event has its id, so that the trace of an event can be found.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from streamdet.errors import ConfigError
from streamdet.extras import how_to_install
from streamdet.types import Frame

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

_EXPORT_TIMEOUT_SECONDS = 5.0
_FLUSH_SECONDS = 1.0
# Most frames that were detected and wait to be published.
_MAX_DETECTED = 1024


@dataclass(slots=True)
class FrameTrace:
    """What is known of one sampled frame so far; belongs to one thread at a time, like its frame.

    Times are monotonic seconds.

    Attributes:
        span: the whole frame.
        captured_at: when it had been decoded.
        decode_seconds: how long that took.
        taken_at: when its batch left the queue.
        stages: name, end and duration in seconds of each stage of its batch.
        detected_at: when its detections were there.
        unix_offset_nanoseconds: from the monotonic clock to Unix time; one per trace, so that its spans agree.
    """

    span: Span
    captured_at: float
    decode_seconds: float
    taken_at: float
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    detected_at: float = 0.0
    unix_offset_nanoseconds: int = 0

    def unix_nanoseconds(self, monotonic_seconds: float) -> int:
        """A moment of this frame as OpenTelemetry wants it."""
        return int(monotonic_seconds * 1e9) + self.unix_offset_nanoseconds

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, as OpenTelemetry writes them."""
        return format(self.span.get_span_context().trace_id, "032x")


class Tracer:
    """Samples frames, and hands their traces to the collector in a thread of the library's own.

    A collector that is slow or cannot be reached costs traces, never frames.

    Args:
        endpoint: of the collector.
        sample_ratio: share of the frames that are traced, 0 to 1.
        epoch: of the daemon; part of every trace.

    Raises:
        ConfigError: the extra `streamdet[otel]` is not installed.
    """

    def __init__(self, endpoint: str, sample_ratio: float, epoch: str) -> None:
        self._ratio = sample_ratio
        self._provider, self._exporter = _provider(endpoint, epoch)
        self._tracer = self._provider.get_tracer("streamdet")
        self._of_thread = threading.local()
        self._detected: dict[tuple[str, int], FrameTrace] = {}

    @contextmanager
    def batch(self, frames: Sequence[Frame], taken_at: float) -> Iterator[None]:
        """Traces some frames of a batch: the stages that this thread reports within the block are theirs.

        Args:
            frames: of the batch.
            taken_at: when it left the queue, in monotonic seconds.
        """
        chosen = [frame for frame in frames if random.random() < self._ratio]  # noqa: S311 - not a secret
        traces = [self._begin(frame, len(frames), taken_at) for frame in chosen]
        self._of_thread.traces = traces
        try:
            yield
        finally:
            self._of_thread.traces = []
            for frame, trace in zip(chosen, traces, strict=True):
                trace.detected_at = time.monotonic()
                self._detected[frame.stream, frame.seq] = trace
            while len(self._detected) > _MAX_DETECTED:
                # Frames that never came to be published, because their stream was removed.
                self._detected.pop(next(iter(self._detected)), None)

    def stage(self, stage: str, seconds: float) -> None:
        """The batch of this thread has just spent this time in a stage."""
        for trace in getattr(self._of_thread, "traces", ()):
            trace.stages.append((stage, time.monotonic(), seconds))

    def take(self, stream: str, frame_seq: int) -> FrameTrace | None:
        """The trace of a frame that is about to be published; None if it was not chosen."""
        return self._detected.pop((stream, frame_seq), None) if self._detected else None

    def published(self, trace: FrameTrace, seq: int, detections: int) -> None:
        """The frame's event was handed to ZeroMQ just now: the trace is complete.

        Args:
            trace: of the frame.
            seq: of the event.
            detections: how many it contains.
        """
        now = time.monotonic()
        self._child(trace, "decode", trace.captured_at - trace.decode_seconds, trace.captured_at)
        self._child(trace, "queue", trace.captured_at, trace.taken_at)
        for stage, ended_at, seconds in trace.stages:
            self._child(trace, stage, ended_at - seconds, ended_at)
        self._child(trace, "publish", trace.detected_at, now)
        trace.span.set_attributes({"streamdet.event.seq": seq, "streamdet.detections": detections})
        trace.span.end(trace.unix_nanoseconds(now))

    def close(self) -> None:
        """Sends what waits, but gives up after a second: the library would try for half a minute."""
        deadline = threading.Timer(_FLUSH_SECONDS, self._exporter.shutdown)
        deadline.start()
        self._provider.shutdown()
        deadline.cancel()
        deadline.join()

    def _begin(self, frame: Frame, batch_size: int, taken_at: float) -> FrameTrace:
        captured_at = frame.captured_monotonic_seconds
        attributes: dict[str, str | int] = {
            "streamdet.stream": frame.stream,
            "streamdet.frame.seq": frame.seq,
            "streamdet.batch_size": batch_size,
        }
        offset = time.time_ns() - time.monotonic_ns()
        began_at = int((captured_at - frame.decode_seconds) * 1e9) + offset
        span = self._tracer.start_span("frame", start_time=began_at, attributes=attributes)
        return FrameTrace(span, captured_at, frame.decode_seconds, taken_at, unix_offset_nanoseconds=offset)

    def _child(self, trace: FrameTrace, name: str, began_at: float, ended_at: float) -> None:
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415 - part of an extra

        context = set_span_in_context(trace.span)
        span = self._tracer.start_span(name, context, start_time=trace.unix_nanoseconds(began_at))
        span.end(trace.unix_nanoseconds(ended_at))


class _Exporter:
    """An exporter that may be shut down from another thread, and more than once."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()
        self._ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends them, unless it was shut down."""
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415 - part of an extra

        return SpanExportResult.FAILURE if self._ended else self._exporter.export(spans)

    def shutdown(self) -> None:
        """Ends the export that is under way."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is kept here."""
        return self._exporter.force_flush(timeout_millis)


def _provider(endpoint: str, epoch: str) -> tuple[TracerProvider, _Exporter]:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415
    except ModuleNotFoundError as error:
        message = f"[tracing] endpoint needs OpenTelemetry ({error.name} is missing): {how_to_install('otel')}"
        raise ConfigError([message]) from error
    resource = Resource.create({"service.name": "streamdet", "service.instance.id": epoch})
    # The tracer samples itself: spans of other frames are not even created.
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    exporter = _Exporter(OTLPSpanExporter(endpoint, timeout=_EXPORT_TIMEOUT_SECONDS))
    provider.add_span_processor(BatchSpanProcessor(cast("SpanExporter", exporter)))
    return provider, exporter
