"""Deletes the oldest files of a recording: those beyond its size, and those that are too old.

What is counted is the size of each day, so that memory does not grow with the number of files.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from streamdet.bridges.files.tables import TABLES
from streamdet.monitoring.log import FailureLog
from streamdet.monitoring.trusted_clock import TrustedClock

_DATE = re.compile(r"date=([0-9]{4}-[0-9]{2}-[0-9]{2})", re.ASCII)
_FINISHED = re.compile(
    r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[A-Za-z0-9_.~%-]+-[0-9]+(?:\.parquet|\.jsonl(?:\.gz|\.zst)?)", re.ASCII
)
_LEFTOVER = re.compile(rf"\.{_FINISHED.pattern}(?:\.rows)?\.part", re.ASCII)
_BLOCK_BYTES = 4096
_DAY_SECONDS = 86400

_log = logging.getLogger(__name__)


def is_finished(name: str) -> bool:
    """Whether a file of this name is one of a recording."""
    return _FINISHED.fullmatch(name) is not None


def is_leftover(name: str) -> bool:
    """Whether a file of this name is one that was not finished."""
    return _LEFTOVER.fullmatch(name) is not None


def files_of(directory: Path, date: str | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """The files in the folders of a recording, each with its date; links and what else is there are left alone.

    Args:
        directory: of the recording.
        date: only those of this one.

    Raises:
        OSError: a folder cannot be read.
    """
    for table in TABLES:
        for of_date in _folders(directory / table):
            found = _DATE.fullmatch(of_date.name)
            if found is None or (date is not None and found[1] != date):
                continue
            for of_stream in _folders(Path(of_date.path)):
                if of_stream.name.startswith("stream="):
                    with os.scandir(of_stream) as entries:
                        for entry in entries:
                            if entry.is_file(follow_symlinks=False):
                                yield found[1], entry


def _folders(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


class Retention:
    """Knows how large the files of each day are, and deletes the oldest.

    Args:
        directory: of the recording.
        max_bytes: of all files together, each rounded up to blocks of 4 KiB.
        max_age_seconds: files that were written earlier, with rows of days before that, are deleted.
        clock: gives the time, and whether it can be trusted.
    """

    def __init__(
        self, directory: Path, max_bytes: int, max_age_seconds: float, clock: TrustedClock | None = None
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._clock = clock or TrustedClock()
        self._bytes: Counter[str] = Counter()
        self._failure = FailureLog(_log, "{} failures")

    def survey(self) -> None:
        """Finds the files that are there, and deletes those that were not finished.

        Raises:
            OSError: a folder cannot be read, or a file not be deleted.
        """
        self._bytes.clear()
        newest = 0.0
        for date, entry in files_of(self._directory):
            if is_leftover(entry.name):
                Path(entry.path).unlink()
            elif is_finished(entry.name):
                status = entry.stat(follow_symlinks=False)
                newest = max(newest, status.st_mtime)
                self._bytes[date] += _on_disk(status.st_size)
        if newest:
            self._clock.compare(newest, "file")

    def added(self, date: str, size_bytes: int) -> None:
        """Counts a file."""
        self._bytes[date] += _on_disk(size_bytes)

    def tidy(self) -> None:
        """Deletes what is too much or too old; what cannot be deleted is logged."""
        try:
            self._delete_older()
            self._make_room()
        except OSError as error:
            self._failure.failed(f"cannot delete files in {self._directory}: {error.strerror or error}")
        else:
            self._failure.works(f"files in {self._directory} can be deleted again")

    def _delete_older(self) -> None:
        now = self._clock.now()
        if now is None:
            return
        limit = now - self._max_age_seconds
        oldest, newest = _date(limit), _date(now + _DAY_SECONDS)
        # Dates of cameras whose clock is wrong may be any; their files are kept as long as others.
        for date in [date for date in self._bytes if not oldest <= date <= newest]:
            self._delete(date, older_than=limit)

    def _make_room(self) -> None:
        tomorrow = _date(self._clock.wall() + _DAY_SECONDS)
        # Dates ahead of the clock are wrong, so their files are the first to make room.
        for date in sorted(self._bytes, key=lambda date: (date <= tomorrow, date)):
            if self._bytes.total() <= self._max_bytes:
                return
            self._delete(date)

    def _delete(self, date: str, older_than: float | None = None) -> None:
        """Deletes the files of a day, oldest first: those written before a time, or until the rest is not too much."""
        found = sorted(
            (entry.name, entry.path, entry.stat(follow_symlinks=False))
            for _, entry in files_of(self._directory, date)
            if is_finished(entry.name)
        )
        self._bytes[date] = sum(_on_disk(status.st_size) for _, _, status in found)
        for _, name, status in found:
            if older_than is None and self._bytes.total() <= self._max_bytes:
                break
            if older_than is not None and status.st_mtime >= older_than:
                continue
            path = Path(name)
            path.unlink(missing_ok=True)
            self._bytes[date] -= _on_disk(status.st_size)
            with suppress(OSError):  # there is more in them
                path.parent.rmdir()
                path.parent.parent.rmdir()
        if not self._bytes[date]:
            del self._bytes[date]


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(max(at, 0.0), UTC):%Y-%m-%d}"


def _on_disk(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
