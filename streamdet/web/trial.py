"""Tries a rule on the past: what it would have raised on events that the daemon still has, by the daemon's own code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

import orjson
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from streamdet import wire
from streamdet.analytics.past import Past, PastAlert, relaxed
from streamdet.client.past import AsyncPast
from streamdet.config import RuleConfig, StreamConfig
from streamdet.config.explain import explain
from streamdet.config.rules import misfits
from streamdet.config.toml import is_nested_deeper
from streamdet.errors import EndpointError, WireError
from streamdet.http.server import BadRequestError, read_body
from streamdet.types import DetectionEvent
from streamdet.web.board import Board
from streamdet.web.cluster_past import ClusterPast

MAX_SECONDS = 24 * 3600.0
MAX_FRAMES = 20_000
"""Of all streams together; the newest of each."""
MAX_STREAMS = 16
MAX_ALERTS = 200
"""In an answer; more are counted."""
_CHUNK = 256
_MAX_BODY_BYTES = 256 << 10
_MAX_DEPTH = 10
_MAX_WAITING = 4
_FRAMES_AT_ONCE = 500

Json = dict[str, Any]
Problems = list[tuple[Sequence[str | int], str]]


class _WrongError(Exception):
    """The rule, or a stream of it, is wrong.

    Attributes:
        problems: the path of each value that is wrong, and a sentence.
    """

    def __init__(self, problems: Problems) -> None:
        super().__init__(problems)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be tried.

    Attributes:
        rule: the rule.
        streams: those that it applies to, with the zones and lines that it may need.
        seconds: how far back.
    """

    rule: RuleConfig
    streams: tuple[StreamConfig, ...]
    seconds: float

    @classmethod
    def read(cls, given: Json, outlines: Mapping[str, Json]) -> Wanted:
        """Reads it from what a browser sends: `rule`, `streams` and `seconds`.

        Args:
            given: that.
            outlines: of the zones and lines of each stream, for keys that are not given.

        Raises:
            BadRequestError: it is not that.
            _WrongError: the rule or a stream is wrong, as `streamdet check` would find.
        """
        rule_keys, stream_keys, seconds = given.get("rule"), given.get("streams"), given.get("seconds")
        if not isinstance(rule_keys, dict) or not isinstance(stream_keys, list):
            _refuse("rule is an object, and streams is a list of objects")
        if not all(isinstance(keys, dict) for keys in stream_keys):
            _refuse("streams is a list of objects")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_SECONDS:
            _refuse(f"seconds is a number above 0 and at most {MAX_SECONDS:g}")
        try:
            rule = RuleConfig.model_validate(rule_keys)
        except ValidationError as error:
            raise _WrongError([(path[2:], problem) for path, problem in explain(error, ("rules", 0))]) from None
        streams = _streams_of(rule, stream_keys, outlines)
        return cls(rule, tuple(streams), float(seconds))


class Trial:
    """Answers requests to try a rule; belongs to the event loop.

    Args:
        past: asks the daemon for events.
        board: knows the published outlines of zones and lines, for streams of which a browser sends none.
    """

    def __init__(self, past: AsyncPast | ClusterPast, board: Board) -> None:
        self._past = past
        self._board = board
        self._turn = asyncio.Lock()
        self._waiting = 0

    def routes(self) -> list[Route]:
        """What rules may be about, and what one would have done."""
        return [Route("/api/shapes", self.get_shapes), Route("/api/rules/try", self.answer, methods=["POST"])]

    async def get_shapes(self, request: Request) -> Response:
        """The published zones, lines and masks of each stream that has some, or of those that `stream` names."""
        return JSONResponse(self._board.geometry(request.query_params.getlist("stream") or None))

    async def answer(self, request: Request) -> Response:
        """The alerts that a rule would have raised; 422 where it is wrong, 503 where the daemon does not answer."""
        if request.headers.get("content-type") != "application/json":
            return _problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, [((), "application/json is expected")])
        if self._waiting >= _MAX_WAITING:
            return _problem(HTTPStatus.TOO_MANY_REQUESTS, [((), "others try rules now; try again in a moment")])
        self._waiting += 1
        try:
            given = orjson.loads(await read_body(request, _MAX_BODY_BYTES))
            if not isinstance(given, dict) or is_nested_deeper(given, _MAX_DEPTH):
                _refuse("the body is not an object, or is nested too deep")
            wanted = Wanted.read(given, self._board.geometry())
            async with self._turn:
                return JSONResponse(await self._tried(wanted))
        except (BadRequestError, orjson.JSONDecodeError) as error:
            return _problem(HTTPStatus.BAD_REQUEST, [((), str(error))])
        except _WrongError as error:
            return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, error.problems)
        except (EndpointError, TimeoutError, WireError) as error:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, [((), f"the daemon cannot be asked for the past: {error}")])
        finally:
            self._waiting -= 1

    async def _tried(self, wanted: Wanted) -> Json:
        easier = relaxed(wanted.rule)
        past = Past([wanted.rule, *easier.values()], wanted.streams)
        since = time.time() - wanted.seconds
        oldest: float | None = None
        for stream in wanted.streams:
            events = await self._events(stream.name, since, MAX_FRAMES // len(wanted.streams))
            for begin in range(0, len(events), _FRAMES_AT_ONCE):
                # In a thread, so that the page goes on.
                await asyncio.to_thread(_see_all, past, events[begin : begin + _FRAMES_AT_ONCE])
            if events:
                oldest = min(oldest or events[0].frame.captured_at, events[0].frame.captured_at)
        alerts = sorted(
            (found for found in past.alerts() if found.alert.rule == wanted.rule.name),
            key=lambda found: found.alert.raised_at,
        )
        counts = {words: sum(one.alert.rule == other.name for one in past.alerts()) for words, other in easier.items()}
        return {
            "count": len(alerts),
            "alerts": [_shown(found) for found in alerts[-MAX_ALERTS:]],
            "suppressed": past.suppressed[wanted.rule.name],
            "easier": {} if alerts else {words: count for words, count in counts.items() if count},
            "frames": past.events,
            "since": oldest,
        }

    async def _events(self, stream: str, since: float, limit: int) -> list[DetectionEvent]:
        """The newest events of a stream in the present run of the daemon, the oldest first."""
        topic = wire.topic("detections", stream)
        before = await self._past.next_seq(topic)
        chunks: list[list[DetectionEvent]] = []
        count = 0
        while before is not None and before > 1 and count < limit:
            first = max(1, before - min(_CHUNK, limit - count))
            found = [event for payload in await self._past.replay(topic, first, before - 1) for event in _read(payload)]
            wanted = [event for event in found if event.published_at >= since]
            chunks.append(wanted)
            count += len(wanted)
            if not found or len(wanted) < len(found):
                break
            before = first
        return [event for chunk in reversed(chunks) for event in chunk]


def _streams_of(rule: RuleConfig, given: Sequence[Json], outlines: Mapping[str, Json]) -> list[StreamConfig]:
    """The streams that a rule applies to.

    Raises:
        _WrongError: there are none, or too many, or one is wrong, or does not fit the rule.
    """
    problems: Problems = []
    streams: list[StreamConfig] = []
    for number, keys in enumerate(given):
        try:
            # A file may have been read faster than it plays, so presentation times are trusted.
            drawn = _as_configured(outlines.get(str(keys.get("name")), {}))
            stream = StreamConfig.model_validate({**drawn, **keys, "url": "unknown", "pace": "fastest"})
        except ValidationError as error:
            problems += explain(error, ("streams", number))
            continue
        if rule.applies_to(stream.name):
            streams.append(stream)
    if not streams and not problems:
        problems.append((("streams",), "match no stream that the daemon has"))
    if len(streams) > MAX_STREAMS:
        problems.append((("streams",), f"match {len(streams)} streams; at most {MAX_STREAMS} can be tried at once"))
    problems += [((misfit.rule_key,), misfit.problem) for stream in streams for misfit in misfits(rule, stream)]
    if problems:
        raise _WrongError(problems)
    return streams


def _as_configured(outlines: Json) -> Json:
    """Published outlines as keys of a stream."""
    return {
        "zones": [{"name": zone["name"], "polygon": zone["points"]} for zone in outlines.get("zones", ())],
        "lines": [{"name": line["name"], "points": line["points"]} for line in outlines.get("lines", ())],
    }


def _see_all(past: Past, events: Sequence[DetectionEvent]) -> None:
    for event in events:
        past.see(event)


def _read(payload: bytes) -> Iterator[DetectionEvent]:
    event = wire.decode(payload)
    if isinstance(event, DetectionEvent):
        yield event


def _shown(found: PastAlert) -> Json:
    alert = found.alert
    return {
        "stream": found.stream,
        "epoch": found.epoch,
        "raised_at": alert.raised_at,
        "cleared_at": found.cleared_at,
        "seconds": alert.seconds,
        "label": alert.label,
        "count": alert.count,
        "direction": alert.direction,
        "track_ids": found.track_ids,
    }


def _problem(status: int, problems: Problems) -> Response:
    located = [
        {"key": ".".join(map(str, path)) or None, "path": list(path), "text": problem} for path, problem in problems
    ]
    code = "invalid" if status == HTTPStatus.UNPROCESSABLE_ENTITY else "failed"
    return JSONResponse({"code": code, "problems": located}, status)


def _refuse(why: str) -> NoReturn:
    raise BadRequestError(why)
