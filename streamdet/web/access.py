"""Who may ask: guards against DNS rebinding, against other sites, and against whoever has not logged in."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamdet.http_server import connection_of, is_host_of
from streamdet.web.sessions import Sessions

_OPEN_PATHS = frozenset({"/login", "/healthz"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_FIXED_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class AccessRules:
    """What is asked of a request.

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

    def refusal(self, method: str, headers: Headers) -> str:
        """Why a request is refused; empty when it is not."""
        host = headers.get("host", "")
        if not is_host_of(host, self.host_names):
            return f"this page does not answer to the name {host[:200]!r}; start it with --host-name NAME to allow it"
        origin = headers.get("origin")
        scheme = "https" if self.secure else "http"
        if origin is not None and origin.lower() != f"{scheme}://{host.lower()}":
            return "this request comes from another site"
        site = headers.get("sec-fetch-site", "same-origin")
        if method not in _SAFE_METHODS and site not in ("same-origin", "none"):
            return "this request comes from another site"
        return ""

    def token(self, headers: Headers) -> str:
        """The session that a request shows."""
        return cookie_parser(headers.get("cookie", "")).get(self.cookie, "")

    def is_open(self, headers: Headers) -> bool:
        """Whether no password is asked for, or it was shown."""
        return self.sessions is None or self.sessions.is_open(self.token(headers))


def host_names(names: Iterable[str], *, off_loopback: bool) -> frozenset[str]:
    """The names under which the page may be called: those given, and off loopback those of this machine."""
    own = (socket.gethostname(), socket.getfqdn()) if off_loopback else ()
    return frozenset(name.lower().rstrip(".") for name in (*names, *own))


class Guard:
    """Refuses what the rules refuse, and adds the headers that every answer has; ASGI middleware."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _FIXED_HEADERS.items():
                    headers[name] = value
                headers["Content-Security-Policy"] = self._rules.content_security_policy
                if self._rules.secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        await self._choose(scope)(scope, receive, send_with_headers)

    def _choose(self, scope: Scope) -> ASGIApp:
        headers = Headers(scope=scope)
        refusal = self._rules.refusal(scope["method"], headers)
        if refusal:
            return PlainTextResponse(f"{refusal}\n", 403)
        is_open = self._rules.is_open(headers)
        # Whoever has shown the password keeps its connection when there are too many.
        connection_of(scope).trusted = is_open and self._rules.sessions is not None
        if scope["path"] in _OPEN_PATHS or is_open:
            return self._app
        if scope["path"] == "/":
            return RedirectResponse("/login", 303)
        return PlainTextResponse("log in first\n", 401)
