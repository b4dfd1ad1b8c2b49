"""The files of a spool: which there are, how much they may take, and what they answer to who asks for old events."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from streamdet.delivery.segment import NotOursError, Segment, check_ours
from streamdet.delivery.trusted_clock import TrustedClock
from streamdet.errors import SpoolError
from streamdet.wire.replay import MAX_ANSWER_BYTES, MAX_ANSWER_EVENTS, Replayed, ReplayRequest

_MAX_SEGMENT_BYTES = 8 << 20
_SEGMENTS_OF_A_SPOOL = 16
_MAX_SEGMENTS = 4096
_NAME = re.compile(r"[0-9]{10,15}\.log")
_LOCK = "lock"
_MAX_NAMES_TOLD = 5
# Something else stands in the place of the lock.
_NO_LOCK = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM)
# What is known about so many of them, some MiB each, is kept for those who ask next.
_MAX_INDEXED = 4

_log = logging.getLogger(__name__)


class _GoneError(Exception):
    """A segment is gone, or is another file now."""

    def __init__(self, segment: Segment, why: str) -> None:
        super().__init__(why)
        self.segment = segment
        self.why = why


class Segments:
    """All segments in a directory, the oldest first; for one thread.

    Args:
        directory: of one daemon alone.
        max_bytes: of all files together.
        max_age_seconds: of what is kept.
        epoch: the present one.
        last_seqs: by topic of the present epoch, its last number so far.

    Attributes:
        directory: the same.
        segment_bytes: how long one may become.

    Raises:
        SpoolError: the directory cannot be used.
    """

    def __init__(
        self, directory: Path, max_bytes: int, max_age_seconds: float, epoch: str, last_seqs: Mapping[str, int]
    ) -> None:
        self.directory = directory
        self.segment_bytes = min(_MAX_SEGMENT_BYTES, max_bytes // _SEGMENTS_OF_A_SPOOL)
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._epoch = epoch
        self._last_seqs = last_seqs
        self._clock = TrustedClock()
        self._told_doubt = ""
        self._lock = self._open_directory()
        self._segments: list[Segment] = []
        self._next_number = 1
        try:
            self._find()
        except OSError as error:
            self.close()
            raise _unusable(directory, error.strerror or str(error)) from None
        self._unread = deque(self._segments)
        self._indexed: list[Segment] = []

    @property
    def newest(self) -> Segment:
        """The one that was made last; there must be one."""
        return self._segments[-1]

    @property
    def used_bytes(self) -> int:
        """What all of them take."""
        return sum(segment.used_bytes for segment in self._segments)

    @property
    def is_unread(self) -> bool:
        """Whether some have not been read through, so that no one knows what is in them."""
        return bool(self._unread)

    def make(self) -> tuple[Segment, int]:
        """A new one, and its descriptor for writing; the oldest make room for it."""
        self.make_room(is_writing=False)
        while True:
            number = self._next_number
            segment = Segment(self._path_of(number), number)
            try:
                file = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                self._next_number += 1  # put there meanwhile by something else
                continue
            self._next_number += 1
            self._segments.append(segment)
            return segment, file

    def close(self) -> None:
        """Lets go of the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def read_next(self) -> None:
        """Finds out what is in one that has not been read through."""
        self._read_through(self._unread.popleft())
        if not self._unread and self._segments:
            self._clock.compare(max(segment.newest_at or 0.0 for segment in self._segments))

    def answer(self, request: ReplayRequest) -> Replayed:
        """What is kept of what was asked for.

        Raises:
            OSError: it cannot be read.
        """
        while True:
            try:
                return self._answer(request)
            except _GoneError as error:
                self._leave(error.segment, error.why)

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
            most = MAX_ANSWER_EVENTS - len(taken)
            try:
                more = segment.take((epoch, topic), request.from_seq, last, most, left)
            except (NotOursError, FileNotFoundError) as error:
                if segment is self.newest:  # which may be written just now
                    raise OSError(errno.ENOENT, f"{segment.path}: {error}") from None
                raise _GoneError(segment, str(error)) from None
            taken += more
            used.append(segment)
            left -= sum(len(payload) for _, payload in more)
            if len(taken) >= MAX_ANSWER_EVENTS or left <= 0 or (taken and taken[-1][0] < min(last, last_here)):
                is_cut = True
                break
        self._forget_indexes(used)
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

    def _forget_indexes(self, used: list[Segment]) -> None:
        """Keeps those of the segments that were read last: making one again costs more than many answers."""
        self._indexed = [*(segment for segment in self._indexed if segment not in used), *used]
        while len(self._indexed) > max(_MAX_INDEXED, len(used)):
            self._indexed.pop(0).forget_index()

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

    def make_room(self, *, is_writing: bool) -> None:
        """Deletes the oldest, as many as it takes for another one.

        Args:
            is_writing: whether the newest is being written, and must stay.
        """
        used_bytes = self.used_bytes
        self._remove_old(self._segments[: -1 if is_writing else None])
        for segment in self._segments[: -1 if is_writing else None]:
            if used_bytes <= self._max_bytes - self.segment_bytes and len(self._segments) < _MAX_SEGMENTS:
                return
            used_bytes -= segment.used_bytes
            self.remove(segment)

    def _remove_old(self, segments: list[Segment]) -> None:
        """Deletes what is too old by what stands in it; not where the clock may be wrong."""
        if self._unread:
            return  # what the newest of them says tells whether the clock is to be believed
        now = self._clock.now()
        limit = self._clock.wall() - self._max_age_seconds
        old = [segment for segment in segments if segment.newest_at is not None and segment.newest_at < limit]
        if now is None and old and self._clock.doubt != self._told_doubt:
            self._told_doubt = self._clock.doubt
            _log.warning(
                "%s: %s; %d files look older than max_age_seconds, and are not deleted for that within the next hour",
                *(self.directory, self._clock.doubt, len(old)),
            )
        if now is None or not old:
            return
        for segment in old:
            self.remove(segment)
        _log.info("deleted %d files in %s whose events are older than max_age_seconds", len(old), self.directory)

    def remove(self, segment: Segment) -> None:
        """Deletes one."""
        self._segments.remove(segment)
        if segment in self._indexed:
            self._indexed.remove(segment)
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
                segment.cut_off()
            if segment.broken_ends:
                _log.warning("%s: what it says of the end of an epoch makes no sense, and is left out", segment.path)
        except (NotOursError, FileNotFoundError) as error:
            self._leave(segment, str(error))
        except OSError as error:
            _log.warning("cannot read %s: %s; its events are not replayed", segment.path, error)

    def _leave(self, segment: Segment, why: str) -> None:
        """Takes one out without deleting it."""
        _log.warning("%s is left alone: %s; its events are not replayed", segment.path, why)
        self._segments.remove(segment)
        if segment in self._indexed:
            self._indexed.remove(segment)

    def _find(self) -> None:
        """Takes the files that are ours, and reports the others once.

        Raises:
            OSError: the directory cannot be read.
        """
        left_alone: list[str] = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name == _LOCK:
                    continue
                number = int(entry.name[:-4]) if _NAME.fullmatch(entry.name) else -1
                path = self._path_of(number)
                if path.name != entry.name:
                    left_alone.append(f"{entry.name!r}: no name of the spool's")
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                    check_ours(status)
                except FileNotFoundError:
                    continue
                except NotOursError as error:
                    left_alone.append(f"{entry.name}: {error}")
                    continue
                self._next_number = max(self._next_number, number + 1)
                segment = Segment(path, number)
                segment.used_bytes = status.st_size
                self._segments.append(segment)
        self._segments.sort(key=lambda segment: segment.number)
        if left_alone:
            told = "; ".join(sorted(left_alone)[:_MAX_NAMES_TOLD])
            _log.warning("%d files in %s are left alone, such as %s", len(left_alone), self.directory, told)

    def _path_of(self, number: int) -> Path:
        return self.directory / f"{number:010d}.log"

    def _open_directory(self) -> int:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._open_lock()
            status = self.directory.stat()
        except OSError as error:
            raise _unusable(self.directory, error.strerror or str(error)) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise _unusable(self.directory, "another daemon uses it; give each its own") from None
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH:
            _log.warning(
                "%s: other users can delete what is kept in it; make it belong to this user alone", self.directory
            )
        return lock

    def _open_lock(self) -> int:
        """The file that is locked; the directory itself, where something else has the name of that file."""
        path = self.directory / _LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            lock = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno not in _NO_LOCK or not os.path.lexists(path):
                raise
        else:
            if stat.S_ISREG(os.fstat(lock).st_mode):
                return lock
            os.close(lock)
        _log.warning("%s is left alone: it is no file of ours", path)
        return os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _unusable(directory: Path, why: str) -> SpoolError:
    return SpoolError(f"cannot keep events in {directory}: {why}")
