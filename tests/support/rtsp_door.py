"""A door in front of a real RTSP server: it asks for logins that no server in Debian knows, and leads elsewhere."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from support.waiting import PATIENCE_SECONDS, join

_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}
REALM = "the door"


class RtspDoor:
    """Listens on a free port of 127.0.0.1.

    Args:
        upstream: the port of the server behind it; 0 for none.
        login: `user:password` that it asks for.
        algorithms: of Digest, in the order of their challenges; also "Basic", and others that no one knows.
        redirections: where DESCRIBE of a path leads.
        nonce_uses: after so many requests a nonce is out of date; 0 for never.
        certificate: and key, to be reached as rtsps://.

    Attributes:
        requests: method, address and Authorization of each request.
    """

    def __init__(
        self,
        upstream: int = 0,
        login: str = "",
        algorithms: Sequence[str] = ("SHA-256",),
        redirections: Mapping[str, str] | None = None,
        nonce_uses: int = 0,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self._upstream = upstream
        self._login = login
        self._algorithms = algorithms
        self.redirections = dict(redirections or {})
        self._nonce_uses = nonce_uses
        self._nonce, self._uses = 0, 0
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*certificate)
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def url(self, path: str = "/video", login: str = "") -> str:
        scheme = "rtsp" if self._context is None else "rtsps"
        return f"{scheme}://{login + '@' if login else ''}127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            join(thread)
        for each in self._open:
            each.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                client.settimeout(PATIENCE_SECONDS)
                if self._context is not None:
                    try:
                        client = self._context.wrap_socket(client, server_side=True)
                    except OSError:
                        continue  # it does not trust us
                self._open.append(client)
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        behind: socket.socket | None = None
        with suppress(OSError):
            received = b""
            while data := client.recv(65536):
                received += data
                while (whole := _first(received)) is not None:
                    received = received[len(whole) :]
                    answer = None if whole.startswith(b"$") else self._answer(whole)
                    if answer is not None:
                        client.sendall(answer)
                        continue
                    if behind is None:
                        behind = socket.create_connection(("127.0.0.1", self._upstream), PATIENCE_SECONDS)
                        self._open.append(behind)
                        self._start(_pump, behind, client)
                    behind.sendall(re.sub(rb"\r\nAuthorization:[^\r]*", b"", whole))
        # Closed at the end only: another thread may be about to use the descriptor, which could then be of another.
        for each in (client, behind):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _answer(self, request: bytes) -> bytes | None:
        """What the door itself answers; None where the request may pass."""
        line, *lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        method, address, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        login = headers.get("authorization", "")
        self.requests.append((method, address, login))
        number = f"CSeq: {headers['cseq']}\r\n"
        if self._login and method != "OPTIONS" and not self._is_right(method, address, login):
            asks = "".join(f"WWW-Authenticate: {self._challenge(each)}\r\n" for each in self._algorithms)
            return f"RTSP/1.0 401 Unauthorized\r\n{number}{asks}\r\n".encode()
        path = re.sub(r"^rtsps?://[^/]*", "", address)
        if method == "DESCRIBE" and path in self.redirections:
            return f"RTSP/1.0 302 Moved\r\n{number}Location: {self.redirections[path]}\r\n\r\n".encode()
        if method == "OPTIONS" and not self._upstream:
            return f"RTSP/1.0 200 OK\r\n{number}Public: DESCRIBE\r\n\r\n".encode()
        return None if self._upstream else f"RTSP/1.0 404 Not Found\r\n{number}\r\n".encode()

    def _challenge(self, algorithm: str) -> str:
        if algorithm in _HASHES:
            return f'Digest realm="{REALM}", nonce="{self._nonce}", algorithm={algorithm}, stale="FALSE"'
        return f'{algorithm} realm="{REALM}"'

    def _is_right(self, method: str, address: str, login: str) -> bool:
        fields = {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|[^,\s]+)', login)}
        algorithm = fields.get("algorithm", "MD5")
        if not login.startswith("Digest ") or algorithm not in self._algorithms or fields["nonce"] != str(self._nonce):
            return False
        self._uses += 1
        if self._nonce_uses and self._uses > self._nonce_uses:
            self._nonce, self._uses = self._nonce + 1, 0
            return False

        def hashed(*parts: str) -> str:
            return _HASHES[algorithm](":".join(parts).encode()).hexdigest()

        user, _, password = self._login.partition(":")
        first, second = hashed(user, REALM, password), hashed(method, fields["uri"])
        return fields["uri"] == address and fields["response"] == hashed(first, str(self._nonce), second)


def _first(received: bytes) -> bytes | None:
    if received.startswith(b"$"):
        size = 4 + int.from_bytes(received[2:4], "big")
        return received[:size] if len(received) >= max(4, size) else None
    end = received.find(b"\r\n\r\n")
    return None if end < 0 else received[: end + 4]


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
