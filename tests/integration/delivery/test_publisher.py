from __future__ import annotations

import contextlib
import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamdet.analytics.zones import Zones
from streamdet.config import ReplayConfig, SpoolConfig, StreamConfig
from streamdet.delivery.events import EventWriter
from streamdet.delivery.publisher import MAX_PENDING
from streamdet.delivery.spool import Spool
from streamdet.errors import EndpointError
from streamdet.security.endpoints import parse_endpoint
from streamdet.security.redact import remember_secret
from streamdet.types import Detection, Drop, Owner, Reason, State
from support.publishing import CAR, PERSON, frame_of, metrics_of, publisher_at, status_of
from support.waiting import wait_until

PATIENCE_MILLISECONDS = 20_000


@contextlib.contextmanager
def subscriber(endpoint: str, *prefixes: str, **options: int) -> Iterator[Any]:
    """A bare ZeroMQ socket, so that the publisher is not tested with its own client."""
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.linger = 0
        for name, value in options.items():
            setattr(sub, name, value)
        for prefix in prefixes or ("",):
            sub.subscribe(prefix)
        sub.connect(endpoint)
        yield sub


def receive(sub: Any) -> dict[str, Any]:
    assert sub.poll(PATIENCE_MILLISECONDS), "nothing came"
    topic, payload = sub.recv_multipart()
    event: dict[str, Any] = json.loads(payload)
    assert topic.decode() == f"{event['type']}/{event['stream']}/"
    return event


def receive_detections(sub: Any) -> dict[str, Any]:
    """The next event of detections; the state is repeated whenever someone subscribes, so it may come between."""
    while (event := receive(sub))["type"] != "detections":
        continue
    return event


def test_events_are_numbered_per_topic_and_complete() -> None:
    metrics = metrics_of("a", "b")
    with publisher_at(metrics=metrics) as publisher, subscriber(publisher.endpoint) as sub:
        publisher.put_status(status_of("a"))
        assert receive(sub)["state"] == "up"
        for seq in (1, 2, 5):
            for stream in ("a", "b"):
                metrics.frame_captured(stream, time.time())
                publisher.put_detections(frame_of(stream, seq), [CAR, PERSON] if stream == "a" else [])
        events = [receive(sub) for _ in range(6)]
    assert [(e["stream"], e["seq"], e["frame"]["seq"]) for e in events] == [
        ("a", 1, 1), ("b", 1, 1), ("a", 2, 2), ("b", 2, 2), ("a", 3, 5), ("b", 3, 5),
    ]  # fmt: skip
    assert [found["label"] for found in events[0]["detections"]] == ["person", "car"]
    assert events[1]["detections"] == []
    assert {e["epoch"] for e in events} == {"epoch-1"}
    assert all(e["frame"]["captured_at"] <= e["published_at"] for e in events)


def test_a_stop_sends_what_is_queued_and_the_ledger_is_exact() -> None:
    metrics = metrics_of("a")
    publisher = publisher_at(metrics=metrics)
    for seq in range(1, 101):
        metrics.frame_captured("a", time.time())
        publisher.put_detections(frame_of("a", seq), [PERSON])
    publisher.put_status(status_of("a"))
    with subscriber(publisher.endpoint) as sub:
        with publisher:
            assert receive(sub)["stream"] == "a"
            for seq in range(101, 201):
                metrics.frame_captured("a", time.time())
                publisher.put_detections(frame_of("a", seq), [PERSON])
        received = []
        while not received or received[-1] != 200:
            event = receive(sub)
            received += [event["frame"]["seq"]] if event["type"] == "detections" else []
    assert received == list(range(received[0], 201))
    counts = metrics.ledger.snapshot()["a"]
    assert (counts.captured, counts.published, counts.in_flight) == (200, 200, 0)
    assert metrics.registry.get_sample_value("streamdet_detections_total", {"stream": "a", "label": "person"}) == 200
    topic = {"topic": "detections/a/"}
    assert metrics.registry.get_sample_value("streamdet_events_published_total", topic) == 200
    assert metrics.registry.get_sample_value("streamdet_event_latency_seconds_count", {"stream": "a"}) == 200


def test_what_comes_after_the_end_is_counted_as_dropped() -> None:
    metrics = metrics_of("a")
    with publisher_at(metrics=metrics) as publisher:
        pass
    metrics.frame_captured("a", time.time())
    publisher.put_detections(frame_of("a", 1), [])
    publisher.put_status(status_of("a"))
    publisher.remove_stream("a")
    publisher.close()
    counts = metrics.ledger.snapshot()["a"]
    assert (counts.dropped[Drop.SHUTDOWN], counts.in_flight) == (1, 0)


def test_a_late_joiner_gets_the_states_at_once() -> None:
    with publisher_at(state_interval_seconds=3600) as publisher:
        publisher.put_status(status_of("a", State.CONNECTING))
        publisher.put_status(status_of("a", State.DOWN, Reason.REFUSED, "no one answers"))
        publisher.put_status(status_of("b"))
        with subscriber(publisher.endpoint) as first:
            # The first subscription may come in before the three have gone out.
            seen = set()
            while seen != {"a", "b"}:
                seen.add(receive(first)["stream"])
        with subscriber(publisher.endpoint, "state/a/") as second:
            event = receive(second)
            assert (event["state"], event["reason"], event["detail"]) == ("down", "refused", "no one answers")
        with subscriber(publisher.endpoint, "detections/") as third:
            assert not third.poll(200)


def test_states_are_repeated_with_their_number_and_not_kept() -> None:
    replay = ReplayConfig(endpoint="tcp://127.0.0.1:0")
    with (
        publisher_at(state_interval_seconds=0.05, replay=replay) as publisher,
        subscriber(publisher.endpoint) as sub,
    ):
        publisher.put_status(status_of("a"))
        events = [receive(sub) for _ in range(4)]
        assert publisher._replay is not None
        assert len(publisher._replay._ring) == 1
        publisher.put_status(status_of("a", State.DOWN, Reason.ENDED))
        while (event := receive(sub))["state"] == "up":
            events.append(event)
        # Shapes that are drawn again are news.
        publisher.set_stream(rules_of("a", zones=[DOOR]))
        while "geometry" not in (event := receive(sub)):
            assert event["seq"] == 2
        assert (event["seq"], event["state"]) == (3, "down")
        wait_until(lambda: len(publisher._replay._ring) == 3)  # type: ignore[union-attr] # it was there above
    assert {e["seq"] for e in events} == {1}
    assert len({e["since"] for e in events}) == 1
    assert len({e["published_at"] for e in events}) == len(events)


def test_secrets_do_not_leave() -> None:
    remember_secret("hunter2hunter2")
    with publisher_at() as publisher, subscriber(publisher.endpoint) as sub:
        publisher.put_status(status_of("a", State.DOWN, Reason.UNAUTHORIZED, "rtsp://me:hunter2hunter2@host/ says no"))
        detail = receive(sub)["detail"]
    assert "says no" in detail
    assert "hunter2" not in detail


def test_a_stalled_subscriber_costs_the_others_nothing() -> None:
    many = [Detection("person", 0.5, (index, 1.0, index + 1.5, 9.0)) for index in range(300)]
    with (
        publisher_at(high_water_mark_events=10) as publisher,
        subscriber(publisher.endpoint, rcvhwm=1, rcvbuf=4096) as stalled,
        subscriber(publisher.endpoint, rcvhwm=0) as healthy,
    ):
        # A new subscriber gets the state: then the subscription has arrived.
        publisher.put_status(status_of("a"))
        assert receive(stalled)["type"] == receive(healthy)["type"] == "state"
        publisher.put_detections(frame_of("a", 1), [])
        assert receive_detections(stalled)["seq"] == 1
        assert receive_detections(healthy)["seq"] == 1
        for seq in range(2, 502):
            publisher.put_detections(frame_of("a", seq), many)
            assert receive_detections(healthy)["seq"] == seq
        publisher.stop()
        got = []
        while stalled.poll(1000):
            got.append(receive(stalled)["seq"])
    assert got
    assert len(got) < 400


def test_a_full_queue_blocks_detections_but_no_status() -> None:
    metrics = metrics_of("a")
    publisher = publisher_at(metrics=metrics)
    for seq in range(1, MAX_PENDING + 1):
        publisher.put_detections(frame_of("a", seq), [])
    for _ in range(100):
        publisher.put_status(status_of("a"))
    assert len(publisher._pending) <= MAX_PENDING + 1
    blocked = threading.Thread(target=publisher.put_detections, args=(frame_of("a", 0), []), daemon=True)
    blocked.start()
    blocked.join(0.2)
    assert blocked.is_alive()
    with publisher:
        blocked.join(20)
        assert not blocked.is_alive()
    assert metrics.ledger.snapshot()["a"].published == MAX_PENDING + 1


def test_a_waiting_thread_is_released_when_the_publisher_is_given_up() -> None:
    metrics = metrics_of("a")
    publisher = publisher_at(metrics=metrics)
    for seq in range(1, MAX_PENDING + 1):
        publisher.put_detections(frame_of("a", seq), [])
    blocked = threading.Thread(target=publisher.put_detections, args=(frame_of("a", 0), []), daemon=True)
    blocked.start()
    publisher.close()
    blocked.join(20)
    assert not blocked.is_alive()
    assert metrics.ledger.snapshot()["a"].dropped[Drop.SHUTDOWN] == MAX_PENDING + 1


def test_an_unexpected_error_is_stored_and_no_one_waits_for_ever() -> None:
    failed: list[Any] = []

    def broken(_: object) -> None:
        message = "no socket"
        raise OSError(message)

    publisher = publisher_at()
    publisher._on_error = failed.append
    publisher._sockets.send = broken  # type: ignore[method-assign, assignment]
    with publisher:
        for seq in range(1, 3 * MAX_PENDING):
            publisher.put_detections(frame_of("a", seq), [])
        wait_until(lambda: failed)
    assert failed == [publisher]
    assert isinstance(publisher.error, OSError)


def test_an_event_that_cannot_be_encoded_is_dropped_and_uses_no_number() -> None:
    metrics = metrics_of("a")
    with publisher_at(metrics=metrics) as publisher, subscriber(publisher.endpoint) as sub:
        publisher.put_status(status_of("a"))
        receive(sub)
        odd = Detection(label=5, score=1, box=(0, 0, 1, 1))  # type: ignore[arg-type] # a bug of someone's
        for seq, found in enumerate([PERSON, odd, PERSON], 1):
            metrics.frame_captured("a", 0.0)
            publisher.put_detections(frame_of("a", seq), [found])
        events = [receive_detections(sub) for _ in range(2)]
    assert [(event["seq"], event["frame"]["seq"]) for event in events] == [(1, 1), (2, 3)]
    counts = metrics.ledger.snapshot()["a"]
    assert (counts.published, counts.dropped[Drop.INTERNAL_ERROR], counts.in_flight) == (2, 1, 0)
    assert publisher.error is None


def test_where_zones_fail_nothing_is_shown_that_a_mask_may_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Zones, "see", lambda *_: 1 / 0)
    everything = [(0, 0), (1, 0), (1, 1), (0, 1)]
    with publisher_at() as publisher, subscriber(publisher.endpoint) as sub:
        publisher.put_status(status_of("open"))
        receive(sub)
        publisher.set_stream(rules_of("hidden", masks=[{"name": "all", "polygon": everything}]))
        publisher.set_stream(rules_of("open", zones=[{"name": "all", "polygon": everything}]))
        for stream in ("hidden", "open"):
            publisher.put_detections(frame_of(stream, 1), [PERSON])
        events = [receive_detections(sub) for _ in range(2)]
    assert {event["stream"]: len(event["detections"]) for event in events} == {"hidden": 0, "open": 1}


def test_a_forgotten_stream_is_silent_until_it_is_added_again() -> None:
    metrics = metrics_of("a", "b")
    with publisher_at(metrics=metrics, state_interval_seconds=0.02) as publisher:
        publisher.put_status(status_of("a"))
        publisher.put_detections(frame_of("a", 1), [])
        publisher.remove_stream("a")
        publisher.put_detections(frame_of("a", 2), [])
        wait_until(lambda: not publisher._writer.streams and not publisher._pending)
        with subscriber(publisher.endpoint) as sub:
            publisher.put_status(status_of("b"))
            assert {receive(sub)["stream"] for _ in range(5)} == {"b"}
            publisher.put_status(status_of("a"))
            publisher.put_detections(frame_of("a", 3), [])
            event = receive(sub)
            while event["type"] != "detections":
                event = receive(sub)
    assert (event["stream"], event["seq"], event["frame"]["seq"]) == ("a", 2, 3)
    assert metrics.ledger.snapshot()["a"].dropped[Drop.SHUTDOWN] == 1


def test_the_last_state_of_a_stream_says_that_it_was_removed() -> None:
    with (
        publisher_at(replay=ReplayConfig(endpoint="tcp://127.0.0.1:0"), state_interval_seconds=3600) as publisher,
        subscriber(publisher.endpoint, "state/a/") as sub,
    ):
        publisher.set_stream(rules_of("a"), Owner("n1", 7))
        publisher.put_status(status_of("a", State.DOWN, Reason.REFUSED))
        before = receive(sub)
        publisher.remove_stream("a")
        while (last := receive(sub))["seq"] == before["seq"]:  # repeated for the subscription
            pass
        assert (last["state"], last["reason"], last["seq"]) == ("down", "removed", before["seq"] + 1)
        assert (last["node"], last["generation"]) == ("n1", 7)
        assert last["since"] >= before["since"]
        # It is not repeated, and no snapshot has it; with its number, a reader that has lost it can ask for it.
        with subscriber(publisher.endpoint, "state/") as late:
            publisher.put_status(status_of("b"))
            assert receive(late)["stream"] == "b"
        replay = publisher._replay
        assert replay is not None
        assert (replay._newest.keys(), replay._next_seqs["state/a/"]) == ({"state/b/"}, last["seq"] + 1)
        publisher.put_status(status_of("a"))
        assert receive(sub)["seq"] == last["seq"] + 1


def test_who_comes_and_goes_does_not_have_states_repeated_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    sent: list[tuple[float, str]] = []
    monkeypatch.setattr("streamdet.delivery.events.time.monotonic", lambda: now)
    writer = EventWriter("e", 3600.0, metrics_of())

    def repeat() -> None:
        sent.extend((now, message.topic) for message in writer.due_states())

    for stream in ("a", "b"):
        assert writer.state(status_of(stream)) is not None
    for _ in range(600):
        now += 0.1
        writer.subscribed(b"state/a/")
        repeat()
    # At first at once, then ever more rarely: 8 times in the first half of a minute, 3 in the second.
    times = [at for at, topic in sent if topic == "state/a/"]
    assert times[0] < 1000.3
    assert len(times) <= 12
    assert "state/b/" not in [topic for _, topic in sent]
    # After some rest it is there at once again.
    now += 200
    writer.subscribed(b"")
    repeat()
    assert sent[-2:] == [(now, "state/a/"), (now, "state/b/")]


def test_a_flood_of_subscriptions_does_not_flood_the_others() -> None:
    with (
        publisher_at(state_interval_seconds=3600) as publisher,
        subscriber(publisher.endpoint) as sub,
        zmq.Context() as context,
        context.socket(zmq.XSUB) as hostile,
    ):
        publisher.put_status(status_of("a"))
        receive(sub)
        hostile.linger, hostile.sndhwm = 0, 0
        hostile.connect(publisher.endpoint)
        began = time.monotonic()
        for index in range(20_000):
            hostile.send(b"\x01state/a/" if index % 2 else b"\x01state/%d" % index)
        publisher.put_detections(frame_of("a", 1), [])
        event, states = receive(sub), 0
        while event["type"] != "detections":
            states, event = states + 1, receive(sub)
        assert states <= (time.monotonic() - began) / 0.1 + 2


def test_a_subscription_without_measure_ends_its_connection_only() -> None:
    """ZeroMQ's tree of subscriptions is recursive: a long enough one would overflow the stack of the daemon."""
    with publisher_at() as publisher, subscriber(publisher.endpoint) as sub:
        publisher.put_status(status_of("a"))
        receive(sub)
        port = parse_endpoint(publisher.endpoint).port
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_MILLISECONDS / 1000) as hostile:
            hostile.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
            ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
            hostile.sendall(bytes([4, len(ready)]) + ready)
            with contextlib.suppress(ConnectionError):  # it may hang up while we send, or when we wait
                hostile.sendall(b"\x02" + (1_000_000).to_bytes(8) + b"\x01" + b"x" * 999_999)
                while hostile.recv(4096):
                    pass
        publisher.put_detections(frame_of("a", 1), [])
        while receive(sub)["type"] != "detections":
            pass


def test_a_port_in_use_is_one_clear_line() -> None:
    with publisher_at() as publisher, pytest.raises(EndpointError, match="another process uses it") as caught:
        publisher_at(publisher.endpoint)
    assert "\n" not in str(caught.value)
    assert publisher.endpoint in str(caught.value)


def test_an_ipc_file_belongs_to_owner_and_group_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with publisher_at(f"ipc://{path}") as publisher, subscriber(publisher.endpoint) as sub:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        publisher.put_status(status_of("a"))
        assert receive(sub)["stream"] == "a"
        with pytest.raises(EndpointError, match="another process uses it"):
            publisher_at(f"ipc://{path}")
        publisher.put_status(status_of("b"))
        while receive(sub)["stream"] != "b":
            pass
    assert not path.exists()


def test_the_ipc_file_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "events"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    with publisher_at(f"ipc://{path}") as publisher, subscriber(publisher.endpoint) as sub:
        publisher.put_status(status_of("a"))
        assert receive(sub)["stream"] == "a"


def test_of_streams_that_come_and_go_only_the_last_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamdet.delivery.events._MAX_REMOVED_STREAMS", 3)
    config = SpoolConfig.model_construct(directory=str(tmp_path), max_bytes=2**20, max_age_seconds=1e6)
    metrics = metrics_of()
    with (
        Spool(config, "epoch-1", metrics.delivery) as spool,
        publisher_at(metrics=metrics, replay=ReplayConfig(max_events=60), archive=spool) as publisher,
    ):

        def come_and_go(stream: str) -> None:
            publisher.set_stream(rules_of(stream))
            publisher.put_status(status_of(stream))
            publisher.put_detections(frame_of(stream, 1), [PERSON])
            publisher.remove_stream(stream)

        publisher.put_status(status_of("stays"))
        for number in range(40):
            come_and_go(f"s{number}")
        come_and_go("s38")  # goes on counting
        come_and_go("s0")  # is not known any more
        writer = publisher._writer
        wait_until(lambda: publisher._removed == {"s38", "s39", "s0"} and "s0" in writer._removed)
        last = {"s38": 2, "s39": 1, "s0": 1}
        topics = {f"detections/{stream}/": seq for stream, seq in last.items()}
        topics |= {f"state/{stream}/": 2 * seq for stream, seq in last.items()}
        topics["state/stays/"] = 1
        replay = publisher._replay
        assert replay is not None
        assert {topic: seq for topic, seq in writer.seqs.items() if seq} == topics
        assert replay._next_seqs == {topic: seq + 1 for topic, seq in topics.items()}
        assert replay._topics == sorted(topics)
        assert spool._last_seqs == topics
        assert writer._track_ids.keys() == last.keys()
        # What it had in memory before it was forgotten is gone, too, or its numbers would mean two events.
        for seq in range(2, 70):
            publisher.put_status(status_of("s0"))
            publisher.put_detections(frame_of("s0", seq), [])
        wait_until(lambda: writer.seqs["detections/s0/"] == 69)
    assert publisher.error is None


def rules_of(stream: str, **keys: Any) -> StreamConfig:
    return StreamConfig.model_validate({"name": stream, "url": "rtsp://192.0.2.5/x", **keys})


GATE = {"name": "gate", "points": [[0.0, 0.5], [1.0, 0.5]]}
DOOR = {"name": "door", "polygon": [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]}


def walker(y: float) -> Detection:
    """Someone who stands at this height of a picture of 640x360."""
    return Detection("person", 0.9, (100.0, y - 80, 140.0, y))


def test_objects_are_tracked_and_tell_their_zones_and_the_lines_they_cross() -> None:
    metrics = metrics_of("a")
    sample = metrics.registry.get_sample_value
    with publisher_at(metrics=metrics) as publisher, subscriber(publisher.endpoint) as sub:
        metrics.set_stream("a", [], [DOOR["name"]], [GATE["name"]])
        publisher.set_stream(rules_of("a", zones=[DOOR], lines=[GATE]))
        publisher.put_status(status_of("a"))
        assert receive(sub)["geometry"] == {
            "zones": [{"name": "door", "points": DOOR["polygon"]}],
            "lines": [GATE],
            "masks": [],
        }
        assert sample("streamdet_line_crossings_total", {"stream": "a", "line": "gate", "direction": "in"}) == 0
        for seq, y in enumerate((120.0, 150.0, 175.0, 195.0, 215.0), 1):
            publisher.put_detections(frame_of("a", seq), [walker(y), CAR])
        events = [receive_detections(sub) for _ in range(5)]
        publisher.put_status(status_of("a"))
        assert sample("streamdet_zone_objects", {"stream": "a", "zone": "door"}) == 2
    assert [event["detections"][0]["track_id"] for event in events] == [1] * 5
    assert {event["detections"][1]["track_id"] for event in events} == {2}
    assert all(event["detections"][0]["zones"] == ["door"] for event in events)
    assert [event.get("crossings") for event in events] == [
        None, None, None, None, [{"line": "gate", "direction": "in", "track_id": 1, "label": "person"}],
    ]  # fmt: skip
    assert sample("streamdet_line_crossings_total", {"stream": "a", "line": "gate", "direction": "in"}) == 1
    assert sample("streamdet_line_crossings_total", {"stream": "a", "line": "gate", "direction": "out"}) == 0


def test_rules_change_while_the_stream_runs_and_the_tracks_go_on() -> None:
    metrics = metrics_of("a")
    with publisher_at(metrics=metrics) as publisher, subscriber(publisher.endpoint) as sub:
        publisher.set_stream(rules_of("a", zones=[DOOR]))
        publisher.put_status(status_of("a"))
        assert "geometry" in receive(sub)
        publisher.put_detections(frame_of("a", 1), [walker(120.0)])
        assert receive_detections(sub)["detections"][0]["zones"] == ["door"]
        publisher.set_stream(rules_of("a", masks=[DOOR | {"labels": ["car"]}]))
        while (state := receive(sub)).get("geometry", {}).get("zones") != []:
            pass
        assert [mask["name"] for mask in state["geometry"]["masks"]] == ["door"]
        publisher.put_detections(frame_of("a", 2), [walker(121.0), CAR])
        found = receive_detections(sub)["detections"]
        assert [(one["label"], one["track_id"], "zones" in one) for one in found] == [("person", 1, False)]
        publisher.set_stream(rules_of("a", track=False))
        publisher.put_detections(frame_of("a", 3), [walker(122.0), CAR])
        found = receive_detections(sub)["detections"]
        assert [one["track_id"] for one in found] == [None, None]
    assert metrics.registry.get_sample_value("streamdet_zone_objects", {"stream": "a", "zone": "door"}) is None


def test_track_ids_are_not_used_again_when_a_stream_comes_back() -> None:
    with publisher_at(metrics=metrics_of("a")) as publisher, subscriber(publisher.endpoint) as sub:
        ids = []
        for seq in (1, 2):
            publisher.set_stream(rules_of("a"))
            publisher.put_status(status_of("a"))
            # Then the subscription has arrived.
            assert receive(sub)["type"] == "state"
            publisher.put_detections(frame_of("a", seq), [walker(120.0)])
            ids.append(receive_detections(sub)["detections"][0]["track_id"])
            publisher.remove_stream("a")
            while (event := receive(sub))["type"] != "state" or event["reason"] != "removed":
                continue
    assert ids == [1, 2]
