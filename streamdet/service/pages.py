"""The pages for Prometheus, load balancers and people: /metrics, /healthz, /readyz."""

from __future__ import annotations

import asyncio
import base64
import binascii
import gzip
import hashlib
import hmac
import json
import math
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamdet.config import MetricsConfig
from streamdet.config.addresses import is_loopback, metrics_socket
from streamdet.errors import EndpointError
from streamdet.http_server import (
    HEALTH_PATHS,
    HttpServer,
    Limits,
    connection_of,
    is_host_of,
    listen,
    network_of,
    tls_context,
    url_of,
)
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.limits import FairRate, LoginAttempts
from streamdet.security.passwords import Password, read_password
from streamdet.types import StreamStatus
from streamdet.worker import Worker

_MAX_LOGIN_CHARACTERS = 2000


class PageLogin:
    """Lets requests pass that carry the right name and password; of wrong ones only a few a minute are looked at.

    Checking a password is slow on purpose. One that was right is known again by a hash whose key lives in this
    process alone, so that Prometheus may come as often as it likes. Belongs to one event loop.

    Args:
        username: the name that belongs to the password.
        password: the password.
    """

    def __init__(self, username: str, password: Password) -> None:
        self._username = username.encode()
        self._password = password
        self._tries = LoginAttempts()
        self._hash_key = secrets.token_bytes(32)
        self._known = b""
        # One check at a time: each takes 32 MiB and a quarter of a second.
        self._lock = asyncio.Lock()

    async def refusal(self, request: Request) -> Response | None:
        """What a request gets that may not pass; None for one that may."""
        login = _login_of(request)
        if login is None:
            return _refusal("a name and a password are needed")
        if self._is_known(login):
            return None
        client = network_of(request.client.host if request.client else "")
        async with self._lock:
            if self._is_known(login):
                return None
            wait_seconds = math.ceil(self._tries.wait_seconds(client))
            if wait_seconds:
                message = "too many wrong logins; wait\n"
                return PlainTextResponse(message, 429, {"Retry-After": str(wait_seconds)})
            if not await asyncio.to_thread(self._is_right, login):
                return _refusal("that is not the name or not the password")
            self._known = self._digest(login)
            self._tries.forget(client)
        return None

    def _is_known(self, login: bytes) -> bool:
        return hmac.compare_digest(self._digest(login), self._known)

    def _is_right(self, login: bytes) -> bool:
        username, _, password = login.partition(b":")
        right_name = hmac.compare_digest(username, self._username)
        # Both are always checked: how long it takes tells nothing about the name.
        return self._password.matches(password.decode("utf-8", "surrogateescape")) and right_name

    def _digest(self, login: bytes) -> bytes:
        return hmac.digest(self._hash_key, login, hashlib.sha256)


def login_for(config: MetricsConfig) -> PageLogin | None:
    """The login that a configuration asks for; None where it asks for none.

    Raises:
        PasswordError: its file cannot be used.
    """
    if config.password_file is None:
        return None
    return PageLogin(config.username, read_password(Path(config.password_file)))


def _login_of(request: Request) -> bytes | None:
    """`name:password` as the client sent it; None where there is none."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _MAX_LOGIN_CHARACTERS:
        return None
    try:
        login = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return login if b":" in login else None


def _refusal(why: str) -> Response:
    challenge = {"WWW-Authenticate": 'Basic realm="streamdet", charset="UTF-8"'}
    return PlainTextResponse(f"{why}\n", 401, challenge)


LIMITS = Limits(connections=256, waiting_per_address=64, answering=192, connections_per_second=250, request_seconds=2.0)
REQUESTS_PER_SECOND = 40
HEALTH_CHECKS_PER_SECOND = 80
# So many readers of one address may ask at the same time, and get their answer a bit later.
MAX_WAITING_OF_ONE_ADDRESS = 80
METRICS_AGE_SECONDS = 1.0
HEALTH_AGE_SECONDS = 0.2
# Where rendering takes long, it is done less often: it may take this share of the time of one core.
_RENDERING_SHARE = 0.1
_MAX_METRICS_AGE_SECONDS = 10.0
_OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_VERSION = f"{_OPENMETRICS};version=1.0.0"
_FIXED_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_PAGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>streamdet</title>
<h1>streamdet</h1>
<ul>
<li><a href="/metrics">/metrics</a>: numbers for Prometheus
<li><a href="/healthz">/healthz</a>: whether the daemon works (200) or has to be restarted (503)
<li><a href="/readyz">/readyz</a>: whether it detects yet, and the state of every stream
</ul>
</html>
"""


@dataclass(frozen=True, slots=True)
class HealthSnapshot:
    """How the daemon is at one moment.

    Attributes:
        healthy: false when it is stuck or one of its threads has died: it has to be restarted.
        ready: whether it detects; false before the warm-up is over and while it ends.
        streams: what each stream is doing. A stream that is down makes the daemon neither unhealthy nor unready.
        last_frame_at: Unix time in seconds of each stream's newest frame; streams without one are left out.
        problem: one line about why it is not healthy, without secrets; empty when it is.
        engine: what detects, and why other engines do not; None until it is loaded.
    """

    healthy: bool
    ready: bool
    streams: Mapping[str, StreamStatus] = field(default_factory=dict)
    last_frame_at: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    engine: Mapping[str, object] | None = None


class HealthServer(Worker):
    """Serves the pages while it is entered as a context manager, in a thread of its own.

    /healthz answers 503 when the daemon has to be restarted, /readyz also while it does not detect; both say why
    as JSON. Nothing here takes a lock that a capture or the detector holds while it waits: the pages answer while
    cameras hang. However many readers there are, and however often they ask, detection loses little to them: what
    they read is made once for all, and answers leave at a bounded rate, the addresses in turns.

    The port is bound at once, so that one that is taken is known before anything else starts.

    Args:
        config: where, and who may read them.
        registry: what /metrics shows.
        snapshot: says how the daemon is, at once, from any thread.
        on_error: called when the thread ends by an error.
        unexpected: counts and logs errors that end a single request or connection.

    Attributes:
        url: where the pages are, ending without a slash.

    Raises:
        EndpointError: the endpoint is no endpoint, or cannot be bound, or the certificate cannot be used.
        PasswordError: the password cannot be read.
    """

    def __init__(
        self,
        config: MetricsConfig,
        registry: CollectorRegistry,
        snapshot: Callable[[], HealthSnapshot],
        on_error: Callable[[Worker], None] | None = None,
        unexpected: UnexpectedErrors | None = None,
    ) -> None:
        super().__init__("metrics", on_error)
        login, tls = login_for(config), _tls_for(config)
        try:
            host, port = metrics_socket(config.endpoint)
        except ValueError:
            message = f"metrics: {config.endpoint[:200]!r} is not an endpoint; expected something like 127.0.0.1:9095"
            raise EndpointError(message) from None
        self._listener = listen("metrics:", host, port, "another endpoint")
        self.url = url_of(self._listener, tls)
        self._metrics = _MetricsPage(registry)
        self._snapshot = snapshot
        self._health: tuple[float, HealthSnapshot] | None = None
        routes = [
            Route("/", self._first_page),
            Route("/metrics", self._metrics.answer),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/{path:path}", _not_found),
        ]
        self._server = HttpServer(
            _Door(Starlette(routes=routes), login, _hosts_of(config)), self._listener, LIMITS, tls, unexpected
        )

    def run(self) -> None:
        """Serves until asked to stop."""
        if not self.stopping:
            asyncio.run(self._server.serve())
        if self._server.error is not None:
            raise self._server.error

    def wake(self) -> None:
        """Has the server end."""
        self._server.should_exit = True

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cuts open connections, ends the thread and frees the port; may be called twice, or without entering."""
        self.stop()
        self.join()
        with suppress(OSError):
            self._listener.close()

    async def _first_page(self, _request: Request) -> Response:
        return Response(_PAGE, media_type="text/html; charset=utf-8")

    async def _healthz(self, _request: Request) -> Response:
        snapshot = self._newest()
        return _as_json(snapshot, good=snapshot.healthy)

    async def _readyz(self, _request: Request) -> Response:
        snapshot = self._newest()
        return _as_json(snapshot, good=snapshot.healthy and snapshot.ready)

    def _newest(self) -> HealthSnapshot:
        now = time.monotonic()
        if self._health is None or now - self._health[0] >= HEALTH_AGE_SECONDS:
            self._health = now, self._snapshot()
        return self._health[1]


class _Door:
    """Refuses who may not come in, and lets the others come in turns; ASGI middleware."""

    def __init__(self, app: ASGIApp, login: PageLogin | None, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._login = login
        self._hosts = hosts
        self._pages = FairRate(REQUESTS_PER_SECOND, MAX_WAITING_OF_ONE_ADDRESS)
        self._health = FairRate(HEALTH_CHECKS_PER_SECOND, LIMITS.connections)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_FIXED_HEADERS)
            await send(message)

        refusal = await self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    async def _refusal(self, request: Request) -> Response | None:
        connection = connection_of(request.scope)
        rate = self._health if request.scope["path"] in HEALTH_PATHS else self._pages
        if not await rate.turn(connection.network, lambda: connection.closed):
            message = f"more than {MAX_WAITING_OF_ONE_ADDRESS} requests of your address are waiting; try again\n"
            return PlainTextResponse(message, 429, {"Retry-After": "1"})
        if request.method not in {"GET", "HEAD"}:
            return PlainTextResponse("method not allowed\n", 405, {"Allow": "GET, HEAD"})
        # Browsers always send a Host; some load balancers send none.
        host = request.headers.get("host", "")
        if self._hosts is not None and host and not is_host_of(host, self._hosts):
            message = f"this page does not answer to the name {host[:200]!r}; add it to [metrics] hosts to allow it\n"
            return PlainTextResponse(message, 403)
        if self._login is None:
            return None
        refusal = await self._login.refusal(request)
        connection.trusted = refusal is None
        return refusal


class _Rendered(NamedTuple):
    """A page as it was at one moment."""

    until: float
    content_type: str
    text: bytes
    compressed: bytes


class _MetricsPage:
    """Shows a registry, in the text format of Prometheus or OpenMetrics; belongs to the event loop.

    Each of the two is made once a second at the most, and shared by all who ask for it.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._rendered: dict[str, _Rendered] = {}
        self._locks = {name: asyncio.Lock() for name in ("", _OPENMETRICS_VERSION)}

    async def answer(self, request: Request) -> Response:
        """The page, or those samples of it that `name[]` asks for."""
        headers = request.headers
        page = await self._newest(_OPENMETRICS_VERSION if _OPENMETRICS in headers.get("accept", "") else "")
        names = request.query_params.getlist("name[]")
        if names:
            return _page(_only(page.text, frozenset(names)), page.content_type)
        if gzip_accepted(headers.get("accept-encoding", "")):
            return _page(page.compressed, page.content_type, {"Content-Encoding": "gzip"})
        return _page(page.text, page.content_type)

    async def _newest(self, accept: str) -> _Rendered:
        async with self._locks[accept]:
            page = self._rendered.get(accept)
            if page is None or time.monotonic() >= page.until:
                page = self._rendered[accept] = await asyncio.to_thread(self._render, accept)
        return page

    def _render(self, accept: str) -> _Rendered:
        began, cpu_began = time.monotonic(), time.thread_time()
        encode, content_type = choose_encoder(accept)
        text = encode(self._registry)
        compressed = gzip.compress(text, 1, mtime=0)
        share_seconds = (time.thread_time() - cpu_began) / _RENDERING_SHARE
        age_seconds = max(METRICS_AGE_SECONDS, min(share_seconds, _MAX_METRICS_AGE_SECONDS))
        return _Rendered(began + age_seconds, content_type, text, compressed)


def _only(text: bytes, names: frozenset[str]) -> bytes:
    """The samples of these names, with the comments of their families."""
    wanted = {name.encode() for name in names}
    lines: list[bytes] = []
    comments: list[bytes] = []
    for line in text.splitlines(keepends=True):
        if line.startswith(b"# EOF"):
            lines.append(line)
        elif line.startswith(b"#"):
            if line.startswith(b"# HELP"):
                comments.clear()
            comments.append(line)
        elif line.partition(b"{")[0].partition(b" ")[0] in wanted:
            lines += [*comments, line]
            comments.clear()
    return b"".join(lines)


def _page(body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> Response:
    # Not as `media_type`, to which the framework would add a second character set.
    return Response(body, headers={"Content-Type": content_type, **(headers or {})})


async def _not_found(_request: Request) -> Response:
    return PlainTextResponse("not found: see /metrics, /healthz and /readyz\n", 404)


def _hosts_of(config: MetricsConfig) -> frozenset[str] | None:
    """The names under which the pages may be called, besides `localhost` and addresses; None for any."""
    host = metrics_socket(config.endpoint).host.lower()
    if not config.hosts and not is_loopback(host):
        return None
    return frozenset({host, *(name.lower() for name in config.hosts)})


def _tls_for(config: MetricsConfig) -> ssl.SSLContext | None:
    if config.tls_certificate_file is None or config.tls_key_file is None:
        return None
    try:
        return tls_context(Path(config.tls_certificate_file), Path(config.tls_key_file))
    except (OSError, ValueError) as error:
        message = f"[metrics] the certificate {config.tls_certificate_file} or its key cannot be used: {error}"
        raise EndpointError(message) from error


def _as_json(snapshot: HealthSnapshot, *, good: bool) -> Response:
    streams = {
        name: {
            "state": status.state.value,
            "reason": status.reason.value if status.reason else None,
            "detail": status.detail,
            "since": status.since,
            "last_frame_at": snapshot.last_frame_at.get(name),
        }
        for name, status in snapshot.streams.items()
    }
    page = {
        "healthy": snapshot.healthy,
        "ready": snapshot.ready,
        "problem": snapshot.problem,
        "engine": None if snapshot.engine is None else dict(snapshot.engine),
        "streams": streams,
    }
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(json.dumps(page, indent=2).encode() + b"\n", status, media_type="application/json")
