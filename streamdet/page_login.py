"""HTTP basic login for pages that programs read, and the certificate that hides it from others on the way."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import secrets
import ssl
import threading
from http import HTTPStatus
from pathlib import Path

from streamdet.config import MetricsConfig
from streamdet.errors import EndpointError
from streamdet.page_request import Request, Response
from streamdet.password import Password, read_password
from streamdet.tries import Tries

_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_MAX_LOGIN_CHARACTERS = 2000


class PageLogin:
    """Lets requests pass that carry the right name and password; of wrong ones only a few a minute are looked at.

    Checking a password is slow on purpose. One that was right is known again by a hash whose key lives in this
    process alone, so that Prometheus may come as often as it likes.

    Args:
        username: the name that belongs to the password.
        password: the password.
    """

    def __init__(self, username: str, password: Password) -> None:
        self._username = username.encode()
        self._password = password
        self._tries = Tries()
        self._hash_key = secrets.token_bytes(32)
        self._known = b""
        # One check at a time: each takes 32 MiB and a quarter of a second.
        self._lock = threading.Lock()

    def refusal(self, request: Request) -> Response | None:
        """What a request gets that may not pass; None for one that may. Called by several threads."""
        login = _login_of(request)
        if login is None:
            return _refusal("a name and a password are needed")
        if hmac.compare_digest(self._digest(login), self._known):
            return None
        with self._lock:
            wait_seconds = math.ceil(self._tries.wait_seconds(request.client))
            if wait_seconds:
                return Response(
                    HTTPStatus.TOO_MANY_REQUESTS,
                    b"too many wrong logins; wait\n",
                    (_TEXT, ("Retry-After", str(wait_seconds))),
                )
            if not self._is_right(login):
                return _refusal("that is not the name or not the password")
            self._known = self._digest(login)
            self._tries.forget(request.client)
        return None

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


def tls_for(config: MetricsConfig) -> ssl.SSLContext | None:
    """What a server needs to speak TLS; None where the configuration has no certificate.

    Raises:
        EndpointError: the certificate or its key cannot be used.
    """
    if config.tls_certificate_file is None or config.tls_key_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without `password` OpenSSL would ask at the terminal for that of an encrypted key.
        context.load_cert_chain(config.tls_certificate_file, config.tls_key_file, password="")
    except (OSError, ValueError) as error:
        message = f"[metrics] the certificate {config.tls_certificate_file} or its key cannot be used: {error}"
        raise EndpointError(message) from error
    return context


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
    challenge = ("WWW-Authenticate", 'Basic realm="streamdet", charset="UTF-8"')
    return Response(HTTPStatus.UNAUTHORIZED, f"{why}\n".encode(), (_TEXT, challenge))
