"""Opens RTSP streams that FFmpeg cannot open itself, because of redirections or logins that it does not support.

FFmpeg tries first. If it fails, a request from here finds out what the server requires (RFC 2326, RFC 7616). A few
redirections are followed, without the login if they lead to another server. What FFmpeg still does not support, such
as Digest with SHA-256 or a login of more than 127 characters, `RtspRelay` does between FFmpeg and the server.
"""

from __future__ import annotations

import re
import secrets
import select
import socket
import ssl
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit

from streamdet.capture.sources.connections import ConnectionBudget
from streamdet.capture.sources.diagnosis import address_of_url, failure_of_connection, failure_of_login, tls_context
from streamdet.capture.sources.http_client import without_login
from streamdet.capture.sources.login import Login, challenges_in
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, has_control, kind_of_url
from streamdet.errors import SourceError
from streamdet.types import Reason

_MOST_REDIRECTIONS = 5
_REDIRECTIONS = (301, 302, 303, 305, 307, 308)
_LONGEST_LOGIN_OF_FFMPEG = 127
# One for each method that is known, and one where a nonce is out of date.
_MOST_TRIES = 4
_METHODS_OF_FFMPEG = ("MD5", "BASIC")
_MOST_HEAD_BYTES = 64 << 10
_MOST_BODY_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_STATUS = re.compile(rb"RTSP/\d\.\d (\d{3})")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_TICK_SECONDS = 0.5
# After this time without a read, FFmpeg has given up by its own time-outs.
_WRITE_SECONDS = 30.0
_MOST_PENDING = 64
_FRAME_HEAD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Way:
    """How a stream is reached.

    Attributes:
        url: with the login, if its server may have it.
        login: the login that the server accepted; None without a login.
        needs_relay: whether FFmpeg cannot send it.
    """

    url: str
    login: Login | None
    needs_relay: bool


def find_way(config: StreamConfig, *, refused_ffmpeg: bool) -> Way | None:
    """Asks the server of a stream which login it requires, and follows its redirections.

    Args:
        config: of a stream behind rtsp:// or rtsps://.
        refused_ffmpeg: whether it answered 401 to FFmpeg.

    Returns:
        None where FFmpeg needs no help.

    Raises:
        SourceError: the login is wrong or of a kind that is not known here, or the redirections lead nowhere.
    """
    url = config.url
    budget = ConnectionBudget(time.monotonic() + config.connect_timeout_seconds, 2 * _MOST_REDIRECTIONS + 2, 1)
    for _ in range(_MOST_REDIRECTIONS + 1):
        login = Login.of_url(url)
        where = ":".join(map(str, address_of_url(url)))
        # A login that was refused is not sent again: cameras lock out clients after several wrong logins.
        gave_it = refused_ffmpeg and url == config.url and len(_userinfo(url)) <= _LONGEST_LOGIN_OF_FFMPEG
        try:
            with closing(connect(config, url, budget)) as connection:
                status, headers = _describe(connection, url, login, budget, knows_better=not gave_it)
        except OSError as error:
            raise failure_of_connection(error, where) from None
        if status in _REDIRECTIONS:
            url = _redirected(config, url, headers.get("location", [""])[0], where)
            continue
        if status == 401:
            raise failure_of_login(
                where, challenges_in(headers.get("www-authenticate", [])), has_login=login is not None
            )
        is_long = len(_userinfo(url)) > _LONGEST_LOGIN_OF_FFMPEG
        needs_relay = login is not None and login.method != "" and (is_long or not _is_known_to_ffmpeg(login))
        return Way(url, login, needs_relay) if status == 200 and (needs_relay or url != config.url) else None
    raise SourceError(Reason.REFUSED, f"{where} redirects more than {_MOST_REDIRECTIONS} times")


def connect(config: StreamConfig, url: str, budget: ConnectionBudget) -> socket.socket:
    """A connection to the server of an address, encrypted for rtsps://.

    Raises:
        OSError: it cannot be made.
        SourceError: its name is not known.
    """
    connection = budget.connect(address_of_url(url))
    if kind_of_url(url) is not UrlKind.RTSPS:
        return connection
    return budget.encrypt(connection, tls_context(config), address_of_url(url)[0])


def _userinfo(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[0]


def _redirected(config: StreamConfig, url: str, location: str, where: str) -> str:
    """The next address; with the login where it is on the same server.

    Raises:
        SourceError: it must not be asked.
    """
    target = urljoin(without_login(url).replace("rtsp", "http", 1), location) if "://" not in location else location
    if "://" not in location:
        target = target.replace("http", "rtsp", 1)
    try:
        parts = urlsplit(target)
        kind = kind_of_url(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().replace("@", "%40"))
        is_bad = kind not in (UrlKind.RTSP, UrlKind.RTSPS) or has_control(unquote(target))
    except ValueError:
        is_bad = True
    if is_bad or not location:
        raise SourceError(Reason.REFUSED, f"{where} leads to no RTSP address")
    if kind_of_url(config.url) is UrlKind.RTSPS and config.tls_verify and kind is not UrlKind.RTSPS:
        raise SourceError(Reason.TLS, f"{where} leads to an address without encryption")
    server = parts.netloc.rpartition("@")[2]
    same = (parts.scheme.lower(), *address_of_url(target)) == (urlsplit(url).scheme.lower(), *address_of_url(url))
    login = f"{_userinfo(url)}@" if same and _userinfo(url) else ""
    return parts._replace(netloc=login + server, fragment="").geturl()


def _is_known_to_ffmpeg(login: Login) -> bool:
    return login.method in _METHODS_OF_FFMPEG and not login.is_session


def _describe(
    connection: socket.socket, url: str, login: Login | None, budget: ConnectionBudget, *, knows_better: bool
) -> tuple[int, dict[str, list[str]]]:
    """What the server says of a stream, after a login where it wants one."""
    address = without_login(url)
    tries = 0
    while True:
        tries += 1
        header = None if login is None else login.header("DESCRIBE", address)
        lines = [f"DESCRIBE {address} RTSP/1.0", f"CSeq: {tries}", "Accept: application/sdp"]
        lines += [f"Authorization: {header}"] if header else []
        connection.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        status, headers = _answer(connection, budget)
        offers = challenges_in(headers.get("www-authenticate", []))
        if status == 401 and login is not None and header:
            login.was_refused(offers)
        if status != 401 or login is None or tries > _MOST_TRIES or not login.choose(offers):
            return status, headers
        if _is_known_to_ffmpeg(login) and not knows_better:
            return status, headers


def _answer(connection: socket.socket, budget: ConnectionBudget) -> tuple[int, dict[str, list[str]]]:
    received = b""
    while (end := _HEAD_END.search(received)) is None:
        budget.check()
        buffer = bytearray(_READ_BYTES)
        count = connection.recv_into(buffer)
        received += buffer[:count]
        if not count or len(received) > _MOST_HEAD_BYTES:
            raise ConnectionResetError
    head = received[: end.start()]
    match = _STATUS.match(head)
    headers = _headers_of(head)
    left = _length_of(headers) - (len(received) - end.end())
    while left > 0:
        count = connection.recv_into(bytearray(min(left, _READ_BYTES)))
        if not count:
            raise ConnectionResetError
        left -= count
    return int(match[1]) if match else 0, headers


def _headers_of(head: bytes) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for line in head.decode("utf-8", "replace").splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), []).append(value.strip())
    return headers


def _length_of(headers: dict[str, list[str]]) -> int:
    text = headers.get("content-length", ["0"])[0]
    length = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if length > _MOST_BODY_BYTES:
        raise ConnectionResetError
    return length


class RtspRelay:
    """Stands between FFmpeg and a server, and gives the login in FFmpeg's place; all goes over one connection each.

    FFmpeg connects to a port of 127.0.0.1 with a path that no one else knows. Its thread ends when one side hangs up,
    or by `close`.

    Args:
        upstream: a connection to the server.
        way: to the stream.

    Attributes:
        url: for FFmpeg.
    """

    def __init__(self, upstream: socket.socket, way: Way) -> None:
        self._upstream = upstream
        self._way = way
        self._login = way.login
        self._path = f"/{secrets.token_urlsafe(16)}"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._listener.settimeout(_TICK_SECONDS)
        self._local: socket.socket | None = None
        self._closing = threading.Event()
        # By CSeq: what was asked and may have to be asked again with a login that is up to date.
        self._pending: dict[str, bytes] = {}
        self._from_local = b""
        self._from_server = b""
        port = self._listener.getsockname()[1]
        self.url = f"rtsp://127.0.0.1:{port}{self._path}"
        self._thread = threading.Thread(target=self._run, name=f"relay-{port}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends both connections."""
        self._closing.set()
        for each in (self._upstream, self._local):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._thread.join(_TICK_SECONDS * 4)

    def _run(self) -> None:
        try:
            with closing(self._upstream), closing(self._listener):
                while self._local is None and not self._closing.is_set():
                    self._accept()
                if self._local is not None:
                    with closing(self._local):
                        self._pump(self._local)
        except (OSError, ValueError):
            return  # one side has hung up, or talks nonsense: FFmpeg sees the end of its connection

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            return
        connection.settimeout(_TICK_SECONDS)
        try:
            first = connection.recv(_READ_BYTES)
        except OSError:
            first = b""
        if self._path.encode() in first.partition(b"\r\n")[0]:
            self._local, self._from_local = connection, first
        else:
            connection.close()

    def _pump(self, local: socket.socket) -> None:
        self._upstream.setblocking(False)  # noqa: FBT003 - the library's own signature
        local.settimeout(_WRITE_SECONDS)
        self._take_requests()
        while not self._closing.is_set():
            ready, _, _ = select.select([local, self._upstream], [], [], _TICK_SECONDS)
            if local in ready:
                data = local.recv(_READ_BYTES)
                if not data:
                    return
                self._from_local += data
                self._take_requests()
            if self._upstream in ready and not self._receive(local):
                return

    def _receive(self, local: socket.socket) -> bool:
        """Passes on what the server has sent; false at its end."""
        while True:
            try:
                data = self._upstream.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                return True
            if not data:
                return False
            self._from_server += data
            self._hand_on_answers(local)
            if not isinstance(self._upstream, ssl.SSLSocket):
                return True

    def _send(self, data: bytes) -> None:
        self._upstream.settimeout(_WRITE_SECONDS)
        try:
            self._upstream.sendall(data)
        finally:
            self._upstream.setblocking(False)  # noqa: FBT003 - the library's own signature

    def _take_requests(self) -> None:
        at = 0
        while (message := _message(self._from_local, at)) is not None:
            whole, head = message
            at += len(whole)
            if head is None or head.startswith(b"RTSP/"):
                self._send(whole)  # a packet, or an answer to what the server has asked
                continue
            for number in _headers_of(head).get("cseq", []):
                self._pending[number] = whole
            while len(self._pending) > _MOST_PENDING:
                del self._pending[next(iter(self._pending))]
            self._send(self._with_login(whole))
        self._from_local = self._from_local[at:]

    def _with_login(self, request: bytes) -> bytes:
        line, _, rest = request.partition(b"\r\n")
        method, _, uri_and_version = line.decode("utf-8", "replace").partition(" ")
        uri, _, version = uri_and_version.rpartition(" ")
        if uri.startswith(self.url):
            uri = without_login(self._way.url) + uri.removeprefix(self.url)
        header = None if self._login is None else self._login.header(method, uri)
        login = f"Authorization: {header}\r\n" if header else ""
        return f"{method} {uri} {version}\r\n{login}".encode() + rest

    def _hand_on_answers(self, local: socket.socket) -> None:
        ready = bytearray()
        at = 0
        while (message := _message(self._from_server, at)) is not None:
            whole, head = message
            at += len(whole)
            if head is None or not self._asked_again(head):
                ready += whole
        self._from_server = self._from_server[at:]
        if ready:
            local.sendall(ready)

    def _asked_again(self, head: bytes) -> bool:
        """Whether an answer asked for another login, which was given: FFmpeg does not get such an answer."""
        match = _STATUS.match(head)
        if match is None:
            return False
        headers = _headers_of(head)
        request = self._pending.pop(headers.get("cseq", [""])[0], None)
        if int(match[1]) != 401 or request is None or self._login is None:
            return False
        if not self._login.choose(challenges_in(headers.get("www-authenticate", []))):
            return False
        self._send(self._with_login(request))
        return True


def _message(data: bytes, at: int) -> tuple[bytes, bytes | None] | None:
    """The message that begins at a place, all of it, and its head, which a packet of media has not.

    None until it is there.

    Raises:
        OSError: it is too large.
    """
    if data.startswith(b"$", at):
        size = _FRAME_HEAD_BYTES + int.from_bytes(data[at + 2 : at + 4], "big")
        return (data[at : at + size], None) if len(data) - at >= size else None
    end = _HEAD_END.search(data, at)
    if end is None:
        if len(data) - at > _MOST_HEAD_BYTES:
            raise ConnectionResetError
        return None
    head = data[at : end.start()]
    until = end.end() + _length_of(_headers_of(head))
    return (data[at:until], head) if len(data) >= until else None
