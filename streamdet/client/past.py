"""Asks a daemon for what it keeps: events of objects and alerts, sums of them, pictures and clips.

    from streamdet import Past

    with Past("tcp://127.0.0.1:5555") as past:
        for event in past.events(label="person", since=time.time() - 3600):
            print(event.stream, event.published_at, past.picture(event))

`Past` is for threads, and `AsyncPast` for asyncio, where many requests may wait at once. Both use the replay socket, so
every client that may subscribe may ask.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import orjson
import zmq
import zmq.asyncio

from streamdet import wire
from streamdet.client.picture import Pictured, picture_info
from streamdet.errors import EndpointError, NotKeptError, WireError
from streamdet.security.curve import client_keys
from streamdet.security.endpoints import beside, parse_endpoint
from streamdet.types import AlertEvent, ObjectEvent
from streamdet.wire.replay import (
    MAX_ANSWER_EVENTS,
    MAX_CLIP_PART_BYTES,
    Answer,
    ClipPart,
    ClipRequest,
    FetchedPicture,
    HistoryPage,
    HistoryRequest,
    PictureRequest,
    Refused,
    Replayed,
    ReplayRequest,
    Request,
    Snapshot,
    SnapshotRequest,
    TimelinePage,
    TimelineRequest,
    decode_answer,
    encode_request,
)

__all__ = ["AsyncPast", "ClipPart", "HistoryPage", "Past", "StreamSums", "Timeline"]

# An answer may be lost, and one that takes long comes in the end: a request that waits keeps its place.
_ASK_AGAIN_SECONDS = 2.0
_BUSY_SECONDS = 0.25
_MAX_WAITING_REQUESTS = 64
_HEARTBEAT_MILLISECONDS = 5000
_HEARTBEAT_TIMEOUT_MILLISECONDS = 20_000
_RECONNECT_MILLISECONDS = 100
_MAX_RECONNECT_MILLISECONDS = 2000
_CONNECT_TIMEOUT_MILLISECONDS = 5000

_Answer = TypeVar("_Answer", bound=Answer)


@dataclass(frozen=True, slots=True)
class StreamSums:
    """What happened on one stream, by number of the step, from 0; steps in which nothing did are left out.

    Attributes:
        stream: name of the stream.
        presence: by label, how many objects were present. Objects count when they have ended.
        alerts: how many were raised.
        down_seconds: for how long the stream was not up, though it should have been.
        resting_seconds: for how long it was paused, or its file had come to an end.
    """

    stream: str
    presence: Mapping[str, Mapping[int, int]]
    alerts: Mapping[int, int]
    down_seconds: Mapping[int, float]
    resting_seconds: Mapping[int, float]

    @classmethod
    def read(cls, payload: bytes) -> StreamSums:
        """Reads a part of an answer.

        Raises:
            WireError: it makes no sense.
        """
        try:
            value = orjson.loads(payload)
            presence = {str(label): _steps(steps) for label, steps in value["presence"].items()}
            alerts = _steps(value["alerts"])
            return cls(str(value["stream"]), presence, alerts, _steps(value["down"]), _steps(value["resting"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            message = "answer has sums that make no sense"
            raise WireError(message) from None


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened on all streams over a span of time.

    Attributes:
        kept_since: Unix time in seconds of the oldest event that is kept; None without one.
        gaps: when the daemon did not run: Unix times from and to.
        streams: by name.
    """

    kept_since: float | None
    gaps: tuple[tuple[float, float], ...]
    streams: tuple[StreamSums, ...]


class _Socket:
    """The socket of a client.

    Args:
        endpoint: `tcp://HOST:PORT` or `ipc://PATH`, as in the daemon's `[publisher]` table.
        replay_endpoint: as in its `[replay]` table; by default the port after that of `endpoint`, or its path with
            `-replay` appended, as in the daemon.
        server_key: the file with the daemon's public key, where the daemon asks for keys.
        client_key_file: the file with both keys of this client.
        timeout_seconds: how long each request may take, with all repetitions.

    Raises:
        EndpointError: an endpoint is malformed. A daemon that does not answer is not an error yet.
        KeyFileError: a key file cannot be used.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        replay_endpoint: str | None = None,
        server_key: Path | str | None = None,
        client_key_file: Path | str | None = None,
        timeout_seconds: float = 10.0,
    ) -> None:
        self._where = replay_endpoint or beside(endpoint)
        self._timeout_seconds = timeout_seconds
        self._ids = itertools.count(1)
        self._is_ipv6 = parse_endpoint(self._where).is_ipv6
        self._keys = client_keys(server_key, client_key_file)
        self._context: zmq.Context[Any] | None = None  # made for the first request, as is the socket

    def _connect(self, context: zmq.Context[Any]) -> Any:  # noqa: ANN401 - of threads, or of asyncio
        self._context = context
        socket = context.socket(zmq.DEALER)
        socket.ipv6, socket.linger, socket.sndhwm = self._is_ipv6, 0, _MAX_WAITING_REQUESTS
        socket.maxmsgsize = wire.MAX_MESSAGE_BYTES
        socket.reconnect_ivl, socket.reconnect_ivl_max = _RECONNECT_MILLISECONDS, _MAX_RECONNECT_MILLISECONDS
        socket.connect_timeout = _CONNECT_TIMEOUT_MILLISECONDS
        socket.heartbeat_ivl, socket.heartbeat_timeout = _HEARTBEAT_MILLISECONDS, _HEARTBEAT_TIMEOUT_MILLISECONDS
        if self._keys is not None:
            self._keys.apply_to(socket)
        socket.connect(self._where)
        return socket

    def _disconnect(self) -> None:
        if self._context is not None:
            self._context.destroy(linger=0)

    def _late(self) -> TimeoutError:
        return TimeoutError(f"the daemon has not answered at {self._where} within {self._timeout_seconds:g} seconds")


class Past(_Socket):
    """Asks and waits; a context manager, for one thread at a time. The arguments are those of `_Socket`."""

    _socket: zmq.Socket[bytes] | None = None

    def page(self, request: HistoryRequest | None = None, **wanted: Any) -> HistoryPage:  # noqa: ANN401 - fields of it
        """A page of events of objects and alerts, the newest first, as they were published.

        Args:
            request: which ones; by default the newest occurrences.
            wanted: fields of `HistoryRequest`, instead.

        Raises:
            NotKeptError: the daemon keeps no events on disk.
            EndpointError: the daemon refuses.
            TimeoutError: the daemon has not answered.
        """
        return self._ask(request or HistoryRequest(0, **wanted), HistoryPage)

    def events(self, **wanted: Any) -> Iterator[ObjectEvent | AlertEvent]:  # noqa: ANN401 - fields of `HistoryRequest`
        """The events of all pages; raises the same, and `WireError` for an event that makes no sense."""
        request = HistoryRequest(0, **{"limit": MAX_ANSWER_EVENTS, **wanted})
        while True:
            page = self.page(request)
            yield from _events_of(page)
            if page.next is None:
                return
            request = replace(request, after=page.next)

    def timeline(self, since: float, until: float, steps: int) -> Timeline:
        """The sums of all streams over a span of time; raises what `page` does.

        Args:
            since: Unix time in seconds.
            until: likewise.
            steps: into how many equal parts it is divided, 1 to 500.
        """
        pages = [self._ask(TimelineRequest(0, since, until, steps), TimelinePage)]
        while (after := pages[-1].more_after) is not None:
            pages.append(self._ask(TimelineRequest(0, since, until, steps, after), TimelinePage))
        return _timeline_of(pages)

    def picture(self, pictured: Pictured) -> bytes | None:
        """The picture that an event names, in JPEG; None where it names none, or it is not kept (any longer)."""
        info = picture_info(pictured)
        if info is None or info.jpeg is not None:
            return None if info is None else info.jpeg
        answer = self._ask_for_file(PictureRequest(0, info.picture_id), FetchedPicture)
        return None if answer is None else answer.jpeg

    def clip_part(self, clip_id: str, first_byte: int = 0, max_bytes: int = MAX_CLIP_PART_BYTES) -> ClipPart | None:
        """A part of a clip in MP4, of at most 256 KiB; None where the clip is not kept (any longer, or not yet)."""
        return self._ask_for_file(ClipRequest(0, clip_id, first_byte, max_bytes), ClipPart)

    def clip(self, clipped: AlertEvent | str) -> bytes | None:
        """The whole clip that an alert names, in MP4; None as in `clip_part`, or where it names none."""
        clip_id = clipped.clip_id if isinstance(clipped, AlertEvent) else clipped
        content = bytearray()
        while clip_id is not None:
            part = self.clip_part(clip_id, len(content))
            if part is None:
                return None
            content += part.content
            if not part.content or len(content) >= part.size_bytes:
                return bytes(content)
        return None

    def close(self) -> None:
        """Closes the connection; may be called again."""
        self._disconnect()

    def _ask_for_file(self, request: Request, of: type[_Answer]) -> _Answer | None:
        try:
            return self._ask(request, of)
        except _NotFoundError:
            return None

    def _ask(self, request: Request, of: type[_Answer]) -> _Answer:
        if self._socket is None:
            self._socket = self._connect(zmq.Context())
        request = replace(request, id=next(self._ids))
        until = time.monotonic() + self._timeout_seconds
        ask_at = 0.0
        while (now := time.monotonic()) < until:
            if now >= ask_at:
                with suppress(zmq.Again):  # the daemon is away; it is sent again later
                    self._socket.send(encode_request(request), zmq.NOBLOCK)
                ask_at = now + _ASK_AGAIN_SECONDS
            if not self._socket.poll(max(0, math.ceil((min(ask_at, until) - now) * 1000))):
                continue
            answer: Answer | None = None
            with suppress(WireError):  # one that cannot be read counts as lost
                answer = decode_answer(self._socket.recv_multipart())
            if answer is None or answer.id != request.id:
                continue
            result = _checked(answer, of)
            if result is not None:
                return result
            ask_at = now + _BUSY_SECONDS
        raise self._late()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncPast(_Socket):
    """`Past` for asyncio; belongs to one event loop. Any number of tasks may ask at once."""

    def __init__(self, endpoint: str, **options: Any) -> None:  # noqa: ANN401 - those of `_Socket`
        super().__init__(endpoint, **options)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._socket: zmq.asyncio.Socket | None = None

    async def page(self, request: HistoryRequest | None = None, **wanted: Any) -> HistoryPage:  # noqa: ANN401
        """As `Past.page`."""
        return await self._ask(request or HistoryRequest(0, **wanted), HistoryPage)

    async def events(self, **wanted: Any) -> AsyncIterator[ObjectEvent | AlertEvent]:  # noqa: ANN401
        """As `Past.events`."""
        request = HistoryRequest(0, **{"limit": MAX_ANSWER_EVENTS, **wanted})
        while True:
            page = await self.page(request)
            for event in _events_of(page):
                yield event
            if page.next is None:
                return
            request = replace(request, after=page.next)

    async def timeline(self, since: float, until: float, steps: int) -> Timeline:
        """As `Past.timeline`."""
        pages = [await self._ask(TimelineRequest(0, since, until, steps), TimelinePage)]
        while (after := pages[-1].more_after) is not None:
            pages.append(await self._ask(TimelineRequest(0, since, until, steps, after), TimelinePage))
        return _timeline_of(pages)

    async def next_seq(self, topic: str) -> int | None:
        """The number of the next event of a topic, such as `detections/yard/`; None for one without events."""
        answer = await self._ask(SnapshotRequest(0, (topic,), with_events=False), Snapshot)
        return answer.next_seqs.get(topic)

    async def has_streams(self) -> bool:
        """Whether the daemon has a stream now. Raises what `page` does, where it has no replay."""
        answer = await self._ask(SnapshotRequest(0, ("state/",)), Snapshot)
        return bool(answer.events) or answer.more_after is not None

    async def replay(self, topic: str, from_seq: int, to_seq: int) -> list[bytes]:
        """Events of the present epoch, encoded; without those that are not kept any longer."""
        events: list[bytes] = []
        while True:
            answer = await self._ask(ReplayRequest(0, topic, from_seq, to_seq), Replayed)
            events += answer.events
            if not answer.more or answer.next_seq <= from_seq or answer.next_seq > to_seq:
                return events
            from_seq = answer.next_seq

    async def picture(self, pictured: Pictured) -> bytes | None:
        """As `Past.picture`."""
        info = picture_info(pictured)
        if info is None or info.jpeg is not None:
            return None if info is None else info.jpeg
        answer = await self._ask_for_file(PictureRequest(0, info.picture_id), FetchedPicture)
        return None if answer is None else answer.jpeg

    async def clip_part(
        self, clip_id: str, first_byte: int = 0, max_bytes: int = MAX_CLIP_PART_BYTES
    ) -> ClipPart | None:
        """As `Past.clip_part`."""
        return await self._ask_for_file(ClipRequest(0, clip_id, first_byte, max_bytes), ClipPart)

    async def clip(self, clipped: AlertEvent | str) -> bytes | None:
        """As `Past.clip`."""
        clip_id = clipped.clip_id if isinstance(clipped, AlertEvent) else clipped
        content = bytearray()
        while clip_id is not None:
            part = await self.clip_part(clip_id, len(content))
            if part is None:
                return None
            content += part.content
            if not part.content or len(content) >= part.size_bytes:
                return bytes(content)
        return None

    async def close(self) -> None:
        """Closes the connection, and ends what waits for an answer; may be called again."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
        for waiting in self._waiting.values():
            waiting.cancel()
        self._disconnect()

    async def _ask_for_file(self, request: Request, of: type[_Answer]) -> _Answer | None:
        try:
            return await self._ask(request, of)
        except _NotFoundError:
            return None

    async def _ask(self, request: Request, of: type[_Answer]) -> _Answer:
        if self._socket is None:
            self._socket = self._connect(zmq.asyncio.Context())
            self._reader = asyncio.create_task(self._read(self._socket))
        request = replace(request, id=next(self._ids))
        until = time.monotonic() + self._timeout_seconds
        try:
            while (now := time.monotonic()) < until:
                waiting = self._waiting[request.id] = asyncio.get_running_loop().create_future()
                with suppress(zmq.Again):  # the daemon is away; it is sent again later
                    await self._socket.send(encode_request(request), zmq.NOBLOCK)
                try:
                    answer = await asyncio.wait_for(waiting, min(_ASK_AGAIN_SECONDS, until - now))
                except TimeoutError:
                    continue
                result = _checked(answer, of)
                if result is not None:
                    return result
                await asyncio.sleep(_BUSY_SECONDS)
        finally:
            self._waiting.pop(request.id, None)
        raise self._late()

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        """Hands each answer to the task that waits for it; one that cannot be read counts as lost."""
        while True:
            with suppress(WireError):
                answer = decode_answer(await socket.recv_multipart())
                waiting = self._waiting.get(answer.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _NotFoundError(EndpointError):
    """The picture or clip is not kept."""


def _checked(answer: Answer, of: type[_Answer]) -> _Answer | None:
    """The answer, if it is of the right kind; None where the request is to be sent again soon.

    Raises:
        NotKeptError: the daemon keeps no events on disk.
        EndpointError: it refuses, or sent another answer.
    """
    if isinstance(answer, of):
        return answer
    if not isinstance(answer, Refused):
        message = "the daemon sent another answer than what was asked for"
        raise EndpointError(message)
    if answer.code in ("busy", "too_many"):
        return None
    if answer.code == "not_found":
        raise _NotFoundError(answer.message)
    if answer.code == "off":
        raise NotKeptError(answer.message)
    message = f"the daemon refuses the request: {answer.message}"
    raise EndpointError(message)


def _events_of(page: HistoryPage) -> Iterator[ObjectEvent | AlertEvent]:
    for payload in page.events:
        event = wire.decode(payload)
        if isinstance(event, ObjectEvent | AlertEvent):
            yield event


def _timeline_of(pages: list[TimelinePage]) -> Timeline:
    streams = tuple(StreamSums.read(payload) for page in pages for payload in page.streams)
    return Timeline(pages[0].kept_since, pages[0].gaps, streams)


def _steps(pairs: list[tuple[int, Any]]) -> dict[int, Any]:
    return {int(step): float(value) if isinstance(value, float) else int(value) for step, value in pairs}
