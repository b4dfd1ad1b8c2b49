from __future__ import annotations

import contextlib
import json
import re
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from prometheus_client import CollectorRegistry

from streamdet.config import PublisherConfig, ReplayConfig
from streamdet.delivery.event_store import LeftBehind
from streamdet.delivery.publisher import Publisher
from streamdet.delivery.replay import Replay, Ring
from streamdet.delivery.sockets import Sockets
from streamdet.errors import EndpointError, WireError
from streamdet.monitoring.metrics import DeliveryMetrics
from streamdet.wire import replay_schema
from streamdet.wire.replay import (
    MAX_ANSWER_BYTES,
    MAX_ANSWER_EVENTS,
    Answer,
    FetchedPicture,
    PictureRequest,
    Refused,
    Replayed,
    ReplayRequest,
    Request,
    Snapshot,
    SnapshotRequest,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from streamdet.worker import Wakeup
from support.paths import ROOT
from support.publishing import PERSON, frame_of, metrics_of, publisher_at, status_of

PAGE = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
PATIENCE_MILLISECONDS = 30_000
REPLAY = ReplayConfig(endpoint="tcp://127.0.0.1:0", max_events=100)
TOPIC = "detections/a/"


@contextlib.contextmanager
def asker(endpoint: str, kind: int = zmq.DEALER) -> Iterator[Any]:
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        yield socket


def ask(socket: Any, request: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    socket.send(json.dumps({"version": 1, "id": 7, **request}).encode())
    assert socket.poll(PATIENCE_MILLISECONDS), "no answer"
    header, *events = (json.loads(part) for part in socket.recv_multipart())
    Draft202012Validator(replay_schema()).validate(header)
    assert header["id"] == 7
    return header, events


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publisher_at(replay=REPLAY) as running:
        running.put_status(status_of("a"))
        for seq in range(1, 151):
            running.put_detections(frame_of("a", seq), [PERSON])
        while running._pending or running._sending:
            time.sleep(0.01)
        yield running


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ])
def test_any_program_can_ask(publisher: Publisher, kind: int) -> None:
    with asker(publisher.replay_endpoint, kind) as socket:
        header, events = ask(socket, {"request": "snapshot"})
        assert header["next_seqs"] == {TOPIC: 151, "state/a/": 2}
        assert [(event["type"], event["seq"]) for event in events] == [("detections", 150), ("state", 1)]
        assert header["more_after"] is None
        header, events = ask(socket, {"request": "replay", "topic": TOPIC, "from_seq": 120, "to_seq": 122})
        assert [event["seq"] for event in events] == [120, 121, 122]
        assert (header["next_seq"], header["more"], header["lost"]) == (123, False, [])
        header, events = ask(socket, {"request": "replay", "topic": TOPIC, "from_seq": 31})
        assert [event["seq"] for event in events] == list(range(51, 151))
        assert header["lost"] == [{"first": 31, "count": 20}]
        header, events = ask(socket, {"request": "replay", "topic": TOPIC, "from_seq": 3, "epoch": "another"})
        assert (events, header["next_epoch"], header["end_is_known"]) == ([], "epoch-1", False)
        header, _ = ask(socket, {"request": "rewind"})
        assert (header["ok"], header["error"]["code"]) == (False, "bad_request")


def test_a_long_answer_comes_in_parts_and_a_snapshot_in_pages() -> None:
    replay = Replay("e", Ring(1000, 2**30), DeliveryMetrics(CollectorRegistry()))
    for stream in range(300):
        for seq in (1, 2):
            replay.add(f"detections/{stream:03}/", seq, b"x" * 10_000)
    replay.add("detections/007/", 3, b"y" * MAX_ANSWER_BYTES)
    topics: dict[str, int] = {}
    after: str | None = ""
    while after is not None:
        answer = replay._snapshot(SnapshotRequest(1, ("detections/0", "detections/00", "detections/29"), after))
        assert sum(map(len, answer.events[1:])) <= MAX_ANSWER_BYTES
        assert len(answer.events) == len(answer.next_seqs) <= MAX_ANSWER_EVENTS
        topics |= answer.next_seqs
        after = answer.more_after
    assert list(topics) == [f"detections/{stream:03}/" for stream in (*range(100), *range(290, 300))]
    assert topics["detections/007/"] == 4


def test_the_one_event_that_is_left_is_announced() -> None:
    replay = Replay("e", Ring(1000, 2**30), DeliveryMetrics(CollectorRegistry()))
    last = MAX_ANSWER_EVENTS + 1
    for seq in range(1, last + 1):
        replay.add("detections/a/", seq, b"x")
    answers = [replay._replay((b"me",), ReplayRequest(1, "detections/a/", begin)) for begin in (1, last)]
    assert [(answer.next_seq, answer.more) for answer in answers if isinstance(answer, Replayed)] == [
        (last, True), (last + 1, False)
    ]  # fmt: skip


class Echo:
    """An archive that answers at once, from the thread that asks."""

    settled = 0

    def follow(self, on_settled: Callable[[], None]) -> None:
        pass

    def keep(self, topic: str, seq: int, payload: bytes) -> int:
        return 0

    def forget(self, topic: str) -> None:
        pass

    def fetch(self, client: bytes, request: ReplayRequest, reply: Callable[[Answer], None]) -> bool:
        reply(Replayed(request.id, request.topic, request.epoch or "", request.from_seq, request.from_seq + 1))
        return True

    def fetch_left_behind(self, take: Callable[[LeftBehind], None]) -> None:
        take(LeftBehind([], []))


def test_answers_of_the_archive_wait_for_the_publisher_and_are_bounded() -> None:
    registry = CollectorRegistry()
    with contextlib.closing(Wakeup()) as wakeup:
        replay = Replay("e", Ring(2, 2**20), DeliveryMetrics(registry), Echo(), wakeup)
        for seq in range(1, 11):
            replay.add(TOPIC, seq, b"{}")
        for number in range(150):
            request = encode_request(ReplayRequest(number, TOPIC, 1))
            assert replay.answer((b"%d" % number, b"route"), request) is None
        assert select.select([wakeup], [], [], 0)[0]
        archived = list(replay.archived())
    assert [(route, answer.id) for route, answer in archived] == [((b"%d" % n, b"route"), n) for n in range(128)]
    # What memory has comes from memory: the client is to ask again for it.
    assert all(isinstance(answer, Replayed) and answer.more for _, answer in archived)
    assert registry.get_sample_value("streamdet_replay_requests_total", {"outcome": "dropped"}) == 22
    assert not list(replay.archived())


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 400)), max_size=60),
    st.integers(1, 30),
    st.integers(1, 3000),
)
def test_the_ring_keeps_the_newest_within_its_bounds(events: list[tuple[str, int]], most: int, most_bytes: int) -> None:
    ring = Ring(most, most_bytes)
    added: list[tuple[str, int, bytes]] = []
    for topic, size in events:
        seq = sum(other == topic for other, _, _ in added) + 1
        added.append((topic, seq, b"x" * size))
        ring.add(*added[-1])
    kept = added[-most:]
    while sum(len(payload) for _, _, payload in kept) > most_bytes:
        del kept[0]
    assert len(ring) == len(kept)
    assert ring.used_bytes == sum(len(payload) for _, _, payload in kept)
    for topic in {topic for topic, _, _ in added}:
        of_topic = [(seq, payload) for other, seq, payload in kept if other == topic]
        first = sum(other == topic for other, _, _ in added) + 1 - len(of_topic)
        assert ring.first_seq(topic) == first
        assert ring.take(topic, first, 10**6) == of_topic


REQUESTS = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    ).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {"version": st.sampled_from([1, 1, 1, 2, True]), "id": st.integers(-1, 2**54)},
        optional={
            "request": st.sampled_from(["snapshot", "replay", "picture", "other"]),
            "picture_id": st.text(max_size=150) | st.integers(),
            "topic": st.sampled_from([TOPIC, "state/a/", "x", ""]) | st.text(max_size=300),
            "from_seq": st.integers(-1, 2**54) | st.none() | st.integers(1, 200),
            "to_seq": st.integers(-1, 2**54) | st.none() | st.integers(1, 200),
            "epoch": st.sampled_from(["epoch-1", "other", "a/b"]) | st.none(),
            "prefixes": st.lists(st.text(max_size=20), max_size=5) | st.none() | st.lists(st.integers(), max_size=2),
            "after": st.text(max_size=20) | st.integers(),
            "events": st.booleans() | st.none(),
        },
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=600)
@given(REQUESTS)
def test_whatever_is_asked_gets_an_answer_and_raises_nothing(payload: bytes) -> None:
    replay = Replay("epoch-1", Ring(50, 2**20), DeliveryMetrics(CollectorRegistry()))
    for seq in range(1, 100):
        replay.add(TOPIC, seq, b"{}")
    answer = replay.answer((b"me",), payload)
    assert answer is not None
    parts = encode_answer(answer)
    Draft202012Validator(replay_schema()).validate(json.loads(parts[0]))
    assert not isinstance(decode_answer(parts), Refused) or b'"ok":false' in parts[0]


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=100), max_size=4), REQUESTS)
def test_whatever_is_answered_is_read_or_a_wire_error(parts: list[bytes], header: bytes) -> None:
    for answer in (parts, [header, *parts]):
        with contextlib.suppress(WireError):
            decode_answer(answer)
    with contextlib.suppress(WireError):
        decode_request(header)


@pytest.mark.parametrize(
    "request_",
    [
        SnapshotRequest(1),
        SnapshotRequest(2, ("a", "b"), "c", with_events=False),
        ReplayRequest(3, TOPIC, 1),
        ReplayRequest(4, TOPIC, 1, 2, "e"),
        PictureRequest(5, "20261129T140312.345Z-a-3f2a9c01b7de"),
    ],
)
def test_a_request_is_read_as_it_was_written(request_: Request) -> None:
    assert decode_request(encode_request(request_)) == request_
    Draft202012Validator(replay_schema()).validate(json.loads(encode_request(request_)))


@pytest.mark.parametrize(
    "answer",
    [
        Snapshot(1, "e", {TOPIC: 5}, "x", [b"one"]),
        Replayed(2, TOPIC, "e", 4, 9, more=True, next_epoch="f", end_is_known=False, events=[b"a", b"b"]),
        FetchedPicture(3, "p", b"\xff\xd8\xff picture \xff\xd9"),
        Refused(4, "busy", "later"),
    ],
)
def test_an_answer_is_read_as_it_was_written(answer: Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


def test_a_flood_of_requests_is_refused_and_delays_no_event() -> None:
    metrics = metrics_of("a")
    with (
        publisher_at(replay=REPLAY, metrics=metrics) as publisher,
        asker(publisher.replay_endpoint) as hostile,
        asker(publisher.replay_endpoint) as other,
        zmq.Context() as context,
        context.socket(zmq.SUB) as sub,
    ):
        sub.linger, sub.rcvhwm = 0, 0
        sub.subscribe("")
        sub.connect(publisher.endpoint)
        publisher.put_status(status_of("a"))
        assert sub.poll(PATIENCE_MILLISECONDS)
        hostile.sndtimeo = 0
        request = json.dumps({"version": 1, "id": 1, "request": "snapshot"}).encode()
        for seq in range(1, 51):
            for _ in range(400):
                with contextlib.suppress(zmq.Again):
                    hostile.send(request)
            publisher.put_detections(frame_of("a", seq), [PERSON])
        assert ask(other, {"request": "snapshot"})[0]["ok"]
        seqs: list[int] = []
        while not seqs or seqs[-1] != 50:
            assert sub.poll(PATIENCE_MILLISECONDS)
            event = json.loads(sub.recv_multipart()[1])
            seqs += [event["seq"]] if event["type"] == "detections" else []
        assert seqs == list(range(1, 51))
        assert publisher.is_alive()
        # What a busy machine has let in so far may have been less than the limit.
        deadline = time.monotonic() + PATIENCE_MILLISECONDS / 1000
        while not metrics.registry.get_sample_value("streamdet_replay_requests_total", {"outcome": "refused"}):
            assert time.monotonic() < deadline
            for _ in range(400):
                with contextlib.suppress(zmq.Again):
                    hostile.send(request)


def test_requests_take_little_of_the_time() -> None:
    config = PublisherConfig(endpoint="tcp://127.0.0.1:0")
    sockets = Sockets(config, "tcp://127.0.0.1:0", DeliveryMetrics(CollectorRegistry()))
    with contextlib.closing(sockets), asker(sockets.replay_endpoint) as socket:
        for _ in range(60):
            socket.send(b"{}")
        began, answered = time.monotonic(), 0
        while answered < 60:
            sockets.wait(1.0)
            for _ in sockets.requests():
                until = time.thread_time() + 0.001
                while time.thread_time() < until:
                    pass
                answered += 1
        # Sixty times a millisecond, and nineteen times as long a pause after each.
        assert time.monotonic() - began > 0.9


def test_sending_answers_counts_as_time_for_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PublisherConfig(endpoint="tcp://127.0.0.1:0")
    sockets = Sockets(config, "tcp://127.0.0.1:0", DeliveryMetrics(CollectorRegistry()))
    with contextlib.closing(sockets), asker(sockets.replay_endpoint) as socket:
        worked: list[float] = []
        monkeypatch.setattr(sockets._request_time, "worked", worked.append)
        socket.send(b"{}")
        sockets.wait(PATIENCE_MILLISECONDS / 1000)
        [(route, _)] = sockets.requests()
        assert sockets.answer(route, [b"{}"])
        assert len(worked) == 2
        assert socket.poll(PATIENCE_MILLISECONDS)


def test_a_request_with_too_many_parts_is_left_out_and_others_are_answered(publisher: Publisher) -> None:
    with asker(publisher.replay_endpoint) as socket:
        # The identity, which ZeroMQ puts before it, is a part as well: there may be fourteen others.
        for count in (15, 14, 3000, 0):
            socket.send_multipart([b""] * count + [encode_request(SnapshotRequest(count))])
        for expected in (14, 0):
            assert socket.poll(PATIENCE_MILLISECONDS)
            parts = socket.recv_multipart()
            assert parts[:expected] == [b""] * expected
            assert json.loads(parts[expected])["id"] == expected
        assert not socket.poll(200)


def test_a_client_that_takes_no_answers_holds_up_no_one(publisher: Publisher) -> None:
    with asker(publisher.replay_endpoint) as lazy, asker(publisher.replay_endpoint) as other:
        lazy.rcvhwm = 1
        for _ in range(100):
            lazy.send(encode_request(ReplayRequest(1, TOPIC, 51)))
        header, events = ask(other, {"request": "replay", "topic": TOPIC, "from_seq": 51})
        assert header["next_seq"] == 151
        assert len(events) == 100


def test_a_request_too_large_ends_its_connection_only(publisher: Publisher) -> None:
    with asker(publisher.replay_endpoint) as hostile, asker(publisher.replay_endpoint) as other:
        hostile.send(b"x" * 1_000_000)
        hostile.send_multipart([b"x"] * 100)
        assert ask(other, {"request": "snapshot"})[0]["ok"]
        assert not hostile.poll(100)


def test_replay_can_be_off_or_beside_or_missing(tmp_path: Any) -> None:
    with publisher_at(f"ipc://{tmp_path}/events", replay=ReplayConfig()) as publisher:
        assert publisher.replay_endpoint == f"ipc://{tmp_path}/events-replay"
        with publisher_at(f"ipc://{tmp_path}/more", replay=ReplayConfig(endpoint="off")) as silent:
            assert silent.replay_endpoint == ""
        taken = ReplayConfig(endpoint=publisher.replay_endpoint)
        with pytest.raises(EndpointError, match="another process uses it"):
            publisher_at(f"ipc://{tmp_path}/other", replay=taken)
    (tmp_path / "events-replay").mkdir()
    with publisher_at(f"ipc://{tmp_path}/events", replay=ReplayConfig()) as publisher:
        assert publisher.replay_endpoint == ""


def test_the_messages_on_the_page_are_right_and_every_field_is_named() -> None:
    messages = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    validator = Draft202012Validator(replay_schema())
    for message in messages:
        validator.validate(json.loads(message))
    definitions = replay_schema()["$defs"].values()
    fields = {field for part in definitions for field in part.get("properties", {})}
    assert {field for field in fields if f'"{field}"' not in PAGE and f"`{field}`" not in PAGE} == set()
