"""HTTPS for HLS whose every piece is verified.

FFmpeg verifies the server of a playlist, but hands neither that wish nor the trusted certificates on to the
connections that fetch the pieces. So for HLS over verified HTTPS each file is fetched here.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from typing import IO
from urllib.parse import unquote, urlsplit

from streamdet.errors import SourceError
from streamdet.sources.connection import failure_of_connection, failure_of_status
from streamdet.sources.interrupt import current_interrupt
from streamdet.types import Reason

# A read that waits in here cannot be interrupted; a stop must not take longer.
_LONGEST_WAIT_SECONDS = 1.5

# What FFmpeg must not do with connections that are not its own.
HLS_OPTIONS = {"http_persistent": "0", "http_multiple": "0"}


class VerifiedHttp:
    """Opens files for FFmpeg; `av.open(..., io_open=VerifiedHttp(...))`.

    Args:
        url: of the playlist; its login is given to its own server, and to no other.
        ca_file: certificates to trust; None for the system's.
    """

    def __init__(self, url: str, ca_file: str | None) -> None:
        parts = urlsplit(url)
        handlers: list[urllib.request.BaseHandler] = [
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file)),
            _HttpsOnly(),
            _CloseRefusal(),
        ]
        if parts.username is not None:
            logins = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            server = f"https://{parts.netloc.rpartition('@')[2]}/"
            logins.add_password(None, server, unquote(parts.username), unquote(parts.password or ""))
            handlers += [urllib.request.HTTPBasicAuthHandler(logins), urllib.request.HTTPDigestAuthHandler(logins)]
        self._opener = urllib.request.build_opener(*handlers)
        self._responses: list[http.client.HTTPResponse] = []

    def __call__(self, url: str, _flags: int, _options: dict[str, str]) -> http.client.HTTPResponse:
        """Opens one file.

        Raises:
            SourceError: it cannot be had, or not over verified HTTPS.
        """
        if current_interrupt().is_set():
            raise SourceError(Reason.TIMEOUT, "interrupted")
        parts = urlsplit(url)
        where = parts.netloc.rpartition("@")[2]
        address = parts._replace(netloc=where).geturl()
        _require_https(address)
        try:
            response: http.client.HTTPResponse = self._opener.open(address, timeout=_LONGEST_WAIT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            raise failure_of_status(error.code, error.reason, where) from None
        except urllib.error.URLError as error:
            cause = error.reason if isinstance(error.reason, OSError) else OSError(0, str(error.reason))
            raise failure_of_connection(cause, where) from None
        self._responses = [known for known in self._responses if not known.isclosed()] + [response]
        return response

    def close(self) -> None:
        """Ends the connections that FFmpeg has not closed itself."""
        for response in self._responses:
            response.close()


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to an unencrypted address."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _CloseRefusal(urllib.request.BaseHandler):
    """Closes the answer that asks for a login, before the login is sent over another connection."""

    handler_order = 100

    def http_error_401(
        self, _request: urllib.request.Request, answer: IO[bytes], _code: int, _text: str, _headers: object
    ) -> None:
        answer.close()


def _require_https(address: str) -> None:
    if not address.startswith("https://"):
        raise SourceError(Reason.TLS, "the playlist leads to an address without encryption")
