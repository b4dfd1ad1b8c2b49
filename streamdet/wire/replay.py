"""Requests to the replay socket, and its answers; both bounded.

`docs/replay.md` is the reference. A request is one JSON object. An answer is one JSON object, its header, followed by
events as they were published, each in a part of its own, by the sums of a stream each, by one picture, or by a part of
a clip.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import orjson

from streamdet.wire.fields import Fields, parse, refuse
from streamdet.wire.limits import CONTROL, MAX_INTEGER, MAX_NAME_CHARACTERS, is_jpeg

VERSION = 1
MAX_REQUEST_BYTES = 16 * 1024
MAX_PREFIXES = 200
MAX_ANSWER_EVENTS = 256
MAX_ANSWER_TOPICS = 1000
MAX_ANSWER_BYTES = 1 << 20
"""Limit for all events of one answer together; a single event may be this large, too."""
MAX_STEPS = 500
"""Of a timeline."""
MAX_CLIP_PART_BYTES = 256 << 10
MAX_CURSOR = (1 << 63) - 1
MAX_TIME = 253_402_300_799.0
"""The last second of the year 9999, the last one of a date with four digits, in Unix time."""
HistoryKind = Literal["occurrences", "objects", "alerts"]
HISTORY_KINDS: tuple[HistoryKind, ...] = ("occurrences", "objects", "alerts")
_MAX_TOPIC_CHARACTERS = 2 * MAX_NAME_CHARACTERS


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """Asks for the newest event of each topic.

    Attributes:
        id: returned in the answer.
        prefixes: only topics that begin with one of these; all topics where it is empty.
        after: only topics after this one: `more_after` of the answer before.
        with_events: False for the numbers alone.
    """

    id: int
    prefixes: tuple[str, ...] = ()
    after: str = ""
    with_events: bool = True


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """Asks for events that were published before.

    Attributes:
        id: returned in the answer.
        topic: such as `detections/front-door/`.
        from_seq: number of the first event.
        to_seq: number of the last event; None for the newest.
        epoch: in which they were published; None for the present epoch.
    """

    id: int
    topic: str
    from_seq: int
    to_seq: int | None = None
    epoch: str | None = None


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """Asks for a picture that an event names.

    Attributes:
        id: returned in the answer.
        picture_id: of the picture.
    """

    id: int
    picture_id: str


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """Asks for a part of a clip that an alert names.

    Attributes:
        id: returned in the answer.
        clip_id: of the clip.
        first_byte: where the part begins, from 0.
        max_bytes: of the part, 1 to `MAX_CLIP_PART_BYTES`.
    """

    id: int
    clip_id: str
    first_byte: int = 0
    max_bytes: int = MAX_CLIP_PART_BYTES


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """Asks for events of objects and alerts that are kept on disk, the newest first.

    Attributes:
        id: returned in the answer.
        kind: of the events; "occurrences" for each object once, when it has ended, and each alert once, from when it
            was raised, with the newest event about it.
        since: Unix time in seconds; those published (occurrences: that ended, or were raised) then or later.
        until: the same, before. None for all.
        stream: of this stream; None for all.
        phase: such as "raised" or "end"; of occurrences "end" for objects alone, "raised" for alerts; None for all.
        label: of this label; None for all.
        rule: alerts of this rule; None for all.
        zone: objects that have been in this zone, and alerts of rules for it; None for all.
        limit: how many at most, 1 to `MAX_ANSWER_EVENTS`.
        after: `next` of the answer before; None for the first page.
    """

    id: int
    kind: HistoryKind = "occurrences"
    since: float | None = None
    until: float | None = None
    stream: str | None = None
    phase: str | None = None
    label: str | None = None
    rule: str | None = None
    zone: str | None = None
    limit: int = 100
    after: str | None = None


@dataclass(frozen=True, slots=True)
class TimelineRequest:
    """Asks for sums of what happened on each stream, in equal steps of a span of time.

    Attributes:
        id: returned in the answer.
        since: Unix time in seconds.
        until: the same, later.
        steps: into how many parts the span is divided, 1 to `MAX_STEPS`.
        after: only streams after this one: `more_after` of the answer before.
    """

    id: int
    since: float
    until: float
    steps: int
    after: str = ""


Request = SnapshotRequest | ReplayRequest | PictureRequest | ClipRequest | HistoryRequest | TimelineRequest


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A part of the answer to a `SnapshotRequest`.

    Attributes:
        id: of the request.
        epoch: the present epoch.
        next_seqs: by topic, sorted, the `seq` of its next event.
        more_after: there are more topics; ask again with this as `after`. None at the end.
        events: the newest event of each of these topics, encoded; none of streams that were removed.
    """

    id: int
    epoch: str
    next_seqs: dict[str, int]
    more_after: str | None
    events: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A part of the answer to a `ReplayRequest`.

    Attributes:
        id: of the request.
        topic: of the request.
        epoch: the epoch of these events.
        from_seq: of the request.
        next_seq: events before this one are answered; those that are not in `events` are no longer kept.
        more: ask again, from `next_seq`.
        next_epoch: where the epoch has ended, the next one that has events of the topic; else None.
        end_is_known: whether the last number of an epoch that has ended is known; False after a crash, and where
            nothing of it is kept.
        events: encoded, by rising `seq`.
        seqs: numbers of the events; empty in an answer that was read.
    """

    id: int
    topic: str
    epoch: str
    from_seq: int
    next_seq: int
    more: bool = False
    next_epoch: str | None = None
    end_is_known: bool = True
    events: list[bytes] = field(default_factory=list)
    seqs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchedPicture:
    """The answer to a `PictureRequest`.

    Attributes:
        id: of the request.
        picture_id: of the request.
        jpeg: the picture, at most `MAX_ANSWER_BYTES`.
    """

    id: int
    picture_id: str
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClipPart:
    """The answer to a `ClipRequest`.

    Attributes:
        id: of the request.
        clip_id: of the request.
        first_byte: of the request.
        size_bytes: of the whole clip.
        content: the part; shorter than was asked for only at the end of the clip.
    """

    id: int
    clip_id: str
    first_byte: int
    size_bytes: int
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """The answer to a `HistoryRequest`.

    Attributes:
        id: of the request.
        next: `after` of the request for the next page; None where there are no more.
        events: encoded, the newest first. Fewer than were asked for, or none, also where there are more.
    """

    id: int
    next: str | None
    events: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TimelinePage:
    """A part of the answer to a `TimelineRequest`.

    Attributes:
        id: of the request.
        kept_since: Unix time in seconds of the oldest event on disk; None without one.
        gaps: when the daemon did not run: Unix times from and to.
        more_after: there are more streams; ask again with this as `after`. None at the end.
        streams: by name, a JSON object each, as `docs/replay.md` describes.
    """

    id: int
    kept_since: float | None
    gaps: tuple[tuple[float, float], ...]
    more_after: str | None
    streams: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a request that was refused.

    Attributes:
        id: of the request; 0 where it could not be read.
        code: `bad_request`, `too_many` (ask more slowly), `busy` (ask again later), `not_found` (the picture or clip is
            not kept, or not any longer), `off` (no events are kept on disk) or `failed` (see the daemon's log).
        message: one line for people.
    """

    id: int
    code: str
    message: str


Answer = Snapshot | Replayed | FetchedPicture | ClipPart | HistoryPage | TimelinePage | Refused


def encode_request(request: Request) -> bytes:
    """The one part of a request."""
    fields: dict[str, object] = {"version": VERSION, "id": request.id}
    match request:
        case PictureRequest():
            fields |= {"request": "picture", "picture_id": request.picture_id}
        case ClipRequest():
            fields |= {"request": "clip", "clip_id": request.clip_id}
            fields |= {"first_byte": request.first_byte, "max_bytes": request.max_bytes}
        case HistoryRequest():
            wanted = ("kind", "since", "until", "stream", "phase", "label", "rule", "zone", "limit", "after")
            fields |= {"request": "history", **{key: getattr(request, key) for key in wanted}}
        case TimelineRequest():
            fields |= {"request": "timeline", "since": request.since, "until": request.until}
            fields |= {"steps": request.steps, "after": request.after}
        case SnapshotRequest():
            fields |= {"request": "snapshot", "prefixes": request.prefixes, "after": request.after}
            fields["events"] = request.with_events
        case ReplayRequest():
            fields |= {"request": "replay", "topic": request.topic, "from_seq": request.from_seq}
            fields |= {"to_seq": request.to_seq, "epoch": request.epoch}
    return orjson.dumps(fields)


def decode_request(payload: bytes) -> Request:
    """Reads a request.

    Raises:
        WireError: it is not a request, or exceeds a bound.
    """
    if len(payload) > MAX_REQUEST_BYTES:
        refuse(f"request has {len(payload)} bytes; the limit is {MAX_REQUEST_BYTES}")
    fields = _fields(payload, "request")
    number = fields.integer("id", 0)
    kind = fields.choice("request", ("snapshot", "replay", "picture", "clip", "history", "timeline"))
    if kind == "picture":
        return PictureRequest(number, fields.name("picture_id"))
    if kind == "clip":
        return _clip_request(number, fields)
    if kind == "history":
        return _history_request(number, fields)
    if kind == "timeline":
        return _timeline_request(number, fields)
    if kind == "snapshot":
        prefixes = fields.values("prefixes", MAX_PREFIXES) if "prefixes" in fields else []
        return SnapshotRequest(
            number,
            tuple(_prefix(fields, prefix) for prefix in prefixes),
            fields.text("after", 0, _MAX_TOPIC_CHARACTERS) if "after" in fields else "",
            fields.switch("events") if "events" in fields else True,
        )
    request = ReplayRequest(
        number,
        fields.text("topic", 1, _MAX_TOPIC_CHARACTERS),
        fields.integer("from_seq", 1),
        fields.optional_integer("to_seq", 1) if "to_seq" in fields else None,
        None if "epoch" not in fields or fields.take("epoch") is None else fields.name("epoch"),
    )
    if request.to_seq is not None and request.to_seq < request.from_seq:
        fields.refuse("to_seq", f"at least from_seq, {request.from_seq}")
    return request


def _clip_request(number: int, fields: Fields) -> ClipRequest:
    first_byte = fields.integer("first_byte", 0) if "first_byte" in fields else 0
    max_bytes = fields.integer("max_bytes", 1) if "max_bytes" in fields else MAX_CLIP_PART_BYTES
    return ClipRequest(number, fields.name("clip_id"), first_byte, min(max_bytes, MAX_CLIP_PART_BYTES))


def _history_request(number: int, fields: Fields) -> HistoryRequest:
    kind = fields.choice("kind", HISTORY_KINDS) if "kind" in fields else "occurrences"
    since, until = (_given_time(fields, key) for key in ("since", "until"))
    stream = fields.name("stream") if _is_given(fields, "stream") else None
    phase, label, rule, zone, after = (
        fields.text(key, 1, MAX_NAME_CHARACTERS) if _is_given(fields, key) else None
        for key in ("phase", "label", "rule", "zone", "after")
    )
    if kind == "occurrences" and phase not in (None, "end", "raised"):
        fields.refuse("phase", "end, for objects, or raised, for alerts")
    if after is not None and (re.fullmatch(r"-?[0-9]{1,19}", after, re.ASCII) is None or abs(int(after)) > MAX_CURSOR):
        fields.refuse("after", "next of an answer")
    limit = min(fields.integer("limit", 1), MAX_ANSWER_EVENTS) if "limit" in fields else 100
    return HistoryRequest(number, kind, since, until, stream, phase, label, rule, zone, limit, after)


def _timeline_request(number: int, fields: Fields) -> TimelineRequest:
    since, until = (fields.number(key, 0, MAX_TIME) for key in ("since", "until"))
    if until - since < 1:
        fields.refuse("until", "at least a second after since")
    steps = fields.integer("steps", 1)
    if steps > MAX_STEPS:
        fields.refuse("steps", f"a number from 1 to {MAX_STEPS}")
    after = fields.text("after", 0, MAX_NAME_CHARACTERS) if "after" in fields else ""
    return TimelineRequest(number, since, until, steps, after)


def _is_given(fields: Fields, key: str) -> bool:
    return key in fields and fields.take(key) is not None


def _given_time(fields: Fields, key: str) -> float | None:
    return fields.number(key, 0, MAX_TIME) if _is_given(fields, key) else None


def request_id(payload: bytes) -> int:
    """The id of a request that may be damaged; 0 where it cannot be read."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return 0
    number = value.get("id") if isinstance(value, dict) else None
    return number if type(number) is int and 0 <= number <= MAX_INTEGER else 0


def encode_answer(answer: Answer) -> list[bytes]:
    """The parts of an answer: its header, and the events or the picture."""
    fields: dict[str, object] = {"version": VERSION, "id": answer.id, "ok": not isinstance(answer, Refused)}
    if isinstance(answer, Refused):
        return [orjson.dumps({**fields, "error": {"code": answer.code, "message": answer.message}})]
    if isinstance(answer, FetchedPicture):
        return [orjson.dumps(fields | {"answer": "picture", "picture_id": answer.picture_id}), answer.jpeg]
    if isinstance(answer, ClipPart):
        fields |= {"answer": "clip", "clip_id": answer.clip_id}
        fields |= {"first_byte": answer.first_byte, "size_bytes": answer.size_bytes}
        return [orjson.dumps(fields), answer.content]
    if isinstance(answer, HistoryPage):
        return [orjson.dumps(fields | {"answer": "history", "next": answer.next}), *answer.events]
    if isinstance(answer, TimelinePage):
        fields |= {"answer": "timeline", "kept_since": answer.kept_since, "gaps": answer.gaps}
        return [orjson.dumps(fields | {"more_after": answer.more_after}), *answer.streams]
    fields["epoch"] = answer.epoch
    if isinstance(answer, Snapshot):
        fields |= {"answer": "snapshot", "next_seqs": answer.next_seqs, "more_after": answer.more_after}
    else:
        fields |= {"answer": "replay", "topic": answer.topic, "from_seq": answer.from_seq, "next_seq": answer.next_seq}
        fields |= {"more": answer.more, "lost": lost_ranges(answer)}
        fields |= {"next_epoch": answer.next_epoch, "end_is_known": answer.end_is_known}
    return [orjson.dumps(fields), *answer.events]


def decode_answer(parts: Sequence[bytes]) -> Answer:
    """Reads an answer; the events stay encoded.

    Raises:
        WireError: it is not an answer, or exceeds a bound.
    """
    if not 1 <= len(parts) <= 1 + MAX_ANSWER_EVENTS:
        refuse(f"answer has {len(parts)} parts; at most {1 + MAX_ANSWER_EVENTS} are possible")
    fields = _fields(parts[0], "answer")
    number, events = fields.integer("id", 0), list(parts[1:])
    if not fields.switch("ok"):
        error = Fields(fields.take("error"), "error.")
        return Refused(number, error.text("code", 1, MAX_NAME_CHARACTERS), error.text("message", 0, 500))
    kind = fields.choice("answer", ("snapshot", "replay", "picture", "clip", "history", "timeline"))
    if kind == "snapshot":
        after = fields.take("more_after")
        more_after = None if after is None else fields.text("more_after", 1, _MAX_TOPIC_CHARACTERS)
        return Snapshot(number, fields.name("epoch"), _next_seqs(fields), more_after, events)
    if kind == "replay":
        return _replayed(number, fields, events)
    return _stored(number, fields, events)


def _replayed(number: int, fields: Fields, events: list[bytes]) -> Replayed:
    next_epoch = None if fields.take("next_epoch") is None else fields.name("next_epoch")
    return Replayed(
        number,
        fields.text("topic", 1, _MAX_TOPIC_CHARACTERS),
        fields.name("epoch"),
        fields.integer("from_seq", 1),
        fields.integer("next_seq", 1),
        fields.switch("more"),
        next_epoch,
        fields.switch("end_is_known"),
        events,
    )


def _stored(number: int, fields: Fields, parts: list[bytes]) -> FetchedPicture | ClipPart | HistoryPage | TimelinePage:
    kind = fields.choice("answer", ("picture", "clip", "history", "timeline"))
    if kind == "picture":
        if len(parts) != 1 or not is_jpeg(parts[0]):
            refuse("answer came without a JPEG picture of at most 1 MiB")
        return FetchedPicture(number, fields.name("picture_id"), parts[0])
    if kind == "clip":
        if len(parts) != 1 or len(parts[0]) > MAX_CLIP_PART_BYTES:
            refuse(f"answer came without a part of a clip of at most {MAX_CLIP_PART_BYTES} bytes")
        clip_id, first_byte = fields.name("clip_id"), fields.integer("first_byte", 0)
        return ClipPart(number, clip_id, first_byte, fields.integer("size_bytes", 0), parts[0])
    if kind == "history":
        cursor = fields.text("next", 1, MAX_NAME_CHARACTERS) if _is_given(fields, "next") else None
        return HistoryPage(number, cursor, parts)
    more_after = fields.text("more_after", 1, MAX_NAME_CHARACTERS) if _is_given(fields, "more_after") else None
    return TimelinePage(number, _given_time(fields, "kept_since"), _gaps(fields), more_after, parts)


def _gaps(fields: Fields) -> tuple[tuple[float, float], ...]:
    gaps: list[tuple[float, float]] = []
    for value in fields.values("gaps", MAX_ANSWER_TOPICS):
        if not isinstance(value, list) or [type(each) for each in value] != [float, float]:
            fields.refuse("gaps", "a list of pairs of Unix times")
        gaps.append((value[0], value[1]))
    return tuple(gaps)


def lost_ranges(answer: Replayed) -> list[dict[str, int]]:
    """The ranges of numbers before `next_seq` that were asked for and are no longer kept."""
    ranges = []
    expected = answer.from_seq
    for seq in (*answer.seqs, answer.next_seq):
        if seq > expected:
            ranges.append({"first": expected, "count": seq - expected})
        expected = seq + 1
    return ranges


def _fields(payload: bytes, what: str) -> Fields:
    fields = Fields(parse(payload, what), what=what)
    version = fields.take("version")
    if version != VERSION or isinstance(version, bool):
        refuse(f"{what} has version {str(version)[:20]!r}; this version of streamdet speaks version {VERSION}")
    return fields


def _prefix(fields: Fields, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TOPIC_CHARACTERS:
        fields.refuse("prefixes", "a list of prefixes of topics")
    return value


def _next_seqs(fields: Fields) -> dict[str, int]:
    numbers = Fields(fields.take("next_seqs"), "next_seqs.")
    topics = numbers.keys()
    if len(topics) > MAX_ANSWER_TOPICS or any(CONTROL.search(topic) for topic in topics):
        fields.refuse("next_seqs", f"at most {MAX_ANSWER_TOPICS} topics, without control characters")
    return {topic: numbers.integer(topic, 1) for topic in topics}
