"""Cameras are asked for their streams: with their kinds of login, and whatever they answer."""

from __future__ import annotations

import time
import tomllib
from typing import Any

import pytest

from streamdet.config import StreamConfig
from streamdet.config.substitute import Substitution
from streamdet.discovery.camera import Camera, ask_camera
from streamdet.discovery.configuration import tables_of
from streamdet.discovery.search import Answer, named
from streamdet.types import Reason
from support.onvif import MAIN, SUB, OnvifCamera, onvif_camera

LOGIN = ("admin", "se<r&t")


def ask(camera: OnvifCamera, login: tuple[str, str] | None = LOGIN, seconds: float = 30, **more: Any) -> Camera:
    return ask_camera(named(f"127.0.0.1:{camera.port}"), login, seconds, **more)


@pytest.mark.parametrize("asks_for", ["token", "digest"])
@pytest.mark.parametrize("media2", [True, False])
def test_a_camera_lists_its_streams_after_a_login(asks_for: str, media2: bool) -> None:
    profiles = (("low", "JPEG", 320, 240, 5, "/low"), ("best", "H265", 2560, 1440, 20, "/best?a=1&b=2"))
    with onvif_camera(asks_for=asks_for, media2=media2, services=media2, profiles=profiles) as camera:
        found = ask(camera)
    assert (found.manufacturer, found.model, found.firmware, found.reason) == ("Acme", "M1135", "1.2", None)
    assert [(each.name, each.width, each.height, each.fps) for each in found.profiles] == [
        ("best", 2560, 1440, 20), ("low", 320, 240, 5),
    ]  # fmt: skip
    assert [each.codec for each in found.profiles] == ["hevc" if media2 else "h264", "mjpeg"]
    assert [each.url for each in found.profiles] == ["rtsp://127.0.0.1:554/best?a=1&b=2", "rtsp://127.0.0.1:554/low"]
    assert {each.problem for each in found.profiles} == {""}


@pytest.mark.parametrize("skew_seconds", [-86_400.0, 7_200.0, 1e9])
def test_a_clock_that_is_wrong_does_not_keep_us_out(skew_seconds: float) -> None:
    with onvif_camera(skew_seconds=skew_seconds) as camera:
        found = ask(camera)
    assert found.reason is None
    assert found.clock_skew_seconds == pytest.approx(skew_seconds, abs=2)


def test_a_camera_without_a_login_needs_none() -> None:
    with onvif_camera(login=None) as camera:
        assert len(ask(camera, None).profiles) == 2


@pytest.mark.parametrize("asks_for", ["token", "digest", "basic"])
def test_a_login_that_is_refused_is_not_repeated(asks_for: str) -> None:
    """Many cameras lock out whom they have refused a few times."""
    with onvif_camera(asks_for=asks_for) as camera:
        found = ask(camera, ("admin", "wrong"))
        where = f"127.0.0.1:{camera.port}"
        refused = [verdict for _, verdict in camera.asked if verdict == "refused"]
    assert (found.reason, found.detail) == (Reason.UNAUTHORIZED, f"{where} refuses this login")
    assert len(refused) <= 1
    assert found.profiles == ()


def test_without_a_login_it_is_said_that_one_is_needed() -> None:
    with onvif_camera() as camera:
        found = ask(camera, None)
    assert found.reason is Reason.UNAUTHORIZED
    assert found.detail.endswith("requires a login")


def test_a_password_never_leaves_in_clear_text() -> None:
    with onvif_camera(asks_for="basic", login=("admin", "wonderland")) as camera:
        ask(camera, ("admin", "wonderland"))
        heads = "".join(camera.heads)
    assert "wonderland" not in heads
    assert "Authorization" not in heads


def test_addresses_on_other_hosts_are_not_used() -> None:
    with onvif_camera(asks_for="digest") as victim, onvif_camera() as camera:
        camera.behaviour.host = "127.0.0.2"
        camera.behaviour.profiles = (MAIN, (*SUB[:5], "rtsp://eve:x@198.51.100.7:8554/sub"))
        found = ask(camera)
        assert victim.asked == []
        trusting = ask(camera, other_hosts=True, seconds=5)
    assert [each.url for each in found.profiles] == ["rtsp://127.0.0.1:554/main", "rtsp://127.0.0.1:8554/sub"]
    assert [each.problem for each in found.profiles] == [
        "the camera names 127.0.0.2 in its url; --other-hosts uses that",
        "the camera names 198.51.100.7 in its url; --other-hosts uses that",
    ]  # fmt: skip
    # Nothing listens there.
    assert trusting.profiles == ()
    assert "127.0.0.2" in trusting.detail


def test_other_hosts_are_used_when_that_is_asked_for() -> None:
    with onvif_camera() as camera:
        camera.behaviour.profiles = ((*MAIN[:5], "rtsp://eve:x@198.51.100.7:8554/main"),)
        (profile,) = ask(camera, other_hosts=True).profiles
    assert profile.url == "rtsp://198.51.100.7:8554/main"
    assert profile.problem == "is on another host, 198.51.100.7"


def test_redirections_are_not_followed() -> None:
    with onvif_camera() as victim, onvif_camera() as camera:
        leads_away = f"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:{victim.port}/\r\nContent-Length: 0\r\n\r\n"
        camera.behaviour.answers = {"*": leads_away.encode()}
        found = ask(camera)
        assert victim.asked == []
    assert found.reason is Reason.REFUSED


BOMB = b'<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><b>&b;</b>'
FILE = b'<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><b>&a;</b>'


@pytest.mark.parametrize(
    ("raw", "reason", "detail"),
    [
        (b"", "decode_error", "sends what cannot be read: it is not XML"),
        (BOMB, "decode_error", "it has a document type"),
        (FILE, "decode_error", "it has a document type"),
        (b"<a>" * 100_000, "decode_error", "it has too many elements"),
        (b"<a>" + b"<b/>" * 60_000 + b"</a>", "decode_error", "it has too many elements"),
        (b"<a>" + b"x" * (2 << 20) + b"</a>", "decode_error", "sends more than 1 MiB"),
        (b"\xff\xfe\x00", "decode_error", "it is not XML"),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', "decode_error", "it is not XML"),
        (b"<a/>", "refused", "refuses GetProfiles: status 200"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "decode_error", "it is not XML"),
        (b"HTTP/1.1 abc\r\n\r\n", "refused", "answers, but not in HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "refused", "answers, but not in HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "refused", "answers, but not in HTTP"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\n\x1b[2J!", "refused", "answers 500"),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_senseless_answer_is_a_reason(raw: bytes, reason: str, detail: str) -> None:
    with onvif_camera(answers={"*": raw}) as camera:
        found = ask(camera)
    assert (found.reason, detail in found.detail) == (reason, True), found.detail
    assert "\x1b" not in found.detail


@pytest.mark.parametrize("behaviour", [{"silent": frozenset({"*"})}, {"drip_seconds": 0.05}])
def test_a_slow_camera_ends_at_its_time(behaviour: dict[str, Any]) -> None:
    with onvif_camera(**behaviour) as camera:
        started = time.monotonic()
        found = ask(camera, seconds=1)
        took = time.monotonic() - started
    assert found.reason is Reason.TIMEOUT
    assert took < 20


def test_what_was_known_before_a_camera_fell_silent_is_kept() -> None:
    with onvif_camera(silent=frozenset({"GetProfiles"})) as camera:
        found = ask(camera, seconds=2)
    assert (found.model, found.reason) == ("M1135", Reason.TIMEOUT)


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "/dev/video0", "javascript:alert(1)", "rtsp://h/\x7f", "rtsp://h:0/", "x" * 5000],
)
def test_an_address_that_is_no_stream_is_left_out(url: str) -> None:
    raw = f"<E><Body><GetStreamUriResponse><Uri>{url}</Uri></GetStreamUriResponse></Body></E>".encode()
    with onvif_camera(answers={"GetStreamUri": raw}) as camera:
        found = ask(camera)
    assert [(each.url, each.problem) for each in found.profiles] == [(None, "its url cannot be used")] * 2
    assert tables_of([found], "CAMERA_LOGIN") == ""


def test_the_tables_are_a_configuration() -> None:
    """Whatever a camera writes, the daemon reads only a url: no other secret goes into it, and no other key."""
    hostile = '/a?x="&z=${OTHER_SECRET}'
    with onvif_camera(model='M"\n[[streams]]\nname="evil', profiles=(MAIN, (*SUB[:5], hostile))) as camera:
        found = ask(camera)
    other = Camera("192.0.2.6", model="M1135", profiles=found.profiles)
    text = tables_of([found, other, other], "CAMERA_LOGIN")
    tables = tomllib.loads(text)["streams"]
    assert len({each["name"] for each in tables}) == len(tables) == 3
    # The smaller one has all the pixels that the detector looks at.
    substitution = Substitution({"CAMERA_LOGIN": "admin:s/c", "OTHER_SECRET": "hidden"})
    for table in tables:
        assert set(table) == {"name", "url"}
        url = substitution.apply(table["url"], ("url",))
        assert url == 'rtsp://admin:s%2Fc@127.0.0.1:554/a?x="&z=${OTHER_SECRET}'
        StreamConfig.model_validate({**table, "url": url})
    assert substitution.problems == {}
    assert '# url = "rtsp://${CAMERA_LOGIN}@127.0.0.1:554/main"  # h264 1920x1080, 25 fps' in text


def test_a_password_in_a_url_is_masked() -> None:
    with onvif_camera(profiles=((*MAIN[:5], "/user=admin&password=tlJwpbo6&channel=1"),)) as camera:
        text = tables_of([ask(camera)], None)
    assert "tlJwpbo6" not in text
    assert "# *** in this url is a password" in text


def test_a_host_that_does_not_exist_is_a_reason() -> None:
    found = ask_camera(Answer("camera.invalid", ("http://camera.invalid/onvif/device_service",)), None, 10)
    assert found.reason is Reason.DNS
