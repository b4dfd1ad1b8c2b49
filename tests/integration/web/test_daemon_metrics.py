"""What the page reads from the daemon's metrics page: the real page, over the real port."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from streamdet.config import MetricsConfig
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.service.pages import HealthServer, HealthSnapshot
from streamdet.types import Drop
from streamdet.web.daemon_metrics import Stages

_LOOPBACK = MetricsConfig(endpoint="127.0.0.1:0")


def test_stage_times_batches_and_drops_of_the_last_seconds() -> None:
    metrics = Metrics(Ledger())
    for stream in ("gate", "yard"):
        metrics.set_stream(stream, ["person"])
    metrics.stage("features", 7.0)  # before the page looked: must not count
    with HealthServer(
        _LOOPBACK,
        metrics.registry,
        lambda: HealthSnapshot(healthy=True, ready=True),
        metrics_age_seconds=(0.0, 0.0),
    ) as server:
        stages = Stages(server.url.removeprefix("http://"), min_interval_seconds=0)
        asyncio.run(stages.read())
        first = stages.summary("gate")
        assert first["stages"] == []
        for _ in range(4):
            metrics.stage("features", 0.020)
            metrics.stage("classify", 0.005)
            metrics.batch_size.observe(3)
            metrics.queue_wait_seconds.observe(0.010)
            metrics.frame_captured("gate", 1.0)
            metrics.frame_dropped("gate", Drop.SUPERSEDED)
        asyncio.run(stages.read())
        read, other = stages.summary("gate"), stages.summary("yard")
        dropped = stages.dropped()
    times = {stage["stage"]: stage["ms"] for stage in read["stages"]}
    assert times["features"] == pytest.approx(20)
    assert times["classify"] == pytest.approx(5)
    assert times["input"] is None
    assert read["batch_size"] == 3
    assert read["queue_wait_ms"] == pytest.approx(10)
    assert read["dropped_fps"]["superseded"] > 0
    assert read["problem"] == ""
    assert other["dropped_fps"] == {}
    assert dropped == {"gate": read["dropped_fps"]}


def test_what_was_read_before_no_one_looked_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("gate", ["person"])

    def health() -> HealthSnapshot:
        return HealthSnapshot(healthy=True, ready=True)

    with HealthServer(_LOOPBACK, metrics.registry, health, metrics_age_seconds=(0.0, 0.0)) as server:
        stages = Stages(server.url.removeprefix("http://"), min_interval_seconds=0)
        for _ in range(2):
            asyncio.run(stages.read())
        assert stages.summary("gate")["stages"]
        # As if more than the window had passed.
        monkeypatch.setattr("streamdet.web.daemon_metrics._WINDOW_SECONDS", 0.0)
        asyncio.run(stages.read())
        assert stages.summary("gate")["stages"] == []


def test_a_page_that_is_not_there_is_a_line_and_no_error() -> None:
    stages = Stages("127.0.0.1:1")
    asyncio.run(stages.read())
    read = stages.summary("gate")
    assert "cannot be read" in read["problem"]
    assert read["stages"] == []
    assert stages.dropped() == {}
    assert "without --metrics" in Stages(None).summary("gate")["problem"]


def test_an_answer_that_is_not_http_is_a_line_and_is_not_asked_for_at_once_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asked: list[bytes] = []

        def greet() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\n")
                asked.append(client.recv(4096))

        other = threading.Thread(target=greet, daemon=True)
        other.start()
        stages = Stages(f"127.0.0.1:{listener.getsockname()[1]}", min_interval_seconds=30)
        asyncio.run(stages.read())
        other.join()
        assert "cannot be read" in stages.summary("gate")["problem"]
        # No one would answer it.
        asyncio.run(stages.read())
        assert len(asked) == 1
