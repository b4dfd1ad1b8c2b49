"""The clients that are let in: a directory of public keys, read again and again while the daemon runs."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path

from streamdet.security.curve import PUBLIC_SUFFIX, KeyFileError, public_files, read_public

# A new file counts after this time at the latest.
REFRESH_SECONDS = 0.5

# These say nothing about the directory: it may be as it was, and will perhaps be read the next time.
_TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE)

_STAYS = "whoever was let in before still is"
# A file that was changed so lately may have been changed again without its times showing it.
_SETTLED_SECONDS = 2.0
# What `stat` said of a file when it was read, and the key in it; None where there is none.
_Entry = tuple[tuple[int, ...], bytes | None]

_log = logging.getLogger(__name__)


class AllowedClients:
    """Knows whose keys lie in a directory; for one thread.

    A directory that is gone or may not be read lets nobody in, and the log says so; so does a file that holds no key.
    Where only the machine is at its limits (no file descriptors, no memory, a disk that does not answer), whoever was
    let in before still is: otherwise a want of descriptors would cut every client.

    Args:
        directory: with a file NAME.key for each client.
        clock: monotonic seconds.

    Attributes:
        newest: the name of every allowed client by its key, as of the last time the directory was read; any thread may
            read it.
        removals: how often keys were taken out.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._read_at = float("-inf")
        self._files: dict[Path, _Entry] = {}
        self.newest: dict[bytes, str] = {}
        self.removals = 0
        self._problem = ""

    def names(self) -> dict[bytes, str]:
        """The name of every allowed client by its key, not older than `REFRESH_SECONDS`."""
        now = self._clock()
        if now - self._read_at >= REFRESH_SECONDS:
            self._read_at = now
            self._read()
        return self.newest

    def _read(self) -> None:
        problem = ""
        files: dict[Path, _Entry] = {}
        try:
            paths = public_files(self._directory)
        except KeyFileError as error:
            if _is_transient(error.__cause__):
                self._tell(f"{error}; {_STAYS}")
                return
            problem = f"{error}; nobody is let in"
            paths = []
        for path in paths:
            known = self._files.get(path)
            try:
                entry = self._entry(path, known)
            except OSError as error:
                # Of this file alone; others may have been added or removed.
                problem = f"cannot read the key file {path}: {error.strerror}; {_STAYS}"
                entry = known
            if entry is not None:
                files[path] = entry
        self._tell(problem)
        self._files = files
        before = self.newest
        self.newest = {
            key: path.name.removesuffix(PUBLIC_SUFFIX) for path, (_, key) in files.items() if key is not None
        }
        self.removals += not before.keys() <= self.newest.keys()

    def _tell(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.error("%s", problem)
        self._problem = problem

    @staticmethod
    def _entry(path: Path, known: _Entry | None) -> _Entry | None:
        """What is in one file now; None when there is none.

        Raises:
            OSError: that cannot be said at the moment.
        """
        try:
            status = path.stat()
        except OSError as error:
            if _is_transient(error):
                raise
            return None  # it has just gone
        # All keys are of one size, and a copy keeps the time of its original: only the kernel's own time tells.
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        is_settled = abs(time.time() - status.st_ctime) > _SETTLED_SECONDS
        if known is not None and known[0] == state and (is_settled or known[1] is None):
            return known
        try:
            return state, read_public(path)
        except KeyFileError as error:
            if isinstance(error.__cause__, OSError) and _is_transient(error.__cause__):
                raise error.__cause__ from None
            _log.warning("%s; this client is not let in", error)
            return state, None


def _is_transient(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _TRANSIENT
