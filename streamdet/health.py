"""The pages for Prometheus, load balancers and people: /metrics, /healthz, /readyz."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from prometheus_client import CollectorRegistry, make_wsgi_app

from streamdet.config import MetricsConfig
from streamdet.page_login import login_for, tls_for
from streamdet.page_request import Request, Response
from streamdet.page_server import PageServer
from streamdet.types import StreamStatus
from streamdet.worker import Worker

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
    """

    healthy: bool
    ready: bool
    streams: Mapping[str, StreamStatus] = field(default_factory=dict)
    last_frame_at: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


class HealthServer(PageServer):
    """Serves the pages while it is entered as a context manager.

    /healthz answers 503 when the daemon has to be restarted, /readyz also while it does not detect; both tell why
    as JSON. Nothing here takes a lock that a capture or the detector holds while it waits: the pages answer while
    cameras hang.

    Args:
        config: where, and who may read them.
        registry: what /metrics shows.
        snapshot: tells how the daemon is, at once, from any thread.
        on_error: told of a serving thread that ended by an error.

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
    ) -> None:
        self._login = login_for(config)
        super().__init__("metrics", config.endpoint, self._answer, on_error, tls_for(config))
        # The library's own application negotiates the format, compresses, and selects by `name[]`.
        self._metrics_app = make_wsgi_app(registry)
        self._snapshot = snapshot

    def _answer(self, request: Request) -> Response:
        refusal = self._login.refusal(request) if self._login is not None else None
        if refusal is not None:
            return refusal
        if request.path == "/metrics":
            return self._metrics(request)
        if request.path in {"/healthz", "/readyz"}:
            snapshot = self._snapshot()
            good = snapshot.healthy and (snapshot.ready or request.path == "/healthz")
            status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
            return Response(status, _json(snapshot), (("Content-Type", "application/json"),))
        if request.path == "/":
            return Response(HTTPStatus.OK, _PAGE, (("Content-Type", "text/html; charset=utf-8"),))
        return Response(HTTPStatus.NOT_FOUND, b"not found: see /metrics, /healthz and /readyz\n")

    def _metrics(self, request: Request) -> Response:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": request.query,
            "HTTP_ACCEPT": request.headers.get("accept", ""),
            "HTTP_ACCEPT_ENCODING": request.headers.get("accept-encoding", ""),
        }
        body = b"".join(self._metrics_app(environ, lambda status, fields: started.append((status, fields))))
        status, fields = started[0]
        return Response(HTTPStatus(int(status.split()[0])), body, tuple(fields))


def _json(snapshot: HealthSnapshot) -> bytes:
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
        "streams": streams,
    }
    return json.dumps(page, indent=2).encode() + b"\n"
