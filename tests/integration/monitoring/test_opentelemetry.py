"""Traces, as a real collector gets them: OTLP over HTTP, read with OpenTelemetry's own protocol."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from streamdet import subscribe
from streamdet.assets import sample_clip
from streamdet.config import Config, MetricsConfig, PublisherConfig, StreamConfig, TracingConfig, load_config
from streamdet.detector.pool import DetectorPool
from streamdet.errors import ConfigError
from streamdet.extras import how_to_install
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.opentelemetry import Tracer
from streamdet.service.daemon import Daemon
from streamdet.types import Detection, DetectionEvent, Picture
from support.publishing import frame_of
from support.waiting import join

PATIENCE_SECONDS = 30.0


class Collector:
    """Keeps every span that is sent to it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        spans, services = self.spans, self.services

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest()
                request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                for of_resource in request.resource_spans:
                    services.update(a.value.string_value for a in of_resource.resource.attributes)
                    for of_scope in of_resource.scope_spans:
                        spans.extend(of_scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Tests are quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"

    def wait_for_trace(self, trace_id: str | None) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(span.trace_id.hex() == trace_id and span.name == "frame" for span in list(self.spans)):
            assert time.monotonic() < deadline, f"no trace {trace_id}"
            time.sleep(0.02)

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(self.spans) < count:
            assert time.monotonic() < deadline, f"{len(self.spans)} spans of {count}"
            time.sleep(0.02)


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    join(thread)


def test_a_trace_follows_a_frame_from_capture_to_publication(collector: Collector) -> None:
    tracer = Tracer(collector.endpoint, 1, "epoch-1")
    frame = frame_of("door", 7)
    taken_at = time.monotonic()
    with tracer.batch([frame], taken_at):
        tracer.stage("input", 0.001)
        tracer.stage("features", 0.002)
    assert tracer.take("door", 6) is None
    trace = tracer.take("door", 7)
    assert trace is not None
    tracer.published(trace, 42, 3)
    tracer.close()
    collector.wait_for(6)
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"frame", "decode", "queue", "input", "features", "publish"}
    root = spans.pop("frame")
    assert root.trace_id.hex() == trace.trace_id
    assert not root.parent_span_id
    for span in spans.values():
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    slack = 50_000_000
    assert abs(root.start_time_unix_nano / 1e9 - time.time()) < PATIENCE_SECONDS
    assert spans["queue"].start_time_unix_nano <= spans["queue"].end_time_unix_nano + slack
    assert (
        1_900_000 <= spans["features"].end_time_unix_nano - spans["features"].start_time_unix_nano <= 2_100_000 + slack
    )
    attributes = {entry.key: entry.value for entry in root.attributes}
    assert attributes["streamdet.stream"].string_value == "door"
    assert attributes["streamdet.frame.seq"].int_value == 7
    assert attributes["streamdet.event.seq"].int_value == 42
    assert attributes["streamdet.detections"].int_value == 3
    assert {"streamdet", "epoch-1"} <= collector.services


def test_as_many_are_traced_as_were_asked_for(collector: Collector) -> None:
    frames = [frame_of("door", seq) for seq in range(1, 11)]
    for ratio, least, most in ((0.0, 0, 0), (0.5, 300, 700), (1.0, 1000, 1000)):
        tracer = Tracer(collector.endpoint, ratio, "epoch-1")
        chosen = 0
        for _ in range(100):
            with tracer.batch(frames, time.monotonic()):
                pass
            chosen += sum(tracer.take("door", frame.seq) is not None for frame in frames)
        tracer.close()
        assert least <= chosen <= most


def test_stages_belong_to_the_batch_of_the_thread_that_reports_them(collector: Collector) -> None:
    tracer = Tracer(collector.endpoint, 1, "epoch-1")
    other = threading.Thread(target=tracer.stage, args=("proposals", 0.5), daemon=True)
    with tracer.batch([frame_of("door", 1)], time.monotonic()):
        other.start()
        join(other)
        tracer.stage("input", 0.001)
    tracer.stage("classify", 0.1)
    trace = tracer.take("door", 1)
    assert trace is not None
    assert [name for name, _, _ in trace.stages] == ["input"]
    tracer.close()


def test_a_collector_that_is_gone_costs_no_time() -> None:
    tracer = Tracer("http://127.0.0.1:9/v1/traces", 1, "epoch-1")
    began = time.monotonic()
    for seq in range(1, 500):
        with tracer.batch([frame_of("door", seq)], time.monotonic()):
            pass
        trace = tracer.take("door", seq)
        assert trace is not None
        tracer.published(trace, seq, 0)
    tracer.close()
    # Left to itself the library tries for half a minute.
    assert time.monotonic() - began < 20


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=re.escape(how_to_install("otel"))):
        Tracer("http://127.0.0.1:9/v1/traces", 0.001, "epoch-1")


def test_frames_that_are_never_published_are_forgotten(collector: Collector) -> None:
    tracer = Tracer(collector.endpoint, 1, "epoch-1")
    for seq in range(1, 3001):
        with tracer.batch([frame_of("door", seq)], time.monotonic()):
            pass
    assert tracer.take("door", 1) is None
    assert tracer.take("door", 3000) is not None
    assert sum(tracer.take("door", seq) is not None for seq in range(1, 3001)) <= 1024
    tracer.close()


class StagedStandIn:
    """Finds nothing, and says how long each of two stages took."""

    labels = ("person",)

    def __init__(self, _config: Config, metrics: Metrics) -> None:
        self._metrics = metrics

    def warm_up(self) -> None:
        """Needs none."""

    def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
        self._metrics.stage("input", 0.001)
        self._metrics.stage("features", 0.001)
        return [[] for _ in pictures]


def test_the_daemon_puts_the_trace_id_into_the_event(collector: Collector, tmp_path: Path) -> None:
    config = Config(
        publisher=PublisherConfig(endpoint=f"ipc://{tmp_path}/events"),
        metrics=MetricsConfig(endpoint="127.0.0.1:0"),
        tracing=TracingConfig(endpoint=collector.endpoint, sample_ratio=1),
        streams=(StreamConfig(name="clip", url=str(sample_clip()), loop=True),),
    )
    daemon = Daemon(config, load=lambda *arguments: DetectorPool([StagedStandIn(*arguments)]))
    running = threading.Thread(target=daemon.run, daemon=True)
    running.start()
    try:
        with subscribe(f"ipc://{tmp_path}/events", kinds=["detections"]) as items:
            event = next(item for item in items if isinstance(item, DetectionEvent))
        collector.wait_for_trace(event.trace_id)
    finally:
        daemon.stop()
        running.join()
    of_event = [span for span in collector.spans if span.trace_id.hex() == event.trace_id]
    assert {span.name for span in of_event} == {"frame", "decode", "queue", "input", "features", "publish"}


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("collector:4318", "must be the address of a collector"),
        ("ftp://collector", "must be the address of a collector"),
        ("http://", "must be the address of a collector"),
        ("http://me:secret@collector:4318", "must not hold a login"),
    ],
)
def test_a_wrong_endpoint_is_reported(endpoint: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "streamdet.toml"
    path.write_text(f'[tracing]\nendpoint = "{endpoint}"\n')
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(path)
    assert "streamdet.toml:2" in str(raised.value)
    assert "secret" not in str(raised.value)
