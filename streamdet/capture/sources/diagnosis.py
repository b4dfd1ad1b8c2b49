"""Finds out why a stream cannot be read, from errors, statuses and answers, and from a test of the connection.

The test checks the host name, TCP, TLS and the answer of the server, in this order. It never sends a password, and is
bounded in time and size.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import av

from streamdet.capture.sources.dns import resolve
from streamdet.capture.sources.login import KNOWN, Challenge
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.errors import SourceError
from streamdet.security.plain_text import plain
from streamdet.security.redact import redact
from streamdet.security.tls import client_context
from streamdet.types import Reason

RTSP_KINDS = (UrlKind.RTSP, UrlKind.RTSPS)
TLS_KINDS = (UrlKind.RTSPS, UrlKind.HTTPS)
HTTP_KINDS = (UrlKind.HTTP, UrlKind.HTTPS)
_PROXIED_KINDS = (UrlKind.HTTP, UrlKind.HTTPS, UrlKind.RTSPS)  # by FFmpeg

_DEFAULT_PORTS: dict[str, int] = {UrlKind.RTSP: 554, UrlKind.RTSPS: 322, UrlKind.HTTP: 80, UrlKind.HTTPS: 443}
_LONGEST_LOOK_SECONDS = 1.5
_LONGEST_ANSWER_BYTES = 4096
_LONGEST_STATUS_TEXT = 80
_STATUS_LINE = re.compile(rb"(?:RTSP|HTTP)/\d\.\d (\d{3})([^\r\n]{0,80})")
_UNAUTHORIZED_STATUS = (401, 403, 407)
_NOT_FOUND_STATUS = (404, 410, 454)
_REDIRECTION_STATUS = (301, 302, 303, 307, 308)


_Table = tuple[tuple[type[Exception], Reason, str], ...]

# FFmpeg is exact about these.
_NETWORK: _Table = (
    (av.HTTPUnauthorizedError, Reason.UNAUTHORIZED, "{where} {login} (401)"),
    (av.HTTPForbiddenError, Reason.UNAUTHORIZED, "{where} forbids access to this path (403)"),
    (av.HTTPNotFoundError, Reason.NOT_FOUND, "{where} has no stream at this path (404)"),
    (ConnectionRefusedError, Reason.REFUSED, "{where} refuses the connection"),
    (av.DecoderNotFoundError, Reason.UNSUPPORTED_CODEC, "there is no decoder for it"),
    (av.error.MemoryError, Reason.DECODE_ERROR, "{where} sends a picture that takes too much memory"),
)
# These mean many things; they count when the connection itself shows nothing wrong.
_NETWORK_VAGUE: _Table = (
    (av.HTTPError, Reason.REFUSED, "{where} refuses: {text}"),
    (av.ExitError, Reason.TIMEOUT, "{where} does not answer in time"),
    (TimeoutError, Reason.TIMEOUT, "{where} does not answer in time"),
    (ConnectionError, Reason.ENDED, "{where} has closed the connection"),
    (av.EOFError, Reason.ENDED, "{where} has closed the connection"),
    # "Input/output error": what HTTP began does not come to its end.
    (OSError, Reason.ENDED, "{where} has broken off: {text}"),
    (Exception, Reason.DECODE_ERROR, "what {where} sends cannot be read: {text}"),
)
_FILE: _Table = (
    (FileNotFoundError, Reason.NOT_FOUND, "there is no such file"),
    (NotADirectoryError, Reason.NOT_FOUND, "there is no such file"),
    (IsADirectoryError, Reason.NO_VIDEO, "it is a folder, not a file"),
    (PermissionError, Reason.UNAUTHORIZED, "it may not be read: permission denied"),
    (av.DecoderNotFoundError, Reason.UNSUPPORTED_CODEC, "there is no decoder for it"),
    (av.InvalidDataError, Reason.DECODE_ERROR, "it is not a video, or a damaged one"),
    (Exception, Reason.DECODE_ERROR, "it cannot be read: {text}"),
)


def failure_of(error: Exception, config: StreamConfig) -> SourceError:
    """Turns an error of PyAV into a `SourceError`, without its text, which contains the URL.

    In most cases FFmpeg's error names the cause exactly. In the others (a name that is not known, a certificate that is
    not trusted and a server that hangs up are all "Input/output error") a look at the connection finds the cause.

    Args:
        error: what PyAV raised.
        config: of the stream.
    """
    if kind_of_url(config.url) is UrlKind.FILE:
        return _from_table(_FILE, error, config) or SourceError(Reason.DECODE_ERROR, "it cannot be read")
    # FFmpeg reports redirections in a circle as this error, among many others.
    ask_http = isinstance(error, OSError) and error.errno == errno.EIO
    found = _from_table(_NETWORK, error, config) or look_at_connection(config, ask_http=ask_http)
    vague = _from_table(_NETWORK_VAGUE, error, config)
    return found or vague or SourceError(Reason.DECODE_ERROR, "it cannot be read")


def refuse_text(codec: str) -> None:
    """Refuses text files, which FFmpeg would show as pictures of their letters.

    Raises:
        SourceError: no_video.
    """
    if codec in ("ansi", "bintext", "xbin", "idf"):
        raise SourceError(Reason.NO_VIDEO, "it is a text, not a video")


def address_of(config: StreamConfig) -> tuple[str, int]:
    """Host and port of a network stream."""
    return address_of_url(config.url)


def address_of_url(url: str) -> tuple[str, int]:
    """Host and port that a url names."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme.lower(), 0)


def ca_file_of(config: StreamConfig) -> str | None:
    """The certificates to trust: the configured ones, otherwise the system's; None if the system has no such file."""
    paths = ssl.get_default_verify_paths()
    system = paths.cafile or (paths.openssl_cafile if os.path.isfile(paths.openssl_cafile) else None)  # noqa: PTH113
    return config.tls_ca_file or system


def look_up_name(config: StreamConfig) -> None:
    """Makes sure that the name of a server is known, which FFmpeg would wait for without saying so.

    Raises:
        SourceError: it is not, or no name server answers in time.
    """
    host, port = address_of(config)
    # Otherwise the proxy looks it up.
    if not (kind_of_url(config.url) in _PROXIED_KINDS and os.environ.get("http_proxy")):
        resolve(host, port, config.connect_timeout_seconds)


def look_at_connection(config: StreamConfig, *, ask_http: bool = False) -> SourceError | None:
    """Connects step by step; None when every step works.

    Args:
        config: of a network stream.
        ask_http: whether HTTP servers are asked for the path, too, as RTSP servers always are.
    """
    host, port = address_of(config)
    try:
        resolve(host, port, _LONGEST_LOOK_SECONDS)
    except SourceError as error:
        return error
    try:
        with ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((host, port), timeout=_LONGEST_LOOK_SECONDS))
            if kind_of_url(config.url) in TLS_KINDS:
                context = tls_context(config)
                connection = stack.enter_context(context.wrap_socket(connection, server_hostname=host))
            if kind_of_url(config.url) in RTSP_KINDS:
                return _ask_rtsp(connection, config)
            return _ask_http(connection, config) if ask_http else None
    except OSError as error:
        return failure_of_connection(error, f"{host}:{port}")


def failure_of_connection(error: OSError, where: str) -> SourceError:
    """What an error of a socket means.

    Args:
        error: of connecting, encrypting or reading.
        where: host and port, for the message.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceError(Reason.TLS, f"the certificate of {where} is not valid: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return SourceError(Reason.TLS, f"no encrypted connection to {where}: {error.reason or 'it ended early'}")
    if isinstance(error, TimeoutError):
        return SourceError(Reason.TIMEOUT, f"{where} does not answer")
    if isinstance(error, FileNotFoundError):
        return SourceError(Reason.TLS, "the file of tls_ca_file does not exist")
    if isinstance(error, ConnectionRefusedError):
        return SourceError(Reason.REFUSED, f"{where} refuses the connection")
    return SourceError(Reason.REFUSED, f"no connection to {where}: {error.strerror or 'it was cut'}")


def tls_context(config: StreamConfig) -> ssl.SSLContext:
    """How the server of an encrypted stream is verified, if it should be."""
    context = client_context(config.tls_ca_file)
    if not config.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _ask_rtsp(connection: socket.socket, config: StreamConfig) -> SourceError | None:
    """Asks an RTSP server for the path, without the login."""
    parts = urlsplit(config.url)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
    request = f"DESCRIBE {address} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    answer = _first_line(connection, request)
    where = ":".join(map(str, address_of(config)))
    return _failure_of_answer(answer, where, has_login=parts.username is not None)


def _ask_http(connection: socket.socket, config: StreamConfig) -> SourceError | None:
    """Asks an HTTP server for the path, without the login; all that FFmpeg reports exactly is left to it."""
    parts = urlsplit(config.url)
    path = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    host = parts.netloc.rpartition("@")[2]
    answer = _first_line(connection, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
    where = ":".join(map(str, address_of(config)))
    if not answer:
        return SourceError(Reason.REFUSED, f"{where} closes the connection without an answer")
    match = _STATUS_LINE.match(answer)
    if match is None or int(match[1]) not in _REDIRECTION_STATUS:
        return None
    return failure_of_status(int(match[1]), "", where)


def _first_line(connection: socket.socket, request: str) -> bytes:
    """What a server answers, at least its first line unless it hangs up, in whichever way.

    Raises:
        OSError: of the connection; `TimeoutError` also where the line comes, but drop by drop.
    """
    deadline = time.monotonic() + _LONGEST_LOOK_SECONDS
    answer = b""
    # Whether a server that hangs up is seen to end the connection or to reset it depends on what it had read by then.
    with suppress(ConnectionError):
        connection.sendall(request.encode())
        while b"\n" not in answer and len(answer) < _LONGEST_ANSWER_BYTES:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                raise TimeoutError
            connection.settimeout(left_seconds)
            received = connection.recv(_LONGEST_ANSWER_BYTES)
            if not received:
                break
            answer += received
    return answer


def failure_of_status(status: int, text: str, where: str) -> SourceError:
    """What a status of HTTP or RTSP means that is not a success.

    Args:
        status: such as 404.
        text: the server's own words for it.
        where: host and port, for the message.
    """
    reason = Reason.REFUSED
    if status in _REDIRECTION_STATUS:
        return SourceError(reason, f"{where} answers {status}, and leads to no stream")
    if status in _UNAUTHORIZED_STATUS:
        reason = Reason.UNAUTHORIZED
    elif status in _NOT_FOUND_STATUS:
        reason = Reason.NOT_FOUND
    return SourceError(reason, redact(f"{where} answers {status} {plain(text, _LONGEST_STATUS_TEXT)}"))


def failure_of_login(where: str, offers: Sequence[Challenge], *, has_login: bool) -> SourceError:
    """What it means that a server asks for a login, and does so again when it has got one.

    Args:
        where: host and port, for the message.
        offers: ways to log in that it takes.
        has_login: whether there is one to give.
    """
    if not has_login:
        return SourceError(Reason.UNAUTHORIZED, f"{where} requires a login, and the url has none (401)")
    if offers and not any(offer.method for offer in offers):
        wanted = ", ".join(sorted({str(offer) for offer in offers}))
        detail = f"{where} requires a login by {wanted[:80]}, which is not known here; known are {KNOWN} (401)"
        return SourceError(Reason.UNAUTHORIZED, detail)
    return SourceError(Reason.UNAUTHORIZED, f"{where} refuses this login (401)")


def _failure_of_answer(answer: bytes, where: str, *, has_login: bool) -> SourceError | None:
    match = _STATUS_LINE.match(answer)
    if match is None:
        problem = "answers, but not in RTSP" if answer else "closes the connection without an answer"
        return SourceError(Reason.REFUSED, f"{where} {problem}")
    status = int(match[1])
    # It was asked without the login, with which it would have said something else.
    if status == 200 or (has_login and status in _UNAUTHORIZED_STATUS):
        return None
    return failure_of_status(status, match[2].decode("ascii", "replace").strip(), where)


def _from_table(table: _Table, error: Exception, config: StreamConfig) -> SourceError | None:
    for kind, reason, detail in table:
        if isinstance(error, kind):
            has_login = urlsplit(config.url).username is not None
            login = "refuses this login" if has_login else "requires a login, and the url has none"
            where = ":".join(map(str, address_of(config)))
            # What PyAV puts behind `strerror` is the URL.
            text = redact(getattr(error, "strerror", None) or type(error).__name__)
            return SourceError(reason, detail.format(where=where, login=login, text=text))
    return None
