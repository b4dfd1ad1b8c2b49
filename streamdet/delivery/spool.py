"""Keeps events on disk, so that events from before a restart can be replayed.

This file holds the thread, its queue and its limits; the database and its schema are in `event_store.py`. One thread
writes and reads. A crash of the process loses at most the events of the last 20 ms, a loss of power those of the last
second. While the disk is full or broken, events are not kept and are counted; publishing is not affected.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from streamdet.config import SpoolConfig
from streamdet.delivery.event_store import OCCURRENCES, EventStore, LeftBehind, Record
from streamdet.monitoring.log import FailureLog
from streamdet.monitoring.metrics import DeliveryMetrics
from streamdet.monitoring.trusted_clock import TrustedClock
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.limits import Share
from streamdet.wire.replay import Answer, Refused, ReplayRequest
from streamdet.worker import Worker

_MAX_QUEUED_EVENTS = 20_000
_MAX_QUEUED_BYTES = 32 << 20
_MAX_REQUESTS = 512
_MAX_REQUESTS_OF_A_CLIENT = 8
# Reading on request takes a twentieth of a core at most, after a burst that fills the gaps of one subscriber.
_SHARE_OF_READING = 0.05
# Events of this time are written together: to wake up for each would cost more than to write it.
_GATHER_SECONDS = 0.02
_SYNC_SECONDS = 1.0
_FORGET_SECONDS = 600.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


_Question = tuple[int, str, str | None, int]
"""Id, topic, epoch and first number of a request: how far it goes may change when it is repeated."""

_Fetch = tuple[ReplayRequest, Callable[[Answer], None]]


class Spool(Worker):
    """Keeps the events of one daemon in a directory of its own, and answers requests for old ones.

    Args:
        config: the directory, and how much is kept for how long.
        epoch: the present one.
        metrics: counts events that are kept, and those that are not.
        on_error: called when the thread ends with an error.
        unexpected: counts errors that cost the answer to a single request.
        clock: gives the age of events, and whether it can be trusted.
        try_again_seconds: after which a disk that has failed is used again.
        burst_of_reading_seconds: how much CPU time requests may take at once.

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
        clock: TrustedClock | None = None,
        *,
        try_again_seconds: float = 1.0,
        burst_of_reading_seconds: float = 0.5,
    ) -> None:
        super().__init__("spool", on_error)
        self._try_again_seconds = try_again_seconds
        self._unexpected = unexpected or UnexpectedErrors()
        self._epoch = epoch
        self._metrics = metrics
        # None among the events wakes the thread. The publisher counts what it puts in, the thread what it takes out.
        self._queue: SimpleQueue[Record | None] = SimpleQueue()
        self._put_bytes = self._taken_bytes = 0
        self._put_events = self._settled_events = 0
        self._on_settled: Callable[[], None] | None = None
        self._lock = threading.Lock()  # of the requests
        # By client, in the order of their turns; and by what is asked, in the order in which it came.
        self._fetches: dict[bytes, dict[_Question, _Fetch]] = {}
        self._take_left_behind: Callable[[LeftBehind], None] | None = None
        self._fetching = Share(_SHARE_OF_READING, burst_of_reading_seconds)
        self._last_seqs: dict[str, int] = {}
        self._try_again_at = 0.0
        self._reason = self._problem = ""  # why the newest write failed, as the metrics and the log say it
        self._tidy_at = self._sync_at = self._forget_at = self._left_behind_at = 0.0
        self._is_stuck = False  # tidying up has failed
        self._max_age_seconds = config.max_age_seconds
        self._clock = clock or TrustedClock()
        self._is_clock_compared = False
        self._reported_doubt = ""
        self._store = EventStore(Path(config.directory or ""), config.max_bytes, epoch, self._last_seqs)
        self._failure = FailureLog(_log, "{} events were not kept")
        self._unreadable = FailureLog(_log, "{} requests were not answered")
        self._untidy = FailureLog(_log, "{} failures")

    @property
    def path(self) -> Path:
        """Of the database."""
        return self._store.path

    @property
    def settled(self) -> int:
        """How many of the events that were put in have been written, or could not be."""
        return self._settled_events

    def follow(self, on_settled: Callable[[], None]) -> None:
        """Calls this in its thread whenever events of objects or alerts have settled."""
        self._on_settled = on_settled

    def keep(self, topic: str, seq: int, payload: bytes) -> int:
        """Keeps an event of the present epoch; does not wait: where too many wait already, it is not kept.

        Only one thread may call it.

        Returns:
            What `settled` is at least when the event is on disk, or will not be.
        """
        self._last_seqs[topic] = seq
        if (
            self._queue.qsize() >= _MAX_QUEUED_EVENTS
            or self._put_bytes - self._taken_bytes + len(payload) > _MAX_QUEUED_BYTES
        ):
            self._metrics.not_kept("queue_full", 1)
            return 0
        self._put_bytes += len(payload)
        self._put_events += 1
        self._queue.put(Record(self._epoch, topic, seq, self._clock.wall(), payload))
        return self._put_events

    def forget(self, topic: str) -> None:
        """Forgets how far a topic of the present epoch came, but not its events."""
        self._last_seqs.pop(topic, None)

    def fetch(self, client: bytes, request: ReplayRequest, reply: Callable[[Answer], None]) -> bool:
        """Has a request answered in this thread; clients take turns, and the requests of each are answered in order.

        A request that is repeated while it waits keeps its place. False when too many wait.
        """
        question = request.id, request.topic, request.epoch, request.from_seq
        with self._lock:
            of_client = self._fetches.get(client, {})
            waiting = sum(map(len, self._fetches.values()))
            is_full = len(of_client) >= _MAX_REQUESTS_OF_A_CLIENT or waiting >= _MAX_REQUESTS
            if question not in of_client and is_full:
                return False
            of_client[question] = request, reply
            self._fetches[client] = of_client
        self._queue.put(None)
        return True

    def fetch_left_behind(self, take: Callable[[LeftBehind], None]) -> None:
        """Has what earlier epochs left behind handed over in this thread, once, as soon as it can be read."""
        self._take_left_behind = take
        self._queue.put(None)

    def wake(self) -> None:
        """Ends the wait of `run`."""
        self._queue.put(None)

    def close(self) -> None:
        """Frees the directory of a spool that was never started; a running one does it itself at its end."""
        if not self.is_alive() or threading.current_thread() is self._thread:
            self._store.close()

    def run(self) -> None:
        """Writes and answers until asked to stop and nothing is left to write."""
        try:
            while self._turn():
                self.beat()
            self._end_epoch()
            self._failure.end(f"events were not kept in {self._store.directory}")
        finally:
            self.close()

    def _turn(self) -> bool:
        is_stopping = self.stopping
        self._hand_over_left_behind()
        events = self._take()
        if events:
            self._write(events)
        fetch = self._next_fetch()
        if fetch is not None:
            # Time of the processor: on a busy machine a reader must not wait for what others do as well.
            began = time.thread_time()
            self._answer(*fetch)
            self._fetching.worked(time.thread_time() - began)
        self._tidy()
        return bool(events) or not is_stopping

    def _take(self) -> list[Record]:
        """Waits for events, a request that may be answered, something to tidy up, or the end; gathers some events."""
        now = time.monotonic()
        until = self._tidy_at if not self._fetches else min(self._tidy_at, now + self._pause_of_fetches())
        try:
            first = self._queue.get(timeout=max(until - now, 0.0))
        except Empty:
            return []
        if first is not None and not self._fetches and not self.stopping:
            time.sleep(_GATHER_SECONDS)  # an event each would cost several times as much
        waiting = [first, *(self._queue.get_nowait() for _ in range(self._queue.qsize()))]
        events = [event for event in waiting if event is not None]
        self._taken_bytes += sum(len(event.payload) for event in events)
        return events

    def _pause_of_fetches(self) -> float:
        """How long the requests that wait are not answered yet, in seconds."""
        if not self._fetches:
            return 0.0
        if self._store.is_converting and not self._is_stuck:
            return _SYNC_SECONDS  # by then it is certain which events are kept
        return self._fetching.wait_seconds()

    def _next_fetch(self) -> _Fetch | None:
        """The request that is answered next; None where none waits, or it may not be answered yet."""
        if not self._fetches or self._pause_of_fetches() > 0:
            return None
        with self._lock:
            client = next(iter(self._fetches))
            of_client = self._fetches.pop(client)
            fetch = of_client.pop(next(iter(of_client)))
            if of_client:
                self._fetches[client] = of_client  # behind all others
        return fetch

    def _hand_over_left_behind(self) -> None:
        take, now = self._take_left_behind, time.monotonic()
        if take is None or now < self._left_behind_at:
            return
        self._left_behind_at = now + self._try_again_seconds
        try:
            left_behind = self._store.left_behind()
        except (OSError, sqlite3.Error) as error:
            self._unreadable.failed(f"cannot read events in {self._store.directory}: {error}")
            return
        self._take_left_behind = None
        take(left_behind)

    def _answer(self, request: ReplayRequest, reply: Callable[[Answer], None]) -> None:
        try:
            reply(self._store.answer(request))
        except (OSError, sqlite3.Error) as error:
            self._unreadable.failed(f"cannot read events in {self._store.directory}: {error}")
            reply(Refused(request.id, "busy", "the events on disk cannot be read now"))
        except Exception as error:  # noqa: BLE001 - whatever it is: events are to be kept, and other requests wait
            self._unexpected.report("replay", error, "a request for replay is refused")
            reply(Refused(request.id, "failed", "an unexpected error; see the log"))

    def _write(self, events: list[Record]) -> None:
        for batch in self._store.batches(events):
            if time.monotonic() < self._try_again_at:
                self._not_kept(len(batch))
                continue
            try:
                self._store.append(batch)
            except (OSError, sqlite3.Error) as error:
                self._failed(error, len(batch))
            else:
                self._failure.works(f"events are kept in {self._store.directory} again")
                self._metrics.kept(len(batch))
        self._settled_events += len(events)
        if self._on_settled is not None and any(event.topic.startswith(OCCURRENCES) for event in events):
            self._on_settled()

    def _failed(self, error: OSError | sqlite3.Error, count: int) -> None:
        """Counts what could not be written."""
        cause = self._store.cause_of(error)
        is_full = isinstance(cause, OSError) and cause.errno in _FULL
        self._reason = "disk_full" if is_full else "error"
        self._problem = f"cannot keep events in {self._store.directory}: {cause}; they are still published"
        self._not_kept(count)
        self._try_again_at = time.monotonic() + self._try_again_seconds

    def _not_kept(self, count: int) -> None:
        self._metrics.not_kept(self._reason, count)
        self._failure.failed(self._problem, count)

    def _end_epoch(self) -> None:
        last_seqs = dict(self._last_seqs)
        if not last_seqs:
            return
        try:
            self._store.end_epoch(last_seqs)
        except (OSError, sqlite3.Error) as error:
            self._failed(error, 0)

    def _tidy(self) -> None:
        """Syncs events to the disk once a second, and does a part of the pending clean-up."""
        now = time.monotonic()
        if now < self._tidy_at:
            return
        is_more = self._is_stuck = False
        try:
            is_more = self._tidy_some(now)
        except (OSError, sqlite3.Error) as error:
            self._untidy.failed(f"cannot tidy up {self._store.directory}: {self._store.cause_of(error)}")
            self._is_stuck = True
        self._tidy_at = now if is_more else now + _SYNC_SECONDS
        self._metrics.spool_used(self._store.used_bytes)

    def _tidy_some(self, now: float) -> bool:
        if self._store.is_converting:
            self._store.convert_next()
            return True
        if now >= self._sync_at:
            self._store.sync()
            self._sync_at = now + _SYNC_SECONDS
        if now >= self._forget_at:
            self._store.forget_names()
            self._forget_at = now + _FORGET_SECONDS
        return self._delete_older() or self._store.shrink()

    def _delete_older(self) -> bool:
        """Deletes events that are too old; not where the clock may be wrong."""
        if not self._is_clock_compared:
            newest_at = self._store.newest_before()
            if newest_at is not None:
                self._clock.compare(newest_at)
            self._is_clock_compared = True
        now = self._clock.now()
        limit = self._clock.wall() - self._max_age_seconds
        if now is not None:
            return self._store.delete_older(limit, now)
        if self._clock.doubt != self._reported_doubt and self._store.is_older(limit):
            self._reported_doubt = self._clock.doubt
            _log.warning(
                "%s: %s; events that look older than max_age_seconds are not deleted for that within the next hour",
                *(self._store.directory, self._clock.doubt),
            )
        return False
