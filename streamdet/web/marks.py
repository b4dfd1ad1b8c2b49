"""Which objects and alerts someone has marked as reviewed: kept in a file, shared by all who look at the page."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from streamdet.monitoring.log import FailureLog
from streamdet.security.files import why_foreign

MAX_MARKS = 100_000
"""More than these make the oldest go."""
MAX_CHANGES = 1000
"""So many of the newest are known; a page that has missed more reads its list again."""

_FILE = "reviewed.sqlite"
_SCHEMA = "CREATE TABLE IF NOT EXISTS marks (id TEXT PRIMARY KEY, marked_at REAL NOT NULL) WITHOUT ROWID"
_BUSY_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Marks:
    """The marks, by the ids of objects and alerts, which are unique over restarts of the daemon.

    All are in memory, too, so that reading waits for nothing. Where the file cannot be written, `problem` says so, and
    marks are written with the next one that can be.

    Args:
        directory: of the page's server; made if it is missing. None to keep no file.

    Attributes:
        problem: why marks do not last, in a sentence; empty while they do.
    """

    def __init__(self, directory: Path | None) -> None:
        self.problem = "" if directory is not None else "Marks last until the page's server ends: it has no directory."
        self._path = None if directory is None else directory / _FILE
        self._lock = threading.Lock()
        self._marked: dict[str, float] = {}
        self._unwritten: dict[str, float | None] = {}  # what the file does not know yet; None for a mark removed
        # The newest changes, numbered from 2 on; replaced as a whole, so that reading waits for nothing.
        self._changes: tuple[tuple[int, str, bool], ...] = ()
        self._failure = FailureLog(_log, "{} marks were not kept")
        if self._path is not None:
            try:
                self._marked = self._load(self._path)
            except (OSError, sqlite3.Error) as error:
                self._failed(error)

    def __contains__(self, of: str) -> bool:
        return of in self._marked

    @property
    def last_number(self) -> int:
        """Of the newest change; 1 before the first."""
        return self._changes[-1][0] if self._changes else 1

    def changed(self, after: int) -> dict[str, bool] | None:
        """What has been marked, or is no longer, since the change of this number; None where more has than is known."""
        changes = self._changes
        if changes and after < changes[0][0] - 1:
            return None
        return {of: reviewed for number, of, reviewed in changes if number > after}

    def mark(self, ids: Iterable[str], *, reviewed: bool) -> None:
        """Sets or removes marks; waits for the disk, so not for the event loop."""
        now = time.time()
        with self._lock:
            changed = [of for of in ids if (of in self._marked) != reviewed]
            for of in changed:
                if reviewed:
                    self._marked[of] = now
                else:
                    del self._marked[of]
            oldest = list(self._marked)[: max(len(self._marked) - MAX_MARKS, 0)]
            for of in oldest:
                del self._marked[of]
            fresh = [*((of, reviewed) for of in changed), *((of, False) for of in oldest)]
            numbered = ((number, *change) for number, change in enumerate(fresh, self.last_number + 1))
            self._changes = (*self._changes, *numbered)[-MAX_CHANGES:]
            if self._path is None:
                return
            self._unwritten |= {of: self._marked.get(of) for of in (*changed, *oldest)}
            if not self._unwritten:
                return
            try:
                self._write(self._path)
            except (OSError, sqlite3.Error) as error:
                self._failed(error)
            else:
                self._unwritten.clear()
                self.problem = ""
                self._failure.works(f"marks are kept in {self._path} again")

    def _load(self, path: Path) -> dict[str, float]:
        with closing(self._open(path)) as database:
            newest = "SELECT id, marked_at FROM marks ORDER BY marked_at DESC LIMIT ?"
            return dict(reversed(database.execute(newest, (MAX_MARKS,)).fetchall()))

    def _write(self, path: Path) -> None:
        marked = [(of, at) for of, at in self._unwritten.items() if at is not None]
        removed = [(of,) for of, at in self._unwritten.items() if at is None]
        with closing(self._open(path)) as database, database:
            database.executemany("DELETE FROM marks WHERE id = ?", removed)
            database.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?)", marked)

    def _open(self, path: Path) -> sqlite3.Connection:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would make it readable for others.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        why = why_foreign(path.lstat())
        if why is not None:
            raise OSError(None, f"{path.name}: {why}")
        database = sqlite3.connect(path, timeout=_BUSY_SECONDS)
        try:
            database.execute(_SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _failed(self, error: OSError | sqlite3.Error) -> None:
        why = getattr(error, "strerror", None) or error
        self.problem = f"Marks last until the page's server ends: {self._path} cannot be used: {why}."
        self._failure.failed(f"marks cannot be kept in {self._path}: {why}")
