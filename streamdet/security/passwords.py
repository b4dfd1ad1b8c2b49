"""Passwords of pages: stored as scrypt hashes in files that only their owner can read."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path

from streamdet.errors import EXIT_USAGE, StreamdetError
from streamdet.security.files import others_can_read, read_start, write_atomically

MIN_CHARACTERS = 10
MAX_CHARACTERS = 1000
# OWASP's recommendation of 2023 for scrypt with 32 MiB; a check takes about a quarter of a second.
_LOG2_N, _R, _P = 15, 8, 3
_MAX_MEMORY_BYTES = 128 << 20
_MAX_FILE_BYTES = 1000
_WAY = "make one with: streamdet web --set-password FILE"


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


def write_password(path: Path, password: Password) -> None:
    """Writes the file, readable by its owner only.

    Raises:
        PasswordError: it cannot be written.
    """
    parts = ["scrypt", *map(str, password.cost), _text(password.salt), _text(password.hash)]
    try:
        write_atomically(path, ":".join(parts).encode() + b"\n", mode=0o600)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise PasswordError(message) from error


def read_password(path: Path) -> Password:
    """Reads a password file.

    Raises:
        PasswordError: it is missing, others can read it, or it is not a password file.
    """
    try:
        content, mode = read_start(path, _MAX_FILE_BYTES)
    except OSError as error:
        message = f"cannot read the password file {path}: {error.strerror}; {_WAY}"
        raise PasswordError(message) from error
    if others_can_read(path, mode):
        message = f"others can read the password file {path}; run: chmod 600 {path}"
        raise PasswordError(message)
    try:
        word, log2_n, r, p, salt, digest = content.decode("ascii").strip().split(":")
        cost = (int(log2_n), int(r), int(p))
        password = Password(base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True), cost)
    except ValueError:
        raise _not_one(path) from None
    bounded = 1 <= cost[0] <= 16 and 1 <= cost[1] <= 8 and 1 <= cost[2] <= 16
    if word != "scrypt" or not bounded or not password.salt or len(password.hash) != 32:
        raise _not_one(path)
    return password


def _not_one(path: Path) -> PasswordError:
    return PasswordError(f"{path} is not a password file of streamdet; {_WAY}")


def _scrypt(text: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    log2_n, r, p = cost
    return hashlib.scrypt(
        text.encode("utf-8", "surrogatepass"), salt=salt, n=1 << log2_n, r=r, p=p, maxmem=_MAX_MEMORY_BYTES, dklen=32
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
