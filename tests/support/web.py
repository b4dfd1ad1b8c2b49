"""A small HTTP server for tests: MJPEG, HLS, logins and errors, in this process."""

from __future__ import annotations

import base64
import re
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np

from support.waiting import PATIENCE_SECONDS, join

_BOUNDARY = "frame"


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE_SECONDS  # of each read and write, so that no client that stands still keeps the thread

    @property
    def protocol_version(self) -> str:  # type: ignore[override] # of each server
        return self.server.web.protocol

    def do_GET(self) -> None:
        web = self.server.web
        web.requests.append(self.path)
        web.logins += self.headers.get_all("Authorization", [])
        if web.login is not None:
            wanted = "Basic " + base64.b64encode(web.login.encode()).decode()
            if self.headers.get("Authorization") != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="test"')
                self.end_headers()
                return
        if web.broken.is_set():
            self.send_error(503)
        elif self.path == "/mjpeg":
            self._send_mjpeg(web)
        elif self.path in web.pages:
            self._send_file(web.pages[self.path]())
        elif self.path in web.redirections:
            self.send_response(302)
            self.send_header("Location", web.redirections[self.path])
            self.end_headers()
        elif web.folder is not None and (web.folder / self.path.lstrip("/")).is_file():
            self._send_file((web.folder / self.path.lstrip("/")).read_bytes())
        elif self.path == "/page":
            self._send(b"<html>hello</html>" * 50, "text/html")
        elif self.path == "/broken":
            self.send_error(503)
        else:
            self.send_error(404)

    def _send_file(self, body: bytes) -> None:
        is_playlist = body.startswith(b"#EXTM3U")
        self._send(body, "application/vnd.apple.mpegurl" if is_playlist else "application/octet-stream")

    def _send(self, body: bytes, content_type: str) -> None:
        part = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        if part is not None and self.server.web.knows_ranges:
            self.send_response(206)
            first, last = int(part[1]), min(int(part[2] or len(body)), len(body) - 1)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.web.cut_at.get(self.path)])

    def _send_mjpeg(self, web: WebServer) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.end_headers()
        number = 0
        while not web.closing.is_set() and not web.broken.is_set():
            if web.silent.is_set():
                time.sleep(0.02)
                continue
            grey = np.full((48, 64, 3), 40 + number % 20 * 10, np.uint8)
            jpeg = cv2.imencode(".jpg", grey)[1].tobytes()
            head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + jpeg + b"\r\n")
            except OSError:
                return
            number += 1
            time.sleep(0.04)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 64
    web: WebServer

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests hang up whenever they like."""


class WebServer:
    """Serves /mjpeg, /page, /broken (503) and the files of `folder`.

    `silent` stops the pictures, `broken` everything.

    Attributes:
        pages: what to send, by path.
        redirections: where paths lead that are elsewhere.
        cut_at: after how many bytes an answer ends that is longer according to its header, by path.
        protocol: "HTTP/1.1" keeps connections open, unless it is asked to close them.
        knows_ranges: whether a part of a file is sent to who asks for a part.
        requests: the paths that were asked for.
        logins: what came in Authorization headers.
    """

    def __init__(
        self, folder: Path | None = None, login: str | None = None, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self.folder = folder
        self.login = login
        self.pages: dict[str, Callable[[], bytes]] = {}
        self.redirections: dict[str, str] = {}
        self.cut_at: dict[str, int] = {}
        self.protocol = "HTTP/1.0"
        self.knows_ranges = True
        self.requests: list[str] = []
        self.logins: list[str] = []
        self.closing = threading.Event()
        self.silent = threading.Event()
        self.broken = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.web = self
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    def url(self, path: str, login: str = "") -> str:
        return f"{self._scheme}://{login + '@' if login else ''}localhost:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        join(self._thread)
