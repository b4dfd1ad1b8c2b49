"""Against GStreamer's RTSP server."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from streamdet.capture.sources import open_source
from streamdet.errors import HeldError
from streamdet.types import Reason
from support import rtsp
from support.capturing import SECRET, failure, read, stream_config
from support.certificates import make_certificate
from support.faults.front import Behaviour, Front, Units, Weather, misdate
from support.rtsp import RtspServer
from support.waiting import PATIENCE_SECONDS, join

pytestmark = pytest.mark.package("gst-rtsp-server")


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    mounts = {
        "/h264": rtsp.h264(), "/h265": rtsp.H265, "/mjpeg": rtsp.MJPEG, "/sizes": rtsp.TWO_SIZES
    }  # fmt: skip
    with RtspServer(mounts) as running:
        yield running


@pytest.mark.parametrize(("path", "codec"), [("/h264", "h264"), ("/h265", "hevc"), ("/mjpeg", "mjpeg")])
@pytest.mark.parametrize("transport", ["auto", "tcp", "udp"])
def test_codecs_and_transports(server: RtspServer, path: str, codec: str, transport: str) -> None:
    info, frames = read(server.url(path), transport=transport)
    assert (info.codec, info.width, info.height, info.transport) == (codec, 320, 240, transport)
    assert info.live
    assert all(f.picture.to_rgb().shape == (240, 320, 3) for f in frames)
    times = [f.pts_seconds for f in frames if f.pts_seconds is not None]
    assert times == sorted(times)
    assert len(times) >= 2


def test_size_may_change(server: RtspServer) -> None:
    _, frames = read(server.url("/sizes"), frames=25)
    assert {(f.picture.width, f.picture.to_rgb().shape[1]) for f in frames} >= {(480, 480)}


def test_clock_of_the_camera_from_sender_reports(server: RtspServer) -> None:
    source = open_source(stream_config(server.url("/h264"), connect_timeout_seconds=20))
    frame = source.read()
    for _ in range(400):
        if frame.clock == "source":
            break
        frame = source.read()
        now = frame.captured_at
    source.close()
    assert frame.clock == "source"
    # Server and reader share the machine's clock.
    assert abs(frame.captured_at - now) < 5


def test_a_clock_that_is_an_hour_off_is_believed_after_some_frames(server: RtspServer) -> None:
    with Weather() as weather:
        front = Front(weather, server.port, Behaviour(carry=misdate(-3600)), Units)
        config = stream_config(f"rtsp://127.0.0.1:{front.port}/h264", transport="tcp", connect_timeout_seconds=20)
        source = open_source(config)
        for _ in range(400):
            frame = source.read()
            error_seconds = frame.captured_at - time.time()
            if frame.clock == "source":
                break
            assert abs(error_seconds) < 5
        source.close()
        front.close()
    assert frame.clock == "source"
    assert abs(error_seconds + 3600) < 5


def test_no_such_path(server: RtspServer) -> None:
    assert failure(server.url("/nope")).reason is Reason.NOT_FOUND


def test_audio_only() -> None:
    # It is asked twice. What is shared by clients would be ending still when the second request comes.
    with RtspServer({"/audio": rtsp.AUDIO}, shared=False) as server:
        assert failure(server.url("/audio")).reason is Reason.NO_VIDEO


def test_server_that_offers_udp_only() -> None:
    # One each: while this server ends what the one has left, it answers 503 to the other.
    with RtspServer(transport="udp") as server:
        assert failure(server.url(), transport="tcp").reason is Reason.REFUSED
    with RtspServer(transport="udp") as server:
        assert read(server.url(), transport="auto")[1][0].picture.width == 320


@pytest.mark.parametrize("method", ["basic", "digest"])
def test_logins(method: str) -> None:
    login = {"user": "user", "password": SECRET, "method": method}
    with RtspServer(login=login) as server:
        assert read(server.url(login=f"user:{SECRET}"))[1][0].picture.width == 320
        wrong = failure(server.url(login=f"user:{SECRET}-not"))
        assert wrong.reason is Reason.UNAUTHORIZED
        assert "refuses this login" in wrong.detail
        none = failure(server.url())
        assert none.reason is Reason.UNAUTHORIZED
        assert "has none" in none.detail


def test_encrypted_rtsp_must_be_trusted(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    with RtspServer(tls={"certificate": str(certificate), "key": str(key)}) as server:
        url = server.url(scheme="rtsps", host="localhost")
        assert failure(url).reason is Reason.TLS
        assert read(url, tls_ca_file=str(certificate))[1][0].picture.width == 320
        assert read(url, tls_verify=False)[1][0].picture.width == 320


class LossyProxy:
    """Between a client and a server of RTSP over TCP; leaves out one RTP packet in so many."""

    def __init__(self, port: int, one_in: int) -> None:
        self._server_port, self._one_in = port, one_in
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._open: list[socket.socket] = []

    def _run(self) -> None:
        with suppress(OSError):
            client = self._socket.accept()[0]
            client.settimeout(PATIENCE_SECONDS)
            server = socket.create_connection(("127.0.0.1", self._server_port), PATIENCE_SECONDS)
            self._open += [client, server]
            self._threads.append(threading.Thread(target=self._forward, args=(client, server), daemon=True))
            self._threads[-1].start()
            with server.makefile("rb") as answers:
                number = 0
                while begin := answers.read(1):
                    if begin != b"$":
                        client.sendall(begin + answers.readline())
                        continue
                    head = answers.read(3)
                    body = answers.read(int.from_bytes(head[1:]))
                    number += head[0] == 0
                    if head[0] or number % self._one_in:
                        client.sendall(begin + head + body)
        self._end()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        self._end()

    def _end(self) -> None:
        """Wakes both threads. They still use the descriptors, which are closed when both have ended."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._end()
        for thread in self._threads:
            join(thread)
        for each in self._open:
            each.close()


@pytest.mark.parametrize("path", ["/h264", "/h265"])
def test_lost_packets_hold_pictures_until_a_key_frame(server: RtspServer, path: str) -> None:
    with LossyProxy(server.port, 23) as proxy:
        source = open_source(stream_config(f"rtsp://127.0.0.1:{proxy.port}{path}", connect_timeout_seconds=20))
        found = []
        while len(found) < 60:
            try:
                source.read()
                found.append("sound")
            except HeldError as held:
                found += ["held"] * held.has_picture
        source.close()
    # From the loss on until the next tenth picture.
    runs = [len(list(run)) for kind, run in itertools.groupby(found) if kind == "held"]
    assert runs
    assert found.count("sound") > 10


def test_key_frames_that_are_sent_in_two_halves_are_sound() -> None:
    # Several slices, with parameter sets between them, as this server's payloader does by default.
    sliced = rtsp.h264().replace("sliced-threads=false threads=1", "sliced-threads=true threads=2")
    with RtspServer({"/video": sliced}) as server:
        source = open_source(stream_config(server.url(), connect_timeout_seconds=20))
        found = []
        while len(found) < 40:
            try:
                source.read()
                found.append(True)
            except HeldError:
                found.append(False)
        source.close()
    assert sum(found[15:]) >= 20
