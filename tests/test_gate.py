from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest
from knocking import Door, Keys, RawSubscriber, hears, subscriber, wait_until

from streamdet import gate as module
from streamdet.config import PublisherConfig
from streamdet.endpoint import parse_endpoint


@pytest.fixture(autouse=True)
def _short_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is refused tries again only after this time."""
    monkeypatch.setattr(module, "_HANDSHAKE_MILLISECONDS", 1000)


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


def test_revoking_ends_the_connection_of_that_client_and_of_nobody_else(keys: Keys) -> None:
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
        # Bob has lost nothing, so nobody has cut him.
        numbers = [int(of_bob.recv_multipart()[1]) for _ in range(20)]
        assert numbers == list(range(numbers[0], numbers[0] + 20))
        assert door.cut("revoked") == 1


def test_a_directory_that_is_gone_lets_nobody_in(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    alice = keys.make("alice")
    with Door(keys.config()) as door:
        with subscriber(door.endpoint, keys.server_key, alice) as sub:
            assert hears(sub)
            keys.clients.rename(keys.folder / "elsewhere")
            wait_until(lambda: door.cut("revoked") == 1)
        assert caplog.text.count("nobody is let in") == 1


def test_a_file_without_a_key_is_told_once_and_lets_others_in(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
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
    with Door(PublisherConfig(endpoint="tcp://127.0.0.1:0")) as door, subscriber(door.endpoint) as sub:
        assert hears(sub)
        before = _resident_bytes()
        flooder = RawSubscriber(door.endpoint)
        assert flooder.subscribe(1_000_000, topic_bytes=100) < 1_000_000
        flooder.close()
        wait_until(lambda: door.cut("flood") == 1)
        while sub.poll(0):
            sub.recv_multipart()
        assert hears(sub), "others are served on"
        assert _resident_bytes() - before < 300 << 20
        # Who comes back gets less room.
        again = RawSubscriber(door.endpoint)
        again.subscribe(1_000_000, topic_bytes=100)
        again.close()
        wait_until(lambda: door.cut("flood") == 2)


def test_there_are_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    with Door(PublisherConfig(endpoint="tcp://127.0.0.1:0")) as door:
        address = parse_endpoint(door.endpoint)
        sockets = [socket.create_connection((address.host, address.port), timeout=30) for _ in range(4)]
        wait_until(lambda: door.cut("too_many") >= 1)
        for connection in sockets:
            connection.close()
        with subscriber(door.endpoint) as sub:
            assert hears(sub)


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
