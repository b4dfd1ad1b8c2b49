"""The clients that are let in: a directory of public keys, read again and again while the daemon runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from streamdet.keys import PUBLIC_SUFFIX, KeyFileError, public_files, read_public

# A new file counts after this time at the latest.
REFRESH_SECONDS = 0.5

_log = logging.getLogger(__name__)


class AllowedClients:
    """Knows whose keys lie in a directory; for one thread.

    A directory that cannot be read lets nobody in, and says so in the log; so does a file that holds no key.

    Args:
        directory: with a file NAME.key for each client.
        clock: monotonic seconds.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._read_at = float("-inf")
        # By path: what `stat` said when it was read, and the key in it; None where there is none.
        self._files: dict[Path, tuple[tuple[int, int, int], bytes | None]] = {}
        self._names: dict[bytes, str] = {}
        self._problem = ""

    def names(self) -> dict[bytes, str]:
        """The name of every allowed client by its key, not older than `REFRESH_SECONDS`."""
        now = self._clock()
        if now - self._read_at >= REFRESH_SECONDS:
            self._read_at = now
            self._read()
        return self._names

    def _read(self) -> None:
        try:
            paths = public_files(self._directory)
        except KeyFileError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("%s; nobody is let in", error)
            paths = []
        else:
            self._problem = ""
        self._files = {path: entry for path in paths if (entry := self._entry(path)) is not None}
        self._names = {
            key: path.name.removesuffix(PUBLIC_SUFFIX) for path, (_, key) in self._files.items() if key is not None
        }

    def _entry(self, path: Path) -> tuple[tuple[int, int, int], bytes | None] | None:
        try:
            status = path.stat()
        except OSError:
            return None  # it has just gone
        state = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._files.get(path)
        if known is not None and known[0] == state:
            return known
        try:
            return state, read_public(path)
        except KeyFileError as error:
            _log.warning("%s; this client is not let in", error)
            return state, None
