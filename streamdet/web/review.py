"""What the page answers about the past: lists of objects and alerts, sums of them, pictures, clips, and marks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, NoReturn

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from streamdet.client.past import AsyncPast, Timeline
from streamdet.errors import EndpointError, NotKeptError, WireError
from streamdet.http.server import BadRequestError, connection_of, read_body
from streamdet.monitoring.log import LogThrottle
from streamdet.types import Box
from streamdet.web.board import Board
from streamdet.web.cluster_past import ClusterPast
from streamdet.web.marks import Marks
from streamdet.web.occurrences import Entry, Wanted
from streamdet.web.thumbnails import Thumbnails, small
from streamdet.web.to_review import ToReview
from streamdet.wire.replay import MAX_CURSOR, MAX_TIME, HistoryRequest

SPANS: Mapping[str, tuple[int, int, float]] = {
    "minutes": (5, 120, 3.0),
    "hour": (30, 120, 5.0),
    "quarter": (150, 144, 15.0),
    "day": (600, 144, 30.0),
    "week": (3600, 168, 60.0),
}
"""Of timelines: seconds of a step, steps, and for how many seconds an answer is used again."""

_ITEMS_OF_A_PAGE = 60
# Where nearly all are marked as reviewed, one answer looks through so many pages of the daemon.
_MAX_PAGES = 8
_MAX_MARKED = 200
_MAX_BODY_BYTES = 64 << 10
_MAX_NAME_CHARACTERS = 128
# Requests to the daemon at a time; the others wait, and too many are refused.
_AT_ONCE = 8
_MAX_WAITING = 256
_CLIPS_AT_ONCE = 8
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})", re.ASCII)
_BOX = re.compile(r"([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5})", re.ASCII)
_KEYS = ("kind", "stream", "label", "zone", "rule", "since", "until", "reviewed", "after")

_log = logging.getLogger(__name__)
_throttle = LogThrottle()


class Review:
    """Answers requests about the past; belongs to the event loop.

    Args:
        past: asks the daemon, or the nodes of a cluster.
        board: what is known of now.
        marks: what was reviewed.

    Attributes:
        to_review: counts the alerts that no one has marked yet.
    """

    def __init__(self, past: AsyncPast | ClusterPast, board: Board, marks: Marks) -> None:
        self._past = past
        self._board = board
        self._marks = marks
        self._thumbnails = Thumbnails()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._clips = 0
        self._timelines: dict[str, tuple[float, bytes]] = {}
        self._timeline_turn = asyncio.Lock()
        self.to_review = ToReview(self._of_the_past, board.occurrences, marks)

    def routes(self) -> list[Route]:
        """Everything under /api that is about the past."""
        return [
            Route("/api/review", self.get_page),
            Route("/api/timeline", self.get_timeline),
            Route("/api/pictures/{id}", self.get_picture),
            Route("/api/clips/{id}", self.get_clip),
            Route("/api/reviewed", self.set_reviewed, methods=["POST"]),
        ]

    async def get_page(self, request: Request) -> Response:
        """Objects and alerts, the newest first, from before `after`; without a spool, those of late."""
        try:
            given = _query(request, _KEYS)
            wanted, after = read_wanted(given), _cursor(given)
        except BadRequestError as error:
            return PlainTextResponse(f"{error}\n", HTTPStatus.BAD_REQUEST)
        problem: dict[str, str] | None = None
        entries: list[Entry] = []
        number, marks_number = self._board.occurrences.last_number, self._marks.last_number
        cursor = None
        try:
            entries, cursor = await self._of_the_past(wanted, after)
        except NotKeptError as error:
            problem = {"kind": "off", "text": str(error)}
        except (EndpointError, TimeoutError, WireError) as error:
            problem = {"kind": "away", "text": str(error)}
        if problem is not None and after is None:
            recent = self._board.occurrences.newest_first()
            entries = [entry for entry in recent if self._fits(wanted, entry)][:_ITEMS_OF_A_PAGE]
        head = {
            "number": number, "marks": marks_number, "next": cursor, "problem": problem,
            "missing": self._missing(),
            "marks_problem": self._marks.problem,
            "geometry": self._board.geometry({entry.stream for entry in entries}),
        }  # fmt: skip
        return Response(
            orjson.dumps(head)[:-1] + b',"items":[' + self._items(entries) + b"]}", media_type="application/json"
        )

    def news(self, wanted: Wanted, after: int, marks_after: int, limit: int) -> bytes:
        """What has happened, changed or been marked since two numbers, as JSON.

        Args:
            wanted: which of it; marks are those of all.
            after: of what happened; 0 for nothing but the number now.
            marks_after: of marks; the same.
            limit: how many at most happened, the newest.
        """
        # The numbers first: what comes while the rest is read is said twice rather than never.
        number, marks_number = self._board.occurrences.last_number, self._marks.last_number
        marked = self._marks.changed(marks_after) if marks_after else {}
        entries = self._board.occurrences.newest_first(after) if after else ()
        found = [entry for entry in entries if self._fits(wanted, entry)]
        items = self._items(found[:limit])
        head = {
            "number": number, "marks": marks_number, "more": len(found) > limit, "marked": marked,
        }  # fmt: skip
        return orjson.dumps(head)[:-1] + b',"items":[' + items + b"]}"

    async def get_timeline(self, request: Request) -> Response:
        """The sums of one of `SPANS`."""
        span = request.query_params.get("span", "hour")
        if span not in SPANS:
            return PlainTextResponse(f"span is one of {', '.join(SPANS)}\n", HTTPStatus.BAD_REQUEST)
        async with self._timeline_turn:
            until, answer = self._timelines.get(span, (0.0, b""))
            if time.monotonic() >= until:
                answer = await self._timeline(span)
                self._timelines[span] = time.monotonic() + SPANS[span][2], answer
        return Response(answer, media_type="application/json")

    async def get_picture(self, request: Request) -> Response:
        """A picture in full; or a small one with `size=small`, of what is around `box` where that is given."""
        picture_id, given = request.path_params["id"], request.query_params
        is_small = given.get("size") == "small"
        box = _box(given.get("box", ""))
        if _ID.fullmatch(picture_id) is None:
            return _missing("there is no such picture")
        asked = f"{picture_id} {box}"
        jpeg = self._thumbnails.get(asked) if is_small else None
        if jpeg is None:
            try:
                past = await self._daemon_of(request)
                async with self._turn():
                    jpeg = await past.picture(picture_id)
                    if jpeg is not None and is_small:
                        jpeg = await asyncio.to_thread(small, jpeg, box)
            except (EndpointError, TimeoutError) as error:
                return _unavailable(str(error))
            if jpeg is None:
                return _missing("the picture is not kept, or not any longer")
            if is_small:
                self._thumbnails.keep(asked, jpeg)
        return Response(jpeg, media_type="image/jpeg")

    async def get_clip(self, request: Request) -> Response:
        """A clip, or the part of it that `Range` asks for."""
        clip_id = request.path_params["id"]
        if _ID.fullmatch(clip_id) is None:
            return _missing("there is no such clip")
        try:
            past = await self._daemon_of(request)
            async with self._turn():
                first = await past.clip_part(clip_id, 0, 1)
        except (EndpointError, TimeoutError) as error:
            return _unavailable(str(error))
        if first is None:
            return _missing("the clip is not kept, not any longer, or not yet")
        return self._clip(request, past, clip_id, first.size_bytes)

    def _clip(self, request: Request, past: AsyncPast, clip_id: str, size: int) -> Response:
        tag = f'"{clip_id}"'
        headers = {"Accept-Ranges": "bytes", "ETag": tag}
        span = None
        if request.headers.get("if-range", tag) == tag:
            span = _range(request.headers.get("range", ""), size)
        if span is not None and span[0] >= span[1]:
            unsatisfiable = {**headers, "Content-Range": f"bytes */{size}"}
            return Response(status_code=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=unsatisfiable)
        begin, end = span or (0, size)
        status = HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT
        if span is not None:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - begin)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type="video/mp4")
        if self._clips >= _CLIPS_AT_ONCE:
            return _unavailable("too many clips are being played; try again")
        return StreamingResponse(self._parts(request, past, clip_id, begin, end), status, headers, "video/mp4")

    async def set_reviewed(self, request: Request) -> Response:
        """Marks objects and alerts as reviewed, or not."""
        if request.headers.get("content-type") != "application/json":
            return PlainTextResponse("application/json is expected\n", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        try:
            ids, reviewed = _marked(await read_body(request, _MAX_BODY_BYTES))
        except BadRequestError as error:
            return PlainTextResponse(f"{error}\n", HTTPStatus.BAD_REQUEST)
        await asyncio.to_thread(self._marks.mark, ids, reviewed=reviewed)
        answer = {"problem": self._marks.problem, "marks": self._marks.last_number}
        return Response(orjson.dumps(answer), media_type="application/json")

    async def _daemon_of(self, request: Request) -> AsyncPast:
        """Who keeps a picture or clip: in a cluster the node that the request names.

        Raises:
            EndpointError: the node is away.
        """
        if isinstance(self._past, AsyncPast):
            return self._past
        return await self._past.of(request.query_params.get("node", ""))

    def _missing(self) -> str:
        """Which nodes of a cluster have not said what they keep, and why; empty where none is missing."""
        return "" if isinstance(self._past, AsyncPast) else self._past.missing

    def _items(self, entries: list[Entry]) -> bytes:
        """Entries as the members of a list in JSON."""
        return b",".join(entry.item(is_reviewed=entry.occurrence.id in self._marks) for entry in entries)

    def _fits(self, wanted: Wanted, entry: Entry) -> bool:
        return wanted.fits(entry.stream, entry.occurrence, is_reviewed=entry.occurrence.id in self._marks)

    async def _of_the_past(self, wanted: Wanted, after: str | None) -> tuple[list[Entry], str | None]:
        """About a page of what the daemon keeps, and where the next one begins.

        Raises:
            EndpointError, TimeoutError, WireError: it does not answer, or refuses.
        """
        asked = HistoryRequest(
            0, "occurrences", wanted.since, wanted.until, wanted.stream or None, _PHASES[wanted.kind],
            wanted.label or None, wanted.rule or None, wanted.zone or None, _ITEMS_OF_A_PAGE, after,
        )  # fmt: skip
        entries: list[Entry] = []
        for _ in range(_MAX_PAGES):
            async with self._turn():
                page = await self._past.page(asked)
            for payload in page.events:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    entry = Entry.read(payload)
                    is_reviewed = entry.occurrence.id in self._marks
                    if wanted.reviewed in ("", "yes" if is_reviewed else "no"):
                        entries.append(entry)
            asked = replace(asked, after=page.next)
            if page.next is None or len(entries) >= _ITEMS_OF_A_PAGE // 2:
                break
        return entries, asked.after

    async def _timeline(self, span: str) -> bytes:
        step, steps, _ = SPANS[span]
        # Steps begin at whole multiples, so that what is over stays the same from answer to answer.
        until = (int(time.time()) // step + 1) * step
        head: dict[str, Any] = {"since": until - step * steps, "until": until, "steps": steps, "problem": None}
        sums = Timeline(None, (), ())
        try:
            async with self._turn():
                sums = await self._past.timeline(head["since"], until, steps)
        except NotKeptError as error:
            head["problem"] = {"kind": "off", "text": str(error)}
        except (EndpointError, TimeoutError, WireError) as error:
            head["problem"] = {"kind": "away", "text": str(error)}
        streams = [
            {
                "stream": of.stream,
                "presence": {label: list(counts.items()) for label, counts in of.presence.items()},
                "alerts": list(of.alerts.items()),
                "down": list(of.down_seconds.items()),
                "resting": list(of.resting_seconds.items()),
            }
            for of in sums.streams
        ]
        head["missing"] = self._missing()
        return orjson.dumps({**head, "kept_since": sums.kept_since, "gaps": sums.gaps, "streams": streams})

    async def _parts(
        self, request: Request, past: AsyncPast, clip_id: str, begin: int, end: int
    ) -> AsyncIterator[bytes]:  # fmt: skip
        """The bytes of a clip; where they end too early, the connection is cut, so that the browser sees it."""
        self._clips += 1
        try:
            while begin < end:
                async with self._turn():
                    part = await past.clip_part(clip_id, begin, end - begin)
                if part is None or not part.content:
                    break
                yield part.content
                begin += len(part.content)
        except (EndpointError, TimeoutError) as error:
            _throttle.log(_log, logging.WARNING, "a clip ends too early: %s", error)
        finally:
            self._clips -= 1
        if begin < end:
            connection_of(request.scope).close()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits until the daemon may be asked.

        Raises:
            EndpointError: too many wait already.
        """
        if self._waiting >= _MAX_WAITING:
            message = "too many requests wait for the daemon; try again"
            raise EndpointError(message)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


_PHASES = {"": None, "objects": "end", "alerts": "raised"}


def read_wanted(given: Mapping[str, Any]) -> Wanted:
    """Reads what a browser wants to see.

    Raises:
        BadRequestError: it makes no sense.
    """
    kind, reviewed = _text(given, "kind"), _text(given, "reviewed")
    if kind not in _PHASES:
        _refuse("kind is objects, alerts or nothing")
    if reviewed not in ("", "yes", "no"):
        _refuse("reviewed is yes, no or nothing")
    stream = _text(given, "stream")
    if "/" in stream or not (stream.isprintable() and _text(given, "label").isprintable()):
        _refuse("not the name of a stream or label")
    return Wanted(
        kind, stream, _text(given, "label"), _text(given, "zone"), _text(given, "rule"), _time(given, "since"),
        _time(given, "until"), reviewed,
    )  # fmt: skip


def _query(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    given = dict(request.query_params.multi_items())
    unknown = next((key for key in given if key not in known), None)
    return given if unknown is None else _refuse(f"the query parameter {unknown[:40]!r} is not known")


def _text(given: Mapping[str, Any], key: str) -> str:
    value = given.get(key) or ""
    if not isinstance(value, str) or len(value) > _MAX_NAME_CHARACTERS or not value.isprintable():
        _refuse(f"{key} is not a text of at most {_MAX_NAME_CHARACTERS} characters")
    return value


def _time(given: Mapping[str, Any], key: str) -> float | None:
    value = given.get(key)
    if value in (None, ""):
        return None
    try:
        at = float(value)
    except (TypeError, ValueError):
        at = -1.0
    return at if 0 <= at <= MAX_TIME else _refuse(f"{key} is not a time in seconds since 1970")


def _cursor(given: Mapping[str, str]) -> str | None:
    after = given.get("after")
    if after is None:
        return None
    if re.fullmatch(r"-?[0-9]{1,19}", after, re.ASCII) is None or abs(int(after)) > MAX_CURSOR:
        _refuse("after is not next of an answer")
    return after


def _marked(body: bytes) -> tuple[list[str], bool]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        _refuse("the body is not JSON")
    ids = value.get("ids") if isinstance(value, dict) else None
    if not isinstance(ids, list) or not 1 <= len(ids) <= _MAX_MARKED:
        _refuse(f"ids is not a list of 1 to {_MAX_MARKED}")
    if any(not isinstance(of, str) or not 1 <= len(of) <= _MAX_NAME_CHARACTERS for of in ids):
        _refuse("ids has something that is no id")
    reviewed = value.get("reviewed")
    return (ids, reviewed) if isinstance(reviewed, bool) else _refuse("reviewed is not true or false")


def _box(text: str) -> Box | None:
    """Four whole numbers of pixels, x1,y1,x2,y2; None where they are not a box."""
    match = _BOX.fullmatch(text)
    if match is None:
        return None
    x1, y1, x2, y2 = map(float, match.groups())
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _range(header: str, size: int) -> tuple[int, int] | None:
    """The first byte and the end of the part that is asked for; empty beyond the end, None for the whole."""
    match = _RANGE.fullmatch(header.strip().lower())
    if match is None or match[0] == "bytes=-":
        return None  # also several parts at once: a server may send all instead
    first, last = match[1], match[2]
    if not first:
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _missing(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", HTTPStatus.NOT_FOUND)


def _unavailable(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"})


def _refuse(message: str) -> NoReturn:
    raise BadRequestError(message)
