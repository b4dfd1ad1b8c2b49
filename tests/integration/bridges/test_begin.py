"""Where a bridge begins when it is first started, and where it goes on, against a real publisher."""

from __future__ import annotations

import threading
from pathlib import Path

from streamdet.bridges.process import PositionFile, Source, begin
from streamdet.config import ReplayConfig
from streamdet.delivery.publisher import Publisher
from streamdet.wire import Kind
from support.ports import free_ports
from support.publishing import PERSON, frame_of, publisher_at, status_of
from support.waiting import join, wait_until

KINDS: tuple[Kind, ...] = ("detections", "state")


def put(publisher: Publisher, *seqs: int) -> None:
    for seq in seqs:
        publisher.put_detections(frame_of("yard", seq), [PERSON])
    wait_until(lambda: publisher._writer.seqs.get("detections/yard/") == seqs[-1], "all published")


def test_a_new_bridge_begins_after_what_was_published_and_keeps_that(tmp_path: Path) -> None:
    with publisher_at(replay=ReplayConfig(endpoint="tcp://127.0.0.1:0")) as publisher:
        publisher.put_status(status_of("yard"))
        put(publisher, 1, 2, 3)
        source = Source(publisher.endpoint, publisher.replay_endpoint)
        path = tmp_path / "position.json"
        expected = {"state/yard/": ("epoch-1", 0), "detections/yard/": ("epoch-1", 3)}
        assert begin(PositionFile(path), source, KINDS, lambda: False) == expected
        # It is killed here, before it has received anything: the next one goes on there.
        put(publisher, 4)
        assert PositionFile(path).load() == expected
        position = begin(PositionFile(path), source, KINDS, lambda: False)
        assert position == expected
        with source.subscribe(KINDS, position) as events:
            found = [events.receive(30.0), events.receive(30.0)]
        assert sorted((type(item).__name__, getattr(item, "seq", 0)) for item in found) == [
            ("DetectionEvent", 4), ("StateEvent", 1),
        ]  # fmt: skip


def test_a_daemon_that_starts_later_is_waited_for_until_a_stop(tmp_path: Path) -> None:
    port, _ = free_ports()
    source = Source(f"tcp://127.0.0.1:{port}")
    stopping = threading.Event()
    begins = threading.Thread(
        target=begin, args=(PositionFile(tmp_path / "a.json"), source, KINDS, stopping.is_set), daemon=True
    )
    begins.start()
    wait_until((tmp_path / "a.json").exists, "it waits")
    stopping.set()
    join(begins)
    assert PositionFile(tmp_path / "a.json").load() == {}
