"""The answers to browsers' polls: everything that is new since a browser's last request.

A browser sends what it has and what it shows. The answer is delayed until there is something new, at most a second.
So the server keeps no queue for any browser: a slow one sends fewer requests and gets the newest data.

The answer is four bytes with the length of a JSON object (big-endian), the object, and the pictures that it lists.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from streamdet.http.server import BadRequestError
from streamdet.web.board import Board
from streamdet.web.daemon_metrics import Stages, StagesOfNodes
from streamdet.web.journal import Filter
from streamdet.web.occurrences import Wanted
from streamdet.web.pictures import Pictures, Shot
from streamdet.web.review import Review, read_wanted

MAX_REQUEST_BYTES = 64 << 10
MAX_PICTURES = 128
MAX_EVENTS = 150
_MAX_NEWS = 60
_MAX_NAME_CHARACTERS = 128
_MAX_WAIT_SECONDS = 1.0
_MAX_INTEGER = 2**53


@dataclass(frozen=True, slots=True)
class Request:
    """The position of a browser, and what it requests.

    Attributes:
        instance: of the board that its numbers belong to.
        revision: of the newest overview that it has; 0 for none.
        sample: of the newest second that it has; 0 for none.
        event: of the newest entry of the list that it has; 0 for none.
        pictures: streams that it looks at, and the newest picture of each that it has.
        filter: of the list.
        detail: the stream whose own page is open; None for the wall.
        drops: whether it shows what is dropped of each stream.
        review: which objects and alerts it lists, and the numbers of the newest change and of the newest mark that it
            has; None for no list.
    """

    instance: str
    revision: int
    sample: int
    event: int
    pictures: dict[str, int]
    filter: Filter
    detail: str | None
    drops: bool
    review: tuple[Wanted, int, int] | None

    @classmethod
    def read(cls, body: bytes, instance: str) -> Request:
        """Reads a request; numbers of another instance count as nothing.

        Raises:
            BadRequestError: it is not one.
        """
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            _refuse("the body is not JSON")
        fields = value if isinstance(value, dict) else _refuse("the body is not an object")
        pictures = fields.get("pictures")
        if not isinstance(pictures, dict) or len(pictures) > MAX_PICTURES:
            _refuse(f"pictures is not an object of at most {MAX_PICTURES}")
        known = fields.get("instance") == instance
        detail = fields.get("detail")
        return cls(
            instance=instance,
            revision=_integer(fields, "revision") if known else 0,
            sample=_integer(fields, "sample") if known else 0,
            event=_integer(fields, "event") if known else 0,
            pictures={_name(stream): _integer(pictures, stream) if known else 0 for stream in pictures},
            filter=_filter(fields.get("filter")),
            detail=None if detail is None else _name(detail),
            drops=fields.get("drops") is True,
            review=_review(fields.get("review"), known=known),
        )


class Updates:
    """Answers requests; belongs to the event loop, except `ring`.

    Args:
        board: what is known.
        pictures: the newest pictures.
        stages: of the metrics page.
        review: knows what has happened of late.
    """

    def __init__(self, board: Board, pictures: Pictures, stages: Stages | StagesOfNodes, review: Review) -> None:
        self._board = board
        self._pictures = pictures
        self._stages = stages
        self._review = review
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._rung = False
        self._reading: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Reports that there is something new; from any thread."""
        if not self._rung:
            self._rung = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                return  # the loop has ended, and with it everybody who waits

    async def answer(self, request: Request) -> bytes:
        """The answer, as soon as there is something new."""
        began = time.monotonic()
        deadline = began + _MAX_WAIT_SECONDS
        while True:
            news = self._news
            now = time.monotonic()
            self._pictures.want(request.pictures, now)
            shots = self._pictures.newer(request.pictures)
            if shots or self._board.revision != request.revision or now >= deadline:
                return self._compose(request, shots, began)
            try:
                await asyncio.wait_for(news.wait(), deadline - now)
            except TimeoutError:
                continue

    def _wake(self) -> None:
        self._rung = False
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _read_metrics(self, detail: str | None, now: float) -> None:
        """Reads the metrics page if it is time, for later answers: none waits for it."""
        if self._reading is None or self._reading.done():
            streams = self._pictures.wanted(now) | ({detail} if detail is not None else set())
            self._reading = self._loop.create_task(self._stages.read(streams))

    def _compose(self, request: Request, shots: list[tuple[str, Shot]], began: float) -> bytes:
        revision, now = self._board.revision, time.monotonic()
        # `clock` is what ages count from: it never jumps.
        head: dict[str, Any] = {
            "instance": self._board.instance,
            "now": time.time(),
            "clock": now,
            "waited_seconds": now - began,
            "revision": revision,
        }
        overview = news = b"null"
        if revision != request.revision:
            overview = self._board.overview(request.sample)
            head["to_review"] = self._review.to_review.count(now)
            if request.review is not None:
                news = self._review.news(*request.review, _MAX_NEWS)
            head["event"], head["events"] = self._board.events(request.event, request.filter, MAX_EVENTS)
            if request.detail is not None:
                stages = self._stages.summary(request.detail)
                head["detail"] = {"known": self._board.detail(request.detail), "metrics": stages}
            if request.drops:
                head["dropped"] = self._stages.dropped()
            if request.drops or request.detail is not None:
                self._read_metrics(request.detail, now)
        pictures = b",".join(
            b'{"stream":%b,"id":%d,"bytes":%d,"age_seconds":%.3f,%b}'
            % (orjson.dumps(stream), shot.id, len(shot.jpeg), max(now - shot.taken_at, 0.0), shot.head)
            for stream, shot in shots
        )
        text = orjson.dumps(head)[:-1]
        text += b',"overview":%b,"review":%b,"pictures":[%b]}' % (overview, news, pictures)
        return b"".join([len(text).to_bytes(4, "big"), text, *(shot.jpeg for _, shot in shots)])


def _review(value: object, *, known: bool) -> tuple[Wanted, int, int] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        _refuse("review is not an object")
    wanted = read_wanted(value)
    return (wanted, _integer(value, "after"), _integer(value, "marks")) if known else (wanted, 0, 0)


def _filter(value: object) -> Filter:
    if not isinstance(value, dict):
        _refuse("filter is not an object")
    score = value.get("min_score", 0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        _refuse("filter.min_score is not a number from 0 to 1")
    return Filter(
        stream=_text(value.get("stream", "")).lower(),
        only=_text(value.get("only", "")),
        label=_text(value.get("label", "")),
        min_score=float(score),
        alerts=value.get("alerts") is not False,
        objects=value.get("objects") is not False,
        notes=value.get("notes") is not False,
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_NAME_CHARACTERS:
        _refuse(f"a text is missing or has more than {_MAX_NAME_CHARACTERS} characters")
    return value


def _name(value: object) -> str:
    name = _text(value)
    # Subscribing to a prefix would bring pictures of other streams.
    return name if name and "/" not in name and name.isprintable() else _refuse("not the name of a stream")


def _integer(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_INTEGER:
        _refuse(f"{key[:100]} is not a number from 0 on")
    return value


def _refuse(message: str) -> NoReturn:
    raise BadRequestError(message)
