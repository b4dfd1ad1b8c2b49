"""Answers subscribers that come late or have lost events: the newest event of each topic, and those before it.

`Replay` keeps the last events in memory and answers from there at once. Older ones are asked of an archive, such as the
spool, which answers later; so do the history, and the stores of pictures and clips. All of it belongs to one thread,
the publisher's, except that those hand in their answers from their own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

from streamdet import wire
from streamdet.delivery.clips import Clips
from streamdet.delivery.event_store import LeftBehind
from streamdet.delivery.file_store import FileStore, Missing, Part
from streamdet.delivery.history import History, Page, Query
from streamdet.delivery.sockets import Route
from streamdet.delivery.timeline import Timeline, TimelineQuery
from streamdet.errors import WireError
from streamdet.monitoring.metrics import DeliveryMetrics
from streamdet.security.limits import Rate
from streamdet.wire.limits import is_jpeg
from streamdet.wire.replay import (
    MAX_ANSWER_BYTES,
    MAX_ANSWER_EVENTS,
    MAX_ANSWER_TOPICS,
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
    Snapshot,
    SnapshotRequest,
    TimelinePage,
    TimelineRequest,
    decode_request,
    request_id,
)
from streamdet.worker import Wakeup

_REQUESTS_PER_SECOND_OF_A_CLIENT = 100
# A client that connects again for every request gets a new allowance each time, and takes the place of the oldest.
_MAX_CLIENTS = 1000
_MAX_ARCHIVED = 128

_NO_SPOOL = "no events are kept on disk; set directory in [spool]"

Reply = Callable[[Answer], None]


class Archive(Protocol):
    """Keeps events for longer than memory does."""

    @property
    def settled(self) -> int:
        """How many of the events that were put in have been written, or could not be."""

    def follow(self, on_settled: Callable[[], None]) -> None:
        """Calls this, in another thread, whenever events of objects or alerts have settled."""

    def keep(self, topic: str, seq: int, payload: bytes) -> int:
        """Keeps an event of the present epoch; does not wait.

        Returns:
            What `settled` is at least when the event is on disk, or will not be.
        """

    def forget(self, topic: str) -> None:
        """Forgets how far a topic came, but not its events."""

    def fetch(self, client: bytes, request: ReplayRequest, reply: Reply) -> bool:
        """Has a request answered later, in another thread; False when too many wait already."""

    def fetch_left_behind(self, take: Callable[[LeftBehind], None]) -> None:
        """Has what earlier epochs left behind handed over later, once, in another thread."""


class Ring:
    """The last events of all topics, in memory; the oldest make room.

    Args:
        max_events: the most events.
        max_bytes: the most bytes of encoded events.
    """

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._payloads: dict[tuple[str, int], bytes] = {}
        self._order: deque[tuple[str, int]] = deque()
        self._first: dict[str, int] = {}
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._order)

    def add(self, topic: str, seq: int, payload: bytes) -> None:
        """Keeps an event; those of a topic come in order, without gaps."""
        key = (topic, seq)
        self._payloads[key] = payload
        self._order.append(key)
        self._first.setdefault(topic, seq)
        self.used_bytes += len(payload)
        while len(self._order) > self._max_events or self.used_bytes > self._max_bytes:
            old = self._order.popleft()
            self.used_bytes -= len(self._payloads.pop(old))
            self._first[old[0]] = old[1] + 1

    def forget(self, topic: str) -> None:
        """Drops all of a topic."""
        self._first.pop(topic, None)
        gone = [key for key in self._order if key[0] == topic]
        if gone:
            self._order = deque(key for key in self._order if key[0] != topic)
        for key in gone:
            self.used_bytes -= len(self._payloads.pop(key))

    def first_seq(self, topic: str) -> int | None:
        """Number of the topic's oldest kept event, or of the next one if none is kept; None for an unknown topic."""
        return self._first.get(topic)

    def take(self, topic: str, from_seq: int, to_seq: int) -> list[tuple[int, bytes]]:
        """Events of this range, as many as fit an answer: at least one, where the range is kept."""
        taken: list[tuple[int, bytes]] = []
        left = MAX_ANSWER_BYTES
        for seq in range(from_seq, min(to_seq, from_seq + MAX_ANSWER_EVENTS - 1) + 1):
            payload = self._payloads.get((topic, seq))
            if payload is None or (taken and len(payload) > left):
                break
            left -= len(payload)
            taken.append((seq, payload))
        return taken


class Replay:
    """Keeps published events and answers requests for them.

    Args:
        epoch: the present epoch.
        ring: keeps events in memory.
        metrics: counts requests.
        archive: keeps events for longer; None for nothing.
        wakeup: rung when the archive, the history or a store has answered.
        pictures: keeps the pictures that events name; None for none.
        clips: keeps the clips that alerts name; None for none.
        history: reads events of objects and alerts back; None where none are kept on disk.
    """

    def __init__(
        self,
        epoch: str,
        ring: Ring,
        metrics: DeliveryMetrics,
        archive: Archive | None = None,
        wakeup: Wakeup | None = None,
        pictures: FileStore | None = None,
        clips: Clips | None = None,
        history: History | None = None,
    ) -> None:
        self._epoch = epoch
        self._ring = ring
        self._metrics = metrics
        metrics.follow_replay(lambda: ring.used_bytes)
        self._archive = archive
        self._pictures = pictures
        self._clips = clips
        self._history = history
        self._wakeup = wakeup
        self._archived: deque[tuple[Route, Answer]] = deque()
        self._next_seqs: dict[str, int] = {}
        self._newest: dict[str, bytes] = {}
        self._topics: list[str] = []
        self._rates: dict[bytes, Rate] = {}

    def add(self, topic: str, seq: int, payload: bytes) -> int:
        """Keeps an event that is being published.

        Returns:
            How far the archive must have settled for this event to be on disk; 0 without one.
        """
        if topic not in self._next_seqs:
            self._topics = sorted([*self._topics, topic])
        self._next_seqs[topic] = seq + 1
        self._newest[topic] = payload
        self._ring.add(topic, seq, payload)
        return 0 if self._archive is None else self._archive.keep(topic, seq, payload)

    def remove_stream(self, stream: str) -> None:
        """A snapshot no longer shows the stream's newest events; replay still has what is kept."""
        for kind in wire.KINDS:
            self._newest.pop(wire.topic(kind, stream), None)

    def forget_numbers(self, stream: str) -> None:
        """Nothing of the stream is left in memory; should it come back, it begins to count at 1 again."""
        for topic in (wire.topic(kind, stream) for kind in wire.KINDS):
            if self._next_seqs.pop(topic, None) is None:
                continue
            self._newest.pop(topic, None)
            self._topics.remove(topic)
            self._ring.forget(topic)
            if self._archive is not None:
                self._archive.forget(topic)

    def answer(self, route: Route, payload: bytes) -> Answer | None:
        """Answers one request; whatever was sent, it raises nothing.

        Args:
            route: where the answer goes; its first part is the client's.
            payload: the request.

        Returns:
            The answer, or None where the archive, the history or a store is asked, whose answer comes out of
            `archived`.
        """
        client = route[0]
        if not self._rate_of(client).passes():
            each = _REQUESTS_PER_SECOND_OF_A_CLIENT
            return Refused(request_id(payload), "too_many", f"at most {each} requests a second are answered")
        try:
            request = decode_request(payload)
        except WireError as error:
            return Refused(request_id(payload), "bad_request", str(error)[:500])
        if isinstance(request, SnapshotRequest):
            return self._snapshot(request)
        return self._ask(route, request)

    def _ask(
        self,
        route: Route,
        request: ReplayRequest | PictureRequest | ClipRequest | HistoryRequest | TimelineRequest,
    ) -> Answer | None:
        match request:
            case ReplayRequest():
                return self._replay(route, request)
            case PictureRequest():
                return self._picture(route, request)
            case ClipRequest():
                return self._clip(route, request)
            case HistoryRequest():
                return self._past(route, request)
            case TimelineRequest():
                return self._timeline(route, request)

    def archived(self) -> Iterator[tuple[Route, Answer]]:
        """The answers that have come from the archive, the history and the stores, each with its route."""
        while self._archived:
            yield self._archived.popleft()

    def _rate_of(self, client: bytes) -> Rate:
        rate = self._rates.pop(client, None) or Rate(_REQUESTS_PER_SECOND_OF_A_CLIENT)
        if len(self._rates) >= _MAX_CLIENTS:
            del self._rates[next(iter(self._rates))]
        self._rates[client] = rate
        return rate

    def _snapshot(self, request: SnapshotRequest) -> Snapshot:
        next_seqs: dict[str, int] = {}
        events: list[bytes] = []
        left = MAX_ANSWER_BYTES
        for topic in self._matching(request):
            event = self._newest.get(topic) if request.with_events else None
            size = len(event) if event is not None else 0
            is_full = len(events) >= MAX_ANSWER_EVENTS or len(next_seqs) >= MAX_ANSWER_TOPICS
            if is_full or (events and size > left):
                return Snapshot(request.id, self._epoch, next_seqs, next(reversed(next_seqs)), events)
            next_seqs[topic] = self._next_seqs[topic]
            left -= size
            if event is not None:
                events.append(event)
        return Snapshot(request.id, self._epoch, next_seqs, None, events)

    def _matching(self, request: SnapshotRequest) -> Iterator[str]:
        """Topics after `after` that begin with one of the prefixes, in order; looks at no others."""
        done: str | None = None
        for prefix in sorted(request.prefixes or ("",)):
            if done is not None and prefix.startswith(done):
                continue
            done = prefix
            start = max(bisect_left(self._topics, prefix), bisect_right(self._topics, request.after))
            for place in range(start, len(self._topics)):
                topic = self._topics[place]
                if not topic.startswith(prefix):
                    break
                yield topic

    def _replay(self, route: Route, request: ReplayRequest) -> Answer | None:
        first = self._ring.first_seq(request.topic)
        last: int | None = None
        if request.epoch in (None, self._epoch):
            end = self._next_seqs.get(request.topic, 1)
            last = end - 1 if request.to_seq is None else min(request.to_seq, end - 1)
            if first is None or request.from_seq >= first or self._archive is None:
                return self._from_memory(request, first or 1, last)
            # Only events that memory no longer has: the client asks for the rest again, which comes from memory.
            request = ReplayRequest(request.id, request.topic, request.from_seq, min(last, first - 1), self._epoch)
        elif self._archive is None:
            return self._of_unknown_epoch(request)
        if self._archive.fetch(route[0], request, partial(self._put_archived, route, last)):
            return None
        return Refused(request.id, "busy", "too many older events are requested; send the request again in a second")

    def _from_memory(self, request: ReplayRequest, first: int, last: int) -> Replayed:
        begin = max(request.from_seq, first)
        taken = self._ring.take(request.topic, begin, last)
        next_seq = taken[-1][0] + 1 if taken else max(request.from_seq, last + 1)
        return Replayed(
            request.id,
            request.topic,
            self._epoch,
            request.from_seq,
            next_seq,
            more=next_seq <= last,
            events=[payload for _, payload in taken],
            seqs=tuple(seq for seq, _ in taken),
        )

    def _of_unknown_epoch(self, request: ReplayRequest) -> Replayed:
        return Replayed(
            request.id,
            request.topic,
            request.epoch or self._epoch,
            request.from_seq,
            request.from_seq,
            next_epoch=self._epoch,
            end_is_known=False,
        )

    def _picture(self, route: Route, request: PictureRequest) -> Answer | None:
        if self._pictures is None:
            return Refused(request.id, "not_found", "no pictures are kept; set directory in [pictures]")

        def reply(content: bytes | Missing) -> None:
            answer: Answer
            if content == "busy":
                answer = Refused(request.id, "busy", "the picture cannot be read now")
            elif isinstance(content, bytes) and is_jpeg(content):
                answer = FetchedPicture(request.id, request.picture_id, content)
            else:
                answer = Refused(request.id, "not_found", "there is no such picture, or it has been deleted")
            self._put_archived(route, None, answer)

        if self._pictures.fetch(route[0], request.picture_id, reply, request.id):
            return None
        return Refused(request.id, "busy", "too many pictures are requested; send the request again in a second")

    def _clip(self, route: Route, request: ClipRequest) -> Answer | None:
        if self._clips is None:
            return Refused(request.id, "not_found", "no clips are kept; set directory in [clips]")

        def reply(part: Part | Missing) -> None:
            answer: Answer
            if isinstance(part, Part):
                answer = ClipPart(request.id, request.clip_id, request.first_byte, part.size_bytes, part.content)
            elif part == "busy":
                answer = Refused(request.id, "busy", "the clip cannot be read now")
            else:
                answer = Refused(request.id, "not_found", "there is no such clip, or not yet, or it has been deleted")
            self._put_archived(route, None, answer)

        span = request.first_byte, request.max_bytes
        if self._clips.fetch_part(route[0], request.clip_id, span, reply, request.id):
            return None
        return Refused(request.id, "busy", "too many clips are requested; send the request again in a second")

    def _past(self, route: Route, request: HistoryRequest) -> Answer | None:
        if self._history is None:
            return Refused(request.id, "off", _NO_SPOOL)

        def reply(page: Page | None) -> None:
            answer: Answer = _unreadable(request)
            if page is not None:
                cursor = None if page.next is None else str(page.next)
                answer = HistoryPage(request.id, cursor, page.events)
            self._put_archived(route, None, answer)

        query = Query(
            request.kind, request.since, request.until, request.stream, request.phase, request.label, request.rule,
            request.zone, request.limit, MAX_ANSWER_BYTES, None if request.after is None else int(request.after),
        )  # fmt: skip
        is_taken = self._history.fetch(query, reply, route[0], request)
        return None if is_taken else _too_many(request)

    def _timeline(self, route: Route, request: TimelineRequest) -> Answer | None:
        if self._history is None:
            return Refused(request.id, "off", _NO_SPOOL)

        def reply(sums: Timeline | None) -> None:
            answer: Answer = _unreadable(request)
            if sums is not None:
                answer = TimelinePage(request.id, sums.kept_since, tuple(sums.gaps), sums.more_after, sums.streams)
            self._put_archived(route, None, answer)

        query = TimelineQuery(request.since, request.until, request.steps, request.after)
        is_taken = self._history.fetch_timeline(query, reply, route[0], request)
        return None if is_taken else _too_many(request)

    def _put_archived(self, route: Route, last: int | None, answer: Answer) -> None:
        """Takes an answer in the thread of the archive or store; where too many wait, it will be asked for again."""
        if len(self._archived) >= _MAX_ARCHIVED:
            self._metrics.replay_request("dropped")
            return
        if isinstance(answer, Replayed) and last is not None:
            answer = replace(answer, more=answer.next_seq <= last)
        self._archived.append((route, answer))
        if self._wakeup is not None:
            self._wakeup.wake()


def _unreadable(request: HistoryRequest | TimelineRequest) -> Refused:
    return Refused(request.id, "busy", "the events on disk cannot be read now")


def _too_many(request: HistoryRequest | TimelineRequest) -> Refused:
    return Refused(request.id, "busy", "too many queries wait; send the request again in a second")
