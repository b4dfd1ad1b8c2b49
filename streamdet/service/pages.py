"""The pages for Prometheus, load balancers and people: /metrics, /healthz, /readyz."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from streamdet.config import MetricsConfig
from streamdet.config.listening import parse_host_port
from streamdet.errors import EndpointError
from streamdet.http.access import BasicLogin, Door, Guard
from streamdet.http.server import HEALTH_PATHS, HttpServer, HttpThread, Limits, listen, tls_context, url_of
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.endpoints import is_loopback
from streamdet.security.limits import FairRate
from streamdet.security.passwords import read_password
from streamdet.types import StreamStatus
from streamdet.worker import Worker

LIMITS = Limits(connections=256, waiting_per_address=64, answering=192, connections_per_second=250, request_seconds=2.0)
REQUESTS_PER_SECOND = 40
HEALTH_CHECKS_PER_SECOND = 80
# Requests of one address that may wait for their turn.
MAX_WAITING_OF_ONE_ADDRESS = 80
# Rendering may take this share of the time of one core: where it takes long it is done less often, within bounds.
_RENDERING_SHARE = 0.1
METRICS_AGE_SECONDS = (1.0, 10.0)
_MAX_SETS_OF_NAMES = 2
HEALTH_AGE_SECONDS = 0.2
_OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_VERSION = f"{_OPENMETRICS};version=1.0.0"

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

    def to_response(self, *, good: bool) -> Response:
        """As /healthz, /readyz and /v1/health answer: 200 for good, else 503, and JSON."""
        streams = {
            name: {
                "state": status.state.value,
                "reason": status.reason.value if status.reason else None,
                "detail": status.detail,
                "since": status.since,
                "last_frame_at": self.last_frame_at.get(name),
            }
            for name, status in self.streams.items()
        }
        page = {
            "healthy": self.healthy,
            "ready": self.ready,
            "problem": self.problem,
            "engine": None if self.engine is None else dict(self.engine),
            "streams": streams,
        }
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(json.dumps(page, indent=2).encode() + b"\n", status, media_type="application/json")


class HealthServer(HttpThread):
    """Serves the pages while it is entered as a context manager, in a thread of its own.

    /healthz answers 503 when the daemon has to be restarted, /readyz also while it does not detect; both say why as
    JSON. No lock is taken that a capture or the detector holds while it waits: the pages answer while cameras hang.
    Detection loses little to readers, however many there are and however often they ask: what they read is made once
    for all, and answers leave at a bounded rate, the addresses in turns.

    The port is bound at once, so that one that is taken is known before anything else starts.

    Args:
        config: where, and who may read them.
        registry: what /metrics shows.
        snapshot: returns how the daemon is, without waiting, from any thread.
        on_error: called when the thread ends by an error.
        unexpected: counts and logs errors that end a single request or connection.
        limits: what clients may use.
        rate: how many pages are answered, health checks aside.
        metrics_age_seconds: how old /metrics may be, at least and at most.
        health_age_seconds: how old the other two may be.

    Attributes:
        url: where the pages are, ending without a slash.

    Raises:
        EndpointError: the endpoint is not one, or cannot be bound, or the certificate cannot be used.
        PasswordError: the password cannot be read.
    """

    def __init__(
        self,
        config: MetricsConfig,
        registry: CollectorRegistry,
        snapshot: Callable[[], HealthSnapshot],
        on_error: Callable[[Worker], None] | None = None,
        unexpected: UnexpectedErrors | None = None,
        *,
        limits: Limits = LIMITS,
        rate: FairRate | None = None,
        metrics_age_seconds: tuple[float, float] = METRICS_AGE_SECONDS,
        health_age_seconds: float = HEALTH_AGE_SECONDS,
    ) -> None:
        try:
            host, port = parse_host_port(config.endpoint)
        except ValueError:
            message = f"metrics: {config.endpoint[:200]!r} is not an endpoint; expected something like 127.0.0.1:9095"
            raise EndpointError(message) from None
        tls, self._guard = tls_for(config), guard_for(config, host)
        listener = listen("metrics:", host, port, "endpoint")
        self.url = url_of(listener, tls)
        self._rate = rate or FairRate(REQUESTS_PER_SECOND, MAX_WAITING_OF_ONE_ADDRESS)
        self._health_rate = FairRate(HEALTH_CHECKS_PER_SECOND, limits.connections)
        self._metrics = _MetricsPage(registry, metrics_age_seconds)
        self._health_age_seconds = health_age_seconds
        self._snapshot = snapshot
        self._health: tuple[float, HealthSnapshot] | None = None
        routes = [
            Route("/", self._first_page),
            Route("/metrics", self._metrics.answer),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/{path:path}", _not_found),
        ]
        door = Door(Starlette(routes=routes), self._refusal)
        self._server = HttpServer(door, listener, limits, tls, unexpected)
        super().__init__("metrics", [self._server], on_error)

    async def _refusal(self, request: Request) -> Response | None:
        rate = self._health_rate if request.scope["path"] in HEALTH_PATHS else self._rate
        refused = await self._guard.refusal(request, rate)
        return refused and PlainTextResponse(f"{refused.why}\n", refused.status, refused.headers)

    async def _first_page(self, _request: Request) -> Response:
        return Response(_PAGE, media_type="text/html; charset=utf-8")

    async def _healthz(self, _request: Request) -> Response:
        snapshot = self._newest()
        return snapshot.to_response(good=snapshot.healthy)

    async def _readyz(self, _request: Request) -> Response:
        snapshot = self._newest()
        return snapshot.to_response(good=snapshot.healthy and snapshot.ready)

    def _newest(self) -> HealthSnapshot:
        now = time.monotonic()
        if self._health is None or now - self._health[0] >= self._health_age_seconds:
            self._health = now, self._snapshot()
        return self._health[1]


def guard_for(config: MetricsConfig, host: str, scheme: str | None = None) -> Guard:
    """Who may read what is served at an address, as `[metrics]` says.

    Args:
        config: names, and the login.
        host: the name or address that is listened at.
        scheme: as of `Guard`.

    Raises:
        PasswordError: the file of the password cannot be used.
    """
    hosts = frozenset({host, *(name.lower() for name in config.hosts)}) if config.hosts or is_loopback(host) else None
    login = None
    if config.password_file is not None:
        login = BasicLogin(config.username, read_password(Path(config.password_file)))
    return Guard(hosts, login, scheme)


def tls_for(config: MetricsConfig) -> ssl.SSLContext | None:
    """How to speak TLS, as `[metrics]` says; None where it names no certificate.

    Raises:
        EndpointError: the certificate or its key cannot be used.
    """
    if config.tls_certificate_file is None or config.tls_key_file is None:
        return None
    try:
        return tls_context(Path(config.tls_certificate_file), Path(config.tls_key_file))
    except (OSError, ValueError) as error:
        message = f"[metrics] the certificate {config.tls_certificate_file} or its key cannot be used: {error}"
        raise EndpointError(message) from error


class _Rendered(NamedTuple):
    """A page as it was at one moment."""

    until: float
    content_type: str
    text: bytes
    compressed: bytes


class _Asked(NamedTuple):
    """What is rendered: a format, and names of samples; without names, all of them."""

    accept: str
    names: frozenset[str] = frozenset()


class _MetricsPage:
    """Shows a registry, in the text format of Prometheus or OpenMetrics; belongs to the event loop.

    Each of the two is made now and then, and shared by all who ask for it. So are the samples of some names, which take
    a fraction of the time; of many sets of names at once, others are taken from the whole page.
    """

    def __init__(self, registry: CollectorRegistry, age_seconds: tuple[float, float] = METRICS_AGE_SECONDS) -> None:
        self._registry = registry
        self._age_seconds = age_seconds
        self._rendered: dict[_Asked, _Rendered] = {}
        self._locks = {name: asyncio.Lock() for name in ("", _OPENMETRICS_VERSION)}

    async def answer(self, request: Request) -> Response:
        """The page, or those samples of it that `name[]` asks for."""
        headers = request.headers
        accept = _OPENMETRICS_VERSION if _OPENMETRICS in headers.get("accept", "") else ""
        names = frozenset(request.query_params.getlist("name[]"))
        page = await self._newest(_Asked(accept, names))
        if names:
            return _page(_only(page.text, names), page.content_type)
        if gzip_accepted(headers.get("accept-encoding", "")):
            return _page(page.compressed, page.content_type, {"Content-Encoding": "gzip"})
        return _page(page.text, page.content_type)

    async def _newest(self, asked: _Asked) -> _Rendered:
        """A page with at least what is asked for."""
        async with self._locks[asked.accept]:
            now = time.monotonic()
            self._rendered = {kept: page for kept, page in self._rendered.items() if now < page.until}
            whole = _Asked(asked.accept)
            if asked not in self._rendered and (
                whole in self._rendered or sum(bool(kept.names) for kept in self._rendered) >= _MAX_SETS_OF_NAMES
            ):
                asked = whole
            page = self._rendered.get(asked)
            if page is None:
                page = self._rendered[asked] = await asyncio.to_thread(self._render, asked)
        return page

    def _render(self, asked: _Asked) -> _Rendered:
        began, cpu_began = time.monotonic(), time.thread_time()
        encode, content_type = choose_encoder(asked.accept)
        if asked.names:
            text, compressed = encode(self._registry.restricted_registry(asked.names)), b""
        else:
            text = encode(self._registry)
            compressed = gzip.compress(text, 1, mtime=0)
        share_seconds = (time.thread_time() - cpu_began) / _RENDERING_SHARE
        shortest, longest = self._age_seconds
        age_seconds = max(shortest, min(share_seconds, longest))
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
