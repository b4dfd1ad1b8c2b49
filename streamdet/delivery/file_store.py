"""Keeps pictures, or clips, as files in a directory of limited size, and reads them on request.

A file is named after its id: the time at which the id was made, the stream, and a random part, so names sort by time.
One thread writes, deletes and answers requests. A file is written under a temporary name and then renamed, so a kill
leaves only complete files and temporary ones, which the next start deletes. While the disk is full, slow or broken,
files are dropped and counted; nothing waits for them.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from streamdet.errors import StoreError
from streamdet.monitoring.log import FailureLog
from streamdet.monitoring.metrics import FileStoreMetrics
from streamdet.monitoring.trusted_clock import TrustedClock
from streamdet.monitoring.unexpected import UnexpectedErrors
from streamdet.security.files import Content, lock_directory, open_at_once, others_can_delete, stage, why_foreign
from streamdet.security.limits import Share
from streamdet.wire.replay import MAX_TIME
from streamdet.worker import Worker

MAX_FILES = 200_000
"""Files that are kept at most; each takes about 300 bytes of memory."""

_MAX_WAITING_FILES = 256
_MAX_PROMISED = 4096
# Requests stop waiting for a promised file that has neither come nor been lost after this time.
_PROMISE_SECONDS = 10.0
_MAX_REQUESTS = 128
_MAX_REQUESTS_OF_A_CLIENT = 16
_REQUEST_SECONDS = 5.0
# Reading on request takes a twentieth of a core at most, after a burst.
_SHARE_OF_READING = 0.05
_BURST_OF_READING_SECONDS = 0.5
# A disk that has failed is tried again after this time.
_TRY_AGAIN_SECONDS = 1.0
_TIDY_SECONDS = 1.0
_DELETED_AT_ONCE = 200
# At a stop, files that wait are written for this long.
_LAST_SECONDS = 1.0
# A name this far ahead of the clock was made while the clock was wrong.
_FUTURE_SECONDS = 60.0
_BLOCK_BYTES = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_ID = re.compile(r"([0-9]{8}T[0-9]{6}\.[0-9]{3})Z-[a-z0-9][a-z0-9._-]{0,63}-[0-9a-f]{12}", re.ASCII)

_log = logging.getLogger(__name__)

Missing = Literal["not_found", "busy"]
"""Why a request gets no file: it is not kept (any longer, or not yet), or it cannot be read now."""
Reply = Callable[[bytes | Missing], None]


class Part(NamedTuple):
    """A part of a file.

    Attributes:
        content: its bytes; fewer than were asked for only at the end of the file.
        size_bytes: of the whole file.
    """

    content: bytes
    size_bytes: int


PartReply = Callable[[Part | Missing], None]
_Span = tuple[int, int]
"""The first byte of a part, and how many bytes it has at most."""
_Key = tuple[bytes, str, _Span | None, Hashable]
"""Of a request: client, id of the file, which part of it (None for all), and the client's own question."""


def new_id(stream: str, at: float) -> str:
    """A new id, such as `20261129T140312.345Z-front-door-3f2a9c01b7de`.

    Args:
        stream: name of the stream.
        at: Unix time in seconds.
    """
    return f"{_stamp(at)}-{stream}-{secrets.token_hex(6)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of an id; such a text is also safe as the name of a file."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What a store may hold.

    Attributes:
        max_bytes: of all files together, each rounded up to blocks of 4 KiB.
        max_age_seconds: older files are deleted.
        max_file_bytes: of one file; a larger one in the directory does not belong to the store.
        max_waiting_bytes: of the files that wait to be written, including the one that is being written.
    """

    max_bytes: int
    max_age_seconds: float
    max_file_bytes: int
    max_waiting_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True)
class _Waiting:
    content: Content
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Request:
    reply: PartReply
    until: float


class FileStore(Worker):
    """Keeps the files of one daemon in a directory of its own.

    Any thread may call its methods; none of them waits for the disk but `read`.

    Args:
        what: "pictures" or "clips", for the log.
        directory: of this store alone; made if it is missing.
        suffix: of the files, such as ".jpg".
        limits: what it may hold.
        metrics: counts files that are stored and dropped.
        on_error: called when the thread ends with an error.
        unexpected: counts errors that cost a single file.
        clock: gives the time of ids and the age of files, and whether it can be trusted.

    Attributes:
        directory: the same.

    Raises:
        StoreError: the directory cannot be used.
    """

    join_timeout_seconds = 2.0

    def __init__(
        self,
        what: str,
        directory: Path,
        suffix: str,
        limits: StoreLimits,
        metrics: FileStoreMetrics,
        on_error: Callable[[Worker], None] | None = None,
        unexpected: UnexpectedErrors | None = None,
        clock: TrustedClock | None = None,
    ) -> None:
        super().__init__(f"{what} store", on_error)
        self.directory = directory
        self._what = what
        self._suffix = suffix
        self._limits = limits
        self._metrics = metrics
        self._unexpected = unexpected or UnexpectedErrors()
        self._clock = clock or TrustedClock()
        self._reported_doubt = ""
        self._changed = threading.Condition()
        self._promised: dict[str, float] = {}  # until when they are waited for
        self._waiting: dict[str, _Waiting] = {}
        self._waiting_bytes = 0
        self._writing = ""
        self._requests: dict[_Key, _Request] = {}
        self._reading = Share(_SHARE_OF_READING, _BURST_OF_READING_SECONDS)
        # Only for the thread: size by id, in the order in which they are deleted.
        self._sizes: dict[str, int] = {}
        self._used_bytes = 0
        self._tidy_at = self._try_again_at = 0.0
        self._reason = self._problem = ""  # why the newest write failed, as the metrics and the log say it
        self._failure = FailureLog(_log, f"{{}} {what} were not kept")
        self._unreadable = FailureLog(_log, "{} requests were not answered")
        self._undeletable = FailureLog(_log, "{} failures")
        try:
            self._lock = lock_directory(directory)
        except OSError as error:
            message = f"cannot keep {what} in {directory}: {error.strerror or error}"
            raise StoreError(message) from None
        if others_can_delete(self._lock):
            _log.warning(
                "%s: other users can delete files in it; make this user its owner, and only it may write", directory
            )

    def promise(self, stream: str) -> str:
        """A new id for a file that will come; readers wait until it comes or is lost."""
        file_id = new_id(stream, self._clock.wall())
        with self._changed:
            self._promised[file_id] = time.monotonic() + _PROMISE_SECONDS
            if len(self._promised) > _MAX_PROMISED:
                del self._promised[next(iter(self._promised))]
        return file_id

    def lose(self, file_id: str, reason: str) -> None:
        """Counts a file that will not come, for one of the reasons of the metric."""
        self._metrics.dropped(reason)
        with self._changed:
            self._promised.pop(file_id, None)
            self._changed.notify_all()

    def keep(self, file_id: str, content: Content, size_bytes: int | None = None) -> None:
        """Queues a file to be written; if too many wait for a slow disk, the one that has waited longest is dropped.

        Args:
            file_id: from `promise` or `new_id`.
            content: bytes, or a function that writes them to an open file, in the thread of the store.
            size_bytes: an estimate of what such a function writes.
        """
        size = len(content) if isinstance(content, bytes) else size_bytes or 0
        with self._changed:
            self._promised.pop(file_id, None)
            self._waiting[file_id] = _Waiting(content, size)
            self._waiting_bytes += size
            lost, limit = 0, self._limits.max_waiting_bytes
            for oldest in [other for other in self._waiting if other not in (self._writing, file_id)]:
                if len(self._waiting) <= _MAX_WAITING_FILES and self._waiting_bytes <= limit:
                    break
                self._waiting_bytes -= self._waiting.pop(oldest).size_bytes
                lost += 1
            self._changed.notify_all()
        if lost:
            self._metrics.dropped("slow_disk", lost)

    def path_of(self, file_id: str) -> Path | None:
        """The path of a file; None if it is not kept, or its id is not valid."""
        path = self._path(file_id)
        try:
            is_kept = is_id(file_id) and stat.S_ISREG(path.lstat().st_mode)
        except OSError:
            is_kept = False
        return path if is_kept else None

    def read(self, file_id: str, wait_seconds: float = 0.0) -> bytes | None:
        """The content of a file; None if it is not kept, or its id is not valid.

        Args:
            file_id: of the file.
            wait_seconds: how long to wait for a file that is about to come.

        Raises:
            OSError: it cannot be read.
        """
        if not is_id(file_id):
            return None
        with self._changed:
            self._changed.wait_for(lambda: not self._is_to_come(file_id), wait_seconds)
            waiting = self._waiting.get(file_id)
        if waiting is not None and isinstance(waiting.content, bytes):
            return waiting.content
        part = self._read(file_id, (0, self._limits.max_file_bytes))
        return None if part is None else part.content

    def fetch(self, client: bytes, file_id: str, reply: Reply, question: Hashable = None) -> bool:
        """Queues a request for a file, which is answered once the file has come; False if too many requests wait.

        A request that is repeated while it waits keeps its place.

        Args:
            client: id of the connection that asks.
            file_id: of the file.
            reply: called in the store's thread.
            question: the same when it is repeated, and another one for a request of its own for the same file.
        """

        def reply_whole(part: Part | Missing) -> None:
            reply(part if isinstance(part, str) else part.content)

        return self._put_request((client, file_id, None, question), reply_whole)

    def fetch_part(
        self, client: bytes, file_id: str, span: tuple[int, int], reply: PartReply, question: Hashable = None
    ) -> bool:
        """The same for a part of a file.

        Args:
            client: id of the connection that asks.
            file_id: of the file.
            span: the first byte, from 0, and the most bytes.
            reply: called in the store's thread.
            question: as in `fetch`.
        """
        return self._put_request((client, file_id, span, question), reply)

    def _put_request(self, key: _Key, reply: PartReply) -> bool:
        with self._changed:
            of_client = sum(other == key[0] for other, *_ in self._requests)
            is_full = of_client >= _MAX_REQUESTS_OF_A_CLIENT or len(self._requests) >= _MAX_REQUESTS
            if key not in self._requests and is_full:
                return False
            self._requests[key] = _Request(reply, time.monotonic() + _REQUEST_SECONDS)
            self._changed.notify_all()
        return True

    def wake(self) -> None:
        """Ends the wait of `run`."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Unlocks the directory of a store that was never started; a running one does so at its end."""
        if self._lock >= 0 and (not self.is_alive() or threading.current_thread() is self._thread):
            os.close(self._lock)
            self._lock = -1

    def run(self) -> None:
        """Writes, deletes and answers until asked to stop; then writes waiting files, for a second at most."""
        try:
            self._find()
            while not self.stopping:
                self._turn()
                self.beat()
            until = time.monotonic() + _LAST_SECONDS
            while self._waiting and time.monotonic() < until:
                self._write_next()
            self._metrics.dropped("shutdown", len(self._waiting))
            self._failure.end(f"{self._what} were not kept in {self.directory}")
        finally:
            self.close()

    # ---- the thread ----

    def _turn(self) -> None:
        with self._changed:
            now = time.monotonic()
            until = self._tidy_at if not self._requests else min(self._tidy_at, now + self._pause_of_requests(now))
            if not self._waiting and not self.stopping:
                self._changed.wait(max(until - now, 0.0))
        self._write_next()
        self._answer_next()
        self._tidy()

    def _write_next(self) -> None:
        with self._changed:
            if not self._waiting:
                return
            file_id, waiting = next(iter(self._waiting.items()))
            self._writing = file_id
        self._write(file_id, waiting)
        with self._changed:
            self._writing = ""
            del self._waiting[file_id]
            self._waiting_bytes -= waiting.size_bytes
            self._changed.notify_all()

    def _write(self, file_id: str, waiting: _Waiting) -> None:
        if time.monotonic() < self._try_again_at:
            self._lost()
            return
        try:
            size = self._write_file(file_id, waiting)
        except OSError as error:
            self._reason = "disk_full" if error.errno in _FULL else "disk_error"
            why = error.strerror or error
            self._problem = f"cannot keep {self._what} in {self.directory}: {why}; events are published all the same"
            self._try_again_at = time.monotonic() + _TRY_AGAIN_SECONDS
            self._lost()
        except Exception as error:  # noqa: BLE001 - whatever it is: other files are to be written
            self._unexpected.report(self._what, error, "a file is not kept")
            self._metrics.dropped("error")
        else:
            self._failure.works(f"{self._what} are kept in {self.directory} again")
            self._sizes[file_id] = size
            self._used_bytes += size
            self._metrics.stored()
            self._metrics.used(self._used_bytes)

    def _lost(self) -> None:
        self._metrics.dropped(self._reason)
        self._failure.failed(self._problem)

    def _write_file(self, file_id: str, waiting: _Waiting) -> int:
        """Makes room for a file and writes it.

        Returns:
            The bytes that it takes on disk.

        Raises:
            OSError: it cannot be written, or no room can be made.
        """
        self._make_room(_on_disk(waiting.size_bytes))
        path = self._path(file_id)
        staged = stage(path, waiting.content, sync=False, makes_folder=True)
        try:
            size = staged.staged.stat().st_size
            if size > self._limits.max_file_bytes:
                raise OSError(errno.EFBIG, f"a file of {size} bytes is larger than {self._limits.max_file_bytes}")
            self._make_room(_on_disk(size))
            staged.commit()
        finally:
            staged.discard()
        return _on_disk(size)

    def _make_room(self, needed_bytes: int) -> None:
        while self._sizes and (
            len(self._sizes) >= MAX_FILES or self._used_bytes + needed_bytes > self._limits.max_bytes
        ):
            self._delete(next(iter(self._sizes)))

    def _delete(self, file_id: str) -> None:
        """Deletes a file; one that is already gone, or has become a folder, is only no longer counted."""
        with suppress(IsADirectoryError):
            self._path(file_id).unlink(missing_ok=True)
        self._used_bytes -= self._sizes.pop(file_id)

    def _pause_of_requests(self, now: float) -> float:
        """Seconds until a request may be due."""
        if not any(self._is_due(file_id, request, now) for (_, file_id, *_), request in self._requests.items()):
            return min(request.until for request in self._requests.values()) - now
        return self._reading.wait_seconds()

    def _is_due(self, file_id: str, request: _Request, now: float) -> bool:
        return now >= request.until or not self._is_to_come(file_id)

    def _is_to_come(self, file_id: str) -> bool:
        """Whether a file is promised, or a function that writes it has not run yet."""
        until = self._promised.get(file_id)
        if until is not None:
            return time.monotonic() < until
        waiting = self._waiting.get(file_id)
        return waiting is not None and not isinstance(waiting.content, bytes)

    def _answer_next(self) -> None:
        """Answers the request that has waited longest among those whose file is there, or will not come."""
        with self._changed:
            if not self._requests or self._reading.wait_seconds() > 0:
                return
            now = time.monotonic()
            key = next((key for key, request in self._requests.items() if self._is_due(key[1], request, now)), None)
            if key is None:
                return
            request = self._requests.pop(key)
        began = time.thread_time()
        content: Part | Missing
        try:
            content = self._read_requested(key[1], key[2]) or "not_found"
        except OSError as error:
            self._unreadable.failed(f"cannot read {self._what} in {self.directory}: {error.strerror or error}")
            content = "busy"
        try:
            request.reply(content)
        except Exception as error:  # noqa: BLE001 - whatever it is: other requests wait
            self._unexpected.report(self._what, error, "a request is not answered")
        self._reading.worked(time.thread_time() - began)

    def _read_requested(self, file_id: str, span: _Span | None) -> Part | None:
        if span is None:
            content = self.read(file_id)
            return Part(content, len(content)) if content else None
        return self._read(file_id, span) if is_id(file_id) else None

    def _read(self, file_id: str, span: _Span) -> Part | None:
        try:
            file = open_at_once(self._path(file_id), follow=False)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symbolic link
                return None
            raise
        with file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > self._limits.max_file_bytes:
                return None
            return Part(os.pread(file.fileno(), span[1], span[0]), status.st_size)

    def _tidy(self) -> None:
        """Once a second, deletes some of the files that are too old or exceed the limit."""
        now = time.monotonic()
        if now < self._tidy_at:
            return
        with self._changed:
            while self._promised and next(iter(self._promised.values())) < now:
                del self._promised[next(iter(self._promised))]
        is_more = False
        try:
            is_more = self._delete_older()
            self._make_room(0)
        except OSError as error:
            self._undeletable.failed(f"cannot delete {self._what} in {self.directory}: {error.strerror or error}")
        else:
            self._undeletable.works(f"{self._what} in {self.directory} can be deleted again")
        self._tidy_at = now if is_more else now + _TIDY_SECONDS
        self._metrics.used(self._used_bytes)

    def _delete_older(self) -> bool:
        """Deletes some files that are too old, unless the clock may be wrong; whether there may be more."""
        is_trusted = self._clock.now() is not None
        wall = self._clock.wall()
        future, limit = _stamp(wall + _FUTURE_SECONDS), _stamp(wall - self._limits.max_age_seconds)
        old: list[str] = []
        for file_id in self._sizes:
            if file_id > future:
                continue  # from while the clock was wrong
            if file_id >= limit or len(old) == _DELETED_AT_ONCE:
                break
            old.append(file_id)
        if old and not is_trusted:
            self._report_doubt()
            return False
        for file_id in old:
            self._delete(file_id)
        return bool(old)

    def _report_doubt(self) -> None:
        if self._clock.doubt != self._reported_doubt:
            self._reported_doubt = self._clock.doubt
            # Not a warning: there may have been no file to keep for hours.
            _log.info(
                "%s: %s; %s that look older than max_age_seconds are not deleted for that within the next hour",
                *(self.directory, self._clock.doubt, self._what),
            )

    def _find(self) -> None:
        """Finds the files of earlier runs, and deletes temporary ones; other files are left alone."""
        found: dict[str, int] = {}
        foreign: list[str] = []
        leftover = re.compile(rf"\.{_ID.pattern}{re.escape(self._suffix)}\.[0-9a-f]{{8}}\.part", re.ASCII)
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    self._sort_in(entry, leftover, found, foreign)
        except OSError as error:
            _log.warning("cannot read %s: %s; its files are not found", self.directory, error.strerror or error)
        if foreign:
            text = "%s: %d files in it are not streamdet's %s, such as %s; they are left alone"
            _log.warning(text, self.directory, len(foreign), self._what, min(foreign))
        future = _stamp(self._clock.wall() + _FUTURE_SECONDS)
        # Times ahead of the clock are wrong, so those files are the first to make room.
        names = sorted(found, key=lambda file_id: (file_id <= future, file_id))
        self._sizes = {file_id: found[file_id] for file_id in names}
        self._used_bytes = sum(found.values())
        if names:
            self._clock.compare(_time_of(names[-1]), self._what.removesuffix("s"))
        self._metrics.used(self._used_bytes)

    def _sort_in(
        self, entry: os.DirEntry[str], leftover: re.Pattern[str], found: dict[str, int], foreign: list[str]
    ) -> None:
        name = entry.name
        file_id = name.removesuffix(self._suffix)
        is_leftover = leftover.fullmatch(name) is not None
        is_named = is_leftover or (name.endswith(self._suffix) and is_id(file_id))
        try:
            status = entry.stat(follow_symlinks=False)
            if not is_named or why_foreign(status) is not None or status.st_size > self._limits.max_file_bytes:
                foreign.append(name)
            elif is_leftover or status.st_size == 0:  # a power failure leaves empty files
                self.directory.joinpath(name).unlink()
            else:
                found[file_id] = _on_disk(status.st_size)
        except FileNotFoundError:
            return
        except OSError:
            foreign.append(name)

    def _path(self, file_id: str) -> Path:
        return self.directory / f"{file_id}{self._suffix}"


def _stamp(at: float) -> str:
    """The beginning of an id, by which ids sort by time.

    Args:
        at: Unix time in seconds.
    """
    moment = datetime.fromtimestamp(min(max(at, 0.0), MAX_TIME), UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03}Z"


def _on_disk(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _time_of(file_id: str) -> float:
    """The Unix time in seconds of an id; 0 where its digits are no time."""
    try:
        return datetime.strptime(file_id[:20], "%Y%m%dT%H%M%S.%f%z").timestamp()
    except ValueError:
        return 0.0
