"""Access control of the page: protection against DNS rebinding and other sites, the login, and sessions."""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import socket
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from streamdet.http.access import is_from_another_site, is_host_of
from streamdet.http.server import BadRequestError, connection_of, network_of, read_body
from streamdet.security.limits import LoginAttempts
from streamdet.security.passwords import Password
from streamdet.web.html import HTML, Pages

MAX_SESSIONS = 1000
MAX_AGE_SECONDS = 7 * 24 * 3600.0
MAX_IDLE_SECONDS = 12 * 3600.0
_OPEN_PATHS = frozenset({"/login", "/healthz"})
_FIXED_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_MAX_BODY_BYTES = 4096


@dataclass(frozen=True)
class AccessRules:
    """The rules that a request must meet.

    Attributes:
        host_names: names, besides `localhost` and addresses, under which the page may be called. An attacker's name
            that leads to this machine (DNS rebinding) is none of them; a bare address cannot be rebound.
        secure: whether browsers reach the page over https.
        sessions: who has logged in; None when no password is asked for.
        content_security_policy: what the pages may load: themselves.
    """

    content_security_policy: str
    host_names: frozenset[str] = frozenset()
    secure: bool = False
    sessions: Sessions | None = None
    # A cookie with this prefix is accepted over https only, from this very host only.
    cookie: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cookie", "__Host-streamdet" if self.secure else "streamdet")

    @property
    def headers(self) -> dict[str, str]:
        """Of every answer."""
        https = {"Strict-Transport-Security": "max-age=31536000"} if self.secure else {}
        return {**_FIXED_HEADERS, "Content-Security-Policy": self.content_security_policy, **https}

    async def refusal(self, request: Request) -> Response | None:
        """The answer to a request that is refused; None for one that may pass."""
        headers, path = request.headers, request.scope["path"]
        host = headers.get("host", "")
        if not is_host_of(host, self.host_names):
            why = f"this page does not answer to the name {host[:200]!r}; start it with --host-name NAME to allow it"
            return PlainTextResponse(f"{why}\n", 403)
        if is_from_another_site(request.method, headers, "https" if self.secure else "http"):
            return PlainTextResponse("this request comes from another site\n", 403)
        is_open = self.is_open(headers)
        # A client that has shown the password keeps its connection when there are too many.
        connection_of(request.scope).trusted = is_open and self.sessions is not None
        if path in _OPEN_PATHS or is_open:
            return None
        return RedirectResponse("/login", 303) if path == "/" else PlainTextResponse("log in first\n", 401)

    def token(self, headers: Headers) -> str:
        """The session of a request."""
        return cookie_parser(headers.get("cookie", "")).get(self.cookie, "")

    def is_open(self, headers: Headers) -> bool:
        """Whether no password is required, or the client has logged in."""
        return self.sessions is None or self.sessions.is_open(self.token(headers))


def host_names(names: Iterable[str], *, off_loopback: bool) -> frozenset[str]:
    """The host names that requests may use: those given, and off loopback also those of this machine."""
    own = (socket.gethostname(), socket.getfqdn()) if off_loopback else ()
    return frozenset(name.lower().rstrip(".") for name in (*names, *own))


class Login:
    """Checks the password, and creates a session if it is right.

    Args:
        password: the one.
        sessions: of all who know it.
        pages: the form.
        rules: name and kind of the cookie.
        behind_proxy: whether the address of a client is what the proxy says.
    """

    def __init__(
        self, password: Password, sessions: Sessions, pages: Pages, rules: AccessRules, *, behind_proxy: bool
    ) -> None:
        self._password = password
        self._sessions = sessions
        self._pages = pages
        self._rules = rules
        self._behind_proxy = behind_proxy
        self._tries = LoginAttempts()
        self._one_at_a_time = asyncio.Lock()

    def routes(self) -> list[Route]:
        """/login and /logout."""
        return [
            Route("/login", self.show),
            Route("/login", self.log_in, methods=["POST"]),
            Route("/logout", self.log_out, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The login form, or a redirection to the page if no login is needed."""
        if self._rules.is_open(request.headers):
            return RedirectResponse("/", 303)
        return Response(self._pages.login(), media_type=HTML)

    async def log_in(self, request: Request) -> Response:
        """Checks a password."""
        try:
            form = urllib.parse.parse_qs((await read_body(request, _MAX_BODY_BYTES)).decode())
        except (BadRequestError, ValueError):
            return PlainTextResponse("not a login\n", 400)
        # Only what has come as a whole is a try: half a form must not use up those of its address.
        client = self._client(request)
        wait_seconds = math.ceil(self._tries.wait_seconds(client))
        if wait_seconds:
            page = self._pages.login(f"Too many tries. Wait {wait_seconds} seconds.")
            return Response(page, 429, {"Retry-After": str(wait_seconds)}, HTML)
        text = form.get("password", [""])[0]
        async with self._one_at_a_time:
            right = await asyncio.to_thread(self._password.matches, text)
        if not right:
            return Response(self._pages.login("That is not the password."), 403, media_type=HTML)
        self._tries.forget(client)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            self._rules.cookie, self._sessions.begin(), max_age=int(MAX_AGE_SECONDS), path="/",
            secure=self._rules.secure, httponly=True, samesite="strict",
        )  # fmt: skip
        return response

    async def log_out(self, request: Request) -> Response:
        """Ends a session."""
        self._sessions.end(self._rules.token(request.headers))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(self._rules.cookie, secure=self._rules.secure, httponly=True, samesite="strict")
        return response

    def _client(self, request: Request) -> str:
        """The key by which attempts are counted: the client address; behind a proxy, the last one, added by the proxy.

        A proxy adds it to the client's own header, or adds a header of its own behind it.
        """
        forwarded = ",".join(request.headers.getlist("x-forwarded-for")) if self._behind_proxy else ""
        address = forwarded.rpartition(",")[2].strip()[:100] or (request.client.host if request.client else "")
        return network_of(address)


class Sessions:
    """Tokens of sessions; only their hashes are kept, so that a copy of the memory contains no valid token.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By hash of the token: when it began, when it was used last.
        self._sessions: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def begin(self) -> str:
        """Creates a session and returns its token; the oldest session ends when there are too many."""
        token = secrets.token_urlsafe(32)
        now = self._clock()
        self._sessions[_hash(token)] = (now, now)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return token

    def is_open(self, token: str) -> bool:
        """Whether the token belongs to a session that has not expired; counts as use."""
        key, now = _hash(token), self._clock()
        began, used = self._sessions.get(key, (float("-inf"), float("-inf")))
        if now - began > MAX_AGE_SECONDS or now - used > MAX_IDLE_SECONDS:
            self._sessions.pop(key, None)
            return False
        self._sessions[key] = (began, now)
        return True

    def end(self, token: str) -> None:
        """Forgets a token."""
        self._sessions.pop(_hash(token), None)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
