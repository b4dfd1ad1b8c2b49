"""A subscriber that is started again goes on where it has stopped."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from streamdet import DetectionEvent, Gap, Restart, subscribe
from streamdet.client.recovery import Position, RecoveryTimes
from streamdet.config import ReplayConfig, SpoolConfig
from streamdet.delivery.publisher import Publisher
from streamdet.delivery.spool import Spool
from support.processes import DaemonProcess, stream
from support.publishing import PERSON, frame_of, metrics_of, publisher_at, status_of
from support.waiting import wait_until

PATIENCE_SECONDS = 30.0
REPLAY = ReplayConfig(endpoint="tcp://127.0.0.1:0")
SOON = RecoveryTimes(check_seconds=0.3, on_its_way_seconds=0.2)
SUBSCRIBER = Path(__file__).parents[2] / "support" / "servers" / "resuming_subscriber.py"


def put(publisher: Publisher, stream: str, seqs: range) -> None:
    for seq in seqs:
        publisher.put_detections(frame_of(stream, seq), [PERSON])
    topic = f"detections/{stream}/"
    wait_until(lambda: publisher._writer.seqs.get(topic) == seqs[-1], "all published")


def items(
    publisher: Publisher,
    resume: Position | None,
    last: int,
    stream: str = "a",
    labels: list[str] | None = None,
    epoch: str | None = None,
) -> tuple[list[Any], Position]:
    """What comes about a stream's detections until its event `last`, of the present epoch or another; the position."""
    found: list[Any] = []
    with subscribe(
        publisher.endpoint, kinds=["detections", "state"], labels=labels, replay=True, resume=resume,
        replay_endpoint=publisher.replay_endpoint, recovery_times=SOON,
    ) as events:  # fmt: skip
        while True:
            item = events.receive(PATIENCE_SECONDS)
            assert item is not None, found
            if isinstance(item, DetectionEvent) and item.stream == stream:
                found.append((item.epoch, item.seq))
                if found[-1] == (epoch or publisher._writer._epoch, last):
                    return found, json.loads(json.dumps(events.position()))
            elif isinstance(item, Gap | Restart) and item.topic == f"detections/{stream}/":
                found.append(item)


def test_it_goes_on_after_exactly_the_last_item() -> None:
    with publisher_at(replay=REPLAY) as publisher:
        put(publisher, "a", range(1, 5))
        found, position = items(publisher, None, 4)
        assert found == [("epoch-1", 4)]
        put(publisher, "a", range(5, 8))
        put(publisher, "b", range(1, 3))
        found, _ = items(publisher, position, 7)
        assert found == [("epoch-1", seq) for seq in range(5, 8)]
        # A topic that has begun meanwhile is complete.
        found, position = items(publisher, position, 2, "b")
        assert found == [("epoch-1", 1), ("epoch-1", 2)]


def test_an_item_that_was_not_handed_out_is_not_in_the_position() -> None:
    with publisher_at(replay=REPLAY) as publisher:
        put(publisher, "a", range(1, 3))
        _, position = items(publisher, None, 2)
        put(publisher, "a", range(3, 300))
        with subscribe(
            publisher.endpoint, replay=True, resume=position, replay_endpoint=publisher.replay_endpoint
        ) as events:
            seen = [events.receive(PATIENCE_SECONDS) for _ in range(10)]
            position = events.position()
        assert [event.seq for event in seen if isinstance(event, DetectionEvent)] == list(range(3, 13))
        assert position["detections/a/"] == ("epoch-1", 12)
        assert items(publisher, position, 299)[0] == [("epoch-1", seq) for seq in range(13, 300)]


def test_what_is_no_longer_kept_is_a_gap() -> None:
    few = ReplayConfig(endpoint="tcp://127.0.0.1:0", max_events=10)
    with publisher_at(replay=few) as publisher:
        put(publisher, "a", range(1, 3))
        _, position = items(publisher, None, 2)
        put(publisher, "a", range(3, 43))
        found, _ = items(publisher, position, 42)
        assert found == [Gap("a", "detections/a/", 3, 30), *(("epoch-1", seq) for seq in range(33, 43))]


def test_it_goes_on_in_the_epochs_that_have_ended_since(tmp_path: Path) -> None:
    spooled = SpoolConfig(directory=str(tmp_path))
    position: Position | None = None
    for epoch in ("e1", "e2", "e3"):
        metrics = metrics_of()
        with (
            Spool(spooled, epoch, metrics.delivery) as spool,
            publisher_at(epoch=epoch, metrics=metrics, replay=REPLAY, archive=spool) as publisher,
        ):
            if epoch == "e3":
                # The stream "b" had its only events in between, in an epoch that no subscriber has seen.
                publisher.put_status(status_of("a"))
                put(publisher, "a", range(1, 2))
                found, _ = items(publisher, position, 1)
                assert found == [
                    ("e1", 3), ("e1", 4), Restart("a", "detections/a/", "e1", "e2", True),  # noqa: FBT003 - as it is
                    *(("e2", seq) for seq in range(1, 6)), Restart("a", "detections/a/", "e2", "e3", True),  # noqa: FBT003
                    ("e3", 1),
                ]  # fmt: skip
                found, _ = items(publisher, position, 2, "b", epoch="e2")
                assert [item for item in found if not isinstance(item, Restart)] == [("e2", 1), ("e2", 2)]
                put(publisher, "b", range(1, 2))
                found, _ = items(publisher, position, 1, "b")
                assert [item for item in found if not isinstance(item, Restart)] == [("e2", 1), ("e2", 2), ("e3", 1)]
                continue
            put(publisher, "a", range(1, 3 if epoch == "e1" else 6))
            if epoch == "e1":
                publisher.put_status(status_of("b"))
                wait_until(lambda writer=publisher._writer: writer.seqs.get("state/b/"), "the state is published")  # type: ignore[misc]
                _, position = items(publisher, None, 2)
                put(publisher, "a", range(3, 5))
            else:
                put(publisher, "b", range(1, 3))


def test_labels_that_are_filtered_out_are_in_the_position_too() -> None:
    with publisher_at(replay=REPLAY) as publisher:
        put(publisher, "a", range(1, 5))
        _, position = items(publisher, None, 4, labels=["car"])
        assert position["detections/a/"] == ["epoch-1", 4]


def test_without_replay_there_is_no_position() -> None:
    with pytest.raises(ValueError, match="needs replay=True"):
        subscribe("tcp://127.0.0.1:1", resume={})
    with subscribe("tcp://127.0.0.1:1") as events, pytest.raises(ValueError, match="no position"):
        events.position()


def test_an_empty_position_begins_with_what_is_published_from_now_on() -> None:
    with publisher_at(replay=REPLAY) as publisher:
        put(publisher, "a", range(1, 4))
        with subscribe(
            publisher.endpoint, kinds=["detections"], replay=True, resume={}, replay_endpoint=publisher.replay_endpoint
        ) as events:
            assert events.position() == {}
            wait_until(lambda: events.receive(0.05) is None and events.position(), "the daemon's answer")
            assert events.position() == {"detections/a/": ("epoch-1", 3)}
            put(publisher, "a", range(4, 5))
            put(publisher, "b", range(1, 2))
            found = [events.receive(PATIENCE_SECONDS) for _ in range(2)]
            assert [(item.stream, item.seq) for item in found if isinstance(item, DetectionEvent)] == [
                ("a", 4), ("b", 1),
            ]  # fmt: skip


@pytest.mark.slow
def test_kills_on_both_sides_lose_and_double_nothing(tmp_path: Path) -> None:
    seed = time.time_ns()
    moments = random.Random(seed)  # noqa: S311 - any moments will do
    path = tmp_path / "items"
    streams = [stream(name, max_fps=20, track_max_lost_seconds=0.3) for name in ("one", "two")]
    rule = '[[rules]]\nname = "seen"\n'
    with DaemonProcess(tmp_path / "d", comes_and_goes=True) as daemon:
        daemon.write_config(*streams, more=rule)
        command = [sys.executable, str(SUBSCRIBER), daemon.endpoint, str(path)]
        daemon.ready()
        subscriber = subprocess.Popen(command)

        def lines() -> list[dict[str, Any]]:
            whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
            return [json.loads(line) for line in whole.splitlines()]

        def wait_for_more(count: int) -> None:
            wanted = len(lines()) + count
            wait_until(lambda: len(lines()) >= wanted, f"{count} more items, seed {seed}")

        try:
            wait_for_more(10)
            for kills in ((subscriber, daemon), (daemon, subscriber), (subscriber,), (daemon,)):
                wait_for_more(moments.randrange(5, 30))
                time.sleep(moments.random() / 20)  # any moment between two items
                for killed in (daemon.process if each is daemon else subscriber for each in kills):
                    killed.send_signal(signal.SIGKILL)
                    killed.wait(PATIENCE_SECONDS)
                if daemon in kills:
                    daemon.ready()
                if subscriber.poll() is not None:
                    subscriber = subprocess.Popen(command)
            wait_for_more(20)
            assert daemon.end() == 0
            kept = events_of(daemon.folder / "spool")
            daemon.ready()  # the last ones may be asked for only now
            with suppress(AssertionError):
                wait_until(lambda: not lost(lines(), kept))
            handled = [tuple(line["event"]) for line in lines() if "event" in line]
            assert len(handled) == len(set(handled)), seed
            assert not lost(lines(), kept), seed
        finally:
            subscriber.kill()
            subscriber.wait(PATIENCE_SECONDS)


def events_of(spool: Path) -> list[tuple[str, str, int]]:
    query = "SELECT topic, epoch, seq FROM events WHERE topic LIKE 'objects/%' OR topic LIKE 'alerts/%'"
    with closing(sqlite3.connect(f"file:{spool}/events.sqlite?mode=ro", uri=True)) as database:
        return list(database.execute(query))


def lost(lines: list[dict[str, Any]], kept: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Events that were kept and not handled, though they came after the first one of their topic that was."""
    handled = {tuple(line["event"]) for line in lines if "event" in line}
    by_topic = defaultdict(list)
    for event in kept:
        by_topic[event[0]].append(event)
    missing = []
    for events in by_topic.values():
        first = next((number for number, event in enumerate(events) if event in handled), len(events))
        missing += [event for event in events[first:] if event not in handled]
    return missing
