"""Access control of the page: protection against DNS rebinding and other sites, the login, and sessions."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import math
import secrets
import socket
import time
import urllib.parse
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from streamdet.http.access import is_from_another_site, is_host_of
from streamdet.http.server import BadRequestError, connection_of, network_of, read_body
from streamdet.monitoring.log import LogThrottle
from streamdet.security.limits import LoginAttempts
from streamdet.security.passwords import User
from streamdet.web.html import HTML, Pages
from streamdet.web.users import Users

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
_QUIET_SECONDS = 1.0
_WRONG = "That is not the password."
SHARED_NAME = "shared"
"""What one who knows the password without a name is called; no user has this name."""

_log = logging.getLogger(__name__)


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
        return self.sessions is None or self.user(headers) is not None

    def user(self, headers: Headers) -> User | None:
        """Who sends a request; None for a client that has not logged in."""
        return None if self.sessions is None else self.sessions.user_of(self.token(headers))


def host_names(names: Iterable[str], *, off_loopback: bool) -> frozenset[str]:
    """The host names that requests may use: those given, and off loopback also those of this machine."""
    own = (socket.gethostname(), socket.getfqdn()) if off_loopback else ()
    return frozenset(name.lower().rstrip(".") for name in (*names, *own))


class Login:
    """Checks the password, and creates a session if it is right.

    Args:
        users: who may log in.
        sessions: of those who have.
        pages: the form.
        rules: name and kind of the cookie.
        behind_proxy: whether the address of a client is what the proxy says.
    """

    def __init__(
        self, users: Users, sessions: Sessions, pages: Pages, rules: AccessRules, *, behind_proxy: bool
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._pages = pages
        self._rules = rules
        self._behind_proxy = behind_proxy
        self._tries = LoginAttempts()
        self._one_at_a_time = asyncio.Lock()
        self._throttle = LogThrottle(_QUIET_SECONDS)

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
        return self._form("", 200)

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
            return self._form(f"Too many tries. Wait {wait_seconds} seconds.", 429, {"Retry-After": str(wait_seconds)})
        name, text = form.get("username", [""])[0].strip(), form.get("password", [""])[0]
        user = self._users.find(name if self._users.have_names else "")
        async with self._one_at_a_time:
            # Also for a name that is not known: how long it takes says nothing about names.
            right = await asyncio.to_thread((user or self._users.any()).password.matches, text)
        if user is None or not right:
            # What was typed as a name may be a password.
            who = "an unknown name" if user is None else f"{name_of(user)} ({user.role})"
            self._throttle.log(_log, logging.WARNING, "login refused: %s from %s", who, self._address(request))
            form_of = "That is not the name or not the password." if self._users.have_names else _WRONG
            return self._form(form_of, 403)
        self._tries.forget(client)
        _log.info("%s (%s) logged in from %s", name_of(user), user.role, self._address(request))
        response = RedirectResponse("/", 303)
        response.set_cookie(
            self._rules.cookie, self._sessions.begin(user), max_age=int(MAX_AGE_SECONDS), path="/",
            secure=self._rules.secure, httponly=True, samesite="strict",
        )  # fmt: skip
        return response

    def _form(self, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
        page = self._pages.login(message, with_name=self._users.have_names)
        return Response(page, status, headers, HTML)

    async def log_out(self, request: Request) -> Response:
        """Ends a session."""
        self._sessions.end(self._rules.token(request.headers))
        response = RedirectResponse("/login", 303)
        response.delete_cookie(self._rules.cookie, secure=self._rules.secure, httponly=True, samesite="strict")
        return response

    def _client(self, request: Request) -> str:
        """The key by which attempts are counted."""
        return network_of(client_of(request, behind_proxy=self._behind_proxy))

    def _address(self, request: Request) -> str:
        return address_of(request, behind_proxy=self._behind_proxy)


def name_of(user: User) -> str:
    """The name of a user for people and logs."""
    return user.name or SHARED_NAME


def client_of(request: Request, *, behind_proxy: bool) -> str:
    """The client of a request: its address; behind a proxy, the last one of those that the proxy and others report.

    A proxy adds it to the client's own header, or adds a header of its own behind it.
    """
    forwarded = ",".join(request.headers.getlist("x-forwarded-for")) if behind_proxy else ""
    return forwarded.rpartition(",")[2].strip()[:100] or (request.client.host if request.client else "")


def address_of(request: Request, *, behind_proxy: bool) -> str:
    """The same for logs: an address, or "unknown" where a proxy reports something else."""
    try:
        return str(ip_address(client_of(request, behind_proxy=behind_proxy).partition("%")[0]))
    except ValueError:
        return "unknown"


@dataclass(slots=True)
class _Session:
    """One login: whose, with the password of which hash, when it began and was used last."""

    name: str
    password_hash: bytes
    began: float
    used: float


class Sessions:
    """Tokens of sessions; only their hashes are kept, so that a copy of the memory contains no valid token.

    A session ends with its user, and with the password that began it.

    Args:
        find: returns the user of a name as it is now.
        clock: monotonic seconds.
    """

    def __init__(self, find: Callable[[str], User | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._find = find
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()

    def begin(self, user: User) -> str:
        """Creates a session and returns its token.

        When there are too many, the oldest of the user who has most of them ends.
        """
        token = secrets.token_urlsafe(32)
        now = self._clock()
        self._sessions[_hash(token)] = _Session(user.name, user.password.hash, now, now)
        if len(self._sessions) > MAX_SESSIONS:
            ((most, _),) = Counter(session.name for session in self._sessions.values()).most_common(1)
            del self._sessions[next(key for key, session in self._sessions.items() if session.name == most)]
        return token

    def user_of(self, token: str) -> User | None:
        """Whose session this is the token of, as the user is now; None if it has ended. Counts as use."""
        key, now = _hash(token), self._clock()
        session = self._sessions.get(key)
        if session is None:
            return None
        user = self._find(session.name)
        is_same = user is not None and hmac.compare_digest(user.password.hash, session.password_hash)
        if not is_same or now - session.began > MAX_AGE_SECONDS or now - session.used > MAX_IDLE_SECONDS:
            del self._sessions[key]
            return None
        session.used = now
        return user

    def end(self, token: str) -> None:
        """Forgets a token."""
        self._sessions.pop(_hash(token), None)

    def csrf_token(self, token: str) -> str:
        """What the page must send with each change: it belongs to this login, and to no other."""
        return base64.urlsafe_b64encode(hmac.digest(self._key, _hash(token), "sha256")).decode()


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
