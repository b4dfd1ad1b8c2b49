"""Files behind HTTP, as FFmpeg reads them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from streamdet.capture.sources.hls.files import HlsFiles
from streamdet.capture.sources.http_stream import HttpStream
from streamdet.config import StreamConfig
from streamdet.types import Reason
from support.waiting import join

_HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
# Of MPEG-TS, which is taken for a video.
_BEGINNING = b"G" + bytes(187)
_PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nlive.ts\n"


@pytest.fixture
def falls_silent() -> Iterator[str]:
    """Where a server sends the beginning of a video and nothing more, and a playlist of it at live.m3u8."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                asked = connection.recv(4096)
                if not asked:
                    return
                if b".m3u8" in asked:
                    connection.sendall(_HEAD + _PLAYLIST)
                    connection.shutdown(socket.SHUT_WR)
                else:
                    connection.sendall(_HEAD + _BEGINNING)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/live.ts"
        socket.create_connection(listener.getsockname()).close()
        join(thread)
        for connection in connections:
            connection.close()


def read_on(read: Callable[[int], bytes]) -> bytes:
    """As FFmpeg does, which asks again after an end."""
    found = b""
    while data := read(4096):
        found += data
    return found + read(4096) + read(4096)


def test_that_nothing_came_in_time_is_still_known_after_further_reads(falls_silent: str) -> None:
    file = HttpStream(StreamConfig(name="a", url=falls_silent, stall_seconds=0.3)).file
    assert file is not None
    assert read_on(file.read) == _BEGINNING
    file.close()
    assert file.problem is not None
    assert (file.problem.reason, file.problem.detail) == (Reason.TIMEOUT, "no data within 0.6 s")


def test_that_a_segment_did_not_come_in_time_is_still_known_after_further_reads(falls_silent: str) -> None:
    playlist = falls_silent.replace(".ts", ".m3u8")
    files = HlsFiles(StreamConfig(name="a", url=playlist, connect_timeout_seconds=0.5), None)
    with closing(files(playlist, 0, {})) as file:
        assert b"live.ts" in file.read(4096)
    with closing(files(falls_silent, 0, {})) as file:
        assert read_on(file.read) == _BEGINNING
    files.close()
    assert files.problem is not None
    assert files.problem.reason is Reason.TIMEOUT
