"""Sends live video, over HTTP or into a pipe: whatever it is asked to, from one moment to the next."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from support.faults.media import Live
from support.waiting import PATIENCE_SECONDS, join

_STEP_SECONDS = 0.1


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE_SECONDS

    def do_GET(self) -> None:
        channel = self.server.channels[self.path.lstrip("/")]
        playing = channel.live
        self.send_response(200)
        self.send_header("Content-Type", playing.content_type)
        self.end_headers()
        # Some seconds of the past come at once, as many servers send them, so that readers find what they need.
        sent, started = 0, time.monotonic() - 1
        while not self.server.closing.is_set():
            if channel.live is not playing:
                playing, sent, started = channel.live, 0, time.monotonic()
            due = int(len(playing.data) * (time.monotonic() - started) / playing.seconds)
            due -= due % playing.unit_bytes
            try:
                self.wfile.write(playing.data[sent:due])
            except OSError:
                return
            sent = max(sent, due)
            if sent >= len(playing.data):
                return
            time.sleep(_STEP_SECONDS)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 256
    channels: dict[str, Channel]
    closing: threading.Event

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests hang up whenever they like."""


class Channel:
    """What is sent at one path; a change shows within the connections that there are."""

    def __init__(self, live: Live) -> None:
        self.live = live


class Player:
    """Serves channels, each at the path of its name."""

    def __init__(self) -> None:
        self.channels: dict[str, Channel] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.channels = self.channels
        self._server.closing = threading.Event()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        join(self._thread)


class Writer:
    """Writes into a named pipe, which it makes, whenever `writing` is set.

    Args:
        path: of the pipe.
        live: what is written.
    """

    def __init__(self, path: Path, live: Live) -> None:
        os.mkfifo(path)
        self.writing = threading.Event()
        self._path = path
        self._live = live
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        join(self._thread)

    def _run(self) -> None:
        while not self._done.wait(_STEP_SECONDS):
            if self.writing.is_set():
                # For reading, too, so that it need not wait for the reader.
                pipe = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
                self._write(pipe)
                os.close(pipe)

    def _write(self, pipe: int) -> None:
        sent, started = 0, time.monotonic()
        while not self._done.wait(_STEP_SECONDS):
            due = int(len(self._live.data) * (time.monotonic() - started) / self._live.seconds)
            due -= due % self._live.unit_bytes
            if self.writing.is_set():
                with suppress(BlockingIOError):  # no one reads, and the pipe is full
                    os.write(pipe, self._live.data[sent:due])
            sent = due
