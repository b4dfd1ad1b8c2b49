"""HTTP basic login for pages that programs read."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import math
import secrets
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from streamdet.config import MetricsConfig
from streamdet.http_server import network_of
from streamdet.security.passwords import Password, read_password
from streamdet.security.tries import LoginAttempts

_MAX_LOGIN_CHARACTERS = 2000


class PageLogin:
    """Lets requests pass that carry the right name and password; of wrong ones only a few a minute are looked at.

    Checking a password is slow on purpose. One that was right is known again by a hash whose key lives in this
    process alone, so that Prometheus may come as often as it likes. Belongs to one event loop.

    Args:
        username: the name that belongs to the password.
        password: the password.
    """

    def __init__(self, username: str, password: Password) -> None:
        self._username = username.encode()
        self._password = password
        self._tries = LoginAttempts()
        self._hash_key = secrets.token_bytes(32)
        self._known = b""
        # One check at a time: each takes 32 MiB and a quarter of a second.
        self._lock = asyncio.Lock()

    async def refusal(self, request: Request) -> Response | None:
        """What a request gets that may not pass; None for one that may."""
        login = _login_of(request)
        if login is None:
            return _refusal("a name and a password are needed")
        if self._is_known(login):
            return None
        client = network_of(request.client.host if request.client else "")
        async with self._lock:
            if self._is_known(login):
                return None
            wait_seconds = math.ceil(self._tries.wait_seconds(client))
            if wait_seconds:
                message = "too many wrong logins; wait\n"
                return PlainTextResponse(message, 429, {"Retry-After": str(wait_seconds)})
            if not await asyncio.to_thread(self._is_right, login):
                return _refusal("that is not the name or not the password")
            self._known = self._digest(login)
            self._tries.forget(client)
        return None

    def _is_known(self, login: bytes) -> bool:
        return hmac.compare_digest(self._digest(login), self._known)

    def _is_right(self, login: bytes) -> bool:
        username, _, password = login.partition(b":")
        right_name = hmac.compare_digest(username, self._username)
        # Both are always checked: how long it takes tells nothing about the name.
        return self._password.matches(password.decode("utf-8", "surrogateescape")) and right_name

    def _digest(self, login: bytes) -> bytes:
        return hmac.digest(self._hash_key, login, hashlib.sha256)


def login_for(config: MetricsConfig) -> PageLogin | None:
    """The login that a configuration asks for; None where it asks for none.

    Raises:
        PasswordError: its file cannot be used.
    """
    if config.password_file is None:
        return None
    return PageLogin(config.username, read_password(Path(config.password_file)))


def _login_of(request: Request) -> bytes | None:
    """`name:password` as the client sent it; None where there is none."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _MAX_LOGIN_CHARACTERS:
        return None
    try:
        login = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return login if b":" in login else None


def _refusal(why: str) -> Response:
    challenge = {"WWW-Authenticate": 'Basic realm="streamdet", charset="UTF-8"'}
    return PlainTextResponse(f"{why}\n", 401, challenge)
