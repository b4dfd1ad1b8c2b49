"""RTSP behind redirections and logins that FFmpeg does not know, in front of GStreamer's server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamdet.types import Reason
from support import rtsp
from support.capturing import SECRET, failure, read
from support.certificates import make_certificate
from support.rtsp import RtspServer
from support.rtsp_door import RtspDoor

pytestmark = pytest.mark.package("gst-rtsp-server")

LOGIN = f"user:{SECRET}"


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    # One for each client: what is shared would be ending still when the next one comes.
    with RtspServer({"/video": rtsp.h264()}, shared=False) as running:
        yield running


@pytest.mark.parametrize("algorithms", [("SHA-256",), ("SHA-256", "MD5"), ("Basic", "SHA-256"), ("NTLM", "SHA-256")])
def test_digest_by_sha_256(server: RtspServer, algorithms: tuple[str, ...]) -> None:
    with RtspDoor(server.port, LOGIN, algorithms) as door:
        info, frames = read(door.url(login=LOGIN))
        assert (info.width, info.transport, len(frames)) == (320, "auto" if "MD5" in algorithms else "tcp", 3)
        assert not any(thread.name.startswith("relay") for thread in threading.enumerate())
        # The address is that of the server, not of what lies between.
        assert {address.partition(f":{door.port}")[0] for _, address, _ in door.requests} == {"rtsp://127.0.0.1"}
        assert not any(login.startswith("Basic") for *_, login in door.requests)


@pytest.mark.parametrize("login", ["user", "user:"])
def test_a_user_without_a_password(server: RtspServer, login: str) -> None:
    with RtspDoor(server.port, "user:", ("MD5",)) as door:
        assert len(read(door.url(login=login))[1]) == 3


def test_a_nonce_may_go_out_of_date_at_any_time(server: RtspServer) -> None:
    with RtspDoor(server.port, LOGIN, nonce_uses=1) as door:
        assert len(read(door.url(login=LOGIN), frames=20)[1]) == 20
        assert {method for method, *_ in door.requests} >= {"DESCRIBE", "SETUP", "PLAY"}


def test_a_login_of_any_length(server: RtspServer) -> None:
    login = "user:" + SECRET * 20
    with RtspDoor(server.port, login, ("MD5",)) as door:
        assert len(read(door.url(login=login))[1]) == 3


def test_an_encrypted_server_that_asks_for_sha_256(server: RtspServer, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with RtspDoor(server.port, LOGIN, certificate=(str(certificate), str(key))) as door:
        assert failure(door.url(login=LOGIN)).reason is Reason.TLS
        assert len(read(door.url(login=LOGIN), tls_verify=False)[1]) == 3


def test_why_a_login_is_not_taken(server: RtspServer) -> None:
    with RtspDoor(server.port, LOGIN) as door:
        wrong = failure(door.url(login=f"{LOGIN}-not"))
        none = failure(door.url())
        tried = [login for *_, login in door.requests if "SHA-256" in login]
    assert (wrong.reason, none.reason) == (Reason.UNAUTHORIZED, Reason.UNAUTHORIZED)
    assert "refuses this login" in wrong.detail
    assert "the url has none" in none.detail
    # Cameras lock who is wrong too often.
    assert len(tried) == 1
    with RtspDoor(server.port, LOGIN, ("Negotiate", "NTLM")) as door:
        unknown = failure(door.url(login=LOGIN))
    assert unknown.reason is Reason.UNAUTHORIZED
    assert "requires a login by Negotiate, Ntlm, which is not known here" in unknown.detail


@pytest.mark.parametrize("login", ["", LOGIN])
def test_redirections_are_followed(server: RtspServer, login: str) -> None:
    with RtspDoor(server.port, login, ("SHA-256",)) as door:
        door.redirections = {"/a": "/b", "/b": door.url("/video")}
        assert len(read(door.url("/a", login))[1]) == 3


def test_a_login_stays_with_its_server(server: RtspServer) -> None:
    with RtspDoor(server.port) as other, RtspDoor(0, LOGIN, ("Basic", "MD5")) as door:
        door.redirections = {"/a": other.url("/video", "their:login")}
        assert len(read(door.url("/a", LOGIN))[1]) == 3
        assert not any(login for *_, login in other.requests)
    with RtspDoor(server.port, LOGIN, ("Basic",)) as other, RtspDoor() as door:
        door.redirections = {"/a": other.url("/video")}
        error = failure(door.url("/a", LOGIN))
        assert error.reason is Reason.UNAUTHORIZED
        assert not any(login for *_, login in other.requests)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("{self}/a", Reason.REFUSED), ("http://127.0.0.1/x", Reason.REFUSED), ("file:///etc/passwd", Reason.REFUSED),
        ("", Reason.REFUSED), ("rtsp://127.0.0.1:9/%00", Reason.REFUSED), ("rtsp://[", Reason.REFUSED),
        ("rtsp://nowhere.invalid/x", Reason.DNS),
    ],
)  # fmt: skip
def test_redirections_that_lead_nowhere(location: str, reason: Reason) -> None:
    with RtspDoor() as door:
        door.redirections = {"/a": location.replace("{self}", door.url(""))}
        assert failure(door.url("/a")).reason is reason
        assert len(door.requests) < 20


def test_encryption_is_not_given_up(server: RtspServer, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with RtspDoor(certificate=(str(certificate), str(key))) as door:
        door.redirections = {"/a": server.url()}
        url = door.url("/a").replace("127.0.0.1", "localhost")
        assert failure(url, tls_ca_file=str(certificate)).reason is Reason.TLS
        assert len(read(url, tls_verify=False)[1]) == 3
