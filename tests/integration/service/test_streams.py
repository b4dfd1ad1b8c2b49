"""The streams that run, with real captures of real files; how one configuration replaces another."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from streamdet.assets import sample_clip
from streamdet.capture.thread import Capture
from streamdet.config import DetectorConfig, StreamConfig
from streamdet.errors import ApplyError
from streamdet.inference.batch_queue import BatchQueue
from streamdet.service.streams import Applied, Streams
from streamdet.types import DetectionSettings, Reason, State
from streamdet.worker import Worker
from support.publishing import metrics_of, publisher_at
from support.waiting import wait_until

_PATIENCE_SECONDS = 60.0


def clip(name: str, **changes: Any) -> StreamConfig:
    return StreamConfig(name=name, url=str(sample_clip()), loop=True, **changes)


class Running:
    def __init__(self) -> None:
        self.metrics = metrics_of()
        self.queue = BatchQueue(8, 0.01, self.metrics.frame_dropped)
        self.publisher = publisher_at(metrics=self.metrics)
        self.errors: list[Worker] = []
        self.streams = Streams(
            self.queue, self.publisher, self.metrics, self.metrics.ledger, ["person"], self.errors.append
        )

    def state(self, name: str) -> State:
        return self.streams.statuses()[name].state

    def captured(self, name: str) -> int:
        return self.metrics.ledger.snapshot()[name].captured

    def page(self) -> str:
        return generate_latest(self.metrics.registry).decode()


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    with running.publisher:
        yield running
        running.streams.stop()
    assert running.errors == []


def test_only_what_changed_is_reconnected(running: Running) -> None:
    streams = running.streams
    applied = streams.apply([clip("a"), clip("b"), clip("c"), clip("d")])
    assert applied == Applied(added=["a", "b", "c", "d"])
    wait_until(lambda: all(running.captured(name) > 0 for name in "abcd"))
    captures = dict(streams._captures)
    applied = streams.apply([clip("a"), clip("b", max_fps=5, weight=2), clip("c", stall_seconds=7), clip("e")])
    assert applied == Applied(added=["e"], reconnected=["c"], updated=["b"], removed=["d"])
    assert [streams._captures[name] is captures[name] for name in "abc"] == [True, True, False]
    assert running.queue._slots["b"].stream.max_fps == 5
    assert not captures["d"].is_alive()
    assert 'stream="d"' not in running.page()
    assert 'streamdet_frames_captured_total{stream="e"}' in running.page()
    assert set(streams.statuses()) <= {"a", "b", "c", "e"}
    assert (
        streams.apply([clip("a"), clip("b", max_fps=5, weight=2), clip("c", stall_seconds=7), clip("e")]) == Applied()
    )


def test_the_log_names_what_a_reload_did_without_secrets(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    zone = {"name": "door", "polygon": [[0, 0], [1, 0], [1, 1]]}
    old, new = (StreamConfig(name="old", url=f"rtsp://u:{secret}@127.0.0.1:9/") for secret in ("pl4nted1", "pl4nted2"))
    running.streams.apply([clip("front", max_fps=5), clip("gone"), old])
    running.streams.apply(
        [
            clip("front", max_fps=10, zones=[zone], paused=True),
            new,
            clip("yard"),
        ]
    )
    running.streams.apply([clip(f"s{number}", paused=True) for number in range(25)])
    lines = [text for text in caplog.messages if text.startswith("streams: ")]
    assert lines[0] == "streams: added: front, gone, old"
    assert lines[1] == (
        "streams: added: yard; changed: front (max_fps 5 -> 10, zones, paused false -> true), old (url); removed: gone"
    )
    assert "s19 and 5 more; removed: " in lines[2]
    assert "pl4nted" not in caplog.text


def test_frames_are_numbered_on_over_a_reconnect_and_a_removal(running: Running) -> None:
    running.streams.apply([clip("a")])
    wait_until(lambda: running.captured("a") > 3)
    running.streams.apply([])
    last = running.streams._last_seqs["a"]
    assert last > 3
    running.streams.apply([clip("a")])
    wait_until(lambda: running.captured("a") > 0)
    assert running.streams._captures["a"].last_seq > last


def test_what_captures_cost_is_known(running: Running) -> None:
    assert running.streams.cpu_seconds() == 0
    running.streams.apply([clip("a"), clip("b")])
    wait_until(lambda: running.captured("a") > 5 and running.captured("b") > 5)
    costs = [capture.cpu_seconds() for capture in running.streams._captures.values()]
    assert len(costs) == 2
    assert all(cost > 0 for cost in costs)
    assert sum(costs) <= running.streams.cpu_seconds() < time.process_time()
    running.streams.stop()
    assert running.streams.cpu_seconds() == 0


def test_a_paused_stream_stays_configured_and_captures_nothing(running: Running) -> None:
    running.streams.apply([clip("a"), clip("b", paused=True)])
    status = running.streams.statuses()["b"]
    assert (status.state, status.reason) == (State.DOWN, Reason.PAUSED)
    assert not running.streams.all_ended()
    wait_until(lambda: running.captured("a") > 0)
    running.streams.apply([clip("a", paused=True), clip("b")])
    assert running.state("a") is State.DOWN
    captured = running.captured("a")
    assert f'streamdet_frames_captured_total{{stream="a"}} {captured:.1f}' in running.page()
    assert 'streamdet_stream_state{state="down",stream="a"} 1.0' in running.page()
    wait_until(lambda: running.captured("b") > 0)
    assert running.captured("a") == captured
    running.streams.apply([clip("a"), clip("b")])
    wait_until(lambda: running.captured("a") > captured)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), MemoryError(), OSError(24, "Too many open files")]
)
def test_without_a_thread_nothing_changes(running: Running, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    running.streams.apply([clip("a"), clip("b")])
    wait_until(lambda: running.captured("a") > 0 and running.captured("b") > 0)
    captures, threads = dict(running.streams._captures), threading.active_count()
    start = Capture.start

    def fails_at_last(capture: Capture) -> None:
        if capture.name == "capture-z":
            raise error
        start(capture)

    monkeypatch.setattr(Capture, "start", fails_at_last)
    with pytest.raises(ApplyError, match="run as before"):
        running.streams.apply([clip("b", stall_seconds=3), clip("c"), clip("z")])
    assert running.streams._captures == captures
    assert set(running.metrics.ledger.snapshot()) == {"a", "b"}
    assert set(running.queue._slots) == {"a", "b"}
    assert threading.active_count() == threads
    before = running.captured("b")
    wait_until(lambda: running.captured("b") > before)
    monkeypatch.undo()
    assert running.streams.apply([clip("b"), clip("c")]) == Applied(added=["c"], removed=["a"])


def test_without_memory_nothing_changes(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.streams.apply([clip("a")])
    wait_until(lambda: running.captured("a") > 0)
    threads, set_stream = threading.active_count(), running.queue.set_stream

    def fails_at_last(config: StreamConfig, *settings: DetectionSettings) -> None:
        if config.name == "z":
            raise MemoryError
        set_stream(config, *settings)

    monkeypatch.setattr(running.queue, "set_stream", fails_at_last)
    with pytest.raises(ApplyError, match="run as before"):
        running.streams.apply([clip("a"), clip("c"), clip("z")])
    assert set(running.queue._slots) == set(running.metrics.ledger.snapshot()) == {"a"}
    assert threading.active_count() == threads
    monkeypatch.undo()
    assert running.streams.apply([clip("a"), clip("c")]) == Applied(added=["c"])


def test_settings_of_the_detector_reach_the_streams_that_do_not_have_their_own(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    streams = running.streams
    configs = [clip("own", score_threshold=0.2, labels=["person"]), clip("a"), clip("b", max_fps=5)]
    streams.apply(configs)
    wait_until(lambda: all(running.captured(name) > 0 for name in ("own", "a", "b")))
    captures = dict(streams._captures)
    with caplog.at_level("INFO"):
        applied = streams.apply(configs, (), DetectorConfig(score_threshold=0.7, workers=3))
    assert applied == Applied(updated=["a", "b"])
    assert "detector: score_threshold 0.5 -> 0.7" in caplog.messages
    assert "streams: changed: a ([detector]), b ([detector])" in caplog.messages
    assert streams._captures == captures
    thresholds = {name: slot.settings.score_threshold for name, slot in running.queue._slots.items()}
    assert thresholds == {"own": 0.2, "a": 0.7, "b": 0.7}
    assert streams.apply(configs, (), DetectorConfig(score_threshold=0.7)) == Applied()


def test_there_is_a_series_for_every_label_that_a_stream_publishes(running: Running) -> None:
    def labels(stream: str) -> set[str]:
        return set(re.findall(rf'streamdet_detections_total{{label="(.*)",stream="{stream}"}}', running.page()))

    running.streams.apply([clip("a"), clip("b", labels=["car"])])
    assert (labels("a"), labels("b")) == ({"person"}, {"car"})
    running.streams.apply([clip("a"), clip("b", labels=["person", "bus"])])
    assert labels("b") == {"car", "person", "bus"}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.stress
def test_adding_and_removing_again_and_again_leaves_nothing_behind(running: Running) -> None:
    rounds = int(os.environ.get("STREAMDET_STRESS_ROUNDS", "100"))
    keep = clip("keep")

    def cycle(number: int) -> None:
        refused = StreamConfig(name=f"refused-{number % 3}", url="rtsp://127.0.0.1:1/x")
        running.streams.apply([keep, clip("file"), refused])
        if number % 10 == 0:
            wait_until(lambda: running.captured("file") > 0)
        running.streams.apply([keep])

    for number in range(20):
        cycle(number)
    threads, files, memory = threading.active_count(), open_files(), resident_bytes()
    for number in range(rounds):
        cycle(number)
    assert threading.active_count() <= threads
    assert open_files() <= files + 2
    assert resident_bytes() - memory < 20_000_000
    print(f"{rounds} rounds: {resident_bytes() - memory} bytes more, {open_files() - files} files more")  # noqa: T201
    assert set(running.streams._captures) == {"keep"}
    assert 'stream="file"' not in running.page()
