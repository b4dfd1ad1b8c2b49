"""The database of the spool: events in one SQLite file of limited size, which users may query while it is written.

`_SCHEMA` defines its tables, and `docs/replay.md` describes them. A file that is damaged or does not belong to the
spool is renamed, and a new one is created.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import resource
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import orjson

from streamdet.delivery.segments import SegmentRecord, read_segment, segment_files
from streamdet.errors import SpoolError
from streamdet.security.files import lock_directory, others_can_delete, why_foreign
from streamdet.wire.limits import MAX_INTEGER
from streamdet.wire.occurrence import Occurrence, occurrence_of
from streamdet.wire.replay import MAX_ANSWER_BYTES, MAX_ANSWER_EVENTS, Replayed, ReplayRequest

_NAME = "events.sqlite"
# The database, its write-ahead log, the index of that, and what a kill leaves behind while the file is made.
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_APPLICATION = int.from_bytes(b"sdsp")
_VERSION = 1
_PAGE_BYTES = 4096
# SQLite numbers pages with 30 bits.
_MAX_BYTES = _PAGE_BYTES << 30
# The write-ahead log is moved into the database when it has this number of pages, or a 32nd of the spool's limit.
_MAX_CHECKPOINT_PAGES = 1000
_CHECKPOINTS_OF_A_SPOOL = 32
# While another program reads, the write-ahead log cannot begin again and grows, up to this part of the spool.
_LOGS_OF_A_SPOOL = 8
_BUSY_SECONDS = 1.0
_VALUES_AT_ONCE = 6 * 50
# Of a larger file only the small tables are checked at the start, since checking takes about a second per GiB.
_MAX_CHECKED_BYTES = 256 << 20
# Ids have the order of time: those of events taken over from segments count up from here, all others from 1.
_FIRST_OLD_ID = -(2**62)

_SCHEMA = """
PRAGMA page_size = 4096;
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE epochs (id INTEGER PRIMARY KEY, epoch TEXT NOT NULL UNIQUE, last_seqs TEXT);
CREATE TABLE topics (id INTEGER PRIMARY KEY, topic TEXT NOT NULL UNIQUE);
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    epoch_id INTEGER NOT NULL,
    topic_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    kept_at REAL NOT NULL,
    payload BLOB NOT NULL
);
CREATE UNIQUE INDEX records_by_seq ON records (topic_id, epoch_id, seq);
CREATE VIEW events AS
    SELECT epoch, topic, seq, kept_at, CAST(payload AS TEXT) AS event
    FROM records JOIN epochs ON epochs.id = epoch_id JOIN topics ON topics.id = topic_id;
PRAGMA application_id = APPLICATION;
PRAGMA user_version = VERSION;
COMMIT;
""".replace("APPLICATION", str(_APPLICATION)).replace("VERSION", str(_VERSION))
# The newest event of each object and alert that has begun and not ended, by its id; and the newest event that raised an
# alert of each rule on each stream, by topic and rule. Earlier versions did not have this table.
_NEWEST = "CREATE TABLE newest (id TEXT PRIMARY KEY, record_id INTEGER NOT NULL) WITHOUT ROWID"
MAX_NEWEST = 10_000
OCCURRENCES = _OBJECTS, _ALERTS = "objects/", "alerts/"
_NOTED = (*OCCURRENCES, "state/")
RESTING = ("paused", "ended")
"""Reasons why a stream is not up that are no problem."""
# What the past is looked up by. Each object that has ended, and each alert that was raised, with the ids of the record
# that did so and of the newest record about it; and the times at which streams were not up, with the id of the record
# that says so first. Times are Unix times. Earlier versions did not have these tables, and wrote nothing into them.
_INDEX = """
BEGIN;
CREATE TABLE IF NOT EXISTS occurrences (
    id INTEGER PRIMARY KEY,
    newest_id INTEGER NOT NULL,
    topic_id INTEGER NOT NULL,
    began_at REAL NOT NULL,
    ended_at REAL,
    label TEXT,
    rule TEXT,
    zones TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS outages (
    id INTEGER PRIMARY KEY,
    topic_id INTEGER NOT NULL,
    began_at REAL NOT NULL,
    ended_at REAL,
    reason TEXT
);
CREATE INDEX IF NOT EXISTS open_outages ON outages (topic_id) WHERE ended_at IS NULL;
COMMIT;
"""

_log = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Record(NamedTuple):
    """An event as it is kept.

    Attributes:
        epoch: in which it was published.
        topic: such as `detections/front-door/`.
        seq: of the event.
        kept_at: Unix time in seconds, from which its age counts.
        payload: the event as it was published.
    """

    epoch: str
    topic: str
    seq: int
    kept_at: float
    payload: bytes


class LeftBehind(NamedTuple):
    """What earlier runs of the daemon left behind, as it was published, the oldest first.

    Attributes:
        unfinished: the newest event of each object and alert that has begun and not ended.
        raised: the newest event that raised an alert, of each rule on each stream.
    """

    unfinished: list[bytes]
    raised: list[bytes]


class _UnusableError(sqlite3.DatabaseError):
    """The file is damaged, or it is not one of the spool's."""


class EventStore:
    """All events on disk; for one thread. Another one may make it, and close it before it is used.

    Args:
        directory: of one daemon alone; made if it is missing.
        max_bytes: of all files of the spool together.
        epoch: the present one.
        last_seqs: by topic of the present epoch, its last number so far.

    Attributes:
        directory: the same.
        path: of the database.

    Raises:
        SpoolError: the directory cannot be used.
    """

    def __init__(self, directory: Path, max_bytes: int, epoch: str, last_seqs: Mapping[str, int]) -> None:
        self.directory = directory
        self.path = directory / _NAME
        self._max_bytes = min(max_bytes, _MAX_BYTES)
        self._epoch = epoch
        self._last_seqs = last_seqs
        self._checkpoint_pages = min(_MAX_CHECKPOINT_PAGES, max_bytes // _CHECKPOINTS_OF_A_SPOOL // _PAGE_BYTES)
        self._batch_bytes = self._checkpoint_pages * _PAGE_BYTES
        self._max_log_bytes = max_bytes // _LOGS_OF_A_SPOOL
        self._log_path = f"{self.path}-wal"
        self._room_bytes = 0  # so much can be written before it has to be counted again
        self._lock = _lock(directory)
        self._database: sqlite3.Connection | None = None
        self._inodes = 0, 0
        self._next_id = 1
        self._first_id: int | None = None  # of the events that this process writes
        self._oldest_id = _FIRST_OLD_ID  # only events that seem to be of the future come before it
        self._deleted_at_once = max(self._checkpoint_pages // 2, 1)
        self._epoch_ids: dict[str, int] = {}
        self._topic_ids: dict[str, int] = {}
        self._ended: set[str] = set()  # objects and alerts whose last event could not be written
        self._other_bytes = 0  # of segments, and of what was set aside
        try:
            self._segments = segment_files(directory)
            self._other_bytes = self._count_other_bytes()
        except OSError as error:
            self.close()
            raise _unusable(directory, error.strerror or str(error)) from None

    @property
    def is_converting(self) -> bool:
        """Whether segments of an earlier version are left to be taken over."""
        return bool(self._segments)

    @property
    def used_bytes(self) -> int:
        """What all files of the spool take on disk."""
        return _size(self._files()) + self._other_bytes

    def close(self) -> None:
        """Closes the database and lets go of the directory."""
        self._disconnect()
        self._unlock()

    def batches(self, records: Sequence[Record]) -> Iterator[Sequence[Record]]:
        """Cuts events into parts that can be written at once."""
        first = cost_bytes = 0
        for place, record in enumerate(records):
            cost_bytes += len(record.payload) + _PAGE_BYTES
            if cost_bytes > self._batch_bytes and place > first:
                yield records[first:place]
                first, cost_bytes = place, len(record.payload) + _PAGE_BYTES
        if records:
            yield records[first:]

    def append(self, records: Sequence[Record]) -> None:
        """Writes events of the present epoch: all of them, or none.

        Raises:
            OSError: a file of the spool cannot be made or renamed.
            sqlite3.Error: SQLite cannot write them.
        """
        self._use(self._append, records)

    def end_epoch(self, last_seqs: Mapping[str, int]) -> None:
        """Writes down how far each topic came; without it, a reader cannot know whether the end is missing.

        Raises:
            OSError, sqlite3.Error: as `append`.
        """
        self._use(self._end_epoch, self._epoch, orjson.dumps(dict(last_seqs)))

    def answer(self, request: ReplayRequest) -> Replayed:
        """What is kept of what was asked for.

        Raises:
            OSError, sqlite3.Error: it cannot be read.
        """
        return self._use(self._answer, request)

    def left_behind(self) -> LeftBehind:
        """What earlier runs left behind.

        The last event of an object or alert, also of a later epoch, takes it off the unfinished ones when it is
        written.

        Raises:
            OSError, sqlite3.Error: they cannot be read.
        """
        return self._use(self._left_behind)

    def newest_before(self) -> float | None:
        """When the newest event of earlier runs was kept, in Unix time; None without one.

        Raises:
            OSError, sqlite3.Error: it cannot be read.
        """
        newest = "SELECT kept_at FROM records WHERE id < ? ORDER BY id DESC LIMIT 1"
        row = self._use(lambda database: database.execute(newest, (self._first_id,)).fetchone())
        return row[0] if row else None

    def sync(self) -> None:
        """Brings what was written onto the disk; begins a new database where it was deleted.

        Raises:
            OSError: it cannot be written.
        """
        if self._database is not None and self._inodes_now() != self._inodes:
            _log.warning("%s was deleted, emptied or replaced while it was used; it is opened again", self.path)
            self._disconnect()
        self._sync_log()

    def is_older(self, limit: float) -> bool:
        """Whether the oldest event was kept before a time.

        Args:
            limit: Unix time in seconds.

        Raises:
            OSError, sqlite3.Error: it cannot be read.
        """
        oldest = "SELECT kept_at FROM records ORDER BY id LIMIT 1"
        row = self._use(lambda database: database.execute(oldest).fetchone())
        return row is not None and row[0] < limit

    def delete_older(self, limit: float, now: float) -> bool:
        """Deletes some of the events that were kept before a time, the oldest first; false where there were none.

        Args:
            limit: Unix time in seconds.
            now: the same; events of a later time, kept while the clock was wrong, stay.

        Raises:
            OSError, sqlite3.Error: they cannot be deleted.
        """
        return self._use(self._delete_older, limit, now)

    def shrink(self) -> bool:
        """Deletes some of what is above the limit, or gives some unused pages back; false where nothing was to be done.

        Raises:
            OSError, sqlite3.Error: it cannot be written.
        """
        return self._use(self._shrink)

    def forget_names(self) -> None:
        """Deletes epochs and topics of which no event is left.

        Raises:
            OSError, sqlite3.Error: it cannot be written.
        """
        self._use(self._forget_names)

    def convert_next(self) -> None:
        """Takes the events of one segment over and deletes it; a kill in between costs none and doubles none.

        Raises:
            OSError, sqlite3.Error: the events cannot be written.
        """
        path = self._segments[0]
        # Its events take a little more room in the database, while it is still there.
        self._use(self._make_room, 2 * _size([path]))
        if path not in self._segments:
            return
        try:
            written_at = path.stat().st_mtime
            records = list(read_segment(path))
        except (OSError, ValueError) as error:
            _log.warning("%s is not read: %s; its events are not replayed", path, error)
            self._segments.remove(path)
            return
        self._use(self._convert, records, written_at)
        path.unlink(missing_ok=True)
        self._segments = [segment for segment in self._segments if segment != path]
        self._other_bytes = self._count_other_bytes()

    def cause_of(self, error: OSError | sqlite3.Error) -> OSError | sqlite3.Error:
        """The error of the system behind one of SQLite's, as far as that can be found out."""
        code = _code(error)
        if code & 0xFF == sqlite3.SQLITE_FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if code & 0xFF != sqlite3.SQLITE_IOERR:
            return error
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY and max(_size([path]) for path in self._files()) + self._batch_bytes > limit:
            return OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        try:
            with tempfile.TemporaryFile(dir=self.directory, buffering=0) as probe:
                probe.write(bytes(_PAGE_BYTES))
        except OSError as cause:
            return cause
        return error

    # ---- what each does with the open database ----

    def _append(self, database: sqlite3.Connection, records: Sequence[Record], *, are_old: bool = False) -> None:
        values: list[object] = []
        notes: list[_Note] = []
        # Each may change a page of the index of its own, and all of them a few that lead there.
        needed_bytes = (len(records) + 8) * _PAGE_BYTES
        first = self._first_old_id(database) if are_old else self._next_id
        for number, (epoch, topic, seq, kept_at, payload) in enumerate(records, first):
            epoch_id = self._epoch_ids.get(epoch) or self._new_epoch(database, epoch, is_old=are_old)
            topic_id = self._topic_ids.get(topic) or self._new_topic(database, topic)
            values += (number, epoch_id, topic_id, seq, kept_at, payload)
            needed_bytes += len(payload)
            if topic.startswith(_NOTED) and (noted := _noted(topic, payload, kept_at)) is not None:
                notes.append(_Note(number, topic_id, topic, noted))
        needed_bytes += 2 * _PAGE_BYTES * len(notes)
        self._ended.update(note.of.id for note in notes if isinstance(note.of, Occurrence) and note.of.is_over)
        if self._room_bytes < needed_bytes:
            self._room_bytes = self._make_room(database, needed_bytes)
        self._room_bytes -= needed_bytes
        parts = [values[start : start + _VALUES_AT_ONCE] for start in range(0, len(values), _VALUES_AT_ONCE)]
        if len(parts) == 1 and not (notes or self._ended):
            _insert(database, values)  # a transaction of its own, which costs least
        else:
            database.execute("BEGIN IMMEDIATE")
            with database:
                for part in parts:
                    _insert(database, part)
                for note in notes:
                    _write_note(database, note)
                self._forget_ended(database)
            self._ended.clear()
        if not are_old:
            self._next_id += len(records)

    def _forget_ended(self, database: sqlite3.Connection) -> None:
        """Takes what has ended off the newest events, in the transaction that writes the ends."""
        database.executemany("DELETE FROM newest WHERE id = ?", [(of,) for of in self._ended])

    def _left_behind(self, database: sqlite3.Connection) -> LeftBehind:
        # Some of the events have been deleted, because of their age or for room.
        database.execute("DELETE FROM newest WHERE NOT EXISTS (SELECT 1 FROM records WHERE id = record_id)")
        query = (
            "SELECT newest.id, payload FROM newest JOIN records ON records.id = record_id "
            "WHERE record_id < ? ORDER BY record_id LIMIT ?"
        )
        found = LeftBehind([], [])
        for of, payload in database.execute(query, (self._first_id, MAX_NEWEST)):
            (found.raised if of.startswith(_ALERTS) else found.unfinished).append(payload)
        return found

    def _first_old_id(self, database: sqlite3.Connection) -> int:
        newest = database.execute("SELECT max(id) FROM records WHERE id < 0").fetchone()[0]
        return _FIRST_OLD_ID if newest is None else int(newest) + 1

    def _new_epoch(self, database: sqlite3.Connection, epoch: str, *, is_old: bool) -> int:
        database.execute(
            "INSERT OR IGNORE INTO epochs (id, epoch) "
            "SELECT coalesce(max(id) + 1, ?), ? FROM epochs WHERE (id < 0) = ?",
            (_FIRST_OLD_ID if is_old else 1, epoch, is_old),
        )
        number: int = database.execute("SELECT id FROM epochs WHERE epoch = ?", (epoch,)).fetchone()[0]
        self._epoch_ids[epoch] = number
        return number

    def _new_topic(self, database: sqlite3.Connection, topic: str) -> int:
        database.execute("INSERT OR IGNORE INTO topics (topic) VALUES (?)", (topic,))
        number: int = database.execute("SELECT id FROM topics WHERE topic = ?", (topic,)).fetchone()[0]
        self._topic_ids[topic] = number
        return number

    def _end_epoch(self, database: sqlite3.Connection, epoch: str, last_seqs: bytes, *, is_old: bool = False) -> None:
        database.execute("BEGIN IMMEDIATE")
        with database:
            number = self._epoch_ids.get(epoch) or self._new_epoch(database, epoch, is_old=is_old)
            database.execute("UPDATE epochs SET last_seqs = ? WHERE id = ?", (last_seqs.decode(), number))
            self._forget_ended(database)

    def _convert(self, database: sqlite3.Connection, records: Sequence[SegmentRecord], written_at: float) -> None:
        events = [
            Record(epoch, topic, seq, _published_at(payload) or written_at, payload)
            for epoch, topic, seq, payload in records
            if topic
        ]
        for batch in self.batches(events):
            self._append(database, batch, are_old=True)
        for epoch, topic, _, payload in records:
            if not topic and _last_seqs(payload) is not None:
                self._end_epoch(database, epoch, payload, is_old=True)
        # The segment is deleted next, and that may reach the disk before what SQLite has only handed to the kernel.
        self._sync_log()

    def _answer(self, database: sqlite3.Connection, request: ReplayRequest) -> Replayed:
        epoch, topic = request.epoch or self._epoch, request.topic
        key = self._key(database, epoch, topic)
        end, end_is_known = self._end_of(database, key, epoch, topic)
        last = end if request.to_seq is None else min(request.to_seq, end)
        taken: list[tuple[int, bytes]] = []
        left = MAX_ANSWER_BYTES
        is_cut = False
        with contextlib.closing(
            database.execute(
                "SELECT seq, payload FROM records "
                "WHERE epoch_id = ? AND topic_id = ? AND seq BETWEEN ? AND ? ORDER BY seq",
                (*key, request.from_seq, last),
            )
        ) as rows:
            for seq, payload in rows:
                is_cut = len(taken) == MAX_ANSWER_EVENTS or (bool(taken) and len(payload) > left)
                if is_cut:
                    break
                left -= len(payload)
                taken.append((seq, payload))
        next_seq = taken[-1][0] + 1 if is_cut else max(request.from_seq, last + 1)
        is_over = epoch != self._epoch and next_seq > end
        return Replayed(
            request.id,
            topic,
            epoch,
            request.from_seq,
            next_seq,
            more=next_seq <= last,
            next_epoch=self._epoch_after(database, key) if is_over else None,
            end_is_known=end_is_known,
            events=[payload for _, payload in taken],
            seqs=tuple(seq for seq, _ in taken),
        )

    def _key(self, database: sqlite3.Connection, epoch: str, topic: str) -> tuple[int | None, int | None]:
        """Ids of an epoch and a topic; None where nothing is kept of it."""
        known = "SELECT (SELECT id FROM epochs WHERE epoch = ?), (SELECT id FROM topics WHERE topic = ?)"
        epoch_id, topic_id = database.execute(known, (epoch, topic)).fetchone()
        return epoch_id, topic_id

    def _end_of(
        self, database: sqlite3.Connection, key: tuple[int | None, int | None], epoch: str, topic: str
    ) -> tuple[int, bool]:
        """The last number of a topic in an epoch, and whether that is certain."""
        if epoch == self._epoch:
            return self._last_seqs.get(topic, 0), True
        newest = "SELECT max(seq) FROM records WHERE epoch_id = ? AND topic_id = ?"
        kept = database.execute(newest, key).fetchone()[0] or 0
        row = database.execute("SELECT last_seqs FROM epochs WHERE id = ?", key[:1]).fetchone()
        end = _last_seqs(row[0]) if row and row[0] else None
        return (kept, False) if end is None else (end.get(topic, kept), True)

    def _epoch_after(self, database: sqlite3.Connection, key: tuple[int | None, int | None]) -> str:
        """The next one that has events of the topic; the present one where nothing is known of the epoch."""
        row = database.execute(
            "SELECT epoch FROM epochs WHERE id > ? AND EXISTS "
            "(SELECT 1 FROM records WHERE epoch_id = epochs.id AND topic_id = ?) ORDER BY id LIMIT 1",
            key,
        ).fetchone()
        return row[0] if row else self._epoch

    # ---- room ----

    def _make_room(self, database: sqlite3.Connection, needed_bytes: int) -> int:
        """Deletes what is oldest, as much as it takes for what is written next; returns how much can be written."""
        while (room_bytes := self._max_database_bytes() - self._used_database_bytes(database)) < needed_bytes:
            if not (self._delete_set_aside() or self._delete_oldest(database, needed_bytes) or self._delete_segment()):
                break
        return min(room_bytes, self._count_log_room(database, needed_bytes))

    def _max_database_bytes(self) -> int:
        """What the database itself may take, beside its log, the index of that, and the other files."""
        log_index_bytes = self._max_log_bytes // 64 + (32 << 10)
        return self._max_bytes - self._max_log_bytes - log_index_bytes - self._other_bytes

    def _used_database_bytes(self, database: sqlite3.Connection) -> int:
        return (_pragma(database, "page_count") - _pragma(database, "freelist_count")) * _PAGE_BYTES

    def _delete_oldest(self, database: sqlite3.Connection, enough_bytes: int) -> bool:
        """Deletes the oldest events, as many at once as the log may take; false where there were none."""
        # While there are segments, what is newer than those is not the oldest.
        end = 0 if self._segments else self._next_id
        oldest = "SELECT id, length(payload) FROM records WHERE id < ? ORDER BY id LIMIT ?"
        last, freed_bytes = None, 0
        with contextlib.closing(database.execute(oldest, (end, self._deleted_at_once))) as rows:
            for number, size_bytes in rows:
                last = number
                freed_bytes += size_bytes
                if freed_bytes >= enough_bytes:
                    break
        if last is None:
            return False
        self._count_log_room(database, self._batch_bytes)
        database.execute("BEGIN IMMEDIATE")
        with database:
            database.execute("DELETE FROM records WHERE id <= ?", (last,))
            database.execute("DELETE FROM occurrences WHERE id <= ?", (last,))
            database.execute("DELETE FROM outages WHERE id <= ? AND ended_at IS NOT NULL", (last,))
        return True

    def _delete_older(self, database: sqlite3.Connection, limit: float, now: float) -> bool:
        oldest = "SELECT id, kept_at FROM records WHERE id >= ? AND kept_at <= ? ORDER BY id LIMIT ?"
        first, last = None, None
        with contextlib.closing(database.execute(oldest, (self._oldest_id, now, self._deleted_at_once))) as rows:
            for number, kept_at in rows:
                first = number if first is None else first
                if kept_at >= limit:
                    break
                last = number
        if first is not None:
            self._oldest_id = first
        if last is None:
            return False
        self._count_log_room(database, self._batch_bytes)
        database.execute("BEGIN IMMEDIATE")
        with database:
            database.execute("DELETE FROM records WHERE id BETWEEN ? AND ? AND kept_at < ?", (first, last, limit))
            database.execute(
                "DELETE FROM occurrences WHERE id <= ? AND NOT EXISTS "
                "(SELECT 1 FROM records WHERE records.id = occurrences.id)",
                (last,),
            )
            database.execute("DELETE FROM outages WHERE id <= ? AND ended_at < ?", (last, limit))
        return True

    def _delete_set_aside(self) -> bool:
        files = self._set_aside_files()
        for path in files:
            _log.warning("%s is deleted to make room for events", path)
            path.unlink(missing_ok=True)
        self._other_bytes = self._count_other_bytes()
        return bool(files)

    def _delete_segment(self) -> bool:
        if not self._segments:
            return False
        self._segments.pop(0).unlink(missing_ok=True)
        self._other_bytes = self._count_other_bytes()
        return True

    def _count_log_room(self, database: sqlite3.Connection, needed_bytes: int) -> int:
        """How much the write-ahead log may still grow.

        Raises:
            OSError: not so much.
        """
        room_bytes = self._max_log_bytes - _size([self._log_path])
        if room_bytes >= needed_bytes:
            return room_bytes
        is_busy = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if is_busy:
            raise OSError(errno.ENOSPC, "another program has been reading the database for too long")
        return self._max_log_bytes

    def _sync_log(self) -> None:
        """Brings the write-ahead log onto the disk; SQLite does so only when the log goes into the database."""
        with contextlib.suppress(FileNotFoundError):
            log = os.open(self._log_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(log)
            finally:
                os.close(log)

    def _shrink(self, database: sqlite3.Connection) -> bool:
        if self._used_database_bytes(database) > self._max_database_bytes():
            return self._delete_set_aside() or self._delete_oldest(database, self._batch_bytes)
        pages, free_pages = _pragma(database, "page_count"), _pragma(database, "freelist_count")
        is_too_large = pages * _PAGE_BYTES > self._max_database_bytes()
        if not free_pages or not (is_too_large or free_pages > max(pages // 4, self._checkpoint_pages)):
            return False
        self._count_log_room(database, self._batch_bytes)
        # Each page that moves changes others, too.
        database.execute(f"PRAGMA incremental_vacuum({max(self._checkpoint_pages // 4, 1)})").fetchall()
        return True

    def _forget_names(self, database: sqlite3.Connection) -> None:
        self._epoch_ids, self._topic_ids = {}, {}
        self._oldest_id = _FIRST_OLD_ID
        database.execute("BEGIN IMMEDIATE")
        with database:
            database.execute("DELETE FROM epochs WHERE id < (SELECT epoch_id FROM records ORDER BY id LIMIT 1)")
            database.execute(
                "DELETE FROM topics WHERE NOT EXISTS (SELECT 1 FROM records WHERE topic_id = topics.id LIMIT 1)"
            )
            # Of a stream that was removed while it was down: another topic may get the id.
            database.execute("DELETE FROM outages WHERE topic_id NOT IN (SELECT id FROM topics)")

    # ---- the files ----

    def _use(
        self,
        work: Callable[Concatenate[sqlite3.Connection, _Arguments], _Result],
        *arguments: _Arguments.args,
        **keywords: _Arguments.kwargs,
    ) -> _Result:
        """Works with the database; once more, with a new one, where the file turns out to be damaged."""
        try:
            return work(self._database or self._connect(), *arguments, **keywords)
        except sqlite3.Error as error:
            self._recover(error)
        return work(self._connect(), *arguments, **keywords)

    def _recover(self, error: sqlite3.Error) -> None:
        """Sets a damaged file aside; raises any other error again."""
        self._epoch_ids, self._topic_ids = {}, {}  # some may have been rolled back
        self._room_bytes = 0
        code = _code(error)
        if isinstance(error, _UnusableError) or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._set_aside(str(error))
            return
        # After these it can still be read; with others the next try opens it again.
        if code & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY) and code != sqlite3.SQLITE_IOERR_WRITE:
            self._disconnect()
        raise error

    def _connect(self) -> sqlite3.Connection:
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                why = why_foreign(path.lstat())
                if why is not None:
                    message = f"{path.name}: {why}"
                    raise _UnusableError(message)
        if not self.directory.exists():
            # Someone has deleted it; the lock is that of the one that is gone.
            self._unlock()
            self._lock = lock_directory(self.directory)
        with contextlib.suppress(FileExistsError):
            # SQLite would make it readable for others.
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            self._prepare(database)
            newest = database.execute("SELECT max(id) FROM records").fetchone()[0]
            if self._first_id is None:
                _end_outages(database)
        except BaseException:
            # Raised again, whatever it is: a connection that is not kept would hold the file's locks.
            database.close()
            raise
        self._next_id = max(self._next_id, (newest or 0) + 1)
        if self._first_id is None:
            self._first_id = self._next_id
        self._inodes = self._inodes_now()
        self._database = database
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Sets the connection up, makes the tables in a new file, and looks whether an old one is sound."""
        is_new = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        marks = _pragma(database, "application_id"), _pragma(database, "user_version")
        if marks != ((0, 0) if is_new else (_APPLICATION, _VERSION)):
            message = "its tables are not those of this version's spool"
            raise _UnusableError(message)
        if is_new:
            database.executescript(_SCHEMA)
        if not database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'newest'").fetchone()[0]:
            database.execute(_NEWEST)
        database.executescript(_INDEX)
        for setting in (
            "secure_delete = OFF",
            "synchronous = NORMAL",
            f"wal_autocheckpoint = {self._checkpoint_pages}",
            f"journal_size_limit = {self._batch_bytes}",
        ):
            database.execute(f"PRAGMA {setting}").fetchall()
        # It takes about a second per GiB, so of a large file only the small tables are looked at.
        is_large = self.path.stat().st_size > _MAX_CHECKED_BYTES
        for which in ("epochs", "topics", "newest", "outages") if is_large else ("1",):
            result = database.execute(f"PRAGMA quick_check({which})").fetchone()[0]
            if result != "ok":
                raise _UnusableError(result)

    def _disconnect(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            self._epoch_ids, self._topic_ids = {}, {}
            database.close()

    def _inodes_now(self) -> tuple[int, int]:
        """The numbers of the database, which never is empty, and of its log."""
        return _inode(self.path, least_bytes=1), _inode(self._log_path)

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _files(self) -> list[Path]:
        """The database and what SQLite keeps beside it; its write-ahead log is the second."""
        return [self.path.with_name(_NAME + suffix) for suffix in _SUFFIXES]

    def _set_aside(self, why: str) -> None:
        self._disconnect()
        aside = next(
            path
            for path in (self.directory / f"set-aside-{number}.sqlite" for number in itertools.count(1))
            if not os.path.lexists(path)
        )
        for path, suffix in zip(self._files(), _SUFFIXES, strict=True):
            with contextlib.suppress(FileNotFoundError):
                path.rename(f"{aside}{suffix}")
        self._other_bytes = self._count_other_bytes()
        _log.warning("%s is set aside as %s, and a new one is created: %s", self.path, aside.name, why)

    def _set_aside_files(self) -> list[Path]:
        return [path for path in self.directory.glob("set-aside-*.sqlite*") if why_foreign(path.lstat()) is None]

    def _count_other_bytes(self) -> int:
        self._room_bytes = 0
        return _size(self._segments) + _size(self._set_aside_files())


def _lock(directory: Path) -> int:
    """Makes a directory, and locks it for this process until the descriptor that it returns is closed.

    Raises:
        SpoolError: it cannot be used.
    """
    try:
        lock = lock_directory(directory)
    except OSError as error:
        raise _unusable(directory, error.strerror or str(error)) from None
    if others_can_delete(lock):
        _log.warning(
            "%s: other users can delete files in it; make this user its owner, and only it may write", directory
        )
    return lock


def _unusable(directory: Path, why: str) -> SpoolError:
    return SpoolError(f"cannot keep events in {directory}: {why}")


def _insert(database: sqlite3.Connection, values: Sequence[object]) -> None:
    """Inserts rows of `records`, whose values come one after the other."""
    # A stream that is removed and comes back may count from 1 again in the same epoch.
    statement = "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?)"
    database.execute(statement + ", (?, ?, ?, ?, ?, ?)" * (len(values) // 6 - 1), values)


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


def _code(error: Exception) -> int:
    """SQLite's extended code of an error; 0 where it has none."""
    return getattr(error, "sqlite_errorcode", 0)


def _size(paths: Iterable[Path | str]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):  # what cannot be looked at cannot be written either, which says why
            total += os.lstat(path).st_size
    return total


def _inode(path: Path | str, least_bytes: int = 0) -> int:
    """The number of a file; 0 where there is none, or it has fewer bytes."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_ino if status.st_size >= least_bytes else 0


class _Standing(NamedTuple):
    """What a state event says of its stream.

    Attributes:
        at: Unix time in seconds from which on it is so.
        is_down: whether frames should come and do not, or the stream rests; not so of one that was removed.
        reason: why; None where it is not known.
    """

    at: float
    is_down: bool
    reason: str | None


class _Note(NamedTuple):
    """What the small tables get from a record.

    Attributes:
        number: its id.
        topic_id: of its topic.
        topic: the topic.
        of: what the event is about.
    """

    number: int
    topic_id: int
    topic: str
    of: Occurrence | _Standing


def _noted(topic: str, payload: bytes, kept_at: float) -> Occurrence | _Standing | None:
    """What an event is about; None where it makes no sense."""
    try:
        event = orjson.loads(payload)
        if topic.startswith(OCCURRENCES):
            return occurrence_of(event)
        since, reason = event["since"], event["reason"]
        is_down = event["state"] != "up" and reason != "removed"
        # The clock may have been set meanwhile: never of the future.
        return _Standing(min(float(since), kept_at), is_down, None if reason is None else str(reason))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def _write_note(database: sqlite3.Connection, note: _Note) -> None:
    """Writes a note, in the transaction that writes its record."""
    number, topic_id, occurrence = note.number, note.topic_id, note.of
    if isinstance(occurrence, _Standing):
        _write_standing(database, number, topic_id, occurrence)
        return
    if occurrence.is_listed:
        _, _, began_at, ended_at, label, rule, zones = occurrence
        row = (number, number, topic_id, began_at, ended_at, label, rule, orjson.dumps(zones).decode())
        database.execute("INSERT OR REPLACE INTO occurrences VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    elif occurrence.is_over:
        # An alert is cleared: the table of newest events leads to the one that raised it.
        database.execute(
            "UPDATE occurrences SET newest_id = ?, ended_at = ? WHERE id = (SELECT record_id FROM newest WHERE id = ?)",
            (number, occurrence.ended_at, occurrence.id),
        )
    if not occurrence.is_over:
        database.execute("INSERT OR REPLACE INTO newest VALUES (?, ?)", (occurrence.id, number))
    if occurrence.rule is not None and occurrence.phase == "raised":
        database.execute("INSERT OR REPLACE INTO newest VALUES (?, ?)", (note.topic + occurrence.rule, number))


def _write_standing(database: sqlite3.Connection, number: int, topic_id: int, standing: _Standing) -> None:
    """Begins, goes on with, or ends the time at which a stream is not up."""
    found = "SELECT id, reason FROM outages WHERE topic_id = ? AND ended_at IS NULL"
    outage_id, reason = database.execute(found, (topic_id,)).fetchone() or (None, None)
    # Whether it rests or fails is a difference to see; an attempt to connect again says nothing new.
    is_other = standing.reason != reason and (standing.reason in RESTING or reason in RESTING)
    if outage_id is not None and (is_other or not standing.is_down):
        database.execute("UPDATE outages SET ended_at = max(?, began_at) WHERE id = ?", (standing.at, outage_id))
        outage_id = None
    if not standing.is_down:
        return
    if outage_id is None:
        row = (number, topic_id, standing.at, None, standing.reason)
        database.execute("INSERT OR REPLACE INTO outages VALUES (?, ?, ?, ?, ?)", row)
    elif standing.reason is not None:
        database.execute("UPDATE outages SET reason = ? WHERE id = ?", (standing.reason, outage_id))


def _end_outages(database: sqlite3.Connection) -> None:
    """Ends what an earlier run left open, at its last event: this run may not have these streams any more."""
    database.execute(
        "UPDATE outages SET ended_at = "
        "max(began_at, coalesce((SELECT kept_at FROM records ORDER BY id DESC LIMIT 1), 0)) WHERE ended_at IS NULL"
    )


def _last_seqs(text: bytes | str) -> dict[str, int] | None:
    """The last number of each topic of an epoch; None where it makes no sense."""
    try:
        last_seqs = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(last_seqs, dict) or any(
        type(seq) is not int or not 0 <= seq <= MAX_INTEGER for seq in last_seqs.values()
    ):
        return None
    return last_seqs


def _published_at(payload: bytes) -> float | None:
    """When an event was published, in Unix time; None where it does not say so."""
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    published_at = event.get("published_at") if isinstance(event, dict) else None
    return float(published_at) if isinstance(published_at, int | float) and 0 < published_at < MAX_INTEGER else None
