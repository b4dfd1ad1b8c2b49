"""CURVE keys in files: who the daemon is, and whom it lets in.

Every key pair is two files in the format of pyzmq and czmq: NAME.key, the public key, which may be shown to anyone,
and NAME.key_secret with both keys, which only its owner may read. The daemon lets in whose NAME.key lies in its
directory of allowed clients.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import zmq

from streamdet.errors import EXIT_USAGE, StreamdetError
from streamdet.security.files import others_can_read, read_start, write_atomically

_log = logging.getLogger(__name__)

PUBLIC_SUFFIX = ".key"
SECRET_SUFFIX = ".key_secret"  # noqa: S105 - the ending of a file
MAX_ALLOWED_CLIENTS = 10_000
_MAX_FILE_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# Z85: 32 bytes as 40 characters.
_LINE = re.compile(rb'^[ \t]*(public-key|secret-key|kind)[ \t]*=[ \t]*"([0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{1,40})"')
_KEY_CHARACTERS = 40
_WAY = "make one with: streamdet keys generate"

# A new file of an allowed client counts after this time at the latest.
REFRESH_SECONDS = 0.5
# These say nothing about the directory: it may be as it was, and can perhaps be read the next time.
_TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ESTALE)
_STAYS = "clients let in before stay connected"
# A file that was changed this recently may have been changed again without its times showing it.
_SETTLED_SECONDS = 2.0
# The times and size of a file when it was read, and the key in it; None if it holds none.
_Entry = tuple[tuple[int, ...], bytes | None]

Kind = Literal["server", "client"]


class KeyFileError(StreamdetError):
    """A file of keys cannot be read, written or used."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both keys of one side.

    Attributes:
        public: 40 characters of Z85.
        secret: 40 characters of Z85; in no log, event or metric.
    """

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a subscriber needs where the daemon asks for keys.

    Attributes:
        server: the daemon's public key.
        own: of the subscriber.
    """

    server: bytes
    own: KeyPair

    def apply_to(self, socket: zmq.Socket[Any]) -> None:
        """Has a socket that is not connected yet encrypt, and prove who it is."""
        socket.curve_serverkey = self.server
        socket.curve_publickey = self.own.public
        socket.curve_secretkey = self.own.secret


def client_keys(server_key: Path | str | None, client_key_file: Path | str | None) -> ClientKeys | None:
    """Reads a subscriber's keys; None where neither is given.

    Args:
        server_key: the file with the daemon's public key.
        client_key_file: the file with the subscriber's own keys.

    Raises:
        KeyFileError: one is missing, or cannot be used.
    """
    if server_key is None and client_key_file is None:
        return None
    if server_key is None or client_key_file is None:
        message = "the daemon's public key and a client's own key file go together; give both or neither"
        raise KeyFileError(message)
    return ClientKeys(read_public(Path(server_key)), read_pair(Path(client_key_file), "client"))


def generate(folder: Path, name: str, kind: Kind, *, force: bool = False) -> tuple[Path, Path]:
    """Makes a key pair, and the folder if there is none; a pair that is there stays, unless `force`.

    Returns:
        The public file, with mode 0644, and the secret one, with mode 0600.

    Raises:
        KeyFileError: the name is none, the files are there, or cannot be written.
    """
    public_file, secret_file = folder / f"{_checked(name)}{PUBLIC_SUFFIX}", folder / f"{name}{SECRET_SUFFIX}"
    public, secret = (key.decode() for key in zmq.curve_keypair())
    head = f'metadata\n    name = "{name}"\n    kind = "{kind}"\ncurve\n    public-key = "{public}"\n'
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not force:
            for path in (secret_file, public_file):
                if path.exists():
                    message = f"{path} is there already; choose another name, or --force to replace it for good"
                    raise KeyFileError(message)
        write_atomically(secret_file, f'{head}    secret-key = "{secret}"\n'.encode(), mode=0o600, replace=force)
        write_atomically(public_file, head.encode(), mode=0o644, replace=force)
    except OSError as error:
        message = f"cannot write keys to {folder}: {error.strerror}"
        raise KeyFileError(message) from error
    return public_file, secret_file


def allow(public_file: Path, directory: Path, *, force: bool = False) -> Path:
    """Puts a public key into a directory of allowed clients, which is made if there is none.

    Raises:
        KeyFileError: it is no public key, or cannot be written.
    """
    if public_file.name.endswith(SECRET_SUFFIX):
        message = f"{public_file} is a secret key, which stays with its client; give {public_file.with_suffix('.key')}"
        raise KeyFileError(message)
    public = read_public(public_file).decode()
    name = _checked(public_file.name.removesuffix(PUBLIC_SUFFIX))
    path = directory / f"{name}{PUBLIC_SUFFIX}"
    text = f'metadata\n    name = "{name}"\n    kind = "client"\ncurve\n    public-key = "{public}"\n'
    try:
        # Others may look who is let in; only the owner may change it.
        directory.mkdir(mode=0o755, exist_ok=True)
        write_atomically(path, text.encode(), mode=0o644, replace=force)
    except FileExistsError:
        message = f"{path} is there already; revoke it first, or --force to replace it"
        raise KeyFileError(message) from None
    except OSError as error:
        message = f"cannot write to {directory}: {error.strerror}"
        raise KeyFileError(message) from error
    return path


def revoke(directory: Path, name: str) -> Path:
    """Takes a client's public key out of a directory of allowed clients.

    Raises:
        KeyFileError: there is none of this name, or it cannot be removed; or it was removed, and the same key is let in
            under another name.
    """
    path = directory / f"{_checked(name.removesuffix(PUBLIC_SUFFIX))}{PUBLIC_SUFFIX}"
    key = _key_in(path)
    try:
        path.unlink()
    except FileNotFoundError:
        names = sorted(file.name.removesuffix(PUBLIC_SUFFIX) for file in directory.glob(f"*{PUBLIC_SUFFIX}"))
        known = f"; there are {', '.join(names[:10])}" if names else ""
        message = f"{directory} has no client {name!r}{known}"
        raise KeyFileError(message) from None
    except OSError as error:
        message = f"cannot remove {path}: {error.strerror}"
        raise KeyFileError(message) from error
    others = [file for file in public_files(directory) if key is not None and _key_in(file) == key]
    if others:
        listed = ", ".join(file.name.removesuffix(PUBLIC_SUFFIX) for file in others)
        message = f"removed {path}, but the same key is still let in as {listed}: revoke that, too"
        raise KeyFileError(message)
    return path


def _key_in(path: Path) -> bytes | None:
    try:
        return read_public(path)
    except KeyFileError:
        return None


def public_files(directory: Path) -> list[Path]:
    """The files of all allowed clients, by name; whatever else lies in the directory is not meant.

    Raises:
        KeyFileError: the directory cannot be read, or holds more than `MAX_ALLOWED_CLIENTS`.
    """
    try:
        with os.scandir(directory) as entries:
            # A name that begins with a dot is a file that is being written.
            names = [e.name for e in entries if e.name.endswith(PUBLIC_SUFFIX) and not e.name.startswith(".")]
    except OSError as error:
        message = f"cannot read the directory of allowed clients {directory}: {error.strerror}"
        raise KeyFileError(message) from error
    if len(names) > MAX_ALLOWED_CLIENTS:
        message = f"{directory} holds more than {MAX_ALLOWED_CLIENTS} clients"
        raise KeyFileError(message)
    return [directory / name for name in sorted(names)]


def read_public(path: Path) -> bytes:
    """The public key in a file, 40 characters.

    Raises:
        KeyFileError: it cannot be read, or has none.
    """
    content, _ = _read(path)
    return _key(path, content, "public-key")


def read_pair(path: Path, kind: Kind) -> KeyPair:
    """Both keys in a file that only its owner can read.

    Raises:
        KeyFileError: it cannot be read, others can read it, or it belongs to the other side.
    """
    content, mode = _read(path)
    if others_can_read(path, mode):
        message = f"others can read the secret key {path}; run: chmod 600 {path}"
        raise KeyFileError(message)
    written_kind = content.get("kind", kind.encode()).decode()
    if written_kind != kind:
        message = f"{path} is the key of a {written_kind}, and that of a {kind} is needed"
        raise KeyFileError(message)
    pair = KeyPair(_key(path, content, "public-key"), _key(path, content, "secret-key"))
    if zmq.curve_public(pair.secret) != pair.public:
        message = f"the two keys in {path} do not belong together; {_WAY}"
        raise KeyFileError(message)
    return pair


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        message = f"{name[:80]!r} is no name for a key: 1 to 64 letters, digits, - _ . of which the first is no sign"
        raise KeyFileError(message)
    return name


def _read(path: Path) -> tuple[dict[str, bytes], int]:
    """The lines of a file that we know, and its mode."""
    try:
        data, mode = read_start(path, _MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"cannot read the key file {path}: {error.strerror}; {_WAY}"
        raise KeyFileError(message) from error
    if len(data) > _MAX_FILE_BYTES:
        data = b""
    found = [match for line in data.splitlines() if (match := _LINE.match(line))]
    return {match[1].decode(): match[2] for match in found}, mode


def _key(path: Path, content: dict[str, bytes], name: str) -> bytes:
    key = content.get(name, b"")
    if len(key) != _KEY_CHARACTERS:
        message = f"{path} holds no {name.replace('-', ' ')}; {_WAY}"
        raise KeyFileError(message)
    return key


class AllowedClients:
    """Knows whose keys lie in a directory; for one thread.

    A directory that is gone or may not be read lets no one in, and the log says so; so does a file that holds no key.
    Where only the machine is at its limits (no file descriptors, no memory, a disk that does not answer), clients that
    were let in before stay: otherwise a want of descriptors would cut every client.

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
            problem = f"{error}; no one is let in"
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
