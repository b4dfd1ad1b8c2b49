"""Web hooks against a real HTTP server, by themselves: what is posted, what is tried again, and who is not asked."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from email.header import decode_header, make_header
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from streamdet import Subscription, subscribe
from streamdet.bridges import webhook
from streamdet.bridges.mqtt import MqttSettings, _MqttThread
from streamdet.bridges.mqtt.session import BrokerAddress
from streamdet.bridges.process import Ages, BridgeError, PositionFile, Source
from streamdet.bridges.shapes import shape_of
from streamdet.bridges.webhook import Webhook, is_public
from streamdet.config import WebhookConfig
from streamdet.errors import ConfigError
from streamdet.monitoring.bridge_metrics import BridgeMetrics
from streamdet.types import AlertEvent, EndReason, ObjectEvent, PictureInfo
from support.alertmanager import alertmanager_at
from support.certificates import make_certificate
from support.occurring import FRAME, alert_event, object_event
from support.receiver import Receiver
from support.waiting import join, wait_until

KEY = "e1:alerts/front-door/1"
JPEG = b"\xff\xd8" + b"x" * 100 + b"\xff\xd9"


@pytest.fixture
def events() -> Iterator[Subscription]:
    """Of a daemon that is not there: an event whose picture it carries needs none."""
    with subscribe("tcp://127.0.0.1:1", kinds=["alerts"]) as subscription:
        yield subscription


class Hook:
    """A web hook to a receiver, whose events are handed to it directly."""

    def __init__(self, folder: Path, url: str, **keys: Any) -> None:
        keys = {"allow_private": True, "retry_seconds": 0.05, "timeout_seconds": 5.0, **keys}
        self.config = WebhookConfig(name="pager", url=url, **keys)
        metrics = BridgeMetrics("webhook")
        self.registry: CollectorRegistry = metrics.registry
        self.webhook = Webhook(self.config, Source("tcp://127.0.0.1:1"), folder, metrics.of("pager"))

    def count(self, name: str) -> float | None:
        return self.value(f"{name}_total")

    def value(self, name: str) -> float | None:
        return self.registry.get_sample_value(f"streamdet_bridge_{name}", {"bridge": "webhook", "target": "pager"})


def new(**changes: Any) -> AlertEvent:
    return alert_event(published_at=time.time(), **changes)


def test_the_event_is_posted_with_a_key_and_a_signature(tmp_path: Path, events: Subscription) -> None:
    secret = "a-secret-that-both-know"  # noqa: S105 - of this test
    with Receiver() as receiver:
        hook = Hook(tmp_path, receiver.url, secret=secret, headers={"Authorization": "Bearer abc"})
        assert hook.webhook.deliver(new(), events)
        (got,) = receiver.received
    assert got.headers["Idempotency-Key"] == KEY
    assert got.headers["Authorization"] == "Bearer abc"
    assert json.loads(got.body)["alert"]["rule"] == "at the door"
    at, _, digest = got.headers["Streamdet-Signature"].removeprefix("t=").partition(",v1=")
    assert abs(int(at) - time.time()) < 60
    assert digest == hmac.new(secret.encode(), at.encode() + b"." + got.body, hashlib.sha256).hexdigest()
    assert hook.count("events") == 1


@pytest.mark.parametrize("failure", [500, 503, 429, 408, 401, 404, 302, "cut"])
def test_what_may_work_later_is_tried_again_with_the_same_key(
    tmp_path: Path, events: Subscription, failure: int | str
) -> None:
    with Receiver(answers=[failure, failure], headers={"Location": "/elsewhere"}) as receiver:
        hook = Hook(tmp_path, receiver.url)
        assert hook.webhook.deliver(new(), events)
        assert [each.headers["Idempotency-Key"] for each in receiver.received] == [KEY] * 3
        assert {each.path for each in receiver.received} == {"/hook/secret-token-4711"}
    assert (hook.count("events"), hook.count("retries"), hook.count("dead_letters")) == (1, 2, 0)
    assert hook.value("receiver_up") == 1
    assert time.time() - 60 < (hook.value("last_success_timestamp_seconds") or 0) <= time.time()


def test_a_receiver_that_hangs_is_left_and_one_that_ends_no_answer_is_not_waited_for(
    tmp_path: Path, events: Subscription
) -> None:
    with Receiver(answers=["hang", "slow"]) as receiver:
        hook = Hook(tmp_path, receiver.url, timeout_seconds=0.3)
        assert hook.webhook.deliver(new(), events)
        assert len(receiver.received) == 2
    assert hook.count("events") == 1


@pytest.mark.parametrize(
    ("scheme", "begin", "drop"),
    [
        ("http", b"", b"H"),
        ("http", b"HTTP/1.1 500 No\r\n", b"X-A: b\r\n" * 2),
        ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("https", b"\x16\x03\x03\x40\x00", b"\x02"),
    ],
    ids=["status line", "headers", "1xx", "TLS handshake"],
)
def test_a_receiver_that_answers_for_ever_is_left(
    tmp_path: Path, events: Subscription, caplog: pytest.LogCaptureFixture, scheme: str, begin: bytes, drop: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connected, _ = server.accept()
            with connected, suppress(OSError):
                connected.sendall(begin)
                while select.select([connected], [], [], 0.05)[0] == [] or connected.recv(65536):
                    connected.sendall(drop)

        thread = threading.Thread(target=drip, name="dripping receiver", daemon=True)
        thread.start()
        hook = Hook(
            tmp_path, f"{scheme}://127.0.0.1:{server.getsockname()[1]}/", timeout_seconds=0.3, give_up_seconds=0
        )
        posting = threading.Thread(target=hook.webhook.deliver, args=(new(), events), name="posting", daemon=True)
        posting.start()
        join(posting)
        join(thread)
    assert hook.count("dead_letters") == 1
    if begin != b"HTTP/1.1 500 No\r\n":  # its status came
        assert "did not answer within 0.3 s" in caplog.text


class NotAsked(Source):
    """A daemon that no bridge may ask."""

    def subscribe(self, *_: object) -> Subscription:
        raise AssertionError


def test_nothing_is_handed_on_where_the_position_cannot_be_kept() -> None:
    config = WebhookConfig(name="pager", url="https://example.org/")
    daemon, missing = NotAsked("tcp://127.0.0.1:1"), Path("/proc/missing")  # where no folder can be made
    address = BrokerAddress("127.0.0.1", 1, "c")
    for bridge in (
        Webhook(config, daemon, missing, BridgeMetrics("webhook").of("pager")),
        _MqttThread(MqttSettings(address), daemon, missing, BridgeMetrics("mqtt").of("broker")),
    ):
        with pytest.raises(BridgeError, match="cannot be written"):
            bridge.run()


@pytest.mark.parametrize(
    "content",
    [
        '{"position": {"a": ["e", 1e999]}}', "[" * 100_000, '{"position": {"a": ["e", -1]}}',
        '{"position": {"a": ["e", 9007199254740991]}}', '{"position": {"\\ud800": ["e", 1]}}',
        '{"position": {"a": ["\\ud800", 1]}}', '{"position": {"a": ["", 1]}}',
        '{"position": {"a": ["' + "e" * 2000 + '", 1]}}',
    ],
)  # fmt: skip
def test_a_position_that_makes_no_sense_is_an_error_of_the_bridge(tmp_path: Path, content: str) -> None:
    (tmp_path / "pager.json").write_text(content)
    with pytest.raises(BridgeError, match="holds no position"):
        PositionFile(tmp_path / "pager.json").load()


def test_a_position_survives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], os.fsync

    def note_and_sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note_and_sync)
    file = PositionFile(tmp_path / "pager.json")
    file.save({"alerts/a/": ("e1", 4)})
    assert [path.name.partition(".json.")[0] for path in synced] == [".pager", tmp_path.name]
    assert file.load() == {"alerts/a/": ("e1", 4)}


def test_a_position_is_kept_although_someone_deletes_the_directory(tmp_path: Path) -> None:
    file = PositionFile(tmp_path / "state" / "pager.json")
    for seq in (4, 5):
        file.save({"alerts/a/": ("e1", seq)})
        assert file.load() == {"alerts/a/": ("e1", seq)}
        shutil.rmtree(tmp_path / "state")


def test_an_event_that_is_refused_is_a_dead_letter(
    tmp_path: Path, events: Subscription, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver(then=422) as receiver:
        hook = Hook(tmp_path, receiver.url)
        assert hook.webhook.deliver(new(), events)
        assert len(receiver.received) == 1
    assert (hook.count("events"), hook.count("dead_letters")) == (0, 1)
    assert f"gave up event {KEY}: the receiver answered 422" in caplog.text
    assert "secret-token" not in caplog.text


def test_an_event_that_is_too_old_is_given_up_after_one_try(tmp_path: Path, events: Subscription) -> None:
    with Receiver(then=500) as receiver:
        hook = Hook(tmp_path, receiver.url, give_up_seconds=60)
        assert hook.webhook.deliver(alert_event(published_at=time.time() - 61), events)
        assert len(receiver.received) == 1
    assert hook.count("dead_letters") == 1


class Alerting:
    """A subscription that yields an alert."""

    is_connected = True
    waiting_items = 0

    def receive(self, _: float) -> AlertEvent:
        return new()


def test_the_daemon_is_connected_also_while_its_first_event_waits(tmp_path: Path) -> None:
    with Receiver(then=500) as receiver:
        hook = Hook(tmp_path, receiver.url, retry_seconds=300)
        waiting = threading.Thread(target=hook.webhook._next, args=(Alerting(),), name="waiting", daemon=True)
        waiting.start()
        wait_until(lambda: hook.count("retries") == 1, "it waits")
        assert hook.value("daemon_connected") == 1
        assert (hook.value("lag_seconds") or 0) > 0
        hook.webhook.stop()
        join(waiting)


def test_a_stop_ends_the_wait_and_leaves_the_event(tmp_path: Path, events: Subscription) -> None:
    with Receiver(then=500) as receiver:
        hook = Hook(tmp_path, receiver.url, retry_seconds=300)
        stop = threading.Timer(0.3, hook.webhook.stop)
        stop.start()
        assert not hook.webhook.deliver(new(), events)
        stop.join()
        assert len(receiver.received) == 1
    assert hook.count("dead_letters") == 0
    assert (hook.value("receiver_up"), hook.value("last_success_timestamp_seconds")) == (0, 0)


def test_a_receiver_without_a_trusted_certificate_gets_nothing(
    tmp_path: Path, events: Subscription, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = make_certificate(tmp_path)
    with Receiver(tls=(certificate, key)) as receiver:
        hook = Hook(tmp_path, receiver.url, give_up_seconds=0)
        assert hook.webhook.deliver(new(), events)
        assert "TLS failed: self-signed certificate" in caplog.text
        assert not receiver.received
        trusting = Hook(tmp_path, receiver.url, ca_file=str(certificate))
        assert trusting.webhook.deliver(new(), events)
        assert receiver.keys == [KEY]


def test_an_authority_that_cannot_be_used_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="holds no certificate"):
        Hook(tmp_path, "https://example.org/", ca_file=str(tmp_path / "ca.pem"))


def test_a_private_address_is_not_connected_to(
    tmp_path: Path, events: Subscription, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = make_certificate(tmp_path)
    with Receiver(tls=(certificate, key)) as receiver:
        hook = Hook(tmp_path, receiver.url, allow_private=False, ca_file=str(certificate), give_up_seconds=0)
        assert hook.webhook.deliver(new(), events)
        assert not receiver.received
    assert "the receiver has no public address" in caplog.text
    assert hook.count("dead_letters") == 1


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",  # noqa: S104
        "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "fec0::1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1", "5f00::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


PICTURE = PictureInfo("20261129T140312.345Z-front-door-3f2a9c01b7de", 9, 64, 64, None, JPEG)
LINK = "https://cams.example.org/v1/pictures/20261129T140312.345Z-front-door-3f2a9c01b7de"
BY_URL = {"picture": "url", "picture_url": "https://cams.example.org/v1/pictures/"}


def test_a_picture_goes_with_the_event(tmp_path: Path, events: Subscription) -> None:
    with Receiver() as receiver:
        hook = Hook(tmp_path, receiver.url, picture="attached")
        assert hook.webhook.deliver(new(picture=PICTURE), events)
        assert hook.webhook.deliver(new(seq=2), events)  # it has none
        first, second = receiver.received
    head = f"Content-Type: {first.headers['Content-Type']}\r\n\r\n".encode()
    parts: Any = BytesParser().parsebytes(head + first.body).get_payload()
    assert json.loads(parts[0].get_payload(decode=True))["alert"]["rule"] == "at the door"
    assert parts[1].get_payload(decode=True) == JPEG
    assert second.headers["Content-Type"] == "application/json"


def test_ntfy_gets_a_picture_as_an_attachment(tmp_path: Path, events: Subscription) -> None:
    with Receiver() as receiver:
        hook = Hook(tmp_path, receiver.url, shape="ntfy", picture="attached", headers={"Authorization": "Bearer abc"})
        assert hook.webhook.deliver(new(picture=PICTURE), events)
        rule = "someone is at the door of the \u00e4u\u00dferst long garage, \u30ac\u30ec\u30fc\u30b8 " * 3
        assert hook.webhook.deliver(new(seq=2, picture=PICTURE, rule=rule), events)
        assert hook.webhook.deliver(new(seq=3), events)  # it has none
        first, second, third = receiver.received
    assert (first.method, first.path, first.body) == ("PUT", "/hook/secret-token-4711", JPEG)
    expected = {
        "Content-Type": "image/jpeg", "Filename": "picture.jpg", "Title": "at the door", "Priority": "4",
        "Message": "at the door on front-door: person in door", "Authorization": "Bearer abc",
        "Idempotency-Key": KEY,
    }  # fmt: skip
    assert {name: first.headers[name] for name in expected} == expected
    assert str(make_header(decode_header(second.headers["Title"]))) == rule
    assert (third.method, third.path, json.loads(third.body)["title"]) == ("POST", "/hook/", "at the door")


@pytest.mark.parametrize(("shape", "status"), [("ntfy", 400), ("event", 413)])
def test_a_picture_that_is_refused_is_left_out(
    tmp_path: Path, events: Subscription, shape: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver(answers=[status]) as receiver:
        hook = Hook(tmp_path, receiver.url, shape=shape, picture="attached")
        assert hook.webhook.deliver(new(picture=PICTURE), events)
        assert len(receiver.received) == 2
        assert receiver.taken[0].headers["Content-Type"] == "application/json"
        receiver.then = status
        assert hook.webhook.deliver(new(seq=2, picture=PICTURE), events)
    assert (hook.count("events"), hook.count("dead_letters")) == (1, 1)
    assert f"the receiver answered {status} to a picture; it is left out" in caplog.text


@pytest.mark.package("prometheus-alertmanager")
def test_a_real_alertmanager_takes_raised_and_cleared_alerts(tmp_path: Path, events: Subscription) -> None:
    with alertmanager_at(tmp_path) as server:
        hook = Hook(tmp_path, server.url, shape="alertmanager", events=("raised", "cleared"), **BY_URL)
        raised_at = time.time() - 10
        assert hook.webhook.deliver(
            new(picture=PICTURE, raised_at=raised_at, alert_id="a1", rule="Stra\u00dfe"), events
        )
        assert hook.webhook.deliver(new(seq=2, raised_at=raised_at, alert_id="a2", zone=None, label=None), events)
        wait_until(lambda: len(server.alerts()) == 2, "both alerts")
        found = {alert["labels"]["alert_id"]: alert for alert in server.alerts()}
        assert found["a1"]["labels"] == {
            "alertname": "Stra\u00dfe", "stream": "front-door", "alert_id": "a1", "label": "person", "zone": "door",
        }  # fmt: skip
        assert found["a1"]["generatorURL"] == found["a1"]["annotations"]["picture"] == LINK
        assert found["a2"]["annotations"] == {"summary": "at the door on front-door"}
        cleared = new(
            seq=3, phase="cleared", raised_at=raised_at, seconds=5.0, alert_id="a1", rule="Stra\u00dfe", picture=PICTURE
        )
        assert hook.webhook.deliver(cleared, events)
        wait_until(lambda: [alert["labels"]["alert_id"] for alert in server.alerts()] == ["a2"], "the end of one")
    assert (hook.count("events"), hook.count("dead_letters"), hook.count("retries")) == (3, 0, 0)


def test_a_name_that_is_not_known_is_in_no_log(
    tmp_path: Path, events: Subscription, caplog: pytest.LogCaptureFixture
) -> None:
    for keys in ({"allow_private": True}, {"allow_private": False}):
        hook = Hook(tmp_path, "https://secret-4711.invalid/", give_up_seconds=0, **keys)
        assert hook.webhook.deliver(alert_event(published_at=time.time() - 1), events)
        assert hook.count("dead_letters") == 1
    assert "the name of the receiver is not known" in caplog.text
    assert "4711" not in caplog.text


def test_a_name_that_comes_to_point_at_a_private_address_is_not_followed(
    tmp_path: Path, events: Subscription, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = make_certificate(tmp_path)
    resolve, connect, asked = socket.getaddrinfo, webhook.create_connection, []

    def resolve_first_to_public(host: str, port: int, *rest: Any, **keys: Any) -> Any:
        if host != "localhost":  # an address
            return resolve(host, port, *rest, **keys)
        asked.append(host)
        return resolve("93.184.216.34" if len(asked) == 1 else "127.0.0.1", port, *rest, **keys)

    def connect_to_test(address: tuple[str, int], *rest: Any, **keys: Any) -> socket.socket:
        assert address[0] == "93.184.216.34"
        return connect(("127.0.0.1", address[1]), *rest, **keys)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_first_to_public)
    monkeypatch.setattr(webhook, "create_connection", connect_to_test)
    with Receiver(tls=(certificate, key)) as receiver:
        hook = Hook(tmp_path, receiver.url, allow_private=False, ca_file=str(certificate), give_up_seconds=60)
        assert hook.webhook.deliver(new(), events)
        assert len(receiver.taken) == 1
        assert hook.webhook.deliver(alert_event(seq=2, published_at=time.time() - 61), events)
        assert len(receiver.received) == 1
    assert "the receiver has no public address (127.0.0.1); see allow_private" in caplog.text


def test_an_event_is_not_given_up_because_the_clock_was_set(tmp_path: Path, events: Subscription) -> None:
    wall, steady = 1_000_000.0, 500.0
    ages = Ages(lambda: wall, lambda: steady)
    young, old = alert_event(published_at=wall + 5), alert_event(published_at=wall - 3600)
    wall, steady = wall + 10, steady + 10
    assert (ages.seconds(young), ages.seconds(old)) == (5.0, 3610.0)
    wall += 86_400 * 365
    assert (ages.seconds(young), ages.seconds(old)) == (10.0, 3610.0)
    wall -= 2 * 86_400 * 365
    assert (ages.seconds(young), ages.seconds(old)) == (0.0, 0.0)
    with Receiver(answers=[500]) as receiver:
        hook = Hook(tmp_path, receiver.url, give_up_seconds=60)
        began_at = time.time()
        hook.webhook.ages = Ages(lambda: time.time() + 86_400 * (time.time() > began_at + 0.2))
        wait_until(lambda: time.time() > began_at + 0.2, "the clock is set")
        assert hook.webhook.deliver(alert_event(published_at=began_at), events)
        assert len(receiver.received) == 2
    assert (hook.count("events"), hook.count("dead_letters")) == (1, 0)


def test_which_events_are_wanted(tmp_path: Path) -> None:
    def wants(event: AlertEvent | ObjectEvent, **keys: Any) -> bool:
        return Hook(tmp_path, "https://example.org/", **keys).webhook.is_wanted(event)

    ended = object_event(phase="end", reason=EndReason.LOST)
    assert wants(alert_event())
    assert not wants(alert_event(phase="cleared"))
    assert wants(alert_event(phase="cleared"), events=("raised", "cleared"))
    assert not wants(ended)
    assert wants(ended, events=("ended",))
    assert not wants(object_event(phase="update"), events=("ended",))
    assert not wants(ended, events=("ended",), labels=("car",))
    assert wants(alert_event(), streams=("front-door",), rules=("at the door",), labels=("person",))
    assert not wants(alert_event(), streams=("yard",))
    assert not wants(alert_event(), rules=("other",))
    assert not wants(alert_event(label=None), labels=("person",))


def test_the_shapes() -> None:
    def shaped(event: AlertEvent | ObjectEvent, **keys: Any) -> Any:
        return shape_of(event, WebhookConfig(name="a", url="https://example.org/push/topic", **keys))

    sentence = "at the door on front-door: person in door"
    assert shaped(alert_event(), shape="slack") == {"text": sentence}
    assert shaped(alert_event(rule="<!channel> & co"), shape="slack")["text"].startswith("&lt;!channel&gt; &amp; co")
    for shape in ("slack", "ntfy", "event", "alertmanager"):  # without a picture there is no link
        assert "cams.example.org" not in json.dumps(shaped(alert_event(), shape=shape, **BY_URL))
    pictured = alert_event(picture=PICTURE)
    assert shaped(pictured, shape="slack", **BY_URL) == {"text": f"{sentence} (<{LINK}|picture>)"}
    assert shaped(pictured, shape="ntfy", **BY_URL)["attach"] == LINK
    assert shaped(pictured, **BY_URL)["picture_url"] == LINK
    assert shaped(pictured, **BY_URL, fields={"image": "picture_url"}) == {"image": LINK}
    ntfy = {"topic": "topic", "title": "at the door", "message": sentence, "priority": 4}
    assert shaped(alert_event(), shape="ntfy") == ntfy
    assert shaped(object_event(phase="end"), shape="ntfy")["message"] == "person on front-door, seen for 2 s"
    fields = {"camera": "stream", "what": "alert.rule", "none": "object.label"}
    assert shaped(alert_event(), fields=fields) == {"camera": "front-door", "what": "at the door", "none": None}
    (raised,) = shaped(alert_event(), shape="alertmanager")
    (cleared,) = shaped(alert_event(phase="cleared"), shape="alertmanager")
    assert raised["labels"] == cleared["labels"]
    assert raised["labels"]["alertname"] == "at the door"
    assert (cleared["startsAt"], cleared["endsAt"]) == (
        "1970-01-01T00:00:01.500000+00:00", "1970-01-01T00:00:11.500000+00:00",
    )  # fmt: skip
    assert raised["endsAt"] > cleared["endsAt"]


@pytest.mark.parametrize("hours", [-23, 9])
def test_alertmanager_gets_the_times_of_the_daemon_if_the_clock_of_the_camera_is_wrong(hours: int) -> None:
    config = WebhookConfig(name="a", url="https://example.org/", shape="alertmanager")
    now = 1_760_000_000.0
    frame = replace(FRAME, captured_at=now + 3600 * hours, clock="source")
    began = {"frame": frame, "raised_at": frame.captured_at, "published_at": now}
    (raised,) = shape_of(alert_event(**began), config)
    cleared_event = alert_event(**{**began, "phase": "cleared", "seconds": 60.0, "published_at": now + 60})
    (cleared,) = shape_of(cleared_event, config)
    assert (raised["startsAt"], raised["endsAt"]) == ("2025-10-09T08:53:20+00:00", "2025-10-10T08:53:20+00:00")
    assert (cleared["startsAt"], cleared["endsAt"]) == ("2025-10-09T08:53:20+00:00", "2025-10-09T08:54:20+00:00")


def test_times_and_names_that_make_no_sense_end_nothing(tmp_path: Path, events: Subscription) -> None:
    with Receiver() as receiver:
        hook = Hook(tmp_path, receiver.url, shape="alertmanager")
        assert hook.webhook.deliver(new(stream="\u9580", raised_at=1e15, seconds=1e15), events)
        (got,) = receiver.received
    assert got.headers["Idempotency-Key"] == "e1:alerts/%E9%96%80/1"
    assert json.loads(got.body)[0]["startsAt"].startswith("9999-12-31")
    assert hook.count("events") == 1


def test_ntfy_gets_its_events_at_its_root(tmp_path: Path, events: Subscription) -> None:
    with Receiver() as receiver:
        hook = Hook(tmp_path, receiver.url, shape="ntfy")
        assert hook.webhook.deliver(new(), events)
        assert receiver.received[0].path == "/hook/"
