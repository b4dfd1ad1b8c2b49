"""Requests to the replay socket, and its answers; both bounded.

`docs/replay.md` is the reference. A request is one JSON object. An answer is one JSON object, its header, followed by
events as they were published, each in a part of its own, or by one picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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


Request = SnapshotRequest | ReplayRequest | PictureRequest


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
class Refused:
    """The answer to a request that was refused.

    Attributes:
        id: of the request; 0 where it could not be read.
        code: `bad_request`, `too_many` (ask more slowly), `busy` (ask again later), `not_found` (the picture is not
            kept, or not any longer) or `failed` (see the daemon's log).
        message: one line for people.
    """

    id: int
    code: str
    message: str


Answer = Snapshot | Replayed | FetchedPicture | Refused


def encode_request(request: Request) -> bytes:
    """The one part of a request."""
    fields: dict[str, object] = {"version": VERSION, "id": request.id}
    if isinstance(request, PictureRequest):
        fields |= {"request": "picture", "picture_id": request.picture_id}
    elif isinstance(request, SnapshotRequest):
        fields |= {"request": "snapshot", "prefixes": request.prefixes, "after": request.after}
        fields["events"] = request.with_events
    else:
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
    kind = fields.choice("request", ("snapshot", "replay", "picture"))
    if kind == "picture":
        return PictureRequest(number, fields.name("picture_id"))
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
    kind = fields.choice("answer", ("snapshot", "replay", "picture"))
    if kind == "picture":
        if len(events) != 1 or not is_jpeg(events[0]):
            refuse("answer came without a JPEG picture of at most 1 MiB")
        return FetchedPicture(number, fields.name("picture_id"), events[0])
    epoch = fields.name("epoch")
    if kind == "snapshot":
        after = fields.take("more_after")
        more_after = None if after is None else fields.text("more_after", 1, _MAX_TOPIC_CHARACTERS)
        return Snapshot(number, epoch, _next_seqs(fields), more_after, events)
    next_epoch = None if fields.take("next_epoch") is None else fields.name("next_epoch")
    return Replayed(
        number,
        fields.text("topic", 1, _MAX_TOPIC_CHARACTERS),
        epoch,
        fields.integer("from_seq", 1),
        fields.integer("next_seq", 1),
        fields.switch("more"),
        next_epoch,
        fields.switch("end_is_known"),
        events,
    )


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
