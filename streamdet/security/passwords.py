"""Passwords of pages: stored as scrypt hashes in files that only their owner can read.

The file of the page may hold users: a line `NAME:ROLE:scrypt:...` for each. A password that is for all has no name; a
line that begins with `scrypt:` is one of a viewer.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from streamdet.errors import EXIT_USAGE, StreamdetError
from streamdet.security.files import others_can_read, read_start, write_atomically

MIN_CHARACTERS = 10
MAX_CHARACTERS = 1000
# OWASP's recommendation of 2023 for scrypt with 32 MiB; a check takes about a quarter of a second.
_LOG2_N, _R, _P = 15, 8, 3
_MAX_MEMORY_BYTES = 128 << 20
_MAX_FILE_BYTES = 1000
_MAX_USERS_BYTES = 256 * 1024
_WAY = "make one with: streamdet web --set-password FILE"
USER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

Role = Literal["viewer", "operator"]
"""What a user of the page may do: look, or also change."""
ROLES: tuple[Role, ...] = get_args(Role)


class PasswordError(StreamdetError):
    """A password file cannot be used, or a password has a length that is not allowed."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Password:
    """A stored password.

    Attributes:
        salt: random bytes.
        hash: scrypt of the password.
        cost: log2 of N, then r and p of scrypt.
    """

    salt: bytes
    hash: bytes
    cost: tuple[int, int, int] = (_LOG2_N, _R, _P)

    @classmethod
    def of(cls, text: str, cost: tuple[int, int, int] = (_LOG2_N, _R, _P)) -> Password:
        """Hashes a new password.

        Raises:
            PasswordError: it is too short or too long.
        """
        if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            message = f"the password must have {MIN_CHARACTERS} to {MAX_CHARACTERS} characters"
            raise PasswordError(message)
        salt = secrets.token_bytes(16)
        return cls(salt, _scrypt(text, salt, cost), cost)

    def matches(self, text: str) -> bool:
        """Whether this is the password; takes the same time for a wrong one."""
        return hmac.compare_digest(_scrypt(text[:MAX_CHARACTERS], self.salt, self.cost), self.hash)


@dataclass(frozen=True, slots=True)
class User:
    """Who may log in to the page.

    Attributes:
        name: empty for all who know a password without a name.
        role: what the user may do.
        password: of the user.
    """

    name: str
    role: Role
    password: Password


def write_password(path: Path, password: Password) -> None:
    """Writes a file with one password, readable by its owner only.

    Raises:
        PasswordError: it cannot be written.
    """
    _write(path, _line(password) + "\n")


def write_user(path: Path, user: User) -> None:
    """Adds a user to a file, or replaces the one of the same name; the file is made if it is missing.

    Raises:
        PasswordError: the file cannot be read or written, or is not one of users.
    """
    lines: list[str] = []
    if path.exists():
        read_users(path)
        lines = path.read_text("ascii").splitlines()
    named = [":".join((user.name, user.role, _line(user.password)))]
    others = [line for line in lines if not _is_user(line) or _parsed(line, path).name != user.name]
    _write(path, "".join(f"{line}\n" for line in [*others, *named]))


def read_users(path: Path) -> Mapping[str, User]:
    """Reads a password file of the page: users by their names, or one password, whose name is empty.

    Raises:
        PasswordError: it is missing, others can read it, or it is not a password file.
    """
    lines = _read(path, _MAX_USERS_BYTES).splitlines()
    users: dict[str, User] = {}
    for line in filter(_is_user, lines):
        user = _parsed(line, path)
        if user.name in users:
            message = f'{path} has two lines of the user "{user.name}"; delete one'
            raise PasswordError(message)
        users[user.name] = user
    if not users:
        raise _not_one(path)
    return users


def read_password(path: Path) -> Password:
    """Reads a file with one password.

    Raises:
        PasswordError: it is missing, others can read it, or it is not a password file.
    """
    return _password(_read(path, _MAX_FILE_BYTES).strip(), path)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode(), mode=0o600)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise PasswordError(message) from error


def _read(path: Path, max_bytes: int) -> str:
    try:
        content, mode = read_start(path, max_bytes + 1)
    except OSError as error:
        message = f"cannot read the password file {path}: {error.strerror}; {_WAY}"
        raise PasswordError(message) from error
    if others_can_read(path, mode):
        message = f"others can read the password file {path}; run: chmod 600 {path}"
        raise PasswordError(message)
    try:
        text = content.decode("ascii")
    except ValueError:
        raise _not_one(path) from None
    if len(content) > max_bytes:
        raise _not_one(path)
    return text


def _is_user(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _parsed(line: str, path: Path) -> User:
    name, role, rest = "", "viewer", line.strip()
    if not rest.startswith("scrypt:"):
        name, _, rest = rest.partition(":")
        role, _, rest = rest.partition(":")
    known = next((each for each in ROLES if each == role), None)
    if known is None or (name and USER_NAME.fullmatch(name) is None):
        raise _not_one(path)
    return User(name, known, _password(rest, path))


def _password(line: str, path: Path) -> Password:
    try:
        word, log2_n, r, p, salt, digest = line.split(":")
        cost = (int(log2_n), int(r), int(p))
        password = Password(base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True), cost)
    except ValueError:
        raise _not_one(path) from None
    bounded = 1 <= cost[0] <= 16 and 1 <= cost[1] <= 8 and 1 <= cost[2] <= 16
    if word != "scrypt" or not bounded or not password.salt or len(password.hash) != 32:
        raise _not_one(path)
    return password


def _line(password: Password) -> str:
    return ":".join(["scrypt", *map(str, password.cost), _text(password.salt), _text(password.hash)])


def _not_one(path: Path) -> PasswordError:
    return PasswordError(f"{path} is not a password file of streamdet; {_WAY}")


def _scrypt(text: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    log2_n, r, p = cost
    return hashlib.scrypt(
        text.encode("utf-8", "surrogatepass"), salt=salt, n=1 << log2_n, r=r, p=p, maxmem=_MAX_MEMORY_BYTES, dklen=32
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
