"""Keeps events on disk, so that replay reaches back over restarts: an append-only log, bounded by size and age.

One thread writes and reads. A crash of the process costs the events of its last 20 ms at the most; what the kernel has
not yet put on the disk, a second at the most, does not survive a loss of power either. A disk that is full or
broken costs events of the log, which are counted, and nothing else.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import orjson
from prometheus_client import CollectorRegistry

from streamdet.config import SpoolConfig
from streamdet.delivery.segment import MAGIC, encode_record
from streamdet.delivery.segments import Segments
from streamdet.monitoring.delivery_metrics import DeliveryMetrics
from streamdet.monitoring.log import FailureLog
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.limits import Share
from streamdet.wire.replay import Answer, Refused, ReplayRequest
from streamdet.worker import Worker

_MAX_QUEUED_EVENTS = 20_000
_MAX_QUEUED_BYTES = 32 << 20
_MAX_REQUESTS = 512
_MAX_REQUESTS_OF_A_CLIENT = 8
# Reading for those who ask takes a twentieth of a core at most, but for what it takes to fill one subscriber's gaps.
_SHARE_OF_READING = 0.05
_BURST_OF_READING_SECONDS = 0.5
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


_Question = tuple[int, str, str | None, int]
"""Id, topic, epoch and first number of a request: how far it goes may change when it is repeated."""

_Fetch = tuple[ReplayRequest, Callable[[Answer], None]]


class Spool(Worker):
    """The log of one daemon, in a directory of its own.

    Args:
        config: where, how much and for how long.
        epoch: the present one.
        metrics: counts what is kept and what is not.
        on_error: told when the thread ends with an error.
        unexpected: told of errors that cost the answer to a single request.

    Raises:
        SpoolError: the directory cannot be used.
    """

    def __init__(
        self,
        config: SpoolConfig,
        epoch: str,
        metrics: DeliveryMetrics,
        on_error: Callable[[Worker], None] | None = None,
        unexpected: UnexpectedErrors | None = None,
    ) -> None:
        super().__init__("spool", on_error)
        self._unexpected = unexpected or UnexpectedErrors(CollectorRegistry())
        self._epoch = epoch
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queue: deque[_Event] = deque()
        self._queued_bytes = 0
        # By client, in the order of their turns; and by what is asked, in the order in which it came.
        self._fetches: dict[bytes, dict[_Question, _Fetch]] = {}
        self._fetching = Share(_SHARE_OF_READING, _BURST_OF_READING_SECONDS)
        self._last_seqs: dict[str, int] = {}
        self._file = -1
        self._try_again_at = 0.0
        self._reason = self._problem = ""  # why the newest write failed, as the metrics and the log say it
        self._is_dirty = False
        self._sync_at = self._tidy_at = 0.0
        directory = Path(config.directory or "")
        limits = config.max_bytes, config.max_age_seconds
        self._segments = Segments(directory, *limits, epoch, self._last_seqs)
        self._failure = FailureLog(_log, "{} events were not kept")
        self._unreadable = FailureLog(_log, "{} requests were not answered")
        self._unsynced = FailureLog(_log, "{} times")

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

    def forget(self, topic: str) -> None:
        """Forgets how far a topic of the present epoch came, but not its events."""
        with self._changed:
            self._last_seqs.pop(topic, None)

    def fetch(self, client: bytes, request: ReplayRequest, reply: Callable[[Answer], None]) -> bool:
        """Has a request answered in this thread; clients take turns, and the requests of each are answered in order.

        A request that is repeated while it waits keeps its place. False when too many wait.
        """
        question = request.id, request.topic, request.epoch, request.from_seq
        with self._changed:
            of_client = self._fetches.get(client, {})
            waiting = sum(map(len, self._fetches.values()))
            is_full = len(of_client) >= _MAX_REQUESTS_OF_A_CLIENT or waiting >= _MAX_REQUESTS
            if question not in of_client and is_full:
                return False
            of_client[question] = request, reply
            self._fetches[client] = of_client
            self._changed.notify()
        return True

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Frees the directory of a spool that was never started; a running one does it itself at its end."""
        if not self.is_alive() or threading.current_thread() is self._thread:
            self._segments.close()

    def run(self) -> None:
        """Writes and answers until asked to stop and nothing is left to write."""
        try:
            while self._turn():
                self.beat()
            self._end_epoch()
            self._failure.end(f"events were not kept in {self._segments.directory}")
        finally:
            self._close_file()
            self.close()

    def _turn(self) -> bool:
        with self._changed:
            if not self._segments.is_unread:
                self._wait()
            events, self._queue, self._queued_bytes = self._queue, deque(), 0
            is_last = self.stopping and not events
            fetch = self._next_fetch()
        if events:
            self._write(events)
        if self._segments.is_unread:
            # One after the other, so that writing never waits for all of them.
            self._segments.read_next()
        if fetch is not None:
            # Time of the processor: on a busy machine a reader must not wait for what others do as well.
            began = time.thread_time()
            self._answer(*fetch)
            self._fetching.worked(time.thread_time() - began)
        self._tidy()
        if events and fetch is None:
            self.sleep(_GATHER_SECONDS)
        return not is_last

    def _wait(self) -> None:
        """Waits for events, a request that may be answered, or the end."""
        pause_seconds = self._fetching.wait_seconds() if self._fetches else 0.0
        if pause_seconds > 0:
            self._changed.wait_for(lambda: self._queue or self.stopping, min(pause_seconds, _SYNC_SECONDS))
        else:
            self._changed.wait_for(lambda: self._queue or self._fetches or self.stopping, _SYNC_SECONDS)

    def _next_fetch(self) -> _Fetch | None:
        """The request whose turn it is; None where there is none, or it may not be answered yet."""
        if self._segments.is_unread or not self._fetches or self._fetching.wait_seconds() > 0:
            return None
        client = next(iter(self._fetches))
        of_client = self._fetches.pop(client)
        fetch = of_client.pop(next(iter(of_client)))
        if of_client:
            self._fetches[client] = of_client  # behind all others
        return fetch

    def _answer(self, request: ReplayRequest, reply: Callable[[Answer], None]) -> None:
        try:
            reply(self._segments.answer(request))
        except OSError as error:
            self._unreadable.failed(f"cannot read events in {self._segments.directory}: {error}")
            reply(Refused(request.id, "busy", "the events on disk cannot be read now"))
        except Exception as error:  # noqa: BLE001 - whatever it is: events are to be kept, and others have asked, too
            self._unexpected.report("replay", error, "a request for replay is refused")
            reply(Refused(request.id, "failed", "an unexpected error; see the log"))

    def _write(self, events: deque[_Event]) -> None:
        if time.monotonic() < self._try_again_at:
            self._not_kept(len(events))
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
        return self._segments.segment_bytes - (self._segments.newest.used_bytes if self._file >= 0 else len(MAGIC))

    def _append(self, records: list[tuple[_Event, bytes]]) -> None:
        """Writes records to the newest segment: all of them, or none."""
        if not records:
            return
        try:
            if self._file < 0:
                self._begin_segment()
            segment = self._segments.newest
            data = b"".join(record for _, record in records)
            _write_all(self._file, data)
        except OSError as error:
            self._failed(error, sum(bool(event.topic) for event, _ in records))
            return
        self._failure.works(f"events are kept in {self._segments.directory} again")
        segment.used_bytes += len(data)
        segment.newest_at = time.time()
        for event, _ in records:
            segment.note(self._epoch, event.topic, event.seq, event.payload)
        self._is_dirty = True
        self._metrics.kept(sum(bool(event.topic) for event, _ in records))

    def _begin_segment(self) -> None:
        segment, self._file = self._segments.make()
        _write_all(self._file, MAGIC)
        segment.used_bytes = len(MAGIC)

    def _failed(self, error: OSError, count: int) -> None:
        """Counts what could not be written, and takes back what was written of it in part."""
        self._reason = "disk_full" if error.errno in _FULL else "error"
        self._problem = f"cannot keep events in {self._segments.directory}: {error}; they are published all the same"
        self._not_kept(count)
        self._try_again_at = time.monotonic() + _TRY_AGAIN_SECONDS
        if self._file < 0:
            return
        segment = self._segments.newest
        try:
            os.ftruncate(self._file, segment.used_bytes)
            os.lseek(self._file, segment.used_bytes, os.SEEK_SET)
        except OSError:
            self._close_file()  # the torn record stays at its end, where no reader goes
        if segment.used_bytes < len(MAGIC):
            self._close_file()
            self._segments.remove(segment)

    def _not_kept(self, count: int) -> None:
        self._metrics.not_kept(self._reason, count)
        self._failure.failed(self._problem, count)

    def _end_epoch(self) -> None:
        """Writes down how far each topic came; without it, a reader cannot know whether the end is missing."""
        with self._changed:
            last_seqs = dict(self._last_seqs)
        if last_seqs:
            self._append_end(orjson.dumps(last_seqs))

    def _append_end(self, payload: bytes) -> None:
        self._append([(_Event("", 0, payload), encode_record(self._epoch, "", 0, payload))])

    def _tidy(self) -> None:
        now = time.monotonic()
        if self._is_dirty and now >= self._sync_at:
            self._sync()
            self._sync_at = now + _SYNC_SECONDS
        if now >= self._tidy_at and not self._segments.is_unread:
            self._segments.make_room(is_writing=self._file >= 0)
            self._tidy_at = now + _TIDY_SECONDS
        self._metrics.spool_used(self._segments.used_bytes)

    def _sync(self) -> None:
        self._is_dirty = False
        if self._file >= 0:
            try:
                os.fdatasync(self._file)
            except OSError as error:
                self._unsynced.failed(f"cannot sync {self._segments.directory}: {error}")

    def _close_file(self) -> None:
        if self._file >= 0:
            self._sync()
            file, self._file = self._file, -1
            try:
                os.close(file)
            except OSError as error:  # some file systems only now find that the disk is full
                self._unsynced.failed(f"cannot sync {self._segments.directory}: {error}")


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
