from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamdet import (
    AlertEvent,
    DetectionEvent,
    EndpointError,
    EndReason,
    Gap,
    ObjectEvent,
    Restart,
    StateEvent,
    WireError,
    subscribe,
    subscribe_async,
    wire,
)
from streamdet.client.gaps import GapDetector
from streamdet.client.recovery import OrderedRecovery
from streamdet.types import Detection, FrameInfo, State
from support.occurring import alert_event, object_event
from support.publishing import CAR, PERSON, frame_of, publisher_at, status_of
from support.waiting import wait_until

PATIENCE_SECONDS = 20.0
FRAME = FrameInfo(seq=1, pts_seconds=None, captured_at=1.0, clock="daemon", width=640, height=360)


class Sender:
    """A bare ZeroMQ socket that can leave out, repeat or damage what a real publisher never would."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def await_subscriber(self) -> None:
        self.await_subscription()

    def await_subscription(self) -> bytes:
        assert self.socket.poll(int(PATIENCE_SECONDS * 1000))
        return self.socket.recv()

    def send(self, *seqs: int, stream: str = "a", epoch: str = "e1") -> None:
        for seq in seqs:
            self.send_events(DetectionEvent(stream, epoch, seq, 2.0, FRAME, (CAR, PERSON)))

    def send_events(self, *events: wire.Event) -> None:
        for event in events:
            self.socket.send_multipart(wire.to_message(event))


@pytest.fixture
def sender() -> Iterator[Sender]:
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.linger = 0
        socket.bind("tcp://127.0.0.1:0")
        yield Sender(socket)


def brief(item: object) -> object:
    return (item.stream, item.seq) if isinstance(item, DetectionEvent | StateEvent) else item


def test_events_arrive_typed_and_in_order() -> None:
    with publisher_at() as publisher, subscribe(publisher.endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
        publisher.put_status(status_of("a"))
        state = next(events)
        publisher.put_detections(frame_of("a", 7), [PERSON])
        found = next(events)
    assert isinstance(state, StateEvent)
    assert (state.stream, state.state, state.reason) == ("a", State.UP, None)
    assert isinstance(found, DetectionEvent)
    assert (found.seq, found.frame.seq, found.frame.width, found.detections) == (1, 7, 640, (PERSON,))


def test_a_late_joiner_has_no_gap_and_lost_events_are_one(sender: Sender) -> None:
    with subscribe(sender.endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
        sender.await_subscriber()
        sender.send(41, 42, 45, 46, 48)
        received = [next(events) for _ in range(7)]
    assert [brief(item) for item in received] == [
        ("a", 41),
        ("a", 42),
        Gap("a", "detections/a/", 43, 2),
        ("a", 45),
        ("a", 46),
        Gap("a", "detections/a/", 47, 1),
        ("a", 48),
    ]


SLOW_READER = """
import sys, time
import zmq
from streamdet import subscribe, wire
from streamdet.types import DetectionEvent, FrameInfo

frame = FrameInfo(seq=1, pts_seconds=None, captured_at=1.0, clock="daemon", width=640, height=360)
with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
    socket.linger, socket.sndhwm = 0, 10
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    endpoint = f"tcp://127.0.0.1:{port}"
    with subscribe(endpoint, timeout_seconds=20, high_water_mark_events=10, heartbeat_seconds=0.1) as events:
        assert socket.poll(20_000)
        socket.recv()
        for seq in range(1, 20_001):
            socket.send_multipart(wire.to_message(DetectionEvent("a", "e", seq, 2.0, frame, ())))
        if sys.argv[1] == "gone":
            socket.close()
        time.sleep(1.5)  # many heartbeats without a reader
        read = [event.seq for event in iter(lambda: events.receive(1.0), None) if isinstance(event, DetectionEvent)]
        print(len(read), read == sorted(read))
"""


@pytest.mark.parametrize("daemon", ["there", "gone"])
def test_a_reader_that_was_slow_for_longer_than_the_heartbeats_goes_on(daemon: str) -> None:
    # In a process of its own, which libzmq would end.
    command = [sys.executable, "-c", SLOW_READER, daemon]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    count, in_order = done.stdout.split()
    assert int(count) > 10
    assert in_order == "True"


HANGING_DAEMON = """
import time
import zmq

with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
    print("tcp://127.0.0.1:%d" % socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    time.sleep(60)
"""


def test_a_daemon_that_hangs_is_noticed() -> None:
    command = [sys.executable, "-c", HANGING_DAEMON]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            endpoint = daemon.stdout.readline().strip()
            with subscribe(endpoint, heartbeat_seconds=0.2) as events:
                wait_until(lambda: events.is_connected, "the connection")
                daemon.send_signal(signal.SIGSTOP)
                wait_until(lambda: not events.is_connected, "that it hangs")
                daemon.send_signal(signal.SIGCONT)
                wait_until(lambda: events.is_connected, "that it goes on")
        finally:
            daemon.kill()


def test_every_topic_counts_for_itself(sender: Sender) -> None:
    with subscribe(sender.endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
        sender.await_subscriber()
        for stream, seq in (("a", 5), ("b", 90), ("a", 6), ("b", 91)):
            sender.send(seq, stream=stream)
        received = [brief(next(events)) for _ in range(4)]
    assert received == [("a", 5), ("b", 90), ("a", 6), ("b", 91)]


def test_a_new_epoch_is_no_gap(sender: Sender) -> None:
    with subscribe(sender.endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
        sender.await_subscriber()
        sender.send(1, 2)
        sender.send(9, 11, epoch="e2")
        received = [brief(next(events)) for _ in range(5)]
    assert received == [("a", 1), ("a", 2), ("a", 9), Gap("a", "detections/a/", 10, 1), ("a", 11)]


def test_the_client_goes_on_after_a_restart_of_the_publisher(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    with subscribe(endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
        received = []
        for epoch in ("e1", "e2"):
            with publisher_at(endpoint, epoch) as publisher:
                publisher.put_status(status_of("a"))
                received.append(next(events))
                for seq in (1, 2):
                    publisher.put_detections(frame_of("a", seq), [])
            received += [next(events), next(events)]
    assert [(brief(item), getattr(item, "epoch", None)) for item in received if isinstance(item, DetectionEvent)] == [
        (("a", 1), "e1"), (("a", 2), "e1"), (("a", 1), "e2"), (("a", 2), "e2"),
    ]  # fmt: skip
    assert not [item for item in received if isinstance(item, Gap)]


def test_repeated_states_are_neither_gaps_nor_lost() -> None:
    with (
        publisher_at(state_interval_seconds=0.02) as publisher,
        subscribe(publisher.endpoint, timeout_seconds=PATIENCE_SECONDS) as events,
    ):
        publisher.put_status(status_of("a"))
        received = [next(events) for _ in range(5)]
    seqs = [item.seq for item in received if isinstance(item, StateEvent)]
    assert seqs == [1] * 5


def test_objects_and_alerts_come_typed_to_those_who_name_them(sender: Sender) -> None:
    sent = [object_event("a", 1), alert_event("a", 1), object_event("a", 2, phase="end", reason=EndReason.LOST)]
    with subscribe(sender.endpoint, kinds=["objects", "alerts"], timeout_seconds=PATIENCE_SECONDS) as events:
        subscriptions = {sender.await_subscription() for _ in range(2)}
        sender.send(1)
        sender.send_events(*sent)
        received = [next(events) for _ in sent]
    assert subscriptions == {b"\x01objects/", b"\x01alerts/"}
    assert received == sent


def test_who_names_no_kinds_gets_what_there_was_before_objects(sender: Sender) -> None:
    with subscribe(sender.endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
        subscriptions = {sender.await_subscription() for _ in range(2)}
        sender.send_events(object_event("a"), alert_event("a"))
        sender.send(1)
        assert brief(next(events)) == ("a", 1)
    assert subscriptions == {b"\x01detections/", b"\x01state/"}


def test_objects_have_gaps_of_their_own(sender: Sender) -> None:
    with subscribe(sender.endpoint, ["a"], ["objects", "alerts"], timeout_seconds=PATIENCE_SECONDS) as events:
        sender.await_subscriber()
        sender.await_subscriber()
        sender.send_events(object_event("a", 3), alert_event("a", 1), object_event("a", 6), alert_event("a", 2))
        received = [next(events) for _ in range(5)]
    assert received[2] == Gap("a", "objects/a/", 4, 2)
    assert [item.seq for item in received if not isinstance(item, Gap | Restart)] == [3, 1, 6, 2]


def test_labels_choose_objects_and_alerts(sender: Sender) -> None:
    with subscribe(
        sender.endpoint, kinds=["objects", "alerts"], labels=["car"], timeout_seconds=PATIENCE_SECONDS
    ) as events:
        sender.await_subscriber()
        sender.await_subscriber()
        sender.send_events(
            object_event("a", 1), alert_event("a", 1), object_event("a", 2, label="car"),
            alert_event("a", 2, label="car"), alert_event("a", 3, label=None, box=None, count=3),
            object_event("a", 3), object_event("a", 4, label="car"),
        )  # fmt: skip
        received = [next(events) for _ in range(4)]
    # What is of another label is not lost: no gap stands for it. A count is about no single label.
    assert [(type(item), getattr(item, "seq", 0)) for item in received] == [
        (ObjectEvent, 2), (AlertEvent, 2), (AlertEvent, 3), (ObjectEvent, 4),
    ]  # fmt: skip


def test_a_slow_reader_learns_what_it_lost() -> None:
    many = [Detection("person", 0.5, (index, 1.0, index + 1.5, 9.0)) for index in range(300)]
    with (
        publisher_at(high_water_mark_events=5) as publisher,
        subscribe(publisher.endpoint, timeout_seconds=PATIENCE_SECONDS, high_water_mark_events=5) as events,
    ):
        publisher.put_status(status_of("a"))
        assert isinstance(next(events), StateEvent)
        for seq in range(1, 501):
            publisher.put_detections(frame_of("a", seq), many)
        # Only who does not read while they are sent is slow, also on a machine that is slow itself.
        while publisher._pending or publisher._sending:
            time.sleep(0.01)
        received: list[Any] = []
        seq = 500
        while not any(isinstance(item, Gap) for item in received):
            item = events.receive(0.2)
            if item is None:
                seq += 1
                publisher.put_detections(frame_of("a", seq), [])
            else:
                received.append(item)
        received.append(next(events))
    gap = next(item for item in received if isinstance(item, Gap))
    seqs = [item.seq for item in received if isinstance(item, DetectionEvent)]
    assert gap.first == seqs[-2] + 1
    assert gap.first + gap.count == seqs[-1]
    assert len(seqs) + gap.count == seqs[-1]


def test_one_stream_does_not_bring_another_that_begins_alike() -> None:
    with (
        publisher_at() as publisher,
        subscribe(publisher.endpoint, ["cam1", "Hof Süd"], timeout_seconds=PATIENCE_SECONDS) as events,
    ):
        for stream in ("cam10", "cam1", "Hof Süd", "cam"):
            publisher.put_status(status_of(stream))
        received = set()
        while received != {"cam1", "Hof Süd"}:
            received.add(next(events).stream)
        # A state may be repeated, because a subscription came after it.
        while (event := events.receive(0.2)) is not None:
            received.add(event.stream)
    assert received == {"cam1", "Hof Süd"}


def test_kinds_and_labels_are_chosen() -> None:
    with (
        publisher_at() as publisher,
        subscribe(publisher.endpoint, timeout_seconds=PATIENCE_SECONDS) as everything,
        subscribe(publisher.endpoint, kinds=["detections"], labels=["car"], timeout_seconds=PATIENCE_SECONDS) as cars,
    ):
        publisher.put_status(status_of("a"))
        next(everything)
        seq, first = 0, None
        while first is None:  # until the other subscription is in force, too
            seq += 1
            publisher.put_detections(frame_of("a", seq), [PERSON])
            first = cars.receive(0.1)
        publisher.put_detections(frame_of("a", seq + 1), [PERSON, CAR])
        second = next(cars)
    assert isinstance(first, DetectionEvent)
    assert isinstance(second, DetectionEvent)
    assert first.detections == ()
    assert second.detections == (CAR,)


def test_waiting_can_be_limited() -> None:
    with publisher_at() as publisher, subscribe(publisher.endpoint, timeout_seconds=0.05) as events:
        assert events.receive(0) is None
        assert events.receive(0.05) is None
        with pytest.raises(TimeoutError, match=r"no event within 0\.05 seconds"):
            next(events)
    assert list(events) == []
    events.close()


def test_what_is_no_event_is_reported_and_the_next_one_comes(sender: Sender) -> None:
    with subscribe(sender.endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
        sender.await_subscriber()
        sender.socket.send_multipart([b"detections/a/", b"{}"])
        sender.socket.send_multipart([b"detections/a/"])
        sender.socket.send_multipart([b"detections/a/", b"{}", b"more"])
        sender.send(1)
        for _ in range(3):
            with pytest.raises(WireError):
                next(events)
        assert brief(next(events)) == ("a", 1)


def test_wrong_arguments_are_reported_at_once() -> None:
    for wrong in ("localhost:5555", "tcp://127.0.0.1", "http://127.0.0.1:5555"):
        with pytest.raises(EndpointError, match="expected something like"):
            subscribe(wrong)
    with pytest.raises(TypeError, match="list of words"):
        subscribe("tcp://127.0.0.1:5555", streams="front-door")
    with pytest.raises(ValueError, match="nothing to subscribe to"):
        subscribe("tcp://127.0.0.1:5555", streams=[])
    with pytest.raises(ValueError, match="unknown kind 'pictures'"):
        subscribe("tcp://127.0.0.1:5555", kinds=["pictures"])  # type: ignore[list-item] # on purpose


def test_asyncio(sender: Sender) -> None:
    async def collect() -> list[object]:
        received: list[object] = []
        async with subscribe_async(sender.endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
            assert await events.receive(0.01) is None
            await asyncio.to_thread(sender.await_subscriber)
            sender.send(1, 2, 4)
            async for event in events:
                received.append(brief(event))
                if len(received) == 4:
                    break
        assert [event async for event in events] == []
        return received

    assert asyncio.run(collect()) == [("a", 1), ("a", 2), Gap("a", "detections/a/", 3, 1), ("a", 4)]


def test_asyncio_waits_without_holding_up_the_loop() -> None:
    async def wait() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as tasks, subscribe_async("tcp://127.0.0.1:1", timeout_seconds=0.3) as events:
            ticking = tasks.create_task(tick())
            with pytest.raises(TimeoutError):
                await anext(events)
            ticking.cancel()
        return ticks

    assert asyncio.run(wait()) > 2


def test_asyncio_gives_other_tasks_their_turn_while_events_come_without_a_pause(sender: Sender) -> None:
    async def count_turns() -> int:
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with subscribe_async(sender.endpoint, timeout_seconds=PATIENCE_SECONDS) as events:
            assert await events.receive(0.01) is None
            await asyncio.to_thread(sender.await_subscriber)
            sender.send(*range(1, 102))
            while (await anext(events)).seq < 50:  # so that the others wait in the socket
                pass
            other = asyncio.create_task(take_turns())
            for _ in range(50):
                await anext(events)
            other.cancel()
        return turns

    assert asyncio.run(count_turns()) >= 50


@pytest.mark.parametrize("make", [subscribe, subscribe_async])
def test_the_former_name_of_replay_works_with_a_warning(make: Any, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="heal= is now replay=") as caught:
        subscription = make(f"ipc://{tmp_path}/events", heal=True)
    assert isinstance(subscription._order, OrderedRecovery)
    assert caught[0].filename == __file__
    subscription.close()


def test_whether_the_connection_stands_is_known(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    with subscribe(endpoint) as events:
        assert not events.is_connected
        with publisher_at(endpoint):
            wait_until(lambda: events.is_connected, "the connection is made")
        wait_until(lambda: not events.is_connected, "the connection is gone")
    assert not events.is_connected


def test_streams_can_be_changed_without_replay(sender: Sender, tmp_path: Path) -> None:
    with subscribe(sender.endpoint, ["a", "b"], ["detections"], timeout_seconds=PATIENCE_SECONDS) as events:
        assert {sender.await_subscription() for _ in range(2)} == {b"\1detections/a/", b"\1detections/b/"}
        events.set_streams(["b", "c"])
        assert {sender.await_subscription() for _ in range(2)} == {b"\1detections/c/", b"\0detections/a/"}
        for stream in ("a", "b", "c"):
            sender.send(1, stream=stream)
        assert [brief(next(events)) for _ in range(2)] == [("b", 1), ("c", 1)]
    with (
        subscribe(f"ipc://{tmp_path}/events", ["a"], replay=True) as events,
        pytest.raises(ValueError, match="with replay cannot be changed"),
    ):
        events.set_streams(["b"])


def test_a_subscriber_needs_neither_torch_nor_a_video_library() -> None:
    code = (
        "import sys, json; from streamdet import Detection, DetectionEvent, Gap, StateEvent, subscribe;"
        "print(json.dumps([m for m in ('torch', 'torchvision', 'av', 'cv2', 'numpy', 'pydantic') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_public_names_are_there() -> None:
    import streamdet  # noqa: PLC0415 - the package itself is the subject

    assert {name for name in streamdet.__all__ if getattr(streamdet, name, None) is None} == set()
    assert set(streamdet.__all__) <= set(dir(streamdet))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = streamdet.nonsense


def test_only_so_many_topics_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.client.gaps.MAX_TOPICS", 3)
    counting = GapDetector(None)
    for stream, seq in (("a", 1), ("b", 1), ("c", 1), ("a", 2), ("d", 1), ("a", 4), ("b", 7)):
        counting.event(StateEvent(stream, "e", seq, 1.0, State.UP, None, "", 1.0))
    assert len(counting._last) == 3
    # "b" had been silent longest when "d" came.
    assert [item for item in counting.ready if isinstance(item, Gap)] == [Gap("a", "state/a/", 3, 1)]
