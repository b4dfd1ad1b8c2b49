"""The MQTT bridge and a real Mosquitto, which is killed, stopped and refuses."""

from __future__ import annotations

import json
import logging
import math
import queue
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streamdet.bridges.mqtt import MqttBridge, MqttSettings, session
from streamdet.bridges.mqtt.messages import Message
from streamdet.bridges.mqtt.session import BrokerAddress, MqttError, Session
from streamdet.client import Gap
from streamdet.monitoring.bridge_metrics import BridgeMetrics
from streamdet.types import PictureInfo, State, StateEvent
from support.certificates import make_certificate
from support.mosquitto import Mosquitto, listener_of
from support.occurring import alert_event, object_event
from support.odd_broker import OddBroker
from support.waiting import join, wait_until

pytestmark = pytest.mark.package("mosquitto")

RIGHT, WRONG = "right", "wrong"
WILL = Message("s/availability", b"offline", retain=True)
PICTURE = PictureInfo("p1", 9, 64, 48, None, jpeg=b"\xff\xd8 a picture")


class Daemon:
    """Takes the place of a subscription, and yields what a test puts."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.is_connected = True
        self._seq = 0

    def put(self, item: Any) -> None:
        self.items.put(item)

    def receive(self, timeout_seconds: float) -> Any:
        try:
            item = self.items.get(timeout=timeout_seconds) if timeout_seconds else self.items.get_nowait()
        except queue.Empty:
            return None
        self._seq = getattr(item, "seq", self._seq)
        return item

    def position(self) -> dict[str, tuple[str, int]]:
        return {"alerts/yard/": ("e1", self._seq)}

    def picture(self, *_: object) -> bytes:
        return b"fetched"


class Running:
    """A bridge in a thread."""

    def __init__(self, settings: MqttSettings, saved: dict[str, Any] | None = None) -> None:
        self.events, self.states, self.metrics = Daemon(), Daemon(), BridgeMetrics("mqtt")
        self.positions: list[int] = []
        self.saved: dict[str, Any] = {}
        self.stopping = threading.Event()
        self.bridge = MqttBridge(settings, self.events, self.states, saved, self._save, self.metrics.of("broker"))  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.bridge.run, args=(self.stopping.is_set,), daemon=True)

    def count(self, name: str) -> float | None:
        labels = {"bridge": "mqtt", "target": "broker"}
        return self.metrics.registry.get_sample_value(f"streamdet_bridge_{name}", labels)

    def _save(self, position: Any, saved: Any) -> None:
        if position is not None:
            self.positions.append(position["alerts/yard/"][1])
        self.saved = json.loads(json.dumps(saved))


@contextmanager
def bridge_to(
    address: BrokerAddress, saved: dict[str, Any] | None = None, first: Sequence[Any] = (), **settings: Any
) -> Iterator[Running]:
    running = Running(MqttSettings(address, **{"prefix": "s", **settings}), saved)
    for item in first:
        running.events.put(item)
    running.thread.start()
    try:
        yield running
    finally:
        running.stopping.set()
        join(running.thread)


def alert(seq: int, **changes: Any) -> Any:
    return alert_event("yard", seq, **{"published_at": time.time(), "rule": "r", "alert_id": f"a{seq}", **changes})


def up(stream: str = "yard", seq: int = 1) -> StateEvent:
    return StateEvent(stream, "e1", seq, time.time(), State.UP, None, "", 90.0)


def seqs(payloads: list[bytes]) -> list[int]:
    return [json.loads(payload)["seq"] for payload in payloads]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_events_arrive_and_states_are_retained(tmp_path: Path, protocol: str) -> None:
    with Mosquitto(tmp_path, password=RIGHT) as broker, listener_of(broker, RIGHT) as listener:
        address = broker.address(protocol=protocol, username="bridge", password=RIGHT)
        with bridge_to(address) as running:
            running.events.put(up())
            running.events.put(object_event("yard", 1, phase="begin", published_at=time.time()))
            running.events.put(alert(1, picture=PICTURE))
            running.events.put(alert(2, phase="cleared"))
            running.events.put(Gap("yard", "alerts/yard/", 3, 4))
            running.events.put(alert(7, picture=replace(PICTURE, jpeg=None)))
            wait_until(lambda: running.positions[-1:] == [7], "all acknowledged")
            listener.wait_for("s/yard/picture", b"fetched")
            assert running.count("events_total") == 6
            assert running.count("lost_events_total") == 4
            assert running.count("dead_letters_total") == 0
            assert running.bridge.waiting == 0
        listener.wait_for("s/availability", b"offline")
        assert seqs(listener.topic("s/yard/alerts/r")) == [1, 2, 7]
        assert listener.topic("s/yard/picture") == [b"\xff\xd8 a picture", b"fetched"]
        assert seqs(listener.topic("s/yard/last_alert")) == [1, 7]
        assert json.loads(listener.topic("s/yard/gaps")[0])["count"] == 4
        assert b"online" in listener.topic("s/availability")
        # One that subscribes later finds the states, and no event.
        with listener_of(broker, RIGHT) as later:
            later.wait_for("s/yard/labels/person", listener.topic("s/yard/labels/person")[-1])
            wait_until(lambda: "s/yard/picture" in later.retained(), "the picture")
            assert not {"s/yard/objects", "s/yard/alerts/r", "s/yard/gaps"} & later.retained().keys()
            sensors = "homeassistant/binary_sensor/"
            wait_until(lambda: any(topic.startswith(sensors) for topic in later.retained()), "the discovery")


def test_no_alert_is_lost_over_the_death_of_the_broker_and_no_old_one_looks_new(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path) as broker,
        listener_of(broker) as listener,
        bridge_to(broker.address(), late_after_seconds=60.0) as running,
    ):
        running.events.put(up())
        running.events.put(alert(1))
        wait_until(lambda: running.positions[-1:] == [1], "the first one")
        broker.signal(signal.SIGSTOP)
        for seq in range(2, 302):
            running.events.put(alert(seq))
        wait_until(lambda: running.bridge.waiting == 100, "as many as may be on their way")
        running.bridge._retry_seconds = math.inf  # until the listener is there again
        broker.kill()
        wait_until(lambda: not running.bridge.is_connected, "the end of the session")
        assert running.positions[-1] == 1
        running.events.put(alert(302, published_at=time.time() - 3600, picture=PICTURE))
        running.events.put(alert(303))
        listener.subscribed.clear()
        broker.start()
        assert listener.subscribed.wait(30)
        running.bridge._retry_at = 0.0
        wait_until(lambda: running.positions[-1] == 303, "all acknowledged")
        wait_until(lambda: 303 in seqs(listener.topic("s/yard/alerts/r")), "the last one")
        found = [json.loads(payload) for payload in listener.topic("s/yard/alerts/r")]
        assert [(one["seq"], one["late"]) for one in found] == [(seq, seq == 302) for seq in range(1, 304)]
        assert 302 not in seqs(listener.topic("s/yard/last_alert"))
        assert not listener.topic("s/yard/picture")
        # A broker that has lost everything has the states again.
        with listener_of(broker) as later:
            later.wait_for("s/availability", b"online")
            wait_until(lambda: "s/yard/state" in later.retained(), "the state")


@pytest.mark.parametrize("topic", ["s/availability", "s/yard/alerts/r", "s/yard/last_alert"])
def test_an_alert_whose_session_ends_while_it_is_sent_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    publish, failed = Session.publish, threading.Event()

    def fail_once(session: Session, message: Message) -> int | None:
        if message.topic == topic and not failed.is_set():
            failed.set()
            raise MqttError("it ends here")  # noqa: EM101, TRY003
        return publish(session, message)

    monkeypatch.setattr(Session, "publish", fail_once)
    with (
        Mosquitto(tmp_path) as broker,
        listener_of(broker) as listener,
        bridge_to(broker.address(), first=[alert(1)]) as running,
    ):
        wait_until(lambda: running.positions == [1], "it has arrived")
        assert failed.is_set()
        wait_until(lambda: seqs(listener.topic("s/yard/last_alert")) == [1], "the last alert")
        assert set(seqs(listener.topic("s/yard/alerts/r"))) == {1}


def test_a_broker_that_hangs_holds_up_neither_the_events_after_it_nor_the_end(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, listener_of(broker) as listener, bridge_to(broker.address()) as running:
        running.events.put(alert(1))
        wait_until(lambda: running.positions == [1], "the first one")
        broker.signal(signal.SIGSTOP)
        running.events.put(alert(2))
        wait_until(lambda: running.bridge.waiting == 1, "one on its way")
        broker.signal(signal.SIGCONT)
        wait_until(lambda: running.positions == [1, 2], "the second one")
        assert seqs(listener.topic("s/yard/alerts/r")) == [1, 2]
        broker.signal(signal.SIGSTOP)
        running.events.put(alert(3))
        wait_until(lambda: running.bridge.waiting == 1, "one on its way")
        began = time.monotonic()
        running.stopping.set()
        join(running.thread, 10)
        assert time.monotonic() - began < 8
        assert running.positions == [1, 2]


def test_a_bridge_that_is_killed_is_shown_as_unavailable_and_the_next_goes_on(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, listener_of(broker) as listener:
        with bridge_to(broker.address()) as first:
            first.events.put(up())
            first.events.put(object_event("yard", 1, phase="begin", object_id="o1", published_at=time.time()))
            wait_until(lambda: first.saved, "it was saved")
            listener.wait_for("s/availability", b"online")
            # As a kill would: without a farewell.
            assert first.bridge._session is not None
            connection = first.bridge._session._client.socket()
            first.bridge._retry_seconds = math.inf
            connection.shutdown(2)
            listener.wait_for("s/availability", b"offline")
        with bridge_to(broker.address(), first.saved) as second:
            second.events.put(object_event("yard", 2, phase="end", object_id="o1", published_at=time.time()))
            wait_until(
                lambda: json.loads(listener.topic("s/yard/labels/person")[-1])["state"] == "OFF", "the object has gone"
            )
            listener.wait_for("s/availability", b"online")
            second.events.is_connected = False
            second.bridge._daemon_since, second.bridge._daemon_seen = None, -math.inf
            listener.wait_for("s/availability", b"offline")


def test_names_that_a_broker_would_end_the_connection_for_are_escaped(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, bridge_to(broker.address()) as running:
        wait_until(lambda: running.bridge.is_connected, "the session")
        retries = running.count("retries_total")
        for seq, rule in enumerate(["\x01", "\x9f", "\ufdd0", "\ufffe", "\U0010ffff", "#", "a/+", ""], 1):
            running.events.put(alert(seq, rule=rule))
        wait_until(lambda: running.positions[-1:] == [8], "all acknowledged")
        assert running.count("retries_total") == retries


def test_a_broker_that_acknowledges_nothing_is_left_and_that_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "_ACKNOWLEDGE_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr("streamdet.bridges.mqtt._MIN_RETRY_SECONDS", 0.05)
    with OddBroker(acknowledges=False) as broker, bridge_to(broker.address()) as running:
        running.events.put(alert(1))
        wait_until(lambda: broker.topics.count("s/yard/alerts/r") == 3, "it is sent again on new connections")
        assert broker.logins >= 3
        assert (running.count("retries_total") or 0) >= 2
        assert running.positions == []
        broker.acknowledges = True
        wait_until(lambda: running.positions == [1], "it has arrived")
    assert "the broker has acknowledged nothing for 0.3 seconds" in caplog.text


def test_what_waits_for_the_broker_is_bounded_in_bytes() -> None:
    picture = replace(PICTURE, jpeg=b"x" * 400_000)
    with OddBroker(acknowledges=False) as broker, bridge_to(broker.address()) as running:
        for seq in range(1, 31):
            running.events.put(alert(seq, picture=picture))
        wait_until(lambda: broker.topics.count("s/yard/picture") == 3, "as many as may be on their way")
        assert running.events.items.qsize() == 27
        assert running.bridge.waiting == 3


def publish(payload: bytes) -> bytes:
    """PUBLISH with QoS 2 of a message of another client."""
    content = b"\x00\x03a/b\x00\x07\x00" + payload
    length, size = bytearray(), len(content)
    while size or not length:
        length.append(size % 128 | 128 * (size > 127))
        size //= 128
    return bytes([0x34]) + bytes(length) + content


@pytest.mark.parametrize(
    "packet",
    [
        publish(b"command"),
        publish(b"x" * 50_000),
        bytes([0x34, 0xFF, 0xFF, 0xFF, 0x7F]),  # 256 MiB are to follow
        bytes([0x40, 0xFF, 0xFF, 0xFF, 0x7F]),
        bytes([0x40, 1, 0]),  # half of an acknowledgement
        bytes([0x40, 4, 0, 1, 0xEE, 0]),  # with a reason that is not known
        bytes([0xE0, 3, 0, 200, 1]),
        bytes([0x20, 0]),
        bytes([0x90, 3, 0, 1, 0]),  # the answer to a subscription
        bytes([0x00, 0]),
    ],
)  # fmt: skip
def test_a_broker_that_sends_what_no_client_asked_for_is_left(monkeypatch: pytest.MonkeyPatch, packet: bytes) -> None:
    monkeypatch.setattr("streamdet.bridges.mqtt._MIN_RETRY_SECONDS", 0.05)
    with (
        OddBroker(sends=lambda connection: connection.sendall(packet)) as broker,
        bridge_to(broker.address()) as running,
    ):
        wait_until(lambda: broker.logins >= 3, "new connections")
        broker.sends = None
        running.events.put(alert(1))
        wait_until(lambda: running.positions == [1], "it arrives once the broker behaves")
        assert (running.count("retries_total") or 0) >= 2


def test_a_flood_of_messages_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.bridges.mqtt._MIN_RETRY_SECONDS", 0.05)
    sent = []

    def flood(connection: socket.socket) -> None:
        while True:
            sent.append(connection.send(publish(b"x" * 60_000)))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with OddBroker(sends=flood) as broker, bridge_to(broker.address()) as running:
        wait_until(lambda: broker.logins >= 10, "new connections")
        assert running.thread.is_alive()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_broker_that_retains_nothing_gets_the_messages_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["retain_available false", "max_inflight_messages 1"]
    with Mosquitto(tmp_path, settings=settings) as broker, listener_of(broker) as listener:
        with bridge_to(broker.address()) as running:
            running.events.put(up())
            for seq in range(1, 41):
                running.events.put(alert(seq))
            wait_until(lambda: running.positions[-1:] == [40], "all acknowledged")
            assert running.count("retries_total") == 0
        listener.wait_for("s/availability", b"offline")
        assert seqs(listener.topic("s/yard/alerts/r")) == list(range(1, 41))
        assert seqs(listener.topic("s/yard/last_alert"))[-1:] == [40]
    assert "the broker retains nothing" in caplog.text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (bytes([0x20, 2, 0, 1]), "Unsupported protocol version; see protocol in [mqtt]"),  # of a broker for 3.1.1
        (bytes([0x20, 3, 0, 0x87, 0]), "Not authorized; see username and password in [mqtt]"),
        (bytes([0x20, 5, 0, 0, 2, 0x24, 0]), "the broker accepts QoS 0 alone"),
        (bytes([0x20, 3, 0, 0x88, 0]), "Server unavailable"),
    ],
)
def test_why_a_connection_is_refused(answer: bytes, expected: str) -> None:
    with OddBroker(answer=answer) as broker:
        assert expected in refusal(lambda: Session(broker.address(), WILL))


def refusal(connect: Callable[[], object]) -> str:
    with pytest.raises(MqttError) as caught:
        connect()
    return str(caught.value)


def test_a_wrong_password_is_reported_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Mosquitto(tmp_path, password=RIGHT) as broker:
        wrong = broker.address(username="bridge", password=WRONG)
        with bridge_to(wrong) as running, caplog.at_level(logging.INFO, "streamdet"):
            wait_until(lambda: running.bridge._retry_seconds > 2, "the second try")
            problems = [record.getMessage() for record in caplog.records]
            assert len([problem for problem in problems if "Not authorized" in problem]) == 1
            assert (running.count("receiver_up"), running.count("daemon_connected")) == (0, 1)
            running.bridge._settings = replace(running.bridge._settings, broker=replace(wrong, password=RIGHT))
            running.events.put(alert(1))
            wait_until(lambda: running.positions == [1], "it arrives with the right one")
        assert "wrong" not in caplog.text
        assert "wrong" not in repr(wrong)


def test_tls_with_the_right_authority_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, other = make_certificate(tmp_path), make_certificate(tmp_path / "other")
    with Mosquitto(tmp_path, certificate=certificate) as broker:
        address = broker.address(tls=True, ca_file=certificate[0])
        wait_until(lambda: b"running" in (tmp_path / "mosquitto.log").read_bytes(), "it listens")
        with Session(address, WILL) as session:
            number = session.publish(Message("s/x", b"1"))
            assert session.acknowledged(30) == [(number, None)]
        wrong = replace(address, ca_file=other[0])
        assert "the certificate of the broker is not valid" in refusal(lambda: Session(wrong, WILL))
        named = replace(address, host="127.0.0.2")
        assert refusal(lambda: Session(named, WILL))
        missing = replace(address, ca_file=tmp_path / "none.pem")
        assert "a file for TLS cannot be used" in refusal(lambda: Session(missing, WILL))
        # What is no broker at all.
        assert refusal(lambda: Session(replace(address, tls=False), WILL))
    assert "cannot be reached" in refusal(lambda: Session(address, WILL))
