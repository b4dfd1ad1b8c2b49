from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streamdet import (
    AlertEvent,
    DetectionEvent,
    EndpointError,
    Gap,
    ObjectEvent,
    Restart,
    StateEvent,
    Subscription,
    subscribe,
    subscribe_async,
    wire,
)
from streamdet.client.recovery import OrderedRecovery, RecoveryTimes
from streamdet.config import ReplayConfig, RuleConfig, StreamConfig
from streamdet.delivery.publisher import Publisher
from streamdet.types import Detection, State
from streamdet.wire.replay import Replayed, ReplayRequest, Snapshot, SnapshotRequest, decode_request, encode_answer
from support.losing import losing, losing_requests
from support.occurring import alert_event, object_event
from support.publishing import CAR, PERSON, frame_of, publisher_at, status_of
from support.waiting import wait_until

PATIENCE_SECONDS = 30.0
REPLAY = ReplayConfig(endpoint="tcp://127.0.0.1:0")
SOON = RecoveryTimes(check_seconds=0.3, on_its_way_seconds=0.2)


def detections_until(events: Subscription, last: dict[str, int]) -> dict[str, list[object]]:
    """All about detections that comes until each of these streams has reached its number."""
    found: dict[str, list[object]] = {stream: [] for stream in last}
    reached: dict[str, int] = {}
    while any(reached.get(stream, 0) < seq for stream, seq in last.items()):
        item = events.receive(PATIENCE_SECONDS)
        assert item is not None, f"nothing came; {reached} of {last}"
        if isinstance(item, DetectionEvent):
            reached[item.stream] = item.seq
            found[item.stream].append(item.seq)
        elif isinstance(item, Gap | Restart):
            found[item.stream].append(item)
    return found


def put(publisher: Publisher, stream: str, seqs: range) -> None:
    for seq in seqs:
        publisher.put_detections(frame_of(stream, seq), [PERSON, CAR])


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publisher_at(replay=REPLAY) as running:
        yield running


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_lost_comes_in_order_and_once(publisher: Publisher, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - to be repeatable
    with losing(publisher.endpoint, lambda _: chance.random() < 0.3) as proxy:
        subscription = subscribe(
            proxy.endpoint, replay=True, recovery_times=SOON, replay_endpoint=publisher.replay_endpoint
        )
        with subscription as events:
            put(publisher, "a", range(1, 3))
            put(publisher, "b", range(1, 2))
            first = detections_until(events, {"a": 2, "b": 1})
            # Until then nothing comes through the proxy, and nothing can be lost.
            wait_until(lambda: len(publisher._sockets._subscriptions) == 2, "the proxy is subscribed")
            for round_ in range(40):
                put(publisher, "a", range(3 + 5 * round_, 8 + 5 * round_))
                put(publisher, "b", range(2 + 2 * round_, 4 + 2 * round_))
            rest = detections_until(events, {"a": 202, "b": 81})
    # It begins with the newest event; from then on nothing is missing.
    for stream, last in (("a", 202), ("b", 81)):
        seqs = first[stream] + rest[stream]
        assert seqs == list(range(int(str(seqs[0])), last + 1))
    assert proxy.lost > 20


def test_a_late_joiner_starts_with_the_newest_event_of_everything(publisher: Publisher) -> None:
    for stream in ("a", "b", "c"):
        publisher.put_status(status_of(stream))
        put(publisher, stream, range(1, 8))
    publisher.remove_stream("c")
    # Until all of it has been published, it comes as it happens.
    wait_until(lambda: min(publisher._writer.seqs[f"detections/{s}/"] for s in "abc") == 7, "all published")
    with subscribe(
        publisher.endpoint, ["a", "b"], replay=True, recovery_times=SOON, replay_endpoint=publisher.replay_endpoint
    ) as events:
        seen = {}
        while len(seen) < 4:
            item = events.receive(PATIENCE_SECONDS)
            assert isinstance(item, DetectionEvent | StateEvent)
            seen[item.stream, type(item)] = item.seq
        assert {key: seq for key, seq in seen.items() if key[1] is DetectionEvent} == {
            ("a", DetectionEvent): 7, ("b", DetectionEvent): 7,
        }  # fmt: skip
        put(publisher, "a", range(8, 10))
        assert detections_until(events, {"a": 9})["a"] == [8, 9]


def test_the_last_event_is_healed_though_none_follows(publisher: Publisher) -> None:
    with losing(publisher.endpoint, lambda topic: topic == b"detections/a/") as proxy:
        subscription = subscribe(
            proxy.endpoint, replay=True, recovery_times=SOON, replay_endpoint=publisher.replay_endpoint
        )
        with subscription as events:
            publisher.put_status(status_of("a"))
            assert isinstance(events.receive(PATIENCE_SECONDS), StateEvent)
            wait_until(lambda: len(publisher._sockets._subscriptions) == 2, "the proxy is subscribed")
            put(publisher, "a", range(1, 4))
            assert detections_until(events, {"a": 3})["a"] == [1, 2, 3]
    assert proxy.lost >= 3


def test_what_the_daemon_no_longer_keeps_is_one_gap() -> None:
    few = ReplayConfig(endpoint="tcp://127.0.0.1:0", max_events=10)
    with publisher_at(replay=few) as publisher, losing(publisher.endpoint, lambda _: False) as proxy:
        subscription = subscribe(
            proxy.endpoint,
            kinds=["detections"],
            replay=True,
            recovery_times=SOON,
            replay_endpoint=publisher.replay_endpoint,
        )
        with subscription as events:
            put(publisher, "a", range(1, 2))
            assert detections_until(events, {"a": 1})["a"] == [1]
            proxy.loses = lambda _: True
            put(publisher, "a", range(2, 42))
            found = detections_until(events, {"a": 41})["a"]
    assert found == [Gap("a", "detections/a/", 2, 30), *range(32, 42)]


def test_a_restart_is_reported_and_the_new_epoch_is_complete(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    replay = ReplayConfig(endpoint="auto")
    with subscribe(endpoint, kinds=["detections"], replay=True, recovery_times=SOON) as events:
        with publisher_at(endpoint, "e1", replay=replay) as publisher:
            put(publisher, "a", range(1, 4))
            first = detections_until(events, {"a": 3})["a"]
        with publisher_at(endpoint, "e2", replay=replay) as publisher:
            put(publisher, "a", range(1, 6))
            second: list[object] = []
            while not second or second[-1] != 5:
                item = events.receive(PATIENCE_SECONDS)
                assert item is not None
                second.append(item.seq if isinstance(item, DetectionEvent) else item)
    assert first == list(range(int(str(first[0])), 4))
    assert second == [Restart("a", "detections/a/", "e1", "e2", is_complete=False), 1, 2, 3, 4, 5]


def test_an_endpoint_that_does_not_answer_is_an_error(publisher: Publisher) -> None:
    times = RecoveryTimes(give_up_seconds=0.5)
    nowhere = subscribe(publisher.endpoint, replay=True, recovery_times=times, replay_endpoint="tcp://127.0.0.1:1")
    with nowhere as events:
        publisher.put_status(status_of("a"))
        with pytest.raises(EndpointError, match=r"nothing answers at tcp://127\.0\.0\.1:1"):
            events.receive(PATIENCE_SECONDS)


def test_when_replay_goes_away_events_go_on_with_gaps(publisher: Publisher) -> None:
    times = replace(SOON, give_up_seconds=1.0)
    with (
        losing(publisher.endpoint, lambda _: False) as proxy,
        losing_requests(publisher.replay_endpoint) as (replay_endpoint, cut),
        subscribe(
            proxy.endpoint,
            kinds=["detections"],
            replay=True,
            recovery_times=times,
            replay_endpoint=replay_endpoint,
        ) as events,
    ):
        put(publisher, "a", range(1, 2))
        assert detections_until(events, {"a": 1})["a"] == [1]
        cut.set()
        lost = iter([True, True])
        proxy.loses = lambda _: next(lost, False)
        seen: list[object] = []
        for seq in range(2, 1000):
            put(publisher, "a", range(seq, seq + 1))
            if (item := events.receive(0.05)) is not None:
                seen.append(item.seq if isinstance(item, DetectionEvent) else item)
            if len(seen) >= 3:
                break
        assert seen == [Gap("a", "detections/a/", 2, 2), 4, 5]


@pytest.mark.parametrize("away_seconds", [30, 600])
@pytest.mark.parametrize("is_busy", [False, True], ids=["daemon away", "reader busy as well"])
def test_while_the_daemon_is_away_nothing_is_given_up(away_seconds: int, *, is_busy: bool) -> None:
    recovery, now = OrderedRecovery(["state/"], None, "tcp://127.0.0.1:1", SOON), 0.0

    def state(seq: int, epoch: str) -> None:
        recovery.message(wire.to_message(StateEvent("a", epoch, seq, 1.0, State.UP, None, "", 1.0)), now)

    [request] = recovery.requests(now)
    snapshot = Snapshot(decode_request(request).id, "e", {"state/a/": 2}, None)
    recovery.answer(encode_answer(snapshot), now)
    for seq in (2, 5):
        state(seq, "e")
    assert [item.seq for item in recovery.ready if isinstance(item, StateEvent)] == [2]
    # It was killed with the question open, and takes its time to come back.
    asked = {}
    for now in [0.0, float(away_seconds)] if is_busy else map(float, range(away_seconds)):
        state(1, "f") if now and is_busy else None
        for request in map(decode_request, recovery.requests(now)):
            asked[request.id] = request
    if not is_busy:
        state(1, "f")
    for _ in range(5):
        now += 1.0
        recovery.requests(now)
    [asked_again] = [request for request in asked.values() if isinstance(request, ReplayRequest)]
    kept = [wire.encode(StateEvent("a", "e", seq, 1.0, State.UP, None, "", 1.0)) for seq in (3, 4)]
    replayed = Replayed(asked_again.id, "state/a/", "e", 3, 5, events=kept, seqs=(3, 4))
    recovery.answer(encode_answer(replayed), now)
    assert [item.seq for item in recovery.ready if isinstance(item, StateEvent)] == [2, 3, 4, 5]
    assert not any(isinstance(item, Gap) for item in recovery.ready)


def test_asyncio(publisher: Publisher) -> None:
    chance = random.Random(7)  # noqa: S311 - to be repeatable

    async def collect() -> list[int]:
        seqs: list[int] = []
        with losing(publisher.endpoint, lambda _: chance.random() < 0.3) as proxy:
            subscription = subscribe_async(
                proxy.endpoint,
                kinds=["detections"],
                labels=["car"],
                replay=True,
                recovery_times=SOON,
                replay_endpoint=publisher.replay_endpoint,
                timeout_seconds=PATIENCE_SECONDS,
            )
            async with subscription as events:
                await asyncio.to_thread(put, publisher, "a", range(1, 101))
                async for item in events:
                    assert isinstance(item, DetectionEvent)
                    assert item.detections == (CAR,)
                    seqs.append(item.seq)
                    if item.seq == 100:
                        return seqs
        return seqs

    seqs = asyncio.run(collect())
    assert seqs == list(range(seqs[0], 101))


def test_topics_that_the_daemon_has_forgotten_are_forgotten() -> None:
    recovery, now = OrderedRecovery(["state/"], None, "tcp://127.0.0.1:1", SOON), 0.0

    def answer(topics: list[str], epoch: str = "e") -> None:
        nonlocal now
        for _ in range(20):
            now += 1.0
            for request in map(decode_request, recovery.requests(now)):
                if isinstance(request, SnapshotRequest):
                    recovery.answer(encode_answer(Snapshot(request.id, epoch, dict.fromkeys(topics, 2), None)), now)
                    return
                assert isinstance(request, ReplayRequest)
                nothing = Replayed(request.id, request.topic, str(request.epoch), request.from_seq, request.from_seq)
                recovery.answer(encode_answer(nothing), now)

    names = [f"state/{number}/" for number in range(50)]
    answer(names)
    assert len(recovery._topics) == 50
    # One that begins while a list is on its way is not in it.
    event = StateEvent("new", "e", 1, 1.0, State.UP, None, "", 1.0)
    recovery.message(wire.to_message(event), now)
    for _ in range(2):
        answer(names[40:])
    assert len(recovery._topics) == 51
    answer([*names[40:], "state/new/"])
    assert list(recovery._topics) == [*names[40:], "state/new/"]
    # After a restart nothing is forgotten: the rest of the epoch before is still to be asked for.
    for _ in range(4):
        answer([], "f")
    assert list(recovery._topics) == [*names[40:], "state/new/"]


def test_the_last_events_of_a_stream_that_a_restart_no_longer_has_are_asked_for_once() -> None:
    recovery, now = OrderedRecovery(["alerts/"], None, "tcp://127.0.0.1:1", SOON), 0.0
    asked: list[tuple[str, int, str | None]] = []

    def pass_time(epoch: str, topics: dict[str, int]) -> None:
        """Two minutes, in which the daemon answers everything; it keeps the alerts 2 and 3 of epoch e."""
        nonlocal now
        for _ in range(120):
            now += 1.0
            for request in map(decode_request, recovery.requests(now)):
                if isinstance(request, SnapshotRequest):
                    recovery.answer(encode_answer(Snapshot(request.id, epoch, topics, None)), now)
                elif isinstance(request, ReplayRequest):
                    asked.append((request.topic, request.from_seq, request.epoch))
                    kept = [replace(alert_event("a"), seq=seq, epoch="e") for seq in range(request.from_seq, 4)]
                    events, seqs = [wire.to_message(event)[1] for event in kept], tuple(event.seq for event in kept)
                    answer = Replayed(request.id, request.topic, "e", request.from_seq, 4, events=events, seqs=seqs)
                    recovery.answer(encode_answer(answer), now)

    pass_time("e", {"alerts/a/": 2})
    assert asked == []
    pass_time("f", {})
    assert asked == [("alerts/a/", 2, "e")]
    assert [recovery.take().seq for _ in range(2)] == [2, 3]  # type: ignore[union-attr] # they are events
    assert recovery.position() == {"alerts/a/": ("e", 3)}


def test_lost_events_of_objects_and_alerts_come_in_order_and_once(publisher: Publisher) -> None:
    chance = random.Random(3)  # noqa: S311 - to be repeatable
    door = {"name": "door", "polygon": [[0.5, 0], [1, 0], [1, 1], [0.5, 1]]}
    config = {"name": "a", "url": "rtsp://192.0.2.5/x", "zones": [door]}
    publisher.set_stream(StreamConfig.model_validate(config))
    publisher.set_rules([RuleConfig.model_validate({"name": "at the door", "zone": "door", "for_seconds": 0.3})])
    with (
        losing(publisher.endpoint, lambda _: chance.random() < 0.4) as proxy,
        subscribe(
            proxy.endpoint,
            kinds=["objects", "alerts", "state"],
            replay=True,
            recovery_times=SOON,
            replay_endpoint=publisher.replay_endpoint,
        ) as events,
    ):
        publisher.put_status(status_of("a"))
        assert isinstance(events.receive(PATIENCE_SECONDS), StateEvent)  # from here on all of it is to come
        # Half a minute: nine times to the door and back. In the past, the stream would count as silent between two.
        began = time.monotonic()
        for seq in range(1, 286):
            box = (40.0 + 400 * abs(seq % 30 - 15) / 15, 100.0, 140.0 + 400 * abs(seq % 30 - 15) / 15, 300.0)
            frame = replace(frame_of("a", seq), pts_seconds=seq / 10, captured_monotonic_seconds=began + seq / 10)
            publisher.put_detections(frame, [Detection("person", 0.9, box)])
        publisher.remove_stream("a")
        received: list[ObjectEvent | AlertEvent] = []
        while len({type(item) for item in received if item.phase in ("end", "cleared")}) < 2:
            item = events.receive(PATIENCE_SECONDS)
            assert isinstance(item, ObjectEvent | AlertEvent | StateEvent)
            if not isinstance(item, StateEvent):
                received.append(item)
    objects = [item for item in received if isinstance(item, ObjectEvent)]
    alerts = [item for item in received if isinstance(item, AlertEvent)]
    for some in (objects, alerts):
        assert [item.seq for item in some] == list(range(1, len(some) + 1))
    assert [item.phase for item in objects] == ["begin", *["update"] * (len(objects) - 2), "end"]
    assert {item.object.object_id for item in objects} == {"epoch-1-1"}
    changes = [change.change for item in objects for change in item.changes if change.zone == "door"]
    assert changes == ["enter", "leave"] * (len(changes) // 2)
    assert len(changes) >= 18
    assert proxy.lost > 5


def test_objects_are_recovered_over_a_gap_and_a_restart_whatever_their_label() -> None:
    recovery, now = OrderedRecovery(["objects/"], ["car"], "tcp://127.0.0.1:1", SOON), 0.0

    def asked() -> SnapshotRequest | ReplayRequest:
        (payload,) = recovery.requests(now)
        return decode_request(payload)

    def encoded(*events: ObjectEvent) -> list[bytes]:
        return [wire.encode(event) for event in events]

    topic, newest = "objects/a/", object_event("a", 4, label="car")
    snapshot = Snapshot(asked().id, "e1", {topic: 5}, None, encoded(newest))
    recovery.answer(encode_answer(snapshot), now)
    recovery.message(wire.to_message(object_event("a", 7, label="car")), now)
    request = asked()
    assert isinstance(request, ReplayRequest)
    assert (request.topic, request.from_seq, request.to_seq) == (topic, 5, 6)
    missing = encoded(object_event("a", 5), object_event("a", 6, label="car"))
    recovery.answer(encode_answer(Replayed(request.id, topic, "e1", 5, 7, events=missing, seqs=(5, 6))), now)
    recovery.message(wire.to_message(object_event("a", 1, "e2", label="car")), now)
    request = asked()
    assert isinstance(request, ReplayRequest)
    assert (request.epoch, request.from_seq) == ("e1", 8)
    recovery.answer(encode_answer(Replayed(request.id, topic, "e1", 8, 8, next_epoch="e2")), now)
    # The person's event is no gap.
    assert [item if isinstance(item, Restart) else (item.epoch, item.seq) for item in recovery.ready] == [
        ("e1", 4), ("e1", 6), ("e1", 7), Restart("a", topic, "e1", "e2", is_complete=True), ("e2", 1),
    ]  # fmt: skip
