"""One file of the spool: records one after the other, each with a checksum; what is torn at the end is not there."""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import orjson

MAGIC = b"SDSPOOL1"
# Checksum of all that follows, bytes of the payload, seq, bytes of the topic, bytes of the epoch.
_HEADER = struct.Struct("<IIQHH")
_CHECKED_FROM = 4

Key = tuple[str, str]
"""Epoch and topic."""


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
    """A file that is written once, from its beginning to its end, and read as often as anybody asks.

    Attributes:
        path: of the file.
        number: its place among the others.
        used_bytes: of the file, as far as it is sound.
        ranges: by epoch and topic, the first and the last number in it.
        ends: by epoch that ended in order, the last number of each topic.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.used_bytes = 0
        self.ranges: dict[Key, tuple[int, int]] = {}
        self.ends: dict[str, dict[str, int]] = {}
        self._index: dict[Key, list[_Entry]] = {}
        self._indexed_bytes = 0

    def note(self, epoch: str, topic: str, seq: int, payload: bytes) -> None:
        """Takes down that a record is in the file."""
        if topic:
            first = self.ranges.get((epoch, topic), (seq, seq))[0]
            self.ranges[epoch, topic] = first, seq
        else:
            self.ends[epoch] = orjson.loads(payload)

    def read_through(self) -> int:
        """Finds out what is in the file; returns how many bytes at its end are no sound record."""
        data = self.path.read_bytes()
        self.used_bytes = len(MAGIC) if data.startswith(MAGIC) else 0
        for epoch, topic, entry in _records(data, self.used_bytes) if self.used_bytes else ():
            self.used_bytes = entry.offset + entry.payload_bytes
            self.note(epoch, topic, entry.seq, data[entry.offset : self.used_bytes])
        return len(data) - self.used_bytes

    def take(self, key: Key, from_seq: int, to_seq: int, max_events: int, max_bytes: int) -> list[tuple[int, bytes]]:
        """Events of this range, as many as fit: at least one, where there is one."""
        taken: list[tuple[int, bytes]] = []
        self._extend_index()
        entries = self._index.get(key, [])
        with self.path.open("rb") as file:
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
        with self.path.open("rb") as file:
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
        if end > len(data) or crc32(memoryview(data)[offset + _CHECKED_FROM : end]) != checksum:
            return
        topic = data[names : names + topic_bytes].decode(errors="replace")
        epoch = data[names + topic_bytes : payload].decode(errors="replace")
        yield epoch, topic, _Entry(seq, payload, payload_bytes)
        offset = end
