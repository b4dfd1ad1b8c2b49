"""CURVE keys in files: the daemon's identity, and the clients that it lets in.

A key pair is two files in the format of pyzmq and czmq: NAME.key, the public key, and NAME.key_secret with both keys,
which only its owner may read. The daemon lets in clients whose NAME.key is in its directory of allowed clients.
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
    """A key file cannot be read, written or used."""

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
    """What a subscriber needs to connect to a daemon with keys.

    Attributes:
        server: the daemon's public key.
        own: the subscriber's keys.
    """

    server: bytes
    own: KeyPair

    def apply_to(self, socket: zmq.Socket[Any]) -> None:
        """Makes a socket that is not connected yet encrypt, and log in with these keys."""
        socket.curve_serverkey = self.server
        socket.curve_publickey = self.own.public
        socket.curve_secretkey = self.own.secret


def client_keys(server_key: Path | str | None, client_key_file: Path | str | None) -> ClientKeys | None:
    """Reads a subscriber's keys; None if neither file is given.

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
        message = f"{path} is the key of a {written_kind}; a {kind} key is needed"
        raise KeyFileError(message)
    pair = KeyPair(_key(path, content, "public-key"), _key(path, content, "secret-key"))
    if zmq.curve_public(pair.secret) != pair.public:
        message = f"the two keys in {path} do not belong together; {_WAY}"
        raise KeyFileError(message)
    return pair


def generate(folder: Path, name: str, kind: Kind, *, force: bool = False) -> tuple[Path, Path]:
    """Makes a key pair, and the folder if it is missing; an existing pair stays, unless `force`.

    Returns:
        The public file, with mode 0644, and the secret one, with mode 0600.

    Raises:
        KeyFileError: the name is not valid, the files exist, or they cannot be written.
    """
    public_file, secret_file = folder / f"{_checked(name)}{PUBLIC_SUFFIX}", folder / f"{name}{SECRET_SUFFIX}"
    public, secret = (key.decode() for key in zmq.curve_keypair())
    head = f'metadata\n    name = "{name}"\n    kind = "{kind}"\ncurve\n    public-key = "{public}"\n'
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not force:
            for path in (secret_file, public_file):
                if path.exists():
                    message = f"{path} exists already; choose another name, or --force to overwrite it"
                    raise KeyFileError(message)
        write_atomically(secret_file, f'{head}    secret-key = "{secret}"\n'.encode(), mode=0o600, replace=force)
        write_atomically(public_file, head.encode(), mode=0o644, replace=force)
    except OSError as error:
        message = f"cannot write keys to {folder}: {error.strerror}"
        raise KeyFileError(message) from error
    return public_file, secret_file


def allow(public_file: Path, directory: Path, *, force: bool = False) -> Path:
    """Puts a public key into a directory of allowed clients, which is made if it is missing.

    Raises:
        KeyFileError: it is not a public key, or cannot be written.
    """
    if public_file.name.endswith(SECRET_SUFFIX):
        message = f"{public_file} is a secret key, which stays with its client; give {public_file.with_suffix('.key')}"
        raise KeyFileError(message)
    public = read_public(public_file).decode()
    name = _checked(public_file.name.removesuffix(PUBLIC_SUFFIX))
    path = directory / f"{name}{PUBLIC_SUFFIX}"
    text = f'metadata\n    name = "{name}"\n    kind = "client"\ncurve\n    public-key = "{public}"\n'
    try:
        # Other users may see which clients are allowed; only the owner may change it.
        directory.mkdir(mode=0o755, exist_ok=True)
        write_atomically(path, text.encode(), mode=0o644, replace=force)
    except FileExistsError:
        message = f"{path} exists already; revoke it first, or --force to overwrite it"
        raise KeyFileError(message) from None
    except OSError as error:
        message = f"cannot write to {directory}: {error.strerror}"
        raise KeyFileError(message) from error
    return path


def revoke(directory: Path, name: str) -> Path:
    """Removes a client's public key from a directory of allowed clients.

    Raises:
        KeyFileError: there is no client of this name, or it cannot be removed; or it was removed, but the same key is
            let in under another name.
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
        message = f"removed {path}, but the same key is still allowed as {listed}: revoke that, too"
        raise KeyFileError(message)
    return path


def public_files(directory: Path) -> list[Path]:
    """The key files in a directory of allowed clients, by name; other files are ignored.

    Raises:
        KeyFileError: the directory cannot be read, or holds more than `MAX_ALLOWED_CLIENTS`.
    """
    try:
        with os.scandir(directory) as entries:
            # A name that begins with a dot belongs to a file that is being written.
            names = [e.name for e in entries if e.name.endswith(PUBLIC_SUFFIX) and not e.name.startswith(".")]
    except OSError as error:
        message = f"cannot read the directory of allowed clients {directory}: {error.strerror}"
        raise KeyFileError(message) from error
    if len(names) > MAX_ALLOWED_CLIENTS:
        message = f"{directory} holds more than {MAX_ALLOWED_CLIENTS} clients"
        raise KeyFileError(message)
    return [directory / name for name in sorted(names)]


class AllowedClients:
    """The clients whose keys are in a directory; for one thread.

    A directory that is gone or may not be read lets no one in, and the log says so; so does a file that holds no key.
    If the machine is out of file descriptors or memory, or its disk does not answer, clients that were let in before
    stay: otherwise a shortage would disconnect every client.

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
                self._report(f"{error}; {_STAYS}")
                return
            problem = f"{error}; no client is accepted"
            paths = []
        for path in paths:
            known = self._files.get(path)
            try:
                entry = self._entry(path, known)
            except OSError as error:
                # Only this file is affected; others may have been added or removed.
                problem = f"cannot read the key file {path}: {error.strerror}; {_STAYS}"
                entry = known
            if entry is not None:
                files[path] = entry
        self._report(problem)
        self._files = files
        before = self.newest
        self.newest = {
            key: path.name.removesuffix(PUBLIC_SUFFIX) for path, (_, key) in files.items() if key is not None
        }
        self.removals += not before.keys() <= self.newest.keys()

    def _report(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.error("%s", problem)
        self._problem = problem

    @staticmethod
    def _entry(path: Path, known: _Entry | None) -> _Entry | None:
        """What is in one file now; None if it is gone.

        Raises:
            OSError: it cannot be read at the moment.
        """
        try:
            status = path.stat()
        except OSError as error:
            if _is_transient(error):
                raise
            return None  # it has just gone
        # All keys have the same size, and a copy keeps the mtime of its original: only the ctime shows a change.
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        is_settled = abs(time.time() - status.st_ctime) > _SETTLED_SECONDS
        if known is not None and known[0] == state and (is_settled or known[1] is None):
            return known
        try:
            return state, read_public(path)
        except KeyFileError as error:
            if isinstance(error.__cause__, OSError) and _is_transient(error.__cause__):
                raise error.__cause__ from None
            _log.warning("%s; this client is not accepted", error)
            return state, None


def _key_in(path: Path) -> bytes | None:
    try:
        return read_public(path)
    except KeyFileError:
        return None


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        message = (
            f"{name[:80]!r} is not a name for a key: 1 to 64 letters, digits, - _ . beginning with a letter or digit"
        )
        raise KeyFileError(message)
    return name


def _read(path: Path) -> tuple[dict[str, bytes], int]:
    """The known keys and values in a file, and its mode."""
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


def _is_transient(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _TRANSIENT
