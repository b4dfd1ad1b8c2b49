"""Files of rows in one directory, and how far they reach: both become final in the same moment.

Rows are written to hidden files. To finish them, all are synced, and then one more file, `.streamdet.json`, takes the
place of the one before: it holds the position that they reach, and their names. From that moment on they count; giving
them these names is all that is left, and the next start does it if this process was killed before. Hidden files that
it does not name are deleted at the start, and their events asked for again. So no event is lost and none is doubled.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from streamdet.bridges.files import jsonl
from streamdet.bridges.files.retention import Retention, is_finished
from streamdet.bridges.files.tables import Partition, Rows, escaped, stamp
from streamdet.bridges.process import BridgeError
from streamdet.client.recovery import Position
from streamdet.config.files import FileFormat
from streamdet.security.files import lock_directory, stage

_JOURNAL = ".streamdet.json"
_SYNCED_AT_ONCE = 16


class _File(Protocol):
    """A file on its way: `ParquetFile` or `JsonlFile`."""

    path: Path

    def append(self, rows: Rows) -> int: ...

    def finish(self, rows: Rows | None) -> None: ...

    def discard(self) -> None: ...


@dataclass(slots=True)
class _Open:
    """The files of one partition that are not finished.

    Attributes:
        files: by the path that each gets.
        size_bytes: of the rows that were written, before compression.
    """

    files: dict[Path, _File] = field(default_factory=dict)
    size_bytes: int = 0


class Recording:
    """The files in one directory; for one thread at a time.

    Args:
        directory: of this recording alone.
        formats: of the files.
        compression: "auto", "zstd", "gzip" or "none".
        retention: deletes the oldest.

    Attributes:
        position: how far the finished files reach; empty as long as there is none.
        largest_bytes: size of the rows in the largest file that is not finished.
        open_files: how many partitions have such files.
    """

    def __init__(self, directory: Path, formats: Sequence[FileFormat], compression: str, retention: Retention) -> None:
        self._directory = directory
        self._formats = formats
        self._compression = compression
        self._retention = retention
        self._open: dict[Partition, _Open] = {}
        self._lock = -1
        self.position: dict[str, tuple[str, int]] = {}
        self.largest_bytes = 0

    @property
    def open_files(self) -> int:
        """How many partitions have files that are not finished."""
        return len(self._open)

    def open(self) -> None:
        """Locks the directory, and brings it to where the newest position was kept; again after an error.

        Raises:
            BridgeError: another process uses it, or its position cannot be read.
            OSError: it cannot be used.
        """
        self.close()
        # With the permissions that the system gives, so that those may read who are meant to.
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock_directory(self._directory)
        except OSError as error:
            if error.errno == errno.EBUSY:
                message = f"{self._directory} cannot be used: another bridge uses it; give each its own"
                raise BridgeError(message) from None
            raise
        self._recover()
        self._retention.survey()

    def close(self) -> None:
        """Unlocks the directory; what was not finished is deleted at the next start."""
        self._open.clear()
        self.largest_bytes = 0
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self) -> Position:
        """The position."""
        return self.position

    def save(self, position: dict[str, tuple[str, int]]) -> None:
        """Keeps a position, and finishes all files.

        Raises:
            OSError: it cannot be written.
        """
        self.write([], position)

    def write(self, rows: Iterable[Rows], position: Position | None = None) -> None:
        """Writes rows, and finishes all files if a position is given.

        Args:
            rows: one at most for each partition.
            position: how far these rows and those before reach.

        Raises:
            OSError: they cannot be written. All that was not finished is lost then: `open` it again.
        """
        last: dict[Partition, Rows] = {}
        for each in rows:
            if each.partition not in self._open:
                self._open[each.partition] = self._begin(each)
            if position is not None:
                last[each.partition] = each
                continue
            opened = self._open[each.partition]
            opened.size_bytes += max([file.append(each) for file in opened.files.values()])
            self.largest_bytes = max(self.largest_bytes, opened.size_bytes)
        if position is not None and (self._open or position != self.position):
            self._finish(last, dict(position))

    def _begin(self, rows: Rows) -> _Open:
        at, epoch, seq = rows.first
        folder = self._directory / rows.partition.folder
        folder.mkdir(parents=True, exist_ok=True)
        opened = _Open()
        for file_format in self._formats:
            if file_format == "parquet":
                suffix, compression = ".parquet", "zstd" if self._compression == "auto" else self._compression
            else:
                compression = "gzip" if self._compression == "auto" else self._compression
                suffix = jsonl.SUFFIXES[compression]
            final = next(
                path
                for again in ("", *(f"~{number}" for number in range(2, 10_000)))
                if not (path := folder / f"{stamp(at)}-{escaped(epoch)}{again}-{seq}{suffix}").exists()
            )
            opened.files[final] = self._file(file_format, _hidden(final), rows.partition, compression)
        return opened

    @staticmethod
    def _file(file_format: FileFormat, path: Path, partition: Partition, compression: str) -> _File:
        if file_format == "jsonl":
            return jsonl.JsonlFile(path, compression)
        # Not above: JSONL needs no pyarrow.
        from streamdet.bridges.files.parquet import ParquetFile  # noqa: PLC0415

        return ParquetFile(path, partition, compression)

    def _finish(self, last: dict[Partition, Rows], position: dict[str, tuple[str, int]]) -> None:
        finished: dict[Path, Partition] = {}
        for partition, opened in self._open.items():
            for final, file in opened.files.items():
                file.finish(last.get(partition))
                finished[final] = partition
        hidden = [_hidden(final) for final in finished]
        folders = {self._directory, *(parent for final in finished for parent in self._parents(final))}
        _sync(hidden)
        _sync(folders)
        names = [final.relative_to(self._directory).as_posix() for final in finished]
        content = {"version": 1, "position": position, "finished": names}
        stage(self._directory / _JOURNAL, json.dumps(content).encode()).commit()
        self.position = position
        self._open.clear()
        self.largest_bytes = 0
        for final, partition in finished.items():
            _hidden(final).replace(final)
            self._retention.added(partition.date, final.stat().st_size)
        _sync(folders)
        self._retention.tidy()

    def _parents(self, final: Path) -> Iterator[Path]:
        for parent in final.parents:
            if parent == self._directory:
                return
            yield parent

    def _recover(self) -> None:
        """Reads the position, and gives the files that it names their names."""
        path = self._directory / _JOURNAL
        try:
            content: Any = json.loads(path.read_bytes())
            position = {str(topic): (str(epoch), int(seq)) for topic, (epoch, seq) in content["position"].items()}
            finished = [Path(name) for name in content["finished"]]
            if any(".." in name.parts or name.is_absolute() or not is_finished(name.name) for name in finished):
                raise ValueError(finished)  # noqa: TRY301 - it is described once, below
        except FileNotFoundError:
            # Of a directory that was deleted while it was written to, the position is known all the same.
            return
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            message = f"{path} holds no position ({error}); delete it to begin with what is published from now on"
            raise BridgeError(message) from None
        for name in finished:
            final = self._directory / name
            if _hidden(final).exists():
                _hidden(final).replace(final)
        _sync({(self._directory / name).parent for name in finished if (self._directory / name).exists()})
        self.position = position


def _hidden(final: Path) -> Path:
    return final.with_name(f".{final.name}.part")


def _sync(paths: Iterable[Path]) -> None:
    """Makes files, or the names in folders, survive a power failure; many at once, for each waits for the disk."""
    waiting = list(paths)
    if len(waiting) <= 1:
        for path in waiting:
            _sync_one(path)
        return
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        for _ in pool.map(_sync_one, waiting):
            pass


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
