"""Access control for HTTP: the host names that a server accepts, requests of other sites, and a login."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamdet.http.server import connection_of
from streamdet.security.limits import FairRate, LoginAttempts
from streamdet.security.passwords import Password

_SAFE_METHODS = frozenset({"GET", "HEAD"})
# Only a name or an address, optionally with a port.
_HOST = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<name>[^:\[\]]*))(?::[0-9]*)?")
_MAX_LOGIN_CHARACTERS = 2000
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def is_host_of(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is `localhost`, a bare address, or one of these names in small letters.

    A web site can make a browser call this machine under the site's own name (DNS rebinding), but under no other.
    """
    match = _HOST.fullmatch(host.lower().strip())
    if match is None:
        return False
    if match["six"] is not None:
        return _is_address(match["six"])
    name = match["name"]
    name = name.removesuffix(".")
    return name == "localhost" or name in names or _is_address(name)


def is_from_another_site(method: str, headers: Headers, scheme: str) -> bool:
    """Whether a browser sends the request for a page of another site.

    Args:
        method: of the request.
        headers: of the request.
        scheme: "http" or "https", as browsers reach the server.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and origin.lower() != f"{scheme}://{host.lower()}":
        return True
    return method not in _SAFE_METHODS and headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


class Refused(NamedTuple):
    """Why a request is not answered, and how the answer says so."""

    status: int
    why: str
    headers: Mapping[str, str] = {}


class BasicLogin:
    """Accepts requests that carry the right name and password; checks only a few wrong ones a minute.

    Checking a password is slow on purpose. One that was right is recognised by a hash whose key lives in this process
    alone, so that a client may ask as often as it likes. Belongs to one event loop.

    Args:
        username: the name that belongs to the password.
        password: the password.
    """

    def __init__(self, username: str, password: Password) -> None:
        self._username = username.encode()
        self._password = password
        self._attempts = LoginAttempts()
        self._hash_key = secrets.token_bytes(32)
        self._known = b""
        # One check at a time: each takes 32 MiB and a quarter of a second.
        self._lock = asyncio.Lock()

    async def refusal(self, request: Request) -> Refused | None:
        """Why a request is refused; None for one that may pass, whose connection is trusted from then on."""
        connection = connection_of(request.scope)
        login = _login_of(request)
        refused = _unauthorized("a name and a password are needed") if login is None else None
        if login is not None and not self._is_known(login):
            async with self._lock:
                refused = await self._check(login, connection.network)
        connection.trusted = refused is None
        return refused

    async def _check(self, login: bytes, client: str) -> Refused | None:
        if self._is_known(login):
            return None  # found right while this one waited
        wait_seconds = math.ceil(self._attempts.wait_seconds(client))
        if wait_seconds:
            why = "too many wrong logins; wait"
            return Refused(HTTPStatus.TOO_MANY_REQUESTS, why, {"Retry-After": str(wait_seconds)})
        if not await asyncio.to_thread(self._is_right, login):
            return _unauthorized("that is not the name or not the password")
        self._known = self._digest(login)
        self._attempts.forget(client)
        return None

    def _is_known(self, login: bytes) -> bool:
        return hmac.compare_digest(self._digest(login), self._known)

    def _is_right(self, login: bytes) -> bool:
        username, _, password = login.partition(b":")
        right_name = hmac.compare_digest(username, self._username)
        # Both are always checked: how long it takes says nothing about the name.
        return self._password.matches(password.decode("utf-8", "surrogateescape")) and right_name

    def _digest(self, login: bytes) -> bytes:
        return hmac.digest(self._hash_key, login, hashlib.sha256)


class Guard:
    """Checks the name that a request is sent to, the site that it comes from and its login, and paces requests.

    Args:
        hosts: the names, besides `localhost` and addresses, that the server answers to, in small letters; None for any.
        login: what clients have to know; None for nothing.
        scheme: "http" or "https", as browsers reach a server that refuses what they send for other sites; None for one
            that does not.
    """

    def __init__(self, hosts: frozenset[str] | None, login: BasicLogin | None, scheme: str | None = None) -> None:
        self._hosts = hosts
        self._login = login
        self._scheme = scheme

    async def refusal(self, request: Request, rate: FairRate) -> Refused | None:
        """Why a request is refused; None for one that may pass, when it is its turn."""
        connection = connection_of(request.scope)
        if not await rate.turn(connection.network, lambda: connection.closed):
            why = "too many requests from your address are waiting; try again"
            return Refused(HTTPStatus.TOO_MANY_REQUESTS, why, {"Retry-After": "1"})
        # Browsers always send a Host; some load balancers send none.
        host = request.headers.get("host", "")
        if self._hosts is not None and host and not is_host_of(host, self._hosts):
            why = f"this server does not answer to the name {host[:200]!r}; add it to [metrics] hosts to allow it"
            return Refused(HTTPStatus.FORBIDDEN, why)
        if self._scheme is not None and is_from_another_site(request.method, request.headers, self._scheme):
            return Refused(HTTPStatus.FORBIDDEN, "this request comes from another site")
        return None if self._login is None else await self._login.refusal(request)


class Door:
    """Refuses requests or passes them on, and adds the headers that every answer has; ASGI middleware.

    Args:
        app: answers the requests that are passed on.
        refusal: returns the answer to a request that is refused, or None.
        headers: of every answer.
        on_answer: called with the status of each answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        refusal: Callable[[Request], Awaitable[Response | None]],
        headers: Mapping[str, str] = _HEADERS,
        on_answer: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._app = app
        self._refusal = refusal
        self._headers = headers
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
                self._on_answer(message["status"])
            await send(message)

        app = await self._refusal(Request(scope)) or self._app
        await app(scope, receive, send_with_headers)


def _login_of(request: Request) -> bytes | None:
    """`name:password` as the client sent it; None for a request without one."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or len(encoded) > _MAX_LOGIN_CHARACTERS:
        return None
    try:
        login = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return login if b":" in login else None


def _unauthorized(why: str) -> Refused:
    challenge = {"WWW-Authenticate": 'Basic realm="streamdet", charset="UTF-8"'}
    return Refused(HTTPStatus.UNAUTHORIZED, why, challenge)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
