from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from streamdet.config import PublisherConfig, ReplayConfig
from streamdet.delivery.connections import ConnectionLimits
from streamdet.delivery.publisher import Publisher
from streamdet.security.curve import client_keys
from streamdet.security.endpoints import parse_endpoint
from streamdet.wire.replay import SnapshotRequest, encode_request
from support.knocking import Door, Keys, RawSubscriber, hears, subscriber
from support.publishing import frame_of, metrics_of, publisher_at
from support.waiting import join, wait_until


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_an_allowed_client_gets_events(keys: Keys) -> None:
    with Door(keys.config()) as door, subscriber(door.endpoint, keys.server_key, keys.make("alice")) as alice:
        assert hears(alice)
        wait_until(lambda: door.value("connections") == 1)


def test_a_client_that_is_not_allowed_gets_nothing_until_it_is(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    stranger = keys.make("stranger", allowed=False)
    with Door(keys.config()) as door, subscriber(door.endpoint, keys.server_key, stranger) as sub:
        wait_until(lambda: door.refused("unknown_key") >= 1)
        assert not sub.poll(200)
        assert "refused a connection of 127.0.0.1: unknown_key" in caplog.text
        (keys.folder / "stranger.key").rename(keys.clients / "stranger.key")
        assert hears(sub)


@pytest.mark.parametrize("knows", ["no key", "another daemon's key"])
def test_a_client_without_the_right_keys_gets_nothing(keys: Keys, knows: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    alice, other = keys.make("alice"), Keys(tmp_path / "other")
    known = (other.server_key, alice) if knows == "another daemon's key" else (None, None)
    reasons = ("wrong_server_key",) if knows == "another daemon's key" else ("no_key", "broken_off")
    with Door(keys.config()) as door, subscriber(door.endpoint, *known) as sub:
        wait_until(lambda: sum(door.refused(reason) for reason in reasons) >= 1)
        assert not sub.poll(200)


def test_one_who_says_nothing_is_hung_up_on(keys: Keys) -> None:
    with Door(keys.config()) as door:
        address = parse_endpoint(door.endpoint)
        with socket.create_connection((address.host, address.port), timeout=30) as silent:
            while silent.recv(100):
                pass
        wait_until(lambda: door.refused("timeout") == 1)


def test_revoking_ends_the_connection_of_that_client_and_of_no_one_else(keys: Keys) -> None:
    alice, bob = keys.make("alice"), keys.make("bob")
    with (
        Door(keys.config()) as door,
        subscriber(door.endpoint, keys.server_key, alice) as of_alice,
        subscriber(door.endpoint, keys.server_key, bob) as of_bob,
    ):
        assert hears(of_alice)
        assert hears(of_bob)
        (keys.clients / "alice.key").unlink()
        wait_until(lambda: door.cut("revoked") == 1)
        wait_until(lambda: door.refused("unknown_key") >= 1)
        while of_alice.poll(0):
            of_alice.recv_multipart()
        assert not of_alice.poll(200)
        # Bob has lost nothing, so no one has cut him.
        numbers = [int(of_bob.recv_multipart()[1]) for _ in range(20)]
        assert numbers == list(range(numbers[0], numbers[0] + 20))
        assert door.cut("revoked") == 1


def test_revoking_ends_connections_that_have_said_nothing(keys: Keys) -> None:
    alice, bob = keys.make("alice"), keys.make("bob")
    with ExitStack() as stack:
        door = stack.enter_context(Door(keys.config()))
        of_alice = [
            stack.enter_context(subscriber(door.endpoint, keys.server_key, alice, silent=True)) for _ in range(10)
        ]
        of_bob = stack.enter_context(subscriber(door.endpoint, keys.server_key, bob, silent=True))
        wait_until(lambda: door.value("connections") == 11)
        talks = stack.enter_context(subscriber(door.endpoint, keys.server_key, bob))
        assert hears(talks)
        revoked_at = time.monotonic()
        (keys.clients / "alice.key").unlink()
        wait_until(lambda: door.cut("revoked") == 11)
        assert time.monotonic() - revoked_at < 2
        for sub in (*of_alice, of_bob):
            sub.subscribe("tick/")
        # Bob, whose silent connection might have been anyone's, is back at once; where he listens he lost nothing.
        assert hears(of_bob)
        numbers = [int(talks.recv_multipart()[1]) for _ in range(20)]
        assert numbers == list(range(numbers[0], numbers[0] + 20))
        assert not any(sub.poll(50) for sub in of_alice)
        assert door.cut("revoked") == 11


def test_what_another_said_over_the_same_descriptor_vouches_for_no_one(keys: Keys) -> None:
    alice, mallory = keys.make("alice"), keys.make("mallory")
    with Door(keys.config()) as door:
        with subscriber(door.endpoint, keys.server_key, alice) as of_alice:
            assert hears(of_alice)
        wait_until(lambda: door.value("connections") == 0)
        with subscriber(door.endpoint, keys.server_key, mallory, silent=True):
            wait_until(lambda: door.value("connections") == 1)
            (keys.clients / "mallory.key").unlink()
            wait_until(lambda: door.cut("revoked") == 1)


def test_nothing_is_answered_with_a_revoked_key(keys: Keys) -> None:
    alice = keys.make("alice")
    config = keys.config()
    request = encode_request(SnapshotRequest(1))
    with (
        Publisher(config, "e", metrics_of(), replay=ReplayConfig(endpoint="tcp://127.0.0.1:0")) as publisher,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as asker,
    ):
        asker.linger = 0
        known = client_keys(keys.server_key, alice)
        assert known is not None
        known.apply_to(asker)
        asker.connect(publisher.replay_endpoint)
        asker.send(request)
        assert hears(asker)
        asker.recv_multipart()
        # As long as the connection stands, which is cut a moment later.
        publisher._sockets._guard._cut = lambda *_: None  # type: ignore[method-assign]
        (keys.clients / "alice.key").unlink()
        allowed = publisher._sockets._guard._authenticator
        assert allowed is not None
        wait_until(lambda: not allowed._clients.newest)
        asker.send(request)
        assert not asker.poll(300)


def test_a_request_without_end_is_not_read() -> None:
    metrics = metrics_of("a")

    def cut() -> float:
        labels = {"socket": "replay", "reason": "flood"}
        return metrics.registry.get_sample_value("streamdet_subscriber_cuts_total", labels) or 0

    with (
        publisher_at(replay=ReplayConfig(endpoint="tcp://127.0.0.1:0"), metrics=metrics) as publisher,
        zmq.Context() as context,
        context.socket(zmq.SUB) as sub,
        context.socket(zmq.DEALER) as asker,
    ):
        publisher._sockets._guard.limits = ConnectionLimits(unread_bytes=300 << 10)
        sub.linger = asker.linger = 0
        sub.subscribe("detections/")
        sub.connect(publisher.endpoint)
        asker.connect(publisher.replay_endpoint)
        wait_until(lambda: publisher.put_detections(frame_of("a", 1), []) or sub.poll(50))
        before = _resident_bytes()
        whole, unfinished = b"\x01\x00" * 499_999 + b"\x00\x00", b"\x01\x00" * 50_000
        hostile = [RawSubscriber(publisher.replay_endpoint, b"DEALER") for _ in range(10)]
        hostile[0].send(whole)
        # Each is less than one may send, but not all of them together.
        for one in hostile[1:]:
            one.send(unfinished)
        longest, last, seq = 0.0, time.monotonic(), 1
        while cut() < 7 or seq < 50:
            seq += 1
            publisher.put_detections(frame_of("a", seq), [])
            assert hears(sub)
            sub.recv_multipart()
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        # Half a million parts read at once took four seconds.
        assert longest < 0.5
        assert _resident_bytes() - before < 100 << 20
        asker.send(encode_request(SnapshotRequest(1)))
        assert hears(asker), "others are answered"
        for one in hostile:
            one.close()


def test_a_directory_that_is_gone_lets_no_one_in(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    alice = keys.make("alice")
    with Door(keys.config()) as door:
        with subscriber(door.endpoint, keys.server_key, alice) as sub:
            assert hears(sub)
            keys.clients.rename(keys.folder / "elsewhere")
            wait_until(lambda: door.cut("revoked") == 1)
        assert caplog.text.count("no client is accepted") == 1


def test_a_file_without_a_key_is_reported_once_and_lets_others_in(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    (keys.clients / "broken.key").write_text("dear diary")
    alice = keys.make("alice")
    with Door(keys.config()) as door, subscriber(door.endpoint, keys.server_key, alice) as sub:
        assert hears(sub)
        time.sleep(0.7)  # it is read again
        assert caplog.text.count("broken.key holds no public key") == 1


def test_refusals_are_logged_once_a_second_at_most(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    stranger = keys.make("stranger", allowed=False)
    began = time.monotonic()
    with Door(keys.config()) as door:
        for knocks in range(1, 11):
            with subscriber(door.endpoint, keys.server_key, stranger):
                wait_until(lambda: door.refused("unknown_key") >= knocks)  # noqa: B023 - waited for within the round
        lines = [record for record in caplog.records if "refused" in record.message]
        assert 1 <= len(lines) <= time.monotonic() - began + 1


def test_a_million_topics_are_not_listened_to() -> None:
    metrics = metrics_of("a")
    cuts = {"socket": "events", "reason": "flood"}
    flooded: list[int] = []

    def flood(endpoint: str) -> None:
        hostile = RawSubscriber(endpoint)
        flooded.append(hostile.subscribe(1_000_000, topic_bytes=100))
        hostile.close()

    with publisher_at(metrics=metrics) as publisher, zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.linger = 0
        sub.subscribe("detections/")
        sub.connect(publisher.endpoint)
        wait_until(lambda: publisher.put_detections(frame_of("a", 1), []) or sub.poll(50))
        sub.recv_multipart()
        before, longest, last, seq = _resident_bytes(), 0.0, time.monotonic(), 1
        for _ in range(3):  # one that comes back is cut again
            flooding = threading.Thread(target=flood, args=(publisher.endpoint,), daemon=True)
            flooding.start()
            while flooding.is_alive():
                seq += 1
                publisher.put_detections(frame_of("a", seq), [])
                assert hears(sub)
                sub.recv_multipart()
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            join(flooding)
        assert max(flooded) < 1_000_000
        assert metrics.registry.get_sample_value("streamdet_subscriber_cuts_total", cuts) == 3
        assert _resident_bytes() - before < 300 << 20
        # A flood that is not cut stops events until it ends: some seconds.
        assert longest < 5
        # Nothing of it is left.
        wait_until(lambda: len(publisher._sockets._subscriptions) == 1)


def test_heartbeats_are_not_taken_for_a_message_that_does_not_end() -> None:
    with (
        Door(
            PublisherConfig(endpoint="tcp://127.0.0.1:0"), unread_bytes=2000, heartbeat_bytes_per_second=1 << 30
        ) as door,
        contextlib.closing(RawSubscriber(door.endpoint)) as silent,
    ):
        connections = door.gate._sockets[0].connections
        assert silent.send(b"\4\7\4PING\0\0" * 1000)
        wait_until(lambda: [one.received_bytes > 9000 for one in connections.values()] == [True])
        turn = door.gate._counted_at
        wait_until(lambda: door.gate._counted_at > turn)
        assert door.cut("flood") == 0
        door.gate.limits = replace(door.gate.limits, heartbeat_bytes_per_second=0)
        assert silent.send(b"\4\7\4PING\0\0" * 1000)
        wait_until(lambda: door.cut("flood") == 1)


def test_the_number_of_connections_is_bounded() -> None:
    with Door(PublisherConfig(endpoint="tcp://127.0.0.1:0"), connections=3) as door:
        address = parse_endpoint(door.endpoint)
        sockets = [socket.create_connection((address.host, address.port), timeout=30) for _ in range(4)]
        wait_until(lambda: door.cut("too_many") >= 1)
        for connection in sockets:
            connection.close()
        with subscriber(door.endpoint) as sub:
            assert hears(sub)


def test_silent_connections_make_room_for_others() -> None:
    with ExitStack() as stack:
        door = stack.enter_context(Door(PublisherConfig(endpoint="tcp://127.0.0.1:0"), connections=8, silent_seconds=0))
        talks = stack.enter_context(subscriber(door.endpoint))
        assert hears(talks)
        wait_until(lambda: [one.is_heard for one in door.gate._sockets[0].connections.values()] == [True])
        silent = [RawSubscriber(door.endpoint) for _ in range(20)]
        # Half of the eight are for one address.
        wait_until(lambda: door.cut("too_many") >= 17)
        numbers = [int(talks.recv_multipart()[1]) for _ in range(20)]
        assert numbers == list(range(numbers[0], numbers[0] + 20))
        assert hears(stack.enter_context(subscriber(door.endpoint)))
        for one in silent:
            one.close()


def test_one_address_cannot_take_all_connections() -> None:
    with Door(PublisherConfig(endpoint="tcp://127.0.0.1:0"), connections=8) as door:
        subscribed = [RawSubscriber(door.endpoint, source="127.0.0.2") for _ in range(6)]
        for one in subscribed:
            one.subscribe(100, topic_bytes=10)
        wait_until(lambda: door.cut("too_many") >= 2)
        with subscriber(door.endpoint) as sub:
            assert hears(sub)
        for one in subscribed:
            one.close()


def test_a_key_works_over_a_unix_socket_and_can_be_revoked(keys: Keys) -> None:
    alice = keys.make("alice")
    with (
        Door(keys.config(f"ipc://{keys.folder}/events")) as door,
        subscriber(door.endpoint, keys.server_key, alice) as sub,
    ):
        assert hears(sub)
        (keys.clients / "alice.key").unlink()
        wait_until(lambda: door.cut("revoked") == 1)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_no_heartbeat_is_due_on_a_connection_that_floods_and_leaves() -> None:
    # libzmq 4.3.5 ends the process then (`Assertion failed: !_io_error`), once in 24 tries: so no try shows it.
    with publisher_at(replay=ReplayConfig(endpoint="tcp://127.0.0.1:0")) as publisher:
        sockets = publisher._sockets
        assert sockets._replay is not None
        for bound in (sockets._events, sockets._replay):
            assert bound.heartbeat_ivl == 0
            assert (bound.tcp_keepalive, bound.getsockopt(zmq.TCP_MAXRT)) == (1, 25_000)
