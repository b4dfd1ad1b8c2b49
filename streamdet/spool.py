"""Keeps events on disk, so that replay reaches back over restarts: an append-only log, bounded by size and age.

One thread writes and reads. A crash of the process costs the events of its last 20 ms at the most; what the kernel has
not yet put on the disk, a second at the most, does not survive a loss of power either. A disk that is full or
broken costs events of the log, which are counted, and nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import orjson

from streamdet.config import SpoolConfig
from streamdet.delivery_metrics import DeliveryMetrics
from streamdet.errors import SpoolError
from streamdet.segment import MAGIC, Segment, encode_record
from streamdet.wire.replay import MAX_ANSWER_BYTES, MAX_ANSWER_EVENTS, Answer, Refused, Replayed, ReplayRequest
from streamdet.worker import Worker

_MAX_SEGMENT_BYTES = 8 << 20
_SEGMENTS_OF_A_SPOOL = 16
_MAX_SEGMENTS = 4096
_MAX_QUEUED_EVENTS = 20_000
_MAX_QUEUED_BYTES = 32 << 20
_MAX_FETCHES = 64
# Written together: waking for every event would cost its publisher more than all the rest.
_GATHER_SECONDS = 0.02
_SYNC_SECONDS = 1.0
_TIDY_SECONDS = 60.0
# After the disk has failed, it is tried again so often.
_TRY_AGAIN_SECONDS = 1.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


class _Event(NamedTuple):
    topic: str
    seq: int
    payload: bytes


class Spool(Worker):
    """The log of one daemon, in a directory of its own.

    Args:
        config: where, how much and for how long.
        epoch: the present one.
        metrics: counts what is kept and what is not.
        on_error: told when the thread ends with an error.

    Raises:
        SpoolError: the directory cannot be used.
    """

    def __init__(
        self,
        config: SpoolConfig,
        epoch: str,
        metrics: DeliveryMetrics,
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        super().__init__("spool", on_error)
        self._directory = Path(config.directory or "")
        self._max_bytes = config.max_bytes
        self._max_age_seconds = config.max_age_seconds
        self._segment_bytes = min(_MAX_SEGMENT_BYTES, config.max_bytes // _SEGMENTS_OF_A_SPOOL)
        self._epoch = epoch
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queue: deque[_Event] = deque()
        self._queued_bytes = 0
        self._fetches: dict[bytes, tuple[ReplayRequest, Callable[[Answer], None]]] = {}
        self._last_seqs: dict[str, int] = {}
        self._file = -1
        self._try_again_at = 0.0
        self._failing = ""  # why, as the metrics say it
        self._is_dirty = False
        self._sync_at = self._tidy_at = 0.0
        self._lock = self._open_directory()
        numbers = sorted(int(path.stem) for path in self._directory.glob("*.log") if path.stem.isdigit())
        self._segments = [Segment(self._path_of(number), number) for number in numbers]
        for segment in self._segments:
            segment.used_bytes = segment.path.stat().st_size
        self._unread = deque(self._segments)

    def keep(self, topic: str, seq: int, payload: bytes) -> None:
        """Takes an event of the present epoch; does not wait: where too many wait already, it is not kept."""
        with self._changed:
            self._last_seqs[topic] = seq
            is_full = len(self._queue) >= _MAX_QUEUED_EVENTS or self._queued_bytes >= _MAX_QUEUED_BYTES
            if not is_full:
                self._queue.append(_Event(topic, seq, payload))
                self._queued_bytes += len(payload)
                if len(self._queue) == 1:
                    self._changed.notify()
        if is_full:
            self._metrics.not_kept("queue_full", 1)

    def fetch(self, client: bytes, request: ReplayRequest, reply: Callable[[Answer], None]) -> bool:
        """Has a request answered in this thread; one for each client, the newest. False when too many wait."""
        with self._changed:
            if client not in self._fetches and len(self._fetches) >= _MAX_FETCHES:
                return False
            self._fetches[client] = request, reply
            self._changed.notify()
        return True

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Frees the directory of a spool that was never started; a running one does it itself at its end."""
        if self._lock >= 0 and (not self.is_alive() or threading.current_thread() is self._thread):
            os.close(self._lock)
            self._lock = -1

    def run(self) -> None:
        """Writes and answers until asked to stop and nothing is left to write."""
        try:
            while self._turn():
                self.beat()
            self._end_epoch()
        finally:
            self._close_file()
            self.close()

    def _turn(self) -> bool:
        with self._changed:
            if not self._unread:
                self._changed.wait_for(lambda: self._queue or self._fetches or self.stopping, _SYNC_SECONDS)
            events, self._queue, self._queued_bytes = self._queue, deque(), 0
            is_last = self.stopping and not events
            client = None if self._unread else next(iter(self._fetches), None)
            fetch = None if client is None else self._fetches.pop(client)
        if events:
            self._write(events)
        if self._unread:
            # One after the other, so that writing never waits for all of them.
            self._read_through(self._unread.popleft())
        if fetch is not None:
            request, reply = fetch
            try:
                reply(self._answer(request))
            except OSError as error:
                _log.warning("cannot read events in %s: %s", self._directory, error)
                reply(Refused(request.id, "busy", "the events on disk cannot be read now"))
        self._tidy()
        if events and fetch is None:
            self.sleep(_GATHER_SECONDS)
        return not is_last

    def _write(self, events: deque[_Event]) -> None:
        if time.monotonic() < self._try_again_at:
            self._metrics.not_kept(self._failing, len(events))
            return
        waiting: list[tuple[_Event, bytes]] = []
        waiting_bytes = 0
        for event in events:
            record = encode_record(self._epoch, event.topic, event.seq, event.payload)
            if self._room() < waiting_bytes + len(record) and (waiting or self._file >= 0):
                self._append(waiting)
                self._close_file()
                waiting, waiting_bytes = [], 0
            waiting.append((event, record))
            waiting_bytes += len(record)
        self._append(waiting)

    def _room(self) -> int:
        return self._segment_bytes - (self._segments[-1].used_bytes if self._file >= 0 else len(MAGIC))

    def _append(self, records: list[tuple[_Event, bytes]]) -> None:
        """Writes records to the newest segment: all of them, or none."""
        if not records:
            return
        try:
            if self._file < 0:
                self._begin_segment()
            segment = self._segments[-1]
            data = b"".join(record for _, record in records)
            _write_all(self._file, data)
        except OSError as error:
            self._failed(error, sum(bool(event.topic) for event, _ in records))
            return
        if self._failing:
            self._failing = ""
            _log.info("events are kept in %s again", self._directory)
        segment.used_bytes += len(data)
        for event, _ in records:
            segment.note(self._epoch, event.topic, event.seq, event.payload)
        self._is_dirty = True
        self._metrics.kept(sum(bool(event.topic) for event, _ in records))

    def _begin_segment(self) -> None:
        self._make_room()
        number = self._segments[-1].number + 1 if self._segments else 1
        segment = Segment(self._path_of(number), number)
        self._file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._segments.append(segment)
        _write_all(self._file, MAGIC)
        segment.used_bytes = len(MAGIC)

    def _failed(self, error: OSError, count: int) -> None:
        """Counts what could not be written, and takes back what was written of it in part."""
        reason = "disk_full" if error.errno in _FULL else "error"
        self._metrics.not_kept(reason, count)
        if not self._failing:
            _log.warning("cannot keep events in %s: %s; they are published all the same", self._directory, error)
        self._failing = reason
        self._try_again_at = time.monotonic() + _TRY_AGAIN_SECONDS
        if self._file < 0:
            return
        segment = self._segments[-1]
        try:
            os.ftruncate(self._file, segment.used_bytes)
            os.lseek(self._file, segment.used_bytes, os.SEEK_SET)
        except OSError:
            self._close_file()  # the torn record stays at its end, where no reader goes
        if segment.used_bytes < len(MAGIC):
            self._close_file()
            self._remove(segment)

    def _answer(self, request: ReplayRequest) -> Replayed:
        epoch, topic = request.epoch or self._epoch, request.topic
        holding = [segment for segment in self._segments if (epoch, topic) in segment.ranges]
        end, end_is_known = self._end_of(epoch, topic, holding)
        last = end if request.to_seq is None else min(request.to_seq, end)
        taken: list[tuple[int, bytes]] = []
        left = MAX_ANSWER_BYTES
        is_cut = False
        used = []
        for segment in holding:
            first_here, last_here = segment.ranges[epoch, topic]
            if last_here < request.from_seq or first_here > last:
                continue
            more = segment.take((epoch, topic), request.from_seq, last, MAX_ANSWER_EVENTS - len(taken), left)
            taken += more
            used.append(segment)
            left -= sum(len(payload) for _, payload in more)
            if len(taken) >= MAX_ANSWER_EVENTS or left <= 0 or (taken and taken[-1][0] < min(last, last_here)):
                is_cut = True
                break
        for segment in self._segments:
            if segment not in used:
                segment.forget_index()
        next_seq = taken[-1][0] + 1 if taken and is_cut else max(request.from_seq, last + 1)
        is_over = epoch != self._epoch and next_seq > end
        return Replayed(
            request.id,
            topic,
            epoch,
            request.from_seq,
            next_seq,
            more=next_seq <= last,
            next_epoch=self._epoch_after(epoch, topic) if is_over else None,
            end_is_known=end_is_known,
            events=[payload for _, payload in taken],
            seqs=tuple(seq for seq, _ in taken),
        )

    def _end_of(self, epoch: str, topic: str, holding: list[Segment]) -> tuple[int, bool]:
        """The last number of a topic in an epoch, and whether that is certain."""
        if epoch == self._epoch:
            return self._last_seqs.get(topic, 0), True
        kept = holding[-1].ranges[epoch, topic][1] if holding else 0
        for segment in self._segments:
            if epoch in segment.ends:
                return segment.ends[epoch].get(topic, kept), True
        return kept, False

    def _epoch_after(self, epoch: str, topic: str) -> str:
        """The next one that has events of the topic; the present one where nothing is known of the epoch."""
        order = dict.fromkeys(key for segment in self._segments for key in segment.ranges)
        epochs = list(dict.fromkeys(known for known, _ in order))
        later = epochs[epochs.index(epoch) + 1 :] if epoch in epochs else []
        return next((known for known in later if (known, topic) in order), self._epoch)

    def _end_epoch(self) -> None:
        """Writes down how far each topic came; without it, a reader cannot know whether the end is missing."""
        if self._last_seqs:
            self._append_end(orjson.dumps(self._last_seqs))

    def _append_end(self, payload: bytes) -> None:
        self._append([(_Event("", 0, payload), encode_record(self._epoch, "", 0, payload))])

    def _tidy(self) -> None:
        now = time.monotonic()
        if self._is_dirty and now >= self._sync_at:
            self._sync()
            self._sync_at = now + _SYNC_SECONDS
        if now >= self._tidy_at and not self._unread:
            self._make_room()
            self._tidy_at = now + _TIDY_SECONDS
        self._metrics.spool_used(sum(segment.used_bytes for segment in self._segments))

    def _make_room(self) -> None:
        """Deletes the oldest segments, as many as it takes for another one."""
        used_bytes = sum(segment.used_bytes for segment in self._segments)
        oldest_allowed = time.time() - self._max_age_seconds
        for segment in self._segments[: -1 if self._file >= 0 else None]:
            try:
                is_old = segment.path.stat().st_mtime < oldest_allowed
            except FileNotFoundError:
                is_old = True
            is_too_much = used_bytes > self._max_bytes - self._segment_bytes or len(self._segments) >= _MAX_SEGMENTS
            if not is_old and not is_too_much:
                return
            used_bytes -= segment.used_bytes
            self._remove(segment)

    def _remove(self, segment: Segment) -> None:
        self._segments.remove(segment)
        if segment in self._unread:
            self._unread.remove(segment)
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot delete %s: %s", segment.path, error)

    def _read_through(self, segment: Segment) -> None:
        try:
            torn_bytes = segment.read_through()
            if torn_bytes:
                _log.warning("%s: its last %d bytes are no sound record, and are left out", segment.path, torn_bytes)
                os.truncate(segment.path, segment.used_bytes)
        except OSError as error:
            _log.warning("cannot read %s: %s; its events are not replayed", segment.path, error)

    def _sync(self) -> None:
        self._is_dirty = False
        if self._file >= 0:
            try:
                os.fdatasync(self._file)
            except OSError as error:
                _log.warning("cannot sync %s: %s", self._directory, error)

    def _close_file(self) -> None:
        if self._file >= 0:
            self._sync()
            os.close(self._file)
            self._file = -1

    def _path_of(self, number: int) -> Path:
        return self._directory / f"{number:010d}.log"

    def _open_directory(self) -> int:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self._directory, error.strerror or str(error)) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise _unusable(self._directory, "another daemon uses it; give each its own") from None
        return lock


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _unusable(directory: Path, why: str) -> SpoolError:
    return SpoolError(f"cannot keep events in {directory}: {why}")
