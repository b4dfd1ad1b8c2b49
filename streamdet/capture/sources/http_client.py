"""Asks web servers by HTTP, on behalf of the author of one url: in time, within its schemes, and with its login.

The login is given to the server that the url names, and to no other; redirections are followed a few times, to
addresses that may be asked.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import IO
from urllib.parse import unquote, urlsplit

from streamdet.capture.sources.connections import ConnectionBudget, handlers
from streamdet.capture.sources.diagnosis import failure_of_connection, failure_of_login, failure_of_status
from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.capture.sources.login import Login, challenges_in
from streamdet.config.addresses import has_control
from streamdet.errors import SourceError
from streamdet.types import Reason

_USER_AGENT = "streamdet"
# What urllib's parsers raise where an answer makes no sense.
SENSELESS = (http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError)
# One for each method that is known, and one where a nonce is out of date.
_MOST_TRIES = 4
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HttpClient:
    """Opens addresses; for one thread.

    Args:
        url: whose login is used.
        make_context: a new one each time; how servers are verified.
        needs_tls: whether everything must be encrypted.
        patience: of all connections.

    Attributes:
        login: of the url; None where it has none.
    """

    def __init__(
        self, url: str, make_context: Callable[[], ssl.SSLContext], patience: ConnectionBudget, *, needs_tls: bool
    ) -> None:
        self.login = Login.of_url(url)
        self._schemes = ("https",) if needs_tls else ("http", "https")
        answers = [_CloseAnswer(), _Redirections(self._schemes), _Logins(self.login, _server_of(url))]
        self._opener = urllib.request.build_opener(*handlers(patience, make_context), *answers)
        self._opener.addheaders = [("User-Agent", _USER_AGENT)]

    def open(self, address: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        """The answer to a request.

        Args:
            address: without a login.
            headers: besides our own.

        Raises:
            SourceError: the address must not be asked, or its server asks for a login that is not known here.
            Exception: what urllib raises, for `failure`.
        """
        require(self._schemes, address)
        request = urllib.request.Request(address, headers=headers or {})  # noqa: S310 - the scheme is one of these
        response: http.client.HTTPResponse = self._opener.open(request)
        return response

    def failure(self, error: Exception, where: str, wait_seconds: float) -> SourceError:
        """What it means that `open`, or reading its answer, raised something.

        Args:
            error: one of the errors that `FAILURES` names.
            where: host and port, for people.
            wait_seconds: that were there for it.
        """
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code == http.HTTPStatus.UNAUTHORIZED:
                offers = challenges_in(error.headers.get_all("WWW-Authenticate") or [])
                return failure_of_login(where, offers, has_login=self.login is not None)
            return failure_of_status(error.code, str(error.reason), where)
        if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
            error = error.reason
        if isinstance(error, TimeoutError):
            text = "interrupted" if current_interrupt().is_set() else f"no answer within {wait_seconds:g} s"
            return SourceError(Reason.TIMEOUT, text)
        if isinstance(error, SourceError):
            return error
        if isinstance(error, OSError):
            return failure_of_connection(error, where)
        return SourceError(Reason.REFUSED, f"{where} answers, but not in HTTP")


FAILURES = (SourceError, OSError, *SENSELESS)
"""What opening an address, or reading the answer, may raise."""


def without_login(url: str) -> str:
    """The address that is asked for."""
    return urlsplit(url)._replace(netloc=host_of(url), fragment="").geturl()


def host_of(url: str) -> str:
    """Host and port as they stand in a url."""
    return urlsplit(url).netloc.rpartition("@")[2]


def require(schemes: tuple[str, ...], address: str) -> None:
    """Refuses an address that a server has led to and that must not be asked.

    Raises:
        SourceError: decode_error or tls.
    """
    if has_control(unquote(address)):
        raise SourceError(Reason.DECODE_ERROR, "it leads to an address with a control character")
    scheme = urlsplit(address).scheme
    if scheme in schemes or scheme == "data":
        return
    if scheme == "http":
        raise SourceError(Reason.TLS, "it leads to an address without encryption")
    raise SourceError(Reason.DECODE_ERROR, f"it leads to an address that is no web server's: {scheme[:20]}://")


def _server_of(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port, as one server is told from another."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme)


class _Logins(urllib.request.BaseHandler):
    """Gives the login to its own server, when that asks for it and from then on."""

    handler_order = 490

    def __init__(self, login: Login | None, server: tuple[str, str, int | None]) -> None:
        self._login = login
        self._server = server

    def http_request(self, req: urllib.request.Request) -> urllib.request.Request:
        if self._login is not None and _server_of(req.full_url) == self._server:
            header = self._login.header(req.get_method(), req.selector)
            if header is not None:
                # Unlike others, it does not go along to where a redirection leads.
                req.add_unredirected_header("Authorization", header)
        return req

    https_request = http_request

    def http_error_401(
        self, req: urllib.request.Request, _answer: IO[bytes], _code: int, _text: str, headers: http.client.HTTPMessage
    ) -> http.client.HTTPResponse | None:
        if self._login is None or _server_of(req.full_url) != self._server:
            return None
        tries = getattr(req, "streamdet_tries", 0)
        offers = challenges_in(headers.get_all("WWW-Authenticate") or [])
        if tries:
            self._login.was_refused(offers)
        if tries >= _MOST_TRIES or not self._login.choose(offers):
            return None
        again = urllib.request.Request(req.full_url, headers=req.headers)  # noqa: S310 - it was asked already
        again.streamdet_tries = tries + 1  # type: ignore[attr-defined] # a note to ourselves
        answer: http.client.HTTPResponse = self.parent.open(again, timeout=req.timeout)
        return answer


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows none to an address that must not be asked.

    Args:
        schemes: that may be asked.
    """

    max_repeats = 2
    max_redirections = 8

    def __init__(self, schemes: tuple[str, ...]) -> None:
        self._schemes = schemes

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        require(self._schemes, newurl)
        # A login that the answer holds is none of the author's.
        return super().redirect_request(req, fp, code, msg, headers, without_login(newurl))


class _CloseAnswer(urllib.request.BaseHandler):
    """Closes the answer that asks for a login, or leads elsewhere, before that is done: urllib would read all of it."""

    handler_order = 100

    def http_error_401(
        self, _request: urllib.request.Request, answer: IO[bytes], _code: int, _text: str, _headers: object
    ) -> None:
        answer.close()

    http_error_301 = http_error_302 = http_error_303 = http_error_307 = http_error_308 = http_error_401
