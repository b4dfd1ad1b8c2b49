from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streamdet.config import MetricsConfig
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import STAGES, Metrics
from streamdet.service.pages import HealthServer, HealthSnapshot
from streamdet.types import Drop, Reason, State, StreamStatus
from support.prometheus_server import Prometheus, prometheus_of

_LOOPBACK = MetricsConfig(endpoint="127.0.0.1:0")


def _at(endpoint: str) -> MetricsConfig:
    """Whatever the endpoint: what the configuration would refuse must be refused when binding, too."""
    return MetricsConfig.model_construct(endpoint=endpoint)


_PATIENCE_SECONDS = 60.0
_LABELS = ("person", "car")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(Ledger())


def series(metrics: Metrics) -> dict[str, float]:
    """Every sample of the page: the name with its labels, and the value."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    }


def status(stream: str, state: State) -> StreamStatus:
    return StreamStatus(stream, state, None, "", 0.0)


def touch_everything(metrics: Metrics, stream: str) -> None:
    metrics.status(status(stream, State.UP))
    metrics.reconnect(stream, Reason.TIMEOUT)
    metrics.frame_captured(stream, 1_700_000_000.0)
    metrics.frame_captured(stream, 1_700_000_001.0)
    metrics.frame_dropped(stream, Drop.SUPERSEDED)
    metrics.frame_published(stream, 0.25, ["person", "person", "dog"])
    metrics.event_published(f"detections/{stream}/")
    metrics.event_published(f"preview/{stream}/")
    metrics.preview_encoded(stream, 0.004)
    metrics.object_began(stream, "person")
    metrics.object_began(stream, "dog")
    metrics.objects_present(stream, 2)


def test_every_series_of_a_stream_is_there_from_the_start(metrics: Metrics) -> None:
    metrics.set_stream("door", _LABELS)
    page = series(metrics)
    expected = [
        'streamdet_frames_captured_total{stream="door"}',
        'streamdet_frames_published_total{stream="door"}',
        'streamdet_frames_in_flight{stream="door"}',
        *(f'streamdet_frames_dropped_total{{reason="{reason}",stream="door"}}' for reason in Drop),
        *(f'streamdet_detections_total{{label="{label}",stream="door"}}' for label in _LABELS),
        *(f'streamdet_objects_total{{label="{label}",stream="door"}}' for label in _LABELS),
        'streamdet_objects_present{stream="door"}',
        *(f'streamdet_stream_state{{state="{state}",stream="door"}}' for state in State),
        *(f'streamdet_stream_reconnects_total{{reason="{reason}",stream="door"}}' for reason in Reason),
        'streamdet_stream_last_frame_timestamp_seconds{stream="door"}',
        'streamdet_stream_nominal_fps{stream="door"}',
        'streamdet_event_latency_seconds_count{stream="door"}',
        'streamdet_event_latency_seconds_bucket{le="0.005",stream="door"}',
        'streamdet_event_latency_seconds_bucket{le="10.0",stream="door"}',
        'streamdet_events_published_total{topic="detections/door/"}',
        'streamdet_events_published_total{topic="state/door/"}',
        'streamdet_events_published_total{topic="preview/door/"}',
        'streamdet_previews_encoded_total{stream="door"}',
        "streamdet_preview_encode_seconds_count",
        *(f'streamdet_stage_seconds_count{{stage="{stage}"}}' for stage in STAGES),
        "streamdet_capture_decode_seconds_count",
        "streamdet_batch_size_count",
        "streamdet_queue_wait_seconds_count",
        "streamdet_out_of_memory_total",
    ]
    assert {name: page.get(name) for name in expected} == dict.fromkeys(expected, 0.0)
    assert page["streamdet_config_last_reload_successful"] == 1
    assert page["process_resident_memory_bytes"] > 0
    assert any(re.fullmatch(r'streamdet_build_info\{python="3\.\d+\.\d+",version="[^"]+"\}', name) for name in page)


def test_the_numbers_are_those_reported(metrics: Metrics) -> None:
    metrics.set_stream("door", _LABELS)
    touch_everything(metrics, "door")
    metrics.stage("roi_pool", 0.5)
    page = series(metrics)
    assert page['streamdet_frames_captured_total{stream="door"}'] == 2
    assert page['streamdet_frames_published_total{stream="door"}'] == 1
    assert page['streamdet_frames_in_flight{stream="door"}'] == 0
    assert page['streamdet_frames_dropped_total{reason="superseded",stream="door"}'] == 1
    assert page['streamdet_detections_total{label="person",stream="door"}'] == 2
    assert page['streamdet_detections_total{label="dog",stream="door"}'] == 1
    assert page['streamdet_objects_total{label="person",stream="door"}'] == 1
    assert page['streamdet_objects_total{label="dog",stream="door"}'] == 1
    assert page['streamdet_objects_present{stream="door"}'] == 2
    assert page['streamdet_stream_reconnects_total{reason="timeout",stream="door"}'] == 1
    assert page['streamdet_stream_last_frame_timestamp_seconds{stream="door"}'] == 1_700_000_001
    assert page['streamdet_event_latency_seconds_sum{stream="door"}'] == 0.25
    assert page['streamdet_event_latency_seconds_bucket{le="0.2",stream="door"}'] == 0
    assert page['streamdet_event_latency_seconds_bucket{le="0.3",stream="door"}'] == 1
    assert page['streamdet_events_published_total{topic="detections/door/"}'] == 1
    assert page['streamdet_events_published_total{topic="preview/door/"}'] == 1
    assert page['streamdet_previews_encoded_total{stream="door"}'] == 1
    assert page["streamdet_preview_encode_seconds_sum"] == 0.004
    assert page['streamdet_stage_seconds_sum{stage="roi_pool"}'] == 0.5
    assert metrics.last_frame_at() == {"door": 1_700_000_001}


def test_series_of_a_rule_come_and_go_with_it_and_its_streams(metrics: Metrics) -> None:
    def shown() -> dict[str, float]:
        return {name: value for name, value in series(metrics).items() if name.startswith("streamdet_alerts")}

    metrics.set_rules([("night", "door"), ("night", "yard"), ("queue", "door")])
    assert len(shown()) == 6
    assert set(shown().values()) == {0.0}
    metrics.alert_raised("night", "door")
    metrics.alert_suppressed("night", "door")
    metrics.alert_raised("queue", "door")
    # A reload: one that stays goes on counting, and one that comes back begins again.
    metrics.set_rules([("night", "door")])
    metrics.alert_raised("queue", "door")
    metrics.alert_suppressed("night", "yard")
    assert shown() == {
        'streamdet_alerts_total{rule="night",stream="door"}': 1.0,
        'streamdet_alerts_suppressed_total{rule="night",stream="door"}': 1.0,
    }
    metrics.set_rules([("night", "door"), ("queue", "door")])
    assert shown()['streamdet_alerts_total{rule="queue",stream="door"}'] == 0
    metrics.set_rules([])
    assert shown() == {}


def test_a_stream_is_in_one_state_at_a_time(metrics: Metrics) -> None:
    metrics.set_stream("door", _LABELS)
    for state in State:
        metrics.status(status("door", state))
        page = series(metrics)
        states = {other: page[f'streamdet_stream_state{{state="{other}",stream="door"}}'] for other in State}
        assert states == {other: float(other is state) for other in State}


def test_the_reason_stands_there_while_a_stream_is_not_up(metrics: Metrics) -> None:
    metrics.set_stream("door", _LABELS)
    metrics.status(StreamStatus("door", State.DOWN, Reason.REFUSED, "", 1.0))
    reasons = {name: value for name, value in series(metrics).items() if name.startswith("streamdet_stream_reason")}
    assert reasons == {'streamdet_stream_reason{reason="refused",stream="door"}': 1.0}
    metrics.status(StreamStatus("door", State.UP, None, "", 2.0))
    assert not [name for name in series(metrics) if name.startswith("streamdet_stream_reason")]


@pytest.mark.parametrize(("promised", "shown"), [(25.0, 25.0), (None, 0.0), (90_000.0, 0.0), (0.0, 0.0), (-1.0, 0.0)])
def test_the_rate_that_a_source_promises_is_shown_if_it_can_be(
    metrics: Metrics, promised: float | None, shown: float
) -> None:
    metrics.set_stream("door", _LABELS)
    metrics.nominal_fps("door", promised)
    assert series(metrics)['streamdet_stream_nominal_fps{stream="door"}'] == shown


def test_a_removed_stream_is_gone_and_stays_gone(metrics: Metrics) -> None:
    before = set(series(metrics))
    metrics.set_stream("door", _LABELS)
    touch_everything(metrics, "door")
    metrics.remove_stream("door")
    assert set(series(metrics)) == before
    # A frame of it was still on its way.
    touch_everything(metrics, "door")
    metrics.remove_stream("door")
    assert set(series(metrics)) == before
    assert metrics.last_frame_at() == {}


def test_other_streams_do_not_notice(metrics: Metrics) -> None:
    for name in ("door", "door-2"):
        metrics.set_stream(name, _LABELS)
    touch_everything(metrics, "door-2")
    left = {name: value for name, value in series(metrics).items() if "door-2" in name}
    metrics.remove_stream("door")
    assert {name: value for name, value in series(metrics).items() if "door" in name} == left


def test_adding_a_stream_again_changes_nothing(metrics: Metrics) -> None:
    metrics.set_stream("door", _LABELS)
    touch_everything(metrics, "door")
    metrics.set_stream("door", _LABELS)
    assert series(metrics)['streamdet_frames_captured_total{stream="door"}'] == 2


def test_a_topic_of_no_stream_is_not_counted(metrics: Metrics) -> None:
    for topic in ("", "nonsense", "detections/ghost/"):
        metrics.event_published(topic)
    assert not any(name.startswith("streamdet_events_published_total{") for name in series(metrics))


def test_device_memory_is_read_at_each_scrape(metrics: Metrics) -> None:
    used = [1000]
    metrics.add_device("cuda:0", lambda: (used[0], 4000), None)
    assert series(metrics)['streamdet_device_memory_used_bytes{device="cuda:0"}'] == 1000
    used[0] = 2000
    page = series(metrics)
    assert page['streamdet_device_memory_used_bytes{device="cuda:0"}'] == 2000
    assert page['streamdet_device_memory_total_bytes{device="cuda:0"}'] == 4000


def test_counts_are_exact_while_streams_come_and_go_and_pages_are_read(metrics: Metrics) -> None:
    metrics.set_stream("stays", _LABELS)
    rounds = 400

    def report() -> None:
        for n in range(rounds):
            touch_everything(metrics, "stays")
            touch_everything(metrics, f"guest-{n % 3}")

    def come_and_go() -> None:
        for n in range(rounds):
            metrics.set_stream(f"guest-{n % 3}", _LABELS)
            metrics.remove_stream(f"guest-{(n + 1) % 3}")

    def read() -> None:
        for _ in range(10):
            list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))

    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(job) for job in (report, report, report, come_and_go, read)]
    for job in jobs:
        job.result()
    for n in range(3):
        metrics.remove_stream(f"guest-{n}")
    page = series(metrics)
    assert page['streamdet_detections_total{label="person",stream="stays"}'] == 3 * rounds * 2
    assert page['streamdet_event_latency_seconds_count{stream="stays"}'] == 3 * rounds
    assert page['streamdet_frames_captured_total{stream="stays"}'] == 3 * rounds * 2
    assert not [name for name in page if "guest" in name]


@pytest.mark.package("prometheus")
def test_promtool_finds_no_fault(metrics: Metrics) -> None:
    metrics.add_device("cuda:0", lambda: (1, 2), lambda: 0.5)
    for name in ("door", "yard"):
        metrics.set_stream(name, _LABELS)
    touch_everything(metrics, "door")
    page = generate_latest(metrics.registry)
    result = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.fixture
def prometheus(metrics: Metrics, tmp_path: Path) -> Iterator[Prometheus]:
    with (
        HealthServer(
            _LOOPBACK,
            metrics.registry,
            lambda: HealthSnapshot(healthy=True, ready=True),
        ) as server,
        prometheus_of(server.url.removeprefix("http://"), tmp_path) as running,
    ):
        yield running


@pytest.mark.package("prometheus")
def test_a_real_prometheus_scrapes_the_page(metrics: Metrics, prometheus: Prometheus) -> None:
    for name in ("door", "yard"):
        metrics.set_stream(name, _LABELS)
    touch_everything(metrics, "door")
    prometheus.wait_for("up", {"": 1})
    prometheus.wait_for("streamdet_frames_captured_total", {"door": 2, "yard": 0})
    prometheus.wait_for('streamdet_stream_state{state="up"}', {"door": 1, "yard": 0})
    prometheus.wait_for('streamdet_event_latency_seconds_bucket{le="+Inf"}', {"door": 1, "yard": 0})
    # A series that has gone is stale at the next scrape, not five minutes later.
    metrics.remove_stream("yard")
    prometheus.wait_for("streamdet_frames_captured_total", {"door": 2})


def test_a_stream_comes_up_once_for_each_connection(metrics: Metrics) -> None:
    metrics.set_stream("door", _LABELS)
    for state, reason, connects in (
        (State.CONNECTING, None, 0),
        (State.DOWN, Reason.REFUSED, 0),
        (State.CONNECTING, Reason.REFUSED, 0),
        (State.UP, None, 1),
        (State.UP, None, 1),
        # The connection is still the same.
        (State.STALLED, None, 1),
        (State.UP, None, 1),
        (State.CONNECTING, Reason.TIMEOUT, 1),
        (State.UP, None, 2),
    ):
        metrics.status(StreamStatus("door", state, reason, "", 1.0))
        assert metrics.registry.get_sample_value("streamdet_stream_connects_total", {"stream": "door"}) == connects
