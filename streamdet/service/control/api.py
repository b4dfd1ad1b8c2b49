"""The control API: HTTP over a Unix socket, and over TCP where it is configured; `openapi.json` is the reference.

It changes nothing itself: each operation goes to the daemon's main thread, which owns the configuration and the
streams, and its result comes back from there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from datetime import datetime
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from streamdet.capture.probe import Probe
from streamdet.client.control import USER_HEADER, USER_PATTERN
from streamdet.config import MetricsConfig
from streamdet.config.listening import HOW_TO_CLOSE_CONTROL, parse_host_port
from streamdet.config.stream import NAME_PATTERN
from streamdet.config.toml import is_nested_deeper
from streamdet.delivery.clips import Clips
from streamdet.delivery.file_store import FileStore, Missing
from streamdet.delivery.history import MAX_EVENTS, History, Page, Query
from streamdet.delivery.snapshots import MAX_WIDTH, MIN_WIDTH, Look, Snapshots
from streamdet.errors import ApplyError, ConfigError, ControlError, EndpointError, Refusal
from streamdet.http.access import Door, Guard, Refused
from streamdet.http.server import (
    BadRequestError,
    HttpServer,
    HttpThread,
    Limits,
    connection_of,
    listen,
    read_body,
    url_of,
)
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.endpoints import is_loopback
from streamdet.security.limits import FairRate
from streamdet.security.plain_text import plain
from streamdet.security.redact import redact
from streamdet.service.claims import MAX_CLAIMS, Grant
from streamdet.service.control.operations import Json, Operation
from streamdet.service.control.probes import Probes
from streamdet.service.control.unix_socket import PeerGuard, listen_at
from streamdet.service.live_config import Renamed
from streamdet.service.pages import HealthSnapshot, guard_for, tls_for
from streamdet.types import State
from streamdet.wire.limits import is_jpeg
from streamdet.wire.replay import MAX_TIME
from streamdet.worker import Worker

LIMITS = Limits(connections=256, waiting_per_address=64, answering=256, connections_per_second=1000)
MAX_BODY_BYTES = 64 * 1024
# A claim has several streams, each with the shapes that one may have.
MAX_CLAIM_BYTES = 1024 * 1024
MAX_CLAIM_STREAMS = 100
MAX_GENERATION = (1 << 53) - 1
MIN_LEASE_SECONDS, MAX_LEASE_SECONDS = 1.0, 3600.0
_GRANT_KEYS = ("streams", "generation", "lease_seconds")
_RENEWAL_KEYS = ("id", "generation", "lease_seconds")
REQUESTS_PER_SECOND = 100
# Requests of one client that may wait for their turn.
MAX_WAITING_OF_ONE_CLIENT = 64
# How long a picture may take: longer than the store itself waits for one.
_PICTURE_SECONDS = 8.0
# How long a picture of the newest frame waits for that.
_FRAME_SECONDS = 10.0
# How long a page of events may take, with those that are read before it.
_EVENTS_SECONDS = 20.0
_EVENTS_OF_A_PAGE = 100
# The deepest that means anything: a stream, a list of zones, a zone, its corners, a corner.
_MAX_DEPTH = 12
_MOST_DIGITS = 20
_ETAG = re.compile(r'"[0-9a-f]{1,1000}"')
_RENAMED = re.compile(r"(zone|line):([a-z0-9][a-z0-9._-]{0,63}):([a-z0-9][a-z0-9._-]{0,63})")

_STATUSES = {
    Refusal.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Refusal.NOT_ALLOWED: HTTPStatus.FORBIDDEN,
    Refusal.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    Refusal.TOO_MANY: HTTPStatus.CONFLICT,
    Refusal.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Refusal.EXISTS: HTTPStatus.CONFLICT,
    Refusal.CONFLICT: HTTPStatus.CONFLICT,
    Refusal.STALE: HTTPStatus.CONFLICT,
    Refusal.CHANGED: HTTPStatus.PRECONDITION_FAILED,
    Refusal.FAILED: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_CODES = {
    HTTPStatus.UNAUTHORIZED: Refusal.NOT_ALLOWED,
    HTTPStatus.FORBIDDEN: Refusal.NOT_ALLOWED,
    HTTPStatus.NOT_FOUND: Refusal.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: Refusal.TOO_MANY,
}

_Handler = Callable[[Request], Awaitable[Response]]
_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


class ControlServer(HttpThread):
    """Serves the API while it is entered as a context manager, in a thread of its own.

    The sockets are bound at once, so that one that is in use is known before anything else starts.

    Args:
        path: of the Unix socket; None for none.
        on_operation: takes each operation, from the server's thread; must not block.
        about: returns what /v1/about says, without waiting, from any thread.
        health: returns how the daemon is, likewise.
        group: whose members may use the Unix socket, too; None for the daemon's user and root alone.
        endpoint: HOST:PORT to listen at as well; None for none.
        access: the names, the login and the certificate for `endpoint`.
        on_error: called when the thread ends by an error.
        unexpected: counts and logs errors that end a single request or connection.
        on_answer: called for each answer, with whether the request was carried out.
        limits: what clients may use.
        rate: how many requests are answered.
        pictures: keeps the pictures that events name; None for none.
        clips: keeps the clips that events name; None for none.
        history: reads events of objects and alerts back; None where none are kept on disk.
        snapshots: makes pictures of the newest frames; None for none.

    Attributes:
        urls: where the API is: the path of the Unix socket, and the URL of `endpoint` without a slash at its end.

    Raises:
        EndpointError: a socket cannot be bound, or the certificate cannot be used.
        PasswordError: the password cannot be read.
    """

    def __init__(
        self,
        path: Path | None,
        on_operation: Callable[[Operation], None],
        about: Callable[[], Json],
        health: Callable[[], HealthSnapshot],
        *,
        group: str | None = None,
        endpoint: str | None = None,
        access: MetricsConfig | None = None,
        on_error: Callable[[Worker], None] | None = None,
        unexpected: UnexpectedErrors | None = None,
        on_answer: Callable[[bool], None] | None = None,
        limits: Limits = LIMITS,
        rate: FairRate | None = None,
        pictures: FileStore | None = None,
        clips: Clips | None = None,
        history: History | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._probes = Probes()
        self._api = _Api(
            on_operation, about, health, pictures, clips, history, snapshots, probes=self._probes, unexpected=unexpected
        )
        rate = rate or FairRate(REQUESTS_PER_SECOND, MAX_WAITING_OF_ONE_CLIENT)

        def door(guard: Guard | PeerGuard) -> Door:
            async def refusal(request: Request) -> Response | None:
                refused = await guard.refusal(request, rate)
                return refused and _refuse_client(refused)

            return Door(self._api.app, refusal, on_answer=count)

        def count(status: int) -> None:
            if on_answer is not None:
                on_answer(status < HTTPStatus.BAD_REQUEST)

        self._path, self._inode = path, 0
        self.urls: list[str] = []
        servers: list[HttpServer] = []
        super().__init__("control", servers, on_error)
        try:
            if path is not None:
                listener = listen_at(path, group)
                self._inode = path.stat().st_ino
                servers.append(HttpServer(door(PeerGuard(group)), listener, limits, None, unexpected))
                self.urls.append(url_of(listener, None))
            if endpoint is not None:
                access = access or MetricsConfig()
                host, port = parse_host_port(endpoint)
                tls = tls_for(access)
                guard = guard_for(access, host, "http" if tls is None else "https")
                if access.password_file is None or tls is None:
                    _check_open(endpoint, host, "a login" if access.password_file is None else "TLS")
                listener = listen("[control] listen:", host, port, "port")
                servers.append(HttpServer(door(guard), listener, limits, tls, unexpected))
                self.urls.append(url_of(listener, tls))
                _log.info("the control API listens at %s", self.urls[-1])
        except BaseException:
            # Raised again, whatever it is: an object that was never made cannot be closed by its caller.
            self.close()
            raise

    def wake(self) -> None:
        """Ends the servers; operations that have no result yet are answered by 503."""
        self._api.end()
        super().wake()

    def close(self) -> None:
        """Ends the thread, closes the sockets and removes the file; may be called twice, or without entering."""
        super().close()
        self._probes.close()
        # The file may be that of the next daemon by now.
        with suppress(OSError):
            if self._path is not None and self._path.stat().st_ino == self._inode:
                self._path.unlink()


def _check_open(endpoint: str, host: str, missing: str) -> None:
    """Refuses an endpoint that other machines can reach and that is not closed to them."""
    if not is_loopback(host):
        message = f"[control] listen: {endpoint} would be open to other machines: {HOW_TO_CLOSE_CONTROL}"
        raise EndpointError(message)
    _log.warning(
        "[control] listen: %s serves without %s: every user of this machine can change the streams", endpoint, missing
    )


class _Api:
    """The routes, and what they pass on."""

    def __init__(
        self,
        on_operation: Callable[[Operation], None],
        about: Callable[[], Json],
        health: Callable[[], HealthSnapshot],
        pictures: FileStore | None = None,
        clips: Clips | None = None,
        history: History | None = None,
        snapshots: Snapshots | None = None,
        *,
        probes: Probes,
        unexpected: UnexpectedErrors | None = None,
    ) -> None:
        self._probes = probes
        self._unexpected = unexpected
        self._clips = clips
        self._snapshots = snapshots
        self._history = history
        self._on_operation = on_operation
        self._about = about
        self._health = health
        self._pictures = pictures
        self._openapi = resources.files(__package__).joinpath("openapi.json").read_bytes()
        self._waiting: set[Future[Any]] = set()
        self._is_ending = False
        self.app = Starlette(
            routes=[
                _resource("/v1/openapi.json", GET=self._get_openapi),
                _resource("/v1/about", GET=self._get_about),
                _resource("/v1/health", GET=self._get_health),
                _resource("/v1/pictures/{id}", GET=self._get_picture),
                _resource("/v1/clips/{id}", GET=self._get_clip),
                _resource("/v1/alerts", GET=self._events("alerts", "rule", ("raised", "cleared"))),
                _resource("/v1/objects", GET=self._events("objects", "label", ("begin", "update", "end"))),
                _resource("/v1/probe", POST=self._probe),
                _resource("/v1/config", GET=self._operation("config")),
                _resource("/v1/reload", POST=self._reload),
                _resource("/v1/streams", GET=self._operation("streams.list"), POST=self._add_stream),
                _resource(
                    "/v1/streams/{name}",
                    GET=self._operation("streams.get"),
                    PUT=self._set_stream,
                    PATCH=self._change_stream,
                    DELETE=self._operation("streams.remove", changes=True),
                ),
                _resource("/v1/claims", GET=self._operation("claims.list"), PATCH=self._renew_claims),
                _resource("/v1/claims/{id}", PUT=self._set_claim, DELETE=self._release_claim),
                _resource("/v1/streams/{name}/picture", GET=self._get_snapshot),
                _resource("/v1/streams/{name}/reset", POST=self._reset_stream),
                _resource("/v1/streams/{name}/settings", GET=self._operation("streams.settings")),
                _resource("/v1/rules", GET=self._operation("rules.get"), PUT=self._set_rules),
                _resource("/v1/rules/reset", POST=self._operation("rules.reset", changes=True)),
            ],
            exception_handlers={
                ConfigError: _refused,
                ControlError: _refused,
                ApplyError: _refused,
                BadRequestError: _refused,
                HTTPException: _refused,
                # The server counts and logs it.
                Exception: _refused,
            },
        )
        self.app.router.redirect_slashes = False

    def end(self) -> None:
        """Refuses everything that waits, and what comes from now on."""
        self._is_ending = True
        for result in list(self._waiting):
            with suppress(InvalidStateError):
                result.set_exception(ControlError(Refusal.UNAVAILABLE, "the daemon is stopping"))

    async def _get_openapi(self, request: Request) -> Response:
        _query(request)
        return Response(self._openapi, media_type="application/json")

    async def _get_about(self, request: Request) -> Response:
        _query(request)
        return _answer(self._about())

    async def _get_health(self, request: Request) -> Response:
        _query(request)
        snapshot = self._health()
        return snapshot.to_response(good=snapshot.healthy and snapshot.ready)

    async def _reload(self, request: Request) -> Response:
        _query(request)
        config = _only(await _body_of(request), config=str).get("config")
        return _answer(await self._carried_out(Operation("reload", **_client(request), config=config)))

    async def _add_stream(self, request: Request) -> Response:
        how, values = _how(request), await _body_of(request)
        name = values.pop("name", None)
        if not isinstance(name, str):
            _refuse('"name" is missing' if name is None else '"name" must be a text')
        result = await self._carried_out(Operation("streams.add", **how, stream=name, values=values))
        if how["try_only"]:
            return _answer(result)
        return _answer(result, HTTPStatus.CREATED, {"Location": f"/v1/streams/{name}"})

    async def _probe(self, request: Request) -> Response:
        """Tries a stream without adding it; each try is logged, since it makes the daemon connect to an address."""
        _query(request)
        client, values = _client(request), await _body_of(request)
        name = values.pop("name", "probe")
        if not isinstance(name, str):
            _refuse('"name" must be a text')
        read = await self._carried_out(Operation("streams.read", **client, stream=name, values=values))
        result: Future[Probe | Exception] = Future()

        def put(found: Probe | Exception) -> None:
            with suppress(InvalidStateError):
                result.set_result(found)

        def ask() -> None:
            try:
                begun = self._probes.begin(read["stream"], put)
            except RuntimeError as error:
                result.set_exception(ApplyError(f"there is no thread for it: {error}"))
                return
            if not begun:
                result.set_exception(ControlError(Refusal.UNAVAILABLE, "other streams are being tried; try again"))

        found = await self._result(result, ask)
        asked = f"{client['who']} tried {plain(redact(str(values.get('url'))), 300)}"
        if not isinstance(found, Probe):
            if self._unexpected is not None:
                self._unexpected.report("control", found, "a stream is not tried")
            raise ControlError(Refusal.FAILED, "unexpected error; see the daemon's log")
        _log.info("%s: %s", asked, "it can be read" if found.reason is None else f"{found.reason}: {found.detail}")
        return _answer(found.to_dict())

    async def _set_stream(self, request: Request) -> Response:
        how, name, values = _how(request), _name(request), await _body_of(request)
        _check_name(values, name)
        values.pop("name", None)
        result = await self._carried_out(Operation("streams.set", **how, stream=name, values=values))
        is_new = name in result["streams"]["added"] and not how["try_only"]
        return _answer(result, HTTPStatus.CREATED if is_new else HTTPStatus.OK)

    async def _change_stream(self, request: Request) -> Response:
        how, name, patch = _how(request, "renamed"), _name(request), await _body_of(request)
        renamed = _renamed(request)
        _check_name(patch, name)
        patch.pop("name", None)
        values = {key: value for key, value in patch.items() if value is not None}
        unset = tuple(key for key, value in patch.items() if value is None)
        operation = Operation("streams.change", **how, stream=name, values=values, unset=unset, renamed=renamed)
        return _answer(await self._carried_out(operation))

    async def _reset_stream(self, request: Request) -> Response:
        how, resets_rules = _how(request, "rules"), _is_true(request.query_params, "rules")
        _only(await _body_of(request))
        operation = Operation("streams.reset", **how, stream=_name(request), resets_rules=resets_rules)
        return _answer(await self._carried_out(operation))

    async def _set_rules(self, request: Request) -> Response:
        how, body = _how(request), await _body_of(request)
        _check_keys(body, ("rules",))
        rules = body.get("rules")
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            _refuse('"rules" must be a list of objects, one for each rule')
        return _answer(await self._carried_out(Operation("rules.set", **how, rules=tuple(rules))))

    async def _set_claim(self, request: Request) -> Response:
        _query(request)
        _only_local(request)
        grant = _grant(_claim_id(request.path_params["id"]), await _body_of(request, MAX_CLAIM_BYTES))
        return _answer(await self._carried_out(Operation("claims.set", **_client(request), grant=grant)))

    async def _renew_claims(self, request: Request) -> Response:
        _query(request)
        _only_local(request)
        renewals = _renewals(await _body_of(request, MAX_CLAIM_BYTES))
        return _answer(await self._carried_out(Operation("claims.renew", **_client(request), renewals=renewals)))

    async def _release_claim(self, request: Request) -> Response:
        generation = _whole(_query(request, "generation"), "generation", 1, MAX_GENERATION, 0)
        _only_local(request)
        _only(await _body_of(request))
        grant = Grant(_claim_id(request.path_params["id"]), generation)
        return _answer(await self._carried_out(Operation("claims.release", **_client(request), grant=grant)))

    def _operation(self, name: str, *, changes: bool = False) -> _Handler:
        """Handles a request that its method and path say all about, and how the change is made."""

        async def handle(request: Request) -> Response:
            stream = _name(request) if "name" in request.path_params else ""
            how = _how(request) if changes else _client(request)
            if changes:
                _only(await _body_of(request))
            else:
                _query(request)
            return _answer(await self._carried_out(Operation(name, **how, stream=stream)))

        return handle

    async def _carried_out(self, operation: Operation) -> Json:
        """The result of an operation; it is carried out whether or not its client waits for it."""
        return await self._result(operation.result, lambda: self._on_operation(operation))

    async def _get_picture(self, request: Request) -> Response:
        _query(request)
        picture_id = request.path_params["id"]
        result: Future[bytes | Missing] = Future()

        def put(content: bytes | Missing) -> None:
            with suppress(InvalidStateError):
                result.set_result(content)

        def ask() -> None:
            # All clients of the API together are one client of the store.
            if self._pictures is None:
                put("not_found")
            elif not self._pictures.fetch(b"control", picture_id, put, put):
                put("busy")

        try:
            content = await asyncio.wait_for(self._result(result, ask), _PICTURE_SECONDS)
        except TimeoutError:
            content = "busy"
        if content == "busy":
            raise ControlError(Refusal.UNAVAILABLE, "the picture cannot be read now")
        if not isinstance(content, bytes) or not is_jpeg(content):
            raise ControlError(Refusal.NOT_FOUND, f'no picture "{plain(picture_id, 130)}" is kept')
        return Response(content, headers={"Cache-Control": "no-store"}, media_type="image/jpeg")

    async def _get_snapshot(self, request: Request) -> Response:
        given, name = _query(request, "width", "boxes"), _name(request)
        width = _whole(given, "width", MIN_WIDTH, MAX_WIDTH, 0) or None
        boxes = given.get("boxes", "0")
        if boxes not in ("0", "1"):
            _refuse('the query parameter "boxes" must be 0 or 1')
        stream = await self._carried_out(Operation("streams.get", **_client(request), stream=name))
        if self._snapshots is None or stream.get("state") != State.UP:
            reason = f": {stream['reason']}" if stream.get("reason") else ""
            raise ControlError(Refusal.UNAVAILABLE, f"{name} has no frame: it is {stream.get('state')}{reason}")
        snapshots, look, result = self._snapshots, Look(width, boxes=boxes == "1"), Future[bytes | None]()

        def put(jpeg: bytes | None) -> None:
            with suppress(InvalidStateError):
                result.set_result(jpeg)

        def ask() -> None:
            if not snapshots.fetch(name, look, put):
                result.set_exception(ControlError(Refusal.UNAVAILABLE, "too many pictures are asked for; try again"))

        try:
            jpeg = await asyncio.wait_for(self._result(result, ask), _FRAME_SECONDS)
        except TimeoutError:
            why = f"{name} had no frame that may be shown within {_FRAME_SECONDS:g} s"
            raise ControlError(Refusal.UNAVAILABLE, why) from None
        finally:
            snapshots.give_up(name, look, put)
            put(None)
        if jpeg is None:
            raise ControlError(Refusal.UNAVAILABLE, f"no picture of {name} can be made now")
        return Response(jpeg, headers={"Cache-Control": "no-store"}, media_type="image/jpeg")

    async def _get_clip(self, request: Request) -> Response:
        _query(request)
        clip_id = request.path_params["id"]
        path = None if self._clips is None else self._clips.path_of(clip_id)
        if path is None:
            why = f'no clip "{plain(clip_id, 130)}" is kept; a clip is there some seconds after it ends'
            raise ControlError(Refusal.NOT_FOUND, why)
        return FileResponse(path, headers={"Cache-Control": "no-store"}, media_type="video/mp4")

    def _events(self, kind: Literal["alerts", "objects"], by: str, phases: tuple[str, ...]) -> _Handler:
        """Handles a query for events, which may also be restricted `by` their rule or label, and to one of `phases`."""

        async def handle(request: Request) -> Response:
            given = _query(request, "since", "until", "stream", by, "phase", "limit", "after")
            phase = given.get("phase")
            if phase is not None and phase not in phases:
                _refuse(f'the query parameter "phase" must be one of {", ".join(phases)}')
            query = Query(
                kind, _time(given, "since"), _time(given, "until"), _stream(given), phase,
                label=given.get("label"), rule=given.get("rule"),
                limit=_whole(given, "limit", 1, MAX_EVENTS, _EVENTS_OF_A_PAGE), after=_cursor(given),
            )  # fmt: skip
            page = await self._page(query)
            # The events are not decoded: these are the bytes that were published.
            cursor = "null" if page.next is None else f'"{page.next}"'
            body = b'{"events": [' + b",".join(b"\n" + event for event in page.events) + b"\n"
            return Response(body + f'], "next": {cursor}}}\n'.encode(), media_type="application/json")

        return handle

    async def _page(self, query: Query) -> Page:
        if self._history is None:
            raise ControlError(Refusal.CONFLICT, "this daemon keeps no events on disk: set directory in [spool]")
        history, result = self._history, Future[Page | None]()

        def put(page: Page | None) -> None:
            with suppress(InvalidStateError):
                result.set_result(page)

        def ask() -> None:
            if not history.fetch(query, put):
                put(None)

        page = None
        with suppress(TimeoutError):
            page = await asyncio.wait_for(self._result(result, ask), _EVENTS_SECONDS)
        if page is None:
            raise ControlError(Refusal.UNAVAILABLE, "the events on disk cannot be read now")
        return page

    async def _result(self, result: Future[_Result], begin: Callable[[], None]) -> _Result:
        """Waits for the result of what `begin` begins, or for the end of the daemon."""
        result.set_running_or_notify_cancel()
        self._waiting.add(result)
        result.add_done_callback(self._waiting.discard)
        # It was added before: an end that comes now sees it.
        if self._is_ending:
            self.end()
        else:
            begin()
        return await asyncio.wrap_future(result)


def _resource(path: str, **handlers: _Handler) -> Route:
    """A route with a handler for each of its methods."""

    async def handle(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, handle, methods=list(handlers))


def _answer(result: Json, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    if "tried" not in result and "version" in result and ("settings" in result or "rules" in result):
        headers = {**(headers or {}), "ETag": f'"{result["version"]}"'}
    return Response(json.dumps(result, indent=2).encode() + b"\n", status, headers, "application/json")


def _problem(
    status: int,
    code: str | None,
    problems: Sequence[str],
    headers: Mapping[str, str] | None = None,
    keys: Sequence[str] = (),
) -> Response:
    """The answer to what was not carried out, as RFC 9457 has it: why, a line per problem, without secrets."""
    lines = [redact(problem) for problem in problems]
    body = {
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "code": code or Refusal.BAD_REQUEST,
        "detail": "; ".join(lines),
        "problems": lines,
        **({"keys": list(keys)} if keys else {}),
    }
    return Response(json.dumps(body, indent=2).encode() + b"\n", status, headers, "application/problem+json")


def _refuse_client(refused: Refused) -> Response:
    return _problem(refused.status, _CODES.get(HTTPStatus(refused.status)), [refused.why], refused.headers)


async def _refused(_request: Request, error: Exception) -> Response:
    match error:
        case ConfigError():
            return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", error.problems)
        case ControlError():
            status = _STATUSES.get(Refusal(error.code), HTTPStatus.INTERNAL_SERVER_ERROR)
            return _problem(status, error.code, [str(error)], keys=error.keys)
        case ApplyError():
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, Refusal.FAILED, [str(error)])
        case BadRequestError():
            return _problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Refusal.BAD_REQUEST, [str(error)])
        case HTTPException():
            status = HTTPStatus(error.status_code)
            return _problem(status, _CODES.get(status), [_DETAILS.get(status, error.detail)], error.headers)
    why = "unexpected error; see the daemon's log"
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, Refusal.FAILED, [why])


_DETAILS = {
    HTTPStatus.NOT_FOUND: "there is no such path; /v1/openapi.json describes the existing ones",
    HTTPStatus.METHOD_NOT_ALLOWED: "this path does not take this method; the header Allow names those that it takes",
}


def _client(request: Request) -> Json:
    """The client of a request as an operation has it: what the log calls it, and whether it is the page.

    Over the Unix socket the kernel says which process it is, and that may say for which of its own users it asks.
    """
    peer, user = connection_of(request.scope).peer, request.headers.get(USER_HEADER)
    if user is not None and peer is None:
        raise ControlError(Refusal.NOT_ALLOWED, f"the header {USER_HEADER} is accepted over the Unix socket only")
    if user is not None and USER_PATTERN.fullmatch(user) is None:
        _refuse(f'the header {USER_HEADER} must look like "alice; operator; 192.0.2.7"')
    if peer is None:
        return {"who": f"a client at {request.client.host}" if request.client else "an unknown client"}
    process = f"user {peer.uid} (process {peer.pid})"
    if user is None:
        return {"who": process}
    name, role, address = user.split("; ")
    return {"who": f"{name} ({role}, from {address}) via the page of {process}", "via": "page"}


def _how(request: Request, *more: str) -> Json:
    """How a change is to be made, and by whom, as an operation has it; the query may have `more` parameters."""
    given = _query(request, "persist", "try_only", *more)
    tag = request.headers.get("if-match")
    if tag is not None and _ETAG.fullmatch(tag) is None:
        _refuse('the header If-Match must be "version" of an answer in double quotes')
    version = None if tag is None else tag.strip('"')
    return {
        **_client(request), "persist": _is_true(given, "persist"), "try_only": _is_true(given, "try_only"),
        "version": version,
    }  # fmt: skip


def _renamed(request: Request) -> Renamed:
    """Which zones and lines are renamed, such as `zone:bay:yard,line:gate:door`."""
    text = request.query_params.get("renamed")
    found = [_RENAMED.fullmatch(part) for part in text.split(",")] if text else []
    renamed = {(each[1], each[2]): each[3] for each in found if each is not None}
    if len(renamed) < len(found):
        _refuse('"renamed" must be a list such as zone:bay:yard,line:gate:door, with each name before once')
    return renamed


def _name(request: Request) -> str:
    """The name of a stream in the path of a request."""
    name: str = request.path_params["name"]
    if re.fullmatch(NAME_PATTERN, name) is None and request.method != "PUT":
        raise ControlError(Refusal.NOT_FOUND, f'there is no stream "{plain(name, 70)}"')
    return name


def _claim_id(claim_id: object) -> str:
    if not isinstance(claim_id, str) or re.fullmatch(NAME_PATTERN, claim_id) is None:
        _refuse('the id of a claim must be 1 to 64 of a-z, 0-9, ".", "_" and "-", and begin with a letter or a digit')
    return claim_id


def _only_local(request: Request) -> None:
    """Refuses what came over TCP: who grants streams to a node runs on it."""
    if connection_of(request.scope).peer is None:
        problem = "claims are changed over the daemon's Unix socket alone, by who runs on the same machine"
        raise ControlError(Refusal.NOT_ALLOWED, problem)


def _grant(claim_id: str, body: Json) -> Grant:
    """The grant in the body of a request; whether its streams are sound is for the daemon to say."""
    _check_keys(body, _GRANT_KEYS)
    streams = body.get("streams")
    if not isinstance(streams, list) or not 1 <= len(streams) <= MAX_CLAIM_STREAMS:
        _refuse(f'"streams" must be a list of 1 to {MAX_CLAIM_STREAMS} streams, with the keys of [[streams]]')
    generation, lease_seconds = _generation_and_lease(body)
    named: dict[str, Json] = {}
    for stream in streams:
        name = stream.get("name") if isinstance(stream, dict) else None
        if not isinstance(name, str) or re.fullmatch(NAME_PATTERN, name) is None:
            _refuse(f'each of "streams" must be an object with a "name": {plain(json.dumps(name), 70)} is none')
        if name in named:
            _refuse(f'"streams" has {name} twice')
        named[name] = {key: value for key, value in stream.items() if key != "name"}
    return Grant(claim_id, generation, named, lease_seconds)


def _renewals(body: Json) -> tuple[Grant, ...]:
    """The grants in the body of a request that renews them, without their streams."""
    _check_keys(body, ("claims",))
    claims = body.get("claims")
    if not isinstance(claims, list) or len(claims) > MAX_CLAIMS:
        _refuse(f'"claims" must be a list of {MAX_CLAIMS} claims at most, with {", ".join(_RENEWAL_KEYS)}')
    renewals = {}
    for claim in claims:
        if not isinstance(claim, dict):
            _refuse(f'each of "claims" must be an object with {", ".join(_RENEWAL_KEYS)}')
        _check_keys(claim, _RENEWAL_KEYS)
        claim_id = _claim_id(claim.get("id"))
        if claim_id in renewals:
            _refuse(f'"claims" has {claim_id} twice')
        generation, lease_seconds = _generation_and_lease(claim)
        renewals[claim_id] = Grant(claim_id, generation, lease_seconds=lease_seconds)
    return tuple(renewals.values())


def _generation_and_lease(body: Json) -> tuple[int, float]:
    generation, lease = body.get("generation"), body.get("lease_seconds")
    if not isinstance(generation, int) or isinstance(generation, bool) or not 1 <= generation <= MAX_GENERATION:
        _refuse('"generation" must be a whole number from 1 to 2^53 - 1')
    if (
        not isinstance(lease, int | float)
        or isinstance(lease, bool)
        or not MIN_LEASE_SECONDS <= lease <= MAX_LEASE_SECONDS
    ):
        _refuse(f'"lease_seconds" must be a number from {MIN_LEASE_SECONDS:g} to {MAX_LEASE_SECONDS:g}')
    return generation, float(lease)


def _check_keys(body: Json, known: Sequence[str]) -> None:
    for key in body:
        if key not in known:
            _refuse(f'the key "{plain(key[:40])}" is not known; known are {", ".join(known)}')


def _check_name(values: Json, name: str) -> None:
    if values.get("name", name) != name:
        _refuse("a stream keeps its name; remove it, and add another")


def _query(request: Request, *known: str) -> Mapping[str, str]:
    """What stands behind the path, if each is known and given once."""
    given = request.query_params.multi_items()
    for key, _ in given:
        if key not in known:
            takes = f"known are {', '.join(known)}" if known else "this path takes none"
            _refuse(f'the query parameter "{plain(key[:40])}" is not known; {takes}')
    if len(given) > len(dict(given)):
        _refuse("a query parameter is given twice")
    return dict(given)


def _time(given: Mapping[str, str], key: str) -> float | None:
    """A Unix time in seconds, or a date and time with its zone, as Unix time; None where it is not given."""
    text = given.get(key)
    if text is None:
        return None
    try:
        at = float(text)
    except ValueError:
        try:
            # In a query, "+" is a blank.
            moment = datetime.fromisoformat(re.sub(r" (?=\d\d:?\d\d$)", "+", text))
            at = math.nan if moment.tzinfo is None else moment.timestamp()
        except (ValueError, OverflowError):
            at = math.nan
    if not 0 <= at <= MAX_TIME:
        why = f'"{key}" must be a time, in seconds since 1970 or such as 2026-11-29T14:00:00Z, with its zone'
        _refuse(f"the query parameter {why}")
    return at


def _stream(given: Mapping[str, str]) -> str | None:
    stream = given.get("stream")
    if stream is not None and re.fullmatch(NAME_PATTERN, stream) is None:
        _refuse('the query parameter "stream" is no name of a stream')
    return stream


def _cursor(given: Mapping[str, str]) -> int | None:
    after = given.get("after")
    if after is None:
        return None
    if re.fullmatch(r"-?[0-9]{1,19}", after, re.ASCII) is None or abs(int(after)) >= 1 << 63:
        _refuse('the query parameter "after" must be "next" of an answer')
    return int(after)


def _whole(given: Mapping[str, str], key: str, least: int, most: int, default: int) -> int:
    text = given.get(key)
    if text is None:
        return default
    if re.fullmatch("[0-9]{1,16}", text, re.ASCII) is None or not least <= int(text) <= most:
        _refuse(f'the query parameter "{key}" must be a whole number from {least} to {most}')
    return int(text)


def _is_true(given: Mapping[str, str], key: str) -> bool:
    value = given.get(key, "false")
    if value not in ("true", "false"):
        _refuse(f'the query parameter "{key}" must be true or false')
    return value == "true"


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind in ("application/json", "application/merge-patch+json")


async def _body_of(request: Request, max_bytes: int = MAX_BODY_BYTES) -> Json:
    """The object in the body of a request; an empty one for an empty body.

    Raises:
        BadRequestError: it is too large.
        HTTPException: it is not marked as JSON.
        ControlError: it is not an object in JSON.
    """
    body = await read_body(request, max_bytes)
    # Over TCP also without a body: a page of another site may send a POST without asking first, but none of this type.
    over_tcp = connection_of(request.scope).peer is None
    if (body or (over_tcp and request.method == "POST")) and not _is_json(request):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the header Content-Type must be application/json")
    return decode_body(body) if body else {}


def decode_body(body: bytes) -> Json:
    """Reads the object in the body of a request.

    Raises:
        ControlError: it is not one; the message says what would be.
    """
    too_deep = f"the body is nested more than {_MAX_DEPTH} deep"
    try:
        value = json.loads(body.decode(), parse_constant=_no_constant, parse_float=_float, parse_int=_integer)
        # Half a surrogate pair can be read from JSON, and be written nowhere else.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        _refuse("the body is not UTF-8")
    except UnicodeEncodeError:
        _refuse("the body holds half of a surrogate pair, which is no character")
    except json.JSONDecodeError as error:
        _refuse(f"the body is not JSON: {error}")
    except RecursionError:
        _refuse(too_deep)
    if not isinstance(value, dict):
        _refuse("the body is not a JSON object")
    if is_nested_deeper(value, _MAX_DEPTH):
        _refuse(too_deep)
    return value


def _no_constant(name: str) -> NoReturn:
    _refuse(f"the body is not JSON: it holds {name}, which is not a number of JSON")


def _float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _too_large(text)


def _integer(text: str) -> int:
    # More digits than any number of 64 bits has take long to read.
    if len(text) > _MOST_DIGITS or not -(1 << 63) <= int(text) < 1 << 63:
        _too_large(text)
    return int(text)


def _too_large(text: str) -> NoReturn:
    _refuse(f"the body holds a number that is too large: {text[:20]}{'...' * (len(text) > 20)}")


def _only(body: Json, **kinds: type) -> Json:
    """The body, if each of its keys is known and a text."""
    for key, value in body.items():
        if key not in kinds:
            known = f"known are {', '.join(kinds)}" if kinds else "this request takes none"
            _refuse(f'the key "{plain(key[:40])}" is not known; {known}')
        if not isinstance(value, kinds[key]):
            _refuse(f'"{key}" must be a text')
    return body


def _refuse(problem: str) -> NoReturn:
    raise ControlError(Refusal.BAD_REQUEST, problem) from None
