"""The login: one password, few tries, one check at a time."""

from __future__ import annotations

import asyncio
import math
import urllib.parse

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from streamdet.http_server import network_of
from streamdet.security.passwords import Password
from streamdet.security.tries import LoginAttempts
from streamdet.web.access import AccessRules
from streamdet.web.body import BadRequestError, read_body
from streamdet.web.html import HTML, Pages
from streamdet.web.sessions import MAX_AGE_SECONDS, Sessions

_MAX_BODY_BYTES = 4096


class Login:
    """Asks for the password, and gives a session to who knows it.

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
        """The form, or the page for who needs none."""
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
        """What a try is counted by: the address it comes from; behind a proxy, the last one, which the proxy has added.

        A proxy adds it to the client's own header, or adds a header of its own behind it.
        """
        forwarded = ",".join(request.headers.getlist("x-forwarded-for")) if self._behind_proxy else ""
        address = forwarded.rpartition(",")[2].strip()[:100] or (request.client.host if request.client else "")
        return network_of(address)
