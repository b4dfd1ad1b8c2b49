"""Sends HTTP requests for one url: with deadlines, within the allowed schemes, and with the login of the url.

The login is sent only to the server of the url. A few redirections are followed, to allowed addresses. FFmpeg reads an
answer as a file.
"""

from __future__ import annotations

import functools
import http.client
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from streamdet.capture.sources.connections import ConnectionBudget, timed_out
from streamdet.capture.sources.diagnosis import failure_of_connection, failure_of_login, failure_of_status, tls_context
from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.capture.sources.login import Login, challenges_in
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, file_path, has_control, kind_of_url
from streamdet.errors import SourceError
from streamdet.types import Reason

_USER_AGENT = "streamdet"
# How FFmpeg is to name files: it asks for a part of a file only behind http://.
_THIS_MACHINE = "http://file.invalid"
_READ_BYTES = 1 << 16
_LONGEST_SKIP_BYTES = 1 << 20
_SYNC_OF_MPEG_TS = b"G"
# What urllib's parsers raise for malformed answers.
SENSELESS = (http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError)
# One for each method that is known, and one where a nonce is out of date.
_MOST_TRIES = 4
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HttpClient:
    """Opens addresses for one stream, or the files of a playlist that is a file itself; for one thread.

    Args:
        config: of the stream, whose url may hold a login.
        budget: of all connections.

    Attributes:
        address: the url of the stream, without its login.
        budget: of all connections.
        login: of the url; None where it has none.
    """

    def __init__(self, config: StreamConfig, budget: ConnectionBudget) -> None:
        url, kind = config.url, kind_of_url(config.url)
        if kind is UrlKind.FILE:
            url = f"{_THIS_MACHINE}{urllib.parse.quote(str(Path(file_path(url)).absolute()))}"
        self.address = without_login(url)
        self.budget = budget
        self.login = Login.of_url(url)
        self._wait_seconds = 0.0
        self._schemes = ("https",) if kind is UrlKind.HTTPS and config.tls_verify else ("http", "https")
        if kind is UrlKind.FILE:
            self._schemes = ("file",)
        answers = [_CloseAnswer(), _Redirections(self._schemes), _Logins(self.login, _server_of(url))]
        self._opener = urllib.request.build_opener(*_handlers(budget, partial(tls_context, config)), *answers)
        self._opener.addheaders = [("User-Agent", _USER_AGENT)]
        self.wait_at_most(config.connect_timeout_seconds)

    def wait_at_most(self, seconds: float) -> None:
        """Limits the time of all waits from now on."""
        self._wait_seconds = seconds
        self.budget.give_up_at = time.monotonic() + seconds

    def open(self, address: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        """The answer to a request.

        Args:
            address: without a login.
            headers: besides our own.

        Raises:
            SourceError: the address must not be asked, or its server asks for a login that is not known here.
            Exception: what urllib raises, for `failure`.
        """
        if self._schemes == ("file",) and address.startswith(f"{_THIS_MACHINE}/"):
            address = f"file://{address.removeprefix(_THIS_MACHINE)}"
            if not Path(unquote(urlsplit(address).path)).is_file():
                raise SourceError(Reason.NOT_FOUND, "there is no such file")
        require(self._schemes, address)
        request = urllib.request.Request(address, headers=headers or {})  # noqa: S310 - the scheme is one of these
        response: http.client.HTTPResponse = self._opener.open(request)
        return response

    def failure(self, error: Exception, where: str) -> SourceError:
        """What it means that `open`, or reading its answer, raised something.

        Args:
            error: one of the errors that `FAILURES` names.
            where: host and port, for the message.
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
            return self.timed_out("answer")
        if isinstance(error, SourceError):
            return error
        if isinstance(error, OSError):
            return failure_of_connection(error, where)
        return SourceError(Reason.REFUSED, f"{where} answers, but not in HTTP")

    def timed_out(self, waited_for: str) -> SourceError:
        """The error of a wait that was too long, or interrupted."""
        if current_interrupt().is_set():
            return SourceError(Reason.TIMEOUT, "interrupted")
        return timed_out(round(self._wait_seconds, 1), waited_for)


FAILURES = (SourceError, OSError, *SENSELESS)
"""What opening an address, or reading the answer, may raise."""


class HttpFile:
    """The answer of a server as a file for FFmpeg, which asks for the rest from another place where that is needed.

    Args:
        client: that opened it.
        response: the answer, of which `beginning` has been read.
        beginning: its first bytes.

    Attributes:
        has_end: whether the server says how long it is.
        has_parts: whether the server sends parts of it, as far as is known.
        problem: why nothing more can be read; None at an orderly end.
    """

    waited_for = "data"

    def __init__(self, client: HttpClient, response: http.client.HTTPResponse, beginning: bytes) -> None:
        self.problem: SourceError | None = None
        self._client = client
        self._response = response
        self._first = beginning
        self._size = None if response.length is None else response.length + len(beginning)
        self.has_end = self.has_parts = self._size is not None
        # In MPEG-TS FFmpeg would go to the end only to see how long it takes.
        self._has_places = self.has_end and not beginning.startswith(_SYNC_OF_MPEG_TS)
        # Where FFmpeg is, and where the answer is.
        self._at = self._answer_at = 0

    def wait_at_most(self, seconds: float) -> None:
        """Limits the time of all waits from now on."""
        self._client.wait_at_most(seconds)

    def seekable(self) -> bool:
        """Whether there are places to go to; whether the server sends parts shows when it is asked for one."""
        return self._has_places

    def tell(self) -> int:
        """Where the next byte stands."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Goes to another place, counted from the beginning (0), from here (1), or from the end (2).

        Returns:
            The new place; -1, which FFmpeg understands, where it does not exist or the server does not support it.
            After an exception PyAV would fail later on, even where FFmpeg needs no seek.
        """
        start = {0: 0, 1: self._at, 2: self._size}.get(whence)
        at = -1 if start is None else offset + start
        # From the end: only to ask how long the file is.
        if at < 0 or (whence != 2 and at != self._answer_at and not self._go_on_from(at)):
            return -1
        self._at = at
        return at

    def read(self, size: int) -> bytes:
        """Returns the available bytes, at most `size`; b"" at the end."""
        if self._at != self._answer_at and not self._go_on_from(self._at):
            return b""
        data = self._next(size)
        self._at = self._answer_at
        return data

    def close(self) -> None:
        """Ends the connection."""
        self._response.close()

    def _go_on_from(self, at: int) -> bool:
        """Has the answer go on from another place; false where that fails, or nothing is there."""
        while self._answer_at < at <= self._answer_at + _LONGEST_SKIP_BYTES:
            # It comes sooner than the answer to another request.
            if not self._next(at - self._answer_at):
                return False
        if at == self._answer_at:
            return True
        if at >= (self._size or 0):
            return False
        before = self._response
        if not self._ask(before.geturl(), {"Range": f"bytes={at}-"}):
            return False
        if self._response.status != http.HTTPStatus.PARTIAL_CONTENT:
            # It sends all of it or nothing: FFmpeg goes on where it was.
            self.has_parts = False
            self._response.close()
            self._response = before
            return False
        before.close()
        self._answer_at, self._first = at, b""
        return True

    def _next(self, size: int) -> bytes:
        data, self._first = self._first[:size], self._first[size:]
        data = data or self._receive(size)
        self._answer_at += len(data)
        return data

    def _ask(self, address: str, headers: dict[str, str] | None = None) -> bool:
        """Goes on with the answer to another request; false where that fails."""
        try:
            self._response = self._client.open(address, headers)
        except FAILURES as error:
            self._failed(error)
            return False
        return True

    def _receive(self, size: int = _READ_BYTES) -> bytes:
        """Returns the next bytes; none at the end, or at a problem."""
        data = b""
        try:
            data = self._response.read1(min(size, _READ_BYTES))
            if not data and self._response.length:
                self.problem = SourceError(Reason.ENDED, "the connection was closed")
        except http.client.IncompleteRead:
            pass
        except ConnectionError:
            self.problem = SourceError(Reason.ENDED, "the connection was closed")
        except TimeoutError:
            self.problem = self._client.timed_out(self.waited_for)
        except FAILURES as error:
            # After a time-out Python reads no more, and raises an error that does not say why.
            if self.problem is None:
                self._failed(error)
        return data

    def _failed(self, error: Exception) -> None:
        self.problem = self._client.failure(error, host_of(self._response.geturl()))


def without_login(url: str) -> str:
    """The address that is asked for."""
    return urlsplit(url)._replace(netloc=host_of(url), fragment="").geturl()


def host_of(url: str) -> str:
    """Host and port of a url; "" for files."""
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
    if scheme == "http" and schemes == ("https",):
        raise SourceError(Reason.TLS, "it leads to an address without encryption")
    raise SourceError(Reason.DECODE_ERROR, f"it leads to an address that is not allowed: {scheme[:20]}://")


def _server_of(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port, which distinguish one server from another."""
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
        # A login in the answer is not the author's.
        return super().redirect_request(req, fp, code, msg, headers, without_login(newurl))


class _CloseAnswer(urllib.request.BaseHandler):
    """Closes the answer that asks for a login, or leads elsewhere, before that is done: urllib would read all of it."""

    handler_order = 100

    def http_error_401(
        self, _request: urllib.request.Request, answer: IO[bytes], _code: int, _text: str, _headers: object
    ) -> None:
        answer.close()

    http_error_301 = http_error_302 = http_error_303 = http_error_307 = http_error_308 = http_error_401


def _handlers(budget: ConnectionBudget, make_context: Callable[[], ssl.SSLContext]) -> list[urllib.request.BaseHandler]:
    """Has urllib open its connections within a budget.

    Args:
        budget: of all connections.
        make_context: for https://, a new one; called for the first such connection, because one that knows the
            certificates of the system takes 0.9 MB.
    """
    context = functools.cache(make_context)

    class Http(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = budget.connect((self.host, self.port))
            if getattr(self, "_tunnel_host", None):
                self._tunnel()  # type: ignore[attr-defined] # how CPython's own class goes through a proxy

    class Https(Http, http.client.HTTPSConnection):
        def connect(self) -> None:
            Http.connect(self)
            name = getattr(self, "_tunnel_host", None) or self.host
            self.sock = budget.encrypt(self.sock, context(), name)

    class HttpHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Http, req)

    class HttpsHandler(urllib.request.HTTPSHandler):
        def __init__(self) -> None:
            # The one of its own class makes a context.
            urllib.request.AbstractHTTPHandler.__init__(self)

        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Https, req, context=context())

    return [HttpHandler(), HttpsHandler()]
