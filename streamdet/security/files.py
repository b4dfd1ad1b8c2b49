"""Files that hold secrets, or that must be whole: written completely or not at all, and private where they must be."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

Content = bytes | Callable[[BinaryIO], object]
"""What to write: bytes, or a function that writes to an open binary file."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """New content that is complete and takes the place of the old one with `commit`.

    Attributes:
        path: the file that the content is for.
        staged: where it is until then.
        is_synced: whether it is on the disk, and not only with the system, which a power failure ends.
    """

    path: Path
    staged: Path
    is_synced: bool = True

    def commit(self, *, replace: bool = True) -> None:
        """Puts the new content in place; readers see the old or the new one, if synced also after a power failure.

        Args:
            replace: whether it may replace a file.

        Raises:
            FileExistsError: there is a file, and it may not be replaced.
            OSError: the folder cannot be written to.
        """
        try:
            if replace:
                self.staged.replace(self.path)
            else:
                self.path.hardlink_to(self.staged)  # fails where the path exists, which `replace` would not
        finally:
            self.discard()
        if self.is_synced:
            _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Deletes the new content; does nothing after a commit."""
        self.staged.unlink(missing_ok=True)


def stage(
    path: Path,
    content: Content,
    *,
    mode: int | None = 0o600,
    group: int | None = None,
    sync: bool = True,
    makes_folder: bool = False,
) -> StagedFile:
    """Writes new content to a file `.NAME.*.part` beside the path, with its mode and group before it is in place.

    Args:
        path: the file that the content is for; a symbolic link there is replaced, not followed.
        content: what to write.
        mode: permissions; None for those that `open` would give.
        group: its group; None for the group of this process.
        sync: whether it must survive a power failure; 60 KB took 12 ms with and 0.2 ms without it.
        makes_folder: whether its folder, with mode 0700, is made where it is missing: someone has deleted it.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    # A new file: a link or file of another user at this name is not used.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    first_mode = 0o666 if mode is None else 0o600
    try:
        descriptor = os.open(staged, flags, first_mode)
    except FileNotFoundError:
        if not makes_folder:
            raise
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(staged, flags, first_mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            if group is not None:
                os.fchown(file.fileno(), -1, group)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            if sync:
                os.fsync(file.fileno())
    except BaseException:
        # Raised again, whatever it is: half a file, perhaps with a secret in it, must not stay.
        staged.unlink(missing_ok=True)
        raise
    return StagedFile(path, staged, sync)


def write_atomically(
    path: Path, content: Content, *, mode: int | None = 0o600, group: int | None = None, replace: bool = True
) -> None:
    """Writes a file as a whole: whatever happens, the path holds the old content or the new one.

    Args:
        path: the file; a symbolic link there is replaced, not followed.
        content: what to write.
        mode: permissions; None for those that `open` would give.
        group: its group; None for the group of this process.
        replace: whether it may replace a file.

    Raises:
        FileExistsError: there is a file, and it may not be replaced.
        OSError: it cannot be written; the old content stays.
    """
    stage(path, content, mode=mode, group=group).commit(replace=replace)


def is_there(path: Path) -> bool:
    """Whether a path exists, as far as this user may see; also of one that cannot be a path."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a folder of someone else's, or a name that is too long
        return False


def lock_directory(directory: Path) -> int:
    """Makes a directory, and locks it for this process until the descriptor that it returns is closed.

    Raises:
        OSError: it cannot be used; `strerror` says why, for people. EBUSY: another process has it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OSError(errno.EBUSY, "another process uses it; give each its own", str(directory)) from None
    except OSError as error:
        os.close(lock)
        raise OSError(error.errno, f"its file system has no locks ({error.strerror})", str(directory)) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        os.close(lock)
        raise OSError(errno.EACCES, "it cannot be written", str(directory))
    return lock


def others_can_delete(directory: int) -> bool:
    """Whether other users may delete the files of an open directory."""
    status = os.fstat(directory)
    return status.st_uid not in (os.geteuid(), 0) or bool(status.st_mode & stat.S_IWOTH)


def remove_leftovers(folder: Path) -> None:
    """Deletes what writers that were killed have left in a folder; none may be at work there."""
    for part in folder.glob(".*.part"):
        with suppress(IsADirectoryError):
            part.unlink()


def open_at_once(path: Path, *, follow: bool = True) -> BinaryIO:
    """Opens a file to read it, without waiting for the writer of a named pipe.

    Args:
        path: of the file.
        follow: whether it may be a symbolic link.

    Raises:
        OSError: it cannot be opened; a folder never can.
    """
    more = os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    # With `os.fdopen`, the descriptor of a folder would stay open.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | more))


def read_start(path: Path, max_bytes: int) -> tuple[bytes, int]:
    """The first bytes of a file, and its mode; nothing of what is no regular file, so that no named pipe blocks.

    Raises:
        OSError: it cannot be read.
    """
    with open_at_once(path) as file:
        mode = os.fstat(file.fileno()).st_mode
        return file.read(max_bytes) if stat.S_ISREG(mode) else b"", mode


def others_can_read(path: Path, mode: int) -> bool:
    """Whether a file of this mode is open to its group or to all; a credential of systemd is not, whatever its mode."""
    return bool(stat.S_IMODE(mode) & 0o077) and not is_credential(path)


def is_credential(path: Path) -> bool:
    """Whether systemd handed the file to this service, in a folder that no one else can enter.

    It may have an ACL for its reader, and then shows the mode 0440.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and path.absolute().is_relative_to(str(folder))


def why_foreign(status: os.stat_result) -> str | None:
    """Why a file may not have been made by this process for itself alone; None if it may.

    Args:
        status: of the file, from `lstat`, so that a link is seen as one.
    """
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to it"
    return None


def state_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where a program keeps what must last: systemd's state directory, else the user's; None without either."""
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    state = environ.get("XDG_STATE_HOME", "")
    if state and Path(state).is_absolute():
        return Path(state, "streamdet")
    home = environ.get("HOME", "")
    return Path(home, ".local", "state", "streamdet") if home and Path(home).is_absolute() else None


def _sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power failure; one that this user may write but not read stays as it is."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
