"""One file of the spool: records one after the other, each with a checksum; what is torn at the end is not there."""

from __future__ import annotations

import errno
import os
import stat
import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import orjson

from streamdet.wire.limits import MAX_INTEGER

MAGIC = b"SDSPOOL1"
_MAX_FILE_BYTES = 32 << 20
"""Of a file that is read: four times what one is made of, for one large event may come last."""
# Checksum of all that follows, bytes of the payload, seq, bytes of the topic, bytes of the epoch.
_HEADER = struct.Struct("<IIQHH")
_CHECKED_FROM = 4

Key = tuple[str, str]
"""Epoch and topic."""


class NotOursError(Exception):
    """A file is none that the spool has made, or others may have changed it: it is neither read nor changed."""


def check_ours(status: os.stat_result) -> None:
    """Looks at what the kernel says of a file.

    Raises:
        NotOursError: it can be no segment of ours.
    """
    if stat.S_ISLNK(status.st_mode):
        why = "it is a symbolic link"
    elif not stat.S_ISREG(status.st_mode):
        why = "it is no regular file"
    elif status.st_uid != os.geteuid():
        why = "it belongs to another user"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = "others may write to it"
    elif status.st_size > _MAX_FILE_BYTES:
        why = f"it has {status.st_size} bytes"
    else:
        return
    raise NotOursError(why)


def open_ours(path: Path, flags: int = os.O_RDONLY) -> int:
    """Opens a file that the spool has made; the only way in which one is opened again.

    Raises:
        NotOursError: it is another one.
        OSError: it is gone, or cannot be opened.
    """
    check_ours(path.lstat())  # a device, or a pipe, would notice that it is opened
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotOursError(error.strerror) from None
        raise
    try:
        check_ours(os.fstat(file))
    except NotOursError:
        os.close(file)
        raise
    return file


class _Entry(NamedTuple):
    seq: int
    offset: int
    payload_bytes: int


def encode_record(epoch: str, topic: str, seq: int, payload: bytes) -> bytes:
    """A record as it stands in the file.

    One without a topic says how an epoch ended: its payload is the last number of each topic, as JSON.
    """
    names = topic.encode() + epoch.encode()
    header = _HEADER.pack(0, len(payload), seq, len(topic.encode()), len(epoch.encode()))
    body = b"".join((header[_CHECKED_FROM:], names, payload))
    return crc32(body).to_bytes(4, "little") + body


class Segment:
    """A file that is written once, from its beginning to its end, and read as often as anyone asks.

    Attributes:
        path: of the file.
        number: its place among the others.
        used_bytes: of the file, as far as it is sound.
        ranges: by epoch and topic, the first and the last number in it.
        ends: by epoch that ended in order, the last number of each topic.
        newest_at: Unix time of the newest event in it, in seconds; None as long as it has not been read.
        broken_ends: how many of its records say in no known way how an epoch ended.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.used_bytes = 0
        self.ranges: dict[Key, tuple[int, int]] = {}
        self.ends: dict[str, dict[str, int]] = {}
        self.newest_at: float | None = None
        self.broken_ends = 0
        self._index: dict[Key, list[_Entry]] = {}
        self._indexed_bytes = 0

    def note(self, epoch: str, topic: str, seq: int, payload: bytes) -> None:
        """Takes down that a record is in the file."""
        if topic:
            first = self.ranges.get((epoch, topic), (seq, seq))[0]
            self.ranges[epoch, topic] = first, seq
        elif (end := _end_of(payload)) is not None:
            self.ends[epoch] = end
        else:
            self.broken_ends += 1

    def read_through(self) -> int:
        """Finds out what is in the file; returns how many bytes at its end are no sound record.

        Raises:
            NotOursError: it is no segment.
            OSError: it cannot be read.
        """
        with os.fdopen(open_ours(self.path), "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_FILE_BYTES)
        if not data.startswith(MAGIC) and not MAGIC.startswith(data):
            why = "it does not begin as a file of the spool does"
            raise NotOursError(why)
        self.used_bytes = len(MAGIC) if data.startswith(MAGIC) else 0
        newest = b""
        for epoch, topic, entry in _records(data, self.used_bytes) if self.used_bytes else ():
            self.used_bytes = entry.offset + entry.payload_bytes
            payload = data[entry.offset : self.used_bytes]
            self.note(epoch, topic, entry.seq, payload)
            newest = payload if topic else newest
        published_at = _published_at(newest)
        self.newest_at = status.st_mtime if published_at is None else published_at
        return len(data) - self.used_bytes

    def cut_off(self) -> None:
        """Takes what is no sound record off the end of the file.

        Raises:
            NotOursError: it is another file now.
            OSError: it cannot be written.
        """
        file = open_ours(self.path, os.O_WRONLY)
        try:
            os.ftruncate(file, self.used_bytes)
        finally:
            os.close(file)

    def take(self, key: Key, from_seq: int, to_seq: int, max_events: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """Events of this range, as many as fit: at least one, where there is one."""
        taken: list[tuple[int, bytes]] = []
        self._extend_index()
        entries = self._index.get(key, [])
        with os.fdopen(open_ours(self.path), "rb") as file:
            for entry in entries[bisect_left(entries, from_seq, key=lambda entry: entry.seq) :]:
                is_full = len(taken) >= max_events or (taken and entry.payload_bytes > max_bytes)
                if entry.seq > to_seq or is_full:
                    break
                max_bytes -= entry.payload_bytes
                taken.append((entry.seq, os.pread(file.fileno(), entry.payload_bytes, entry.offset)))
        return taken

    def forget_index(self) -> None:
        """Gives the memory back that reading took."""
        self._index, self._indexed_bytes = {}, 0

    def _extend_index(self) -> None:
        if self._indexed_bytes >= self.used_bytes:
            return
        begin = self._indexed_bytes or len(MAGIC)
        with os.fdopen(open_ours(self.path), "rb") as file:
            data = os.pread(file.fileno(), self.used_bytes - begin, begin)
        for epoch, topic, entry in _records(data, 0):
            placed = _Entry(entry.seq, begin + entry.offset, entry.payload_bytes)
            self._index.setdefault((epoch, topic), []).append(placed)
        self._indexed_bytes = self.used_bytes


def _records(data: bytes, offset: int) -> Iterator[tuple[str, str, _Entry]]:
    """Epoch, topic and place of each sound record, up to the first one that is not."""
    while offset + _HEADER.size <= len(data):
        checksum, payload_bytes, seq, topic_bytes, epoch_bytes = _HEADER.unpack_from(data, offset)
        names = offset + _HEADER.size
        payload = names + topic_bytes + epoch_bytes
        end = payload + payload_bytes
        if seq > MAX_INTEGER or end > len(data) or crc32(memoryview(data)[offset + _CHECKED_FROM : end]) != checksum:
            return
        topic = data[names : names + topic_bytes].decode(errors="replace")
        epoch = data[names + topic_bytes : payload].decode(errors="replace")
        yield epoch, topic, _Entry(seq, payload, payload_bytes)
        offset = end


def _end_of(payload: bytes) -> dict[str, int] | None:
    """What a record says of how an epoch ended; None where it says nothing that makes sense."""
    try:
        end = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(end, dict) or any(type(seq) is not int or not 0 <= seq <= MAX_INTEGER for seq in end.values()):
        return None
    return end


def _published_at(payload: bytes) -> float | None:
    """When an event was published, in Unix time; None where it does not say so."""
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    published_at = event.get("published_at") if isinstance(event, dict) else None
    return float(published_at) if isinstance(published_at, int | float) and 0 < published_at < MAX_INTEGER else None
