"""A receiver of web hooks: a real HTTP or HTTPS server that takes, refuses, redirects or hangs as it is asked to."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from support.waiting import join, wait_until


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    status: int
    method: str = "POST"


@dataclass
class Receiver:
    """Answers each request with the next of `answers`, then always with `then`.

    A status is sent as it is; "hang" keeps the request open until the end; "cut" closes it; "slow" takes the event, and
    never ends its answer.
    """

    answers: list[int | str] = field(default_factory=list)
    then: int | str = 200
    headers: dict[str, str] = field(default_factory=dict)
    tls: tuple[Path, Path] | None = None

    def __post_init__(self) -> None:
        self.received: list[Received] = []
        self._end = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._answer(self)

            def do_PUT(self) -> None:
                receiver._answer(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # who hangs up is no error
        if self.tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True)

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://localhost:{self._server.server_port}/hook/secret-token-4711"

    @property
    def taken(self) -> list[Received]:
        """Those that were answered with success."""
        return [each for each in list(self.received) if 200 <= each.status < 300]

    @property
    def keys(self) -> list[str]:
        return [each.headers["Idempotency-Key"] for each in self.taken]

    def wait_for(self, count: int) -> list[Received]:
        wait_until(lambda: len(self.taken) >= count, f"{count} requests taken; {len(self.received)} came")
        return self.taken

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        answer = self.answers.pop(0) if self.answers else self.then
        status = answer if isinstance(answer, int) else 200 if answer == "slow" else 0
        self.received.append(Received(request.path, dict(request.headers.items()), body, status, request.command))
        if answer == "hang":
            self._end.wait(60)
        if status:
            request.send_response(status)
            for name, value in self.headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", "1000000" if answer == "slow" else "0")
            request.end_headers()
            if answer == "slow":
                self._end.wait(60)
        request.close_connection = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._server.shutdown()
        join(self._thread)
        self._server.server_close()
