"""Reads the segment files in which earlier versions kept events, so that the spool can take them over.

A segment is called `0000000001.log`. It holds records one after the other, each with a checksum, and ends at the first
one that is not sound.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from streamdet.security.files import open_at_once, why_foreign

_MAGIC = b"SDSPOOL1"
_NAME = re.compile(r"[0-9]{10,15}\.log", re.ASCII)
_MAX_BYTES = 32 << 20
# Checksum of all that follows, bytes of the payload, seq, bytes of the topic, bytes of the epoch.
_HEADER = struct.Struct("<IIQHH")
_CHECKED_FROM = 4
_MAX_SEQ = 2**53 - 1


class SegmentRecord(NamedTuple):
    """One record.

    Attributes:
        epoch: in which the event was published.
        topic: of the event; empty in a record that says how an epoch ended.
        seq: of the event.
        payload: the event as it was published; or, where the epoch ended, the last `seq` of each topic as JSON.
    """

    epoch: str
    topic: str
    seq: int
    payload: bytes


def segment_files(directory: Path) -> list[Path]:
    """The segments in a directory that this process may have written, the oldest first.

    Raises:
        OSError: the directory cannot be read.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if _NAME.fullmatch(entry.name) and _is_ours(entry)]
    return [directory / name for name in sorted(names, key=lambda name: int(name[:-4]))]


def read_segment(path: Path) -> Iterator[SegmentRecord]:
    """The sound records of a segment.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else.
    """
    with open_at_once(path, follow=False) as file:
        data = file.read(_MAX_BYTES)
    if not data.startswith(_MAGIC) and not _MAGIC.startswith(data):
        message = "it does not begin like a segment"
        raise ValueError(message)
    offset = len(_MAGIC)
    while offset + _HEADER.size <= len(data):
        checksum, payload_bytes, seq, topic_bytes, epoch_bytes = _HEADER.unpack_from(data, offset)
        epoch = offset + _HEADER.size + topic_bytes
        payload = epoch + epoch_bytes
        end = payload + payload_bytes
        if end > len(data) or seq > _MAX_SEQ or crc32(memoryview(data)[offset + _CHECKED_FROM : end]) != checksum:
            return
        topic = data[offset + _HEADER.size : epoch].decode(errors="replace")
        yield SegmentRecord(data[epoch:payload].decode(errors="replace"), topic, seq, data[payload:end])
        offset = end


def _is_ours(entry: os.DirEntry[str]) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return why_foreign(status) is None and status.st_size <= _MAX_BYTES
