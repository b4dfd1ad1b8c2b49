"""The head over HTTP: what programs and Prometheus read, and what `streamdet cluster` changes."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamdet import __version__
from streamdet.cluster.head import Head
from streamdet.cluster.keys import ClusterKeys
from streamdet.errors import ConfigError, ControlError, Refusal, StoreError
from streamdet.http.access import Door, is_host_of
from streamdet.http.server import BadRequestError, connection_of, read_body
from streamdet.monitoring.cluster_metrics import cluster_registry, scrape_targets
from streamdet.security.redact import redact

# 5,000 streams with shapes.
MAX_FILE_BYTES = 8 * 1024 * 1024
_READ = frozenset({"GET", "HEAD"})


def make_app(head: Head, keys: ClusterKeys, about: Mapping[str, str], *, is_open: bool) -> Starlette:
    """The application.

    Args:
        head: that is asked.
        keys: with the tokens that requests need.
        about: what nodes must know to join.
        is_open: whether what only reads needs no token: only where no other machine can ask.
    """
    gate = _Gate(keys, is_open=is_open)
    return Starlette(routes=_routes(head, about), middleware=[Middleware(Door, refusal=gate.refusal)])


class _Gate:
    """Decides who may ask.

    Args:
        keys: with the tokens.
        is_open: whether what only reads needs no token.
    """

    def __init__(self, keys: ClusterKeys, *, is_open: bool) -> None:
        self._keys = keys
        self._is_open = is_open

    async def refusal(self, request: Request) -> Response | None:
        """The answer to a request that is refused."""
        reads = request.method in _READ
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        accepted = [self._keys.token, *([self._keys.reader_token] if reads else [])]
        if scheme.lower() == "bearer":
            is_right = any(hmac.compare_digest(token.strip().encode(), each.encode()) for each in accepted)
            why = "that is not the token of this cluster; use the file of its streamdet cluster init"
        else:
            # A web site can make a browser call this machine under the site's own name, but under no other.
            is_right = self._is_open and reads and is_host_of(request.headers.get("host", ""), frozenset())
            why = "a token is needed"
        connection_of(request.scope).trusted = is_right
        return None if is_right else _refused(HTTPStatus.UNAUTHORIZED, Refusal.NOT_ALLOWED, [why])


def _routes(head: Head, about: Mapping[str, str]) -> list[Route]:
    registry = cluster_registry(head.status)

    async def get_about(_request: Request) -> Response:
        return _answer({"version": __version__, **about})

    async def get_cluster(_request: Request) -> Response:
        return _answer(await run_in_threadpool(head.status))

    async def get_targets(_request: Request) -> Response:
        return _answer(scrape_targets(await run_in_threadpool(head.status)))

    async def get_metrics(_request: Request) -> Response:
        page = await run_in_threadpool(generate_latest, registry)
        return Response(page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def put_cameras(request: Request) -> Response:
        body = await read_body(request, MAX_FILE_BYTES)
        try:
            text = body.decode()
        except UnicodeDecodeError:
            raise ConfigError(["cameras.toml: is not text in UTF-8"]) from None
        dry_run = request.query_params.get("dry_run") == "true"
        return _answer(await run_in_threadpool(lambda: head.apply(text, dry_run=dry_run)))

    async def drain(request: Request) -> Response:
        node, is_draining = request.path_params["name"], request.method == "POST"
        return _answer(await run_in_threadpool(lambda: head.drain(node, is_draining=is_draining)))

    return [
        Route("/v1/about", _saying_why(get_about)),
        Route("/v1/cluster", _saying_why(get_cluster)),
        Route("/v1/sd", _saying_why(get_targets)),
        Route("/metrics", _saying_why(get_metrics)),
        Route("/v1/cluster/cameras", _saying_why(put_cameras), methods=["PUT"]),
        Route("/v1/cluster/nodes/{name}/drain", _saying_why(drain), methods=["POST", "DELETE"]),
    ]


def _saying_why(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Turns what is refused into an answer that `streamdet.client.control.decode_answer` reads."""

    async def answer_or_say_why(request: Request) -> Response:
        try:
            return await answer(request)
        except ConfigError as error:
            return _refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", error.problems)
        except ControlError as error:
            return _refused(HTTPStatus.NOT_FOUND, error.code, [str(error)])
        except StoreError as error:
            return _refused(HTTPStatus.SERVICE_UNAVAILABLE, Refusal.FAILED, [str(error)])
        except BadRequestError as error:
            return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Refusal.BAD_REQUEST, [str(error)])

    return answer_or_say_why


def _answer(result: Any, status: int = HTTPStatus.OK) -> Response:  # noqa: ANN401 - any JSON
    return Response(json.dumps(result, ensure_ascii=False), status, media_type="application/json")


def _refused(status: int, code: str, problems: list[str]) -> Response:
    lines = [redact(problem) for problem in problems]
    return _answer({"code": code, "detail": "; ".join(lines), "problems": lines}, status)
