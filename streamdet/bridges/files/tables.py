"""What stands in the files: their tables, the columns of each, and the rows that an event becomes.

Neither file format is known here. `Rows` holds numbers in typed arrays: a detection takes about 160 bytes, a tenth of
what its event takes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote

from streamdet.client import Gap, Restart
from streamdet.types import AlertEvent, Crossing, DetectionEvent, ObjectEvent, StateEvent
from streamdet.wire.replay import MAX_TIME

ColumnType = Literal["timestamp", "double", "integer", "text", "boolean", "texts"]
TableName = Literal["detections", "frames", "objects", "alerts", "states", "gaps"]

_TYPECODES = {"timestamp": "d", "double": "d", "integer": "q"}
_DAY_SECONDS = 86400
_MAX_NAME_BYTES = 180  # of 255 of a name in a file system, less what stands around it
_MAX_SHARED = 10_000


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: as in the files.
        type: of its values; columns, for a list of records of these.
        about: what it says, and in which unit.
        optional: whether it may be null.
    """

    name: str
    type: ColumnType | tuple[Column, ...]
    about: str
    optional: bool = False


_PUBLISHED = (
    Column("published_at", "timestamp", "when the daemon published the event"),
    Column("epoch", "text", "the run of the daemon"),
    Column("seq", "integer", "number of the event in its stream, kind and epoch, without gaps"),
)
_FRAME = (
    Column("captured_at", "timestamp", "when the frame was captured"),
    *_PUBLISHED,
    Column("frame_seq", "integer", "number of the frame in its stream and epoch"),
    Column("pts_seconds", "double", "the frame's time in the stream's own clock", optional=True),
    Column("frame_width", "integer", "pixels"),
    Column("frame_height", "integer", "pixels"),
)


def _box(what: str, *, optional: bool = False) -> tuple[Column, ...]:
    sides = {"x1": "left", "y1": "upper", "x2": "right", "y2": "lower"}
    return tuple(
        Column(name, "double", f"{side} edge of {what}, pixels of the frame", optional) for name, side in sides.items()
    )


_CROSSING = (
    Column("line", "text", "its name"),
    Column("direction", "text", "`in` or `out`"),
    Column("track_id", "integer", "of the object that crossed it"),
    Column("label", "text", "of that object"),
)

TABLES: dict[TableName, tuple[Column, ...]] = {
    "detections": (
        *_FRAME,
        Column("label", "text", "name of the category"),
        Column("score", "double", "0 to 1"),
        *_box("the box"),
        Column("track_id", "integer", "the same for the same object in successive frames", optional=True),
        Column("zones", "texts", "names of the zones that the object is in"),
    ),
    "frames": (
        *_FRAME,
        Column("clock", "text", "whose clock `captured_at` is: `source` or `daemon`"),
        Column("detections", "integer", "how many there are in the frame; 0 where it was watched and nothing found"),
        Column("crossings", _CROSSING, "lines that were crossed since the frame before"),
        Column("trace_id", "text", "of the trace of this frame", optional=True),
    ),
    "objects": (
        *_FRAME,
        Column("phase", "text", "`begin`, `update` or `end`"),
        Column("object_id", "text", "unique, also over restarts"),
        Column("track_id", "integer", "of its detections"),
        Column("label", "text", "the one with the largest sum of scores so far"),
        Column("score", "double", "the best so far, 0 to 1"),
        *_box("the box"),
        Column("began_at", "timestamp", "capture of the first frame that shows it"),
        Column("seconds", "double", "from then until it was last seen"),
        Column("stationary", "boolean", "whether it stands still"),
        Column("reason", "text", "why it ended", optional=True),
        Column(
            "path",
            (
                Column("x", "double", "part of the frame's width"),
                Column("y", "double", "part of the frame's height"),
                Column("seconds", "double", "since it began"),
            ),
            "where the middle of its lower edge was",
        ),
        Column(
            "zones",
            (
                Column("zone", "text", "its name"),
                Column("seconds", "double", "all visits together"),
                Column("inside", "boolean", "whether it is there now"),
            ),
            "the zones that it has been in",
        ),
        Column(
            "changes",
            (
                Column("change", "text", "`enter`, `leave`, `dwell` or `loiter`"),
                Column("zone", "text", "its name"),
                Column("seconds", "double", "of this visit"),
            ),
            "what it has done in zones since its event before",
        ),
        Column("crossings", _CROSSING, "lines that it has crossed since its event before"),
        Column("best_captured_at", "timestamp", "capture of the frame that shows it best"),
        Column("best_frame_seq", "integer", "number of that frame"),
        Column("picture_id", "text", "of its picture", optional=True),
    ),
    "alerts": (
        *_FRAME,
        Column("phase", "text", "`raised` or `cleared`"),
        Column("alert_id", "text", "unique, also over restarts; the same in both phases"),
        Column("rule", "text", "its name"),
        Column("raised_at", "timestamp", "capture of the frame in which the condition was met"),
        Column("seconds", "double", "how long it has been met; `cleared`: in all"),
        Column("object_ids", "texts", "the objects that meet it"),
        Column("label", "text", "of the one object", optional=True),
        *_box("its box", optional=True),
        Column("zone", "text", "the rule's zone", optional=True),
        Column("line", "text", "that was crossed", optional=True),
        Column("direction", "text", "of the crossing, `in` or `out`", optional=True),
        Column("count", "integer", "objects at once", optional=True),
        Column("picture_id", "text", "of its picture", optional=True),
        Column("clip_id", "text", "of its clip", optional=True),
        Column("clip_before_seconds", "double", "the rule's clip begins this long before the frame", optional=True),
        Column("clip_after_seconds", "double", "and ends this long after it", optional=True),
        Column("clip_missing", "text", "why that clip is missing, in one word", optional=True),
    ),
    "states": (
        *_PUBLISHED,
        Column("state", "text", "`connecting`, `up`, `stalled` or `down`"),
        Column("reason", "text", "why it is not up", optional=True),
        Column("detail", "text", "one line for people"),
        Column("since", "timestamp", "when the state began"),
    ),
    "gaps": (
        Column("noted_at", "timestamp", "when the bridge found out"),
        Column("kind", "text", "of the events that are missing: `detections`, `objects`, `alerts` or `states`"),
        Column("epoch", "text", "the run of the daemon that published them"),
        Column("first_seq", "integer", "`seq` of the first one; null where that is unknown", optional=True),
        Column("count", "integer", "how many; null where that is unknown", optional=True),
        Column("reason", "text", "`not_kept`: by the spool; `crash`: what came last before that is unknown"),
    ),
}
"""The columns of each table. Stream and date are no columns: they stand in the names of the folders."""

# What a row takes in `Rows` at most, or mostly: an object has a path of up to 64 points, which are Python's objects.
_ROW_BYTES: dict[TableName, int] = {
    "detections": 160,
    "frames": 200,
    "objects": 10_000,
    "alerts": 4_000,
    "states": 1_000,
    "gaps": 500,
}


class Partition(NamedTuple):
    """What a file belongs to.

    Attributes:
        table: name of its table.
        date: YYYY-MM-DD in UTC, of its rows.
        stream: name of the stream.
    """

    table: TableName
    date: str
    stream: str

    @property
    def folder(self) -> str:
        """The folder of its files, below that of the recording."""
        return f"{self.table}/date={self.date}/stream={escaped(self.stream)}"


def escaped(name: str) -> str:
    """A name as part of a file's: what is no letter, digit, `_`, `.`, `-` or `~` in ASCII is percent-encoded."""
    return quote(name, safe="")


def unescaped(text: str) -> str:
    """The name that was `escaped`."""
    return unquote(text)


@dataclass(slots=True)
class Rows:
    """Rows of one partition, by column.

    Attributes:
        partition: where they belong.
        first: time (Unix time in seconds), epoch and number of the first row, for the name of its file.
        columns: the values of each column: an array of doubles or integers, or a list. Timestamps are Unix time.
        count: how many rows there are.
    """

    partition: Partition
    first: tuple[float, str, int]
    columns: list[Any] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        for column in TABLES[self.partition.table]:
            typecode = None if column.optional else _TYPECODES.get(str(column.type))
            self.columns.append(array(typecode) if typecode else [])

    def extend(self, rows: list[tuple[Any, ...]]) -> None:
        """Adds rows; none is fine."""
        for column, values in zip(self.columns, zip(*rows, strict=True), strict=False):
            column.extend(values)
        self.count += len(rows)


class Buffer:
    """Collects the rows of events until they are written.

    Attributes:
        size_bytes: about what the rows take in memory.
        events: how many were added.
        oldest_at: when the oldest of them was published, in Unix time; None without events.
    """

    def __init__(self) -> None:
        self._rows: dict[Partition, Rows] = {}
        self._dates: dict[int, str] = {}
        # Labels and zones of detections are few, and each decoded event has its own.
        self._shared: dict[Any, Any] = {}
        self.size_bytes = 0
        self.events = 0
        self.oldest_at: float | None = None

    def take(self) -> list[Rows]:
        """Hands out all rows, and is empty then."""
        taken = list(self._rows.values())
        self._rows.clear()
        self._shared.clear()
        self.size_bytes = self.events = 0
        self.oldest_at = None
        return taken

    def add(self, event: DetectionEvent | ObjectEvent | AlertEvent | StateEvent) -> bool:
        """Adds an event; False if the names of its stream or epoch are too long for the name of a file."""
        if not _fits_a_name(event.stream) or not _fits_a_name(event.epoch):
            return False
        self.events += 1
        if self.oldest_at is None or event.published_at < self.oldest_at:
            self.oldest_at = event.published_at
        if isinstance(event, DetectionEvent):
            self._add_detections(event)
        elif isinstance(event, ObjectEvent):
            self._add("objects", event.stream, _key_of(event), [_object_row(event)])
        elif isinstance(event, AlertEvent):
            self._add("alerts", event.stream, _key_of(event), [_alert_row(event)])
        else:
            at = min(event.published_at, MAX_TIME)
            row = (
                at, event.epoch, event.seq, event.state.value, event.reason and event.reason.value, event.detail,
                min(event.since, MAX_TIME),
            )  # fmt: skip
            self._add("states", event.stream, (at, event.epoch, event.seq), [row])
        return True

    def add_gap(self, item: Gap | Restart, epoch: str, now: float) -> None:
        """Adds events that are missing, of an epoch."""
        kind = item.topic.partition("/")[0].replace("state", "states")
        if not _fits_a_name(item.stream) or not _fits_a_name(epoch):
            return
        is_gap = isinstance(item, Gap)
        first, count = (item.first, item.count) if isinstance(item, Gap) else (None, None)
        row = (now, kind, epoch, first, count, "not_kept" if is_gap else "crash")
        self._add("gaps", item.stream, (now, f"{kind}-{epoch}", first or 0), [row])

    def _add_detections(self, event: DetectionEvent) -> None:
        frame, key, shared = event.frame, _key_of(event), self._shared
        if len(shared) > _MAX_SHARED:
            shared.clear()
        of_frame = (
            key[0], min(event.published_at, MAX_TIME), shared.setdefault(event.epoch, event.epoch), event.seq,
            frame.seq, frame.pts_seconds, frame.width, frame.height,
        )  # fmt: skip
        crossings = _crossings(event.crossings)
        row = (*of_frame, frame.clock, len(event.detections), crossings, event.trace_id)
        self._add("frames", event.stream, key, [row])
        if event.detections:
            rows = [
                (*of_frame, shared.setdefault(found.label, found.label), found.score, *found.box, found.track_id,
                 shared.setdefault(found.zones, found.zones))
                for found in event.detections
            ]  # fmt: skip
            self._add("detections", event.stream, key, rows)

    def _add(self, table: TableName, stream: str, first: tuple[float, str, int], rows: list[tuple[Any, ...]]) -> None:
        partition = Partition(table, self._date(first[0]), stream)
        found = self._rows.get(partition)
        if found is None:
            found = self._rows[partition] = Rows(partition, first)
        found.extend(rows)
        self.size_bytes += len(rows) * _ROW_BYTES[table]

    def _date(self, at: float) -> str:
        day = int(at // _DAY_SECONDS)
        date = self._dates.get(day)
        if date is None:
            if len(self._dates) > _MAX_SHARED:
                self._dates.clear()
            date = self._dates[day] = f"{datetime.fromtimestamp(day * _DAY_SECONDS, UTC):%Y-%m-%d}"
        return date


def stamp(at: float) -> str:
    """A time as it stands in names, by which they sort, such as `20261129T140312.345Z`."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03}Z"


def _fits_a_name(name: str) -> bool:
    return (name.isascii() and len(name) <= _MAX_NAME_BYTES // 3) or len(escaped(name)) <= _MAX_NAME_BYTES


def _key_of(event: DetectionEvent | ObjectEvent | AlertEvent) -> tuple[float, str, int]:
    return min(event.frame.captured_at, MAX_TIME), event.epoch, event.seq


def _of_frame(event: ObjectEvent | AlertEvent) -> tuple[Any, ...]:
    frame, at = event.frame, min(event.frame.captured_at, MAX_TIME)
    return (
        at, min(event.published_at, MAX_TIME), event.epoch, event.seq, frame.seq, frame.pts_seconds, frame.width,
        frame.height,
    )  # fmt: skip


def _object_row(event: ObjectEvent) -> tuple[Any, ...]:
    found = event.object
    return (
        *_of_frame(event), event.phase, found.object_id, found.track_id, found.label, found.score, *found.box,
        min(found.began_at, MAX_TIME), found.seconds, found.is_stationary, event.reason and event.reason.value,
        found.path,
        tuple((visit.zone, visit.seconds, visit.inside) for visit in found.zones),
        tuple((change.change, change.zone, change.seconds) for change in event.changes),
        _crossings(event.crossings),
        min(found.best.captured_at, MAX_TIME), found.best.frame_seq,
        event.picture and event.picture.picture_id,
    )  # fmt: skip


def _alert_row(event: AlertEvent) -> tuple[Any, ...]:
    alert = event.alert
    return (
        *_of_frame(event), event.phase, alert.alert_id, alert.rule, min(alert.raised_at, MAX_TIME), alert.seconds,
        alert.object_ids, alert.label, *(alert.box or (None, None, None, None)), alert.zone, alert.line,
        alert.direction, alert.count, event.picture and event.picture.picture_id, event.clip_id,
        *(event.clip_seconds or (None, None)), event.clip_missing,
    )  # fmt: skip


def _crossings(crossings: Iterable[Crossing]) -> tuple[tuple[str, str, int, str], ...]:
    return tuple((each.line, each.direction, each.track_id, each.label) for each in crossings)
