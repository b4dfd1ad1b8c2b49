"""The users of the page: read from their file again whenever it changes."""

from __future__ import annotations

import logging
from pathlib import Path

from streamdet.security.passwords import PasswordError, User, read_users

_log = logging.getLogger(__name__)


class Users:
    """The users of a password file, as it is now; belongs to the event loop.

    A file that can no longer be read, or is no password file, changes nothing: one line in the log says so.

    Args:
        path: of the file.

    Raises:
        PasswordError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = self._mark_of()
        self._users = read_users(path)

    @property
    def have_names(self) -> bool:
        """Whether a login needs a name, at least of some users."""
        self._read_again()
        return any(self._users)

    @property
    def have_operator(self) -> bool:
        """Whether anyone may change something."""
        self._read_again()
        return any(user.role == "operator" for user in self._users.values())

    def find(self, name: str) -> User | None:
        """The user of this name; the empty one has the password that is for all."""
        self._read_again()
        return self._users.get(name)

    def any(self) -> User:
        """One of them, whose password takes as long to check as that of another."""
        return next(iter(self._users.values()))

    def _read_again(self) -> None:
        mark = self._mark_of()
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._users = read_users(self._path)
        except PasswordError as error:
            _log.error("the users stay as they were: %s", error)
        else:
            _log.info("read %d users of %s again", len(self._users), self._path)

    def _mark_of(self) -> tuple[int, ...]:
        """What differs when the file was written again."""
        try:
            status = self._path.stat()
        except OSError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode
