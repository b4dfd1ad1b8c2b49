"""What the metrics page says of each stream, read where it is kept."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streamdet.monitoring.ledger import Ledger, StreamLedger
from streamdet.types import Reason, State


class StreamSeries:
    """The series of one stream. Looking a child up by its labels for every frame would cost more than counting.

    Attributes:
        last_frame_at: Unix time in seconds of the newest frame; 0 before the first.
        state: what the stream is doing; None before it was told.
        reason: why it is not up; None while it is.
        connects: how often it came up after it had not been connected.
        nominal_fps: frames per second at the beginning of the connection; 0 until they are measured.
    """

    __slots__ = (
        "connects",
        "detections",
        "event_latency",
        "events",
        "last_frame_at",
        "nominal_fps",
        "previews",
        "reason",
        "reconnects",
        "state",
    )

    def __init__(self, event_latency: Histogram, previews: Counter) -> None:
        self.last_frame_at = 0.0
        self.state: State | None = None
        self.reason: Reason | None = None
        self.connects = 0
        self.nominal_fps = 0.0
        self.event_latency = event_latency
        self.previews = previews
        self.detections: dict[str, Counter] = {}
        self.reconnects: dict[Reason, Counter] = {}
        self.events: dict[str, Counter] = {}


class StreamCollector(Collector):
    """Reads counts, states and times where they are kept, so that they cannot disagree."""

    def __init__(self, ledger: Ledger, streams: dict[str, StreamSeries]) -> None:
        self._ledger = ledger
        self._streams = streams

    def describe(self) -> Iterator[Metric]:
        """The families without their samples; the registry asks for the names."""
        return self._families({}, {})

    def collect(self) -> Iterator[Metric]:
        """The families with a sample for every stream."""
        return self._families(self._ledger.snapshot(), dict(self._streams))

    @staticmethod
    def _families(ledgers: dict[str, StreamLedger], streams: dict[str, StreamSeries]) -> Iterator[Metric]:
        captured = CounterMetricFamily("streamdet_frames_captured", "Frames decoded.", labels=["stream"])
        published = CounterMetricFamily("streamdet_frames_published", "Frames published.", labels=["stream"])
        in_flight = GaugeMetricFamily("streamdet_frames_in_flight", "Frames on their way.", labels=["stream"])
        dropped = CounterMetricFamily(
            "streamdet_frames_dropped", "Frames captured and not published.", labels=["stream", "reason"]
        )
        for name, counts in ledgers.items():
            captured.add_metric([name], counts.captured)
            published.add_metric([name], counts.published)
            in_flight.add_metric([name], counts.in_flight)
            for drop, count in counts.dropped.items():
                dropped.add_metric([name, drop.value], count)
        state = GaugeMetricFamily(
            "streamdet_stream_state", "1 for the state that the stream is in.", labels=["stream", "state"]
        )
        last_frame = GaugeMetricFamily(
            "streamdet_stream_last_frame_timestamp_seconds",
            "Unix time of the newest frame; 0 before the first.",
            labels=["stream"],
        )
        reason = GaugeMetricFamily(
            "streamdet_stream_reason", "1 for the reason why the stream is not up.", labels=["stream", "reason"]
        )
        connects = CounterMetricFamily(
            "streamdet_stream_connects",
            "Times that the stream came up: connected, and its first frame decoded.",
            labels=["stream"],
        )
        nominal_fps = GaugeMetricFamily(
            "streamdet_stream_nominal_fps",
            "Frames per second, measured over the first 5 s of the connection; 0 until then.",
            labels=["stream"],
        )
        for name, series in streams.items():
            current = series.state
            last_frame.add_metric([name], series.last_frame_at)
            nominal_fps.add_metric([name], series.nominal_fps)
            connects.add_metric([name], series.connects)
            if (why := series.reason) is not None:
                reason.add_metric([name, why.value], 1.0)
            for possible in State:
                state.add_metric([name, possible.value], float(possible is current))
        yield from (captured, published, in_flight, dropped, state, reason, last_frame, nominal_fps, connects)
