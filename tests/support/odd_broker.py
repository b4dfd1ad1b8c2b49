"""A broker that does what none should: it answers nothing, or sends what no client has asked for. It speaks MQTT 5."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from streamdet.bridges.mqtt.session import BrokerAddress
from support.waiting import join

CONNECTED = bytes([0x20, 3, 0, 0, 0])
"""CONNACK: success, without properties."""

_CONNECT, _PUBLISH, _PINGREQ = 1, 3, 12


def packets(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The packets that a client sends, each with its type."""
    file = connection.makefile("rb")
    while head := file.read(1):
        length = shift = 0
        while True:
            (byte,) = file.read(1)
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        yield head[0] >> 4, file.read(length)


@dataclass
class OddBroker:
    """Listens on loopback; a context manager.

    Attributes:
        answer: to a login.
        acknowledges: whether it answers messages.
        sends: given a connection after the login, sends what it likes.
        topics: of the messages that came.
        logins: how often a client has connected.
    """

    answer: bytes = CONNECTED
    acknowledges: bool = True
    sends: Callable[[socket.socket], None] | None = None
    topics: list[str] = field(default_factory=list)
    logins: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="odd broker", daemon=True)]

    def address(self) -> BrokerAddress:
        return BrokerAddress("127.0.0.1", self._listener.getsockname()[1], "bridge")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            for kind, content in packets(connection):
                if kind == _CONNECT:
                    self.logins += 1
                    connection.sendall(self.answer)
                    if self.sends is not None:
                        self.sends(connection)
                elif kind == _PINGREQ:
                    connection.sendall(bytes([0xD0, 0]))
                elif kind == _PUBLISH:
                    end = 2 + int.from_bytes(content[:2], "big")
                    self.topics.append(content[2:end].decode())
                    if self.acknowledges:
                        connection.sendall(bytes([0x40, 2]) + content[end : end + 2])

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        join(self._threads[0])
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            join(thread)
