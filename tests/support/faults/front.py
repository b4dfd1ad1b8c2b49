"""Stands before a healthy server and does to its connections what networks and broken servers do."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from support.waiting import join

_CHUNK_BYTES = 4096
_RTP_HEADER_BYTES = 12
_RTP_TICKS = 90_000
_SENDER_REPORT = 200
# What the kernel holds back must be little: else a slow link would only show after megabytes.
_BUFFER_BYTES = 8192

Pieces = Callable[[bytes], list[bytes]]


@dataclass(frozen=True)
class Behaviour:
    """What a front does to connections; all at rest, it passes everything on.

    Attributes:
        listens: whether new connections are accepted.
        ends: how the connections of the moment at which it begins end; None when they live on.
        answer: what is done to a new connection instead of connecting it with the server.
        carry: how a piece from the server is handed to the client; None for as it is.
        strikes: the connections of the moment at which it begins only; later ones are healthy.
    """

    listens: bool = True
    ends: Literal["closed", "reset"] | None = None
    answer: Callable[[socket.socket], Awaitable[None]] | None = None
    carry: Callable[[socket.socket, bytes], Awaitable[None]] | None = None
    strikes: bool = False


HEALTHY = Behaviour()


async def send(client: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(client, data)


async def silence(client: socket.socket, _data: bytes = b"") -> None:
    """Keeps the connection open and says nothing any more."""
    await asyncio.get_running_loop().create_future()


async def hang_up(_client: socket.socket) -> None:
    """Says goodbye without a word."""


def trickle(bytes_per_second: float, at_once: int = 1) -> Callable[[socket.socket, bytes], Awaitable[None]]:
    """A few bytes at a time."""

    async def carry(client: socket.socket, data: bytes) -> None:
        for begin in range(0, len(data), at_once):
            piece = data[begin : begin + at_once]
            await send(client, piece)
            await asyncio.sleep(len(piece) / bytes_per_second)

    return carry


def noise(ratio: float) -> Callable[[socket.socket, bytes], Awaitable[None]]:
    """In so many RTP packets everything behind the header is noise; what is no RTP packet passes."""
    chance = random.Random(461)  # noqa: S311 - repeatable

    async def carry(client: socket.socket, data: bytes) -> None:
        begin = 4 + _RTP_HEADER_BYTES
        if data[:1] == b"$" and data[1] % 2 == 0 and chance.random() < ratio:
            data = data[:begin] + chance.randbytes(len(data) - begin)
        await send(client, data)

    return carry


def shift(seconds: float) -> Callable[[socket.socket, bytes], Awaitable[None]]:
    """The camera's clock jumps: RTP packets and the sender reports between them have another time (RFC 3550)."""

    async def carry(client: socket.socket, data: bytes) -> None:
        is_report = data[:1] == b"$" and data[1] % 2 == 1 and data[5] == _SENDER_REPORT
        at = 4 + 16 if is_report else 4 + 4
        if data[:1] == b"$" and (is_report or data[1] % 2 == 0):
            ticks = int.from_bytes(data[at : at + 4], "big") + round(seconds * _RTP_TICKS)
            data = data[:at] + (ticks % (1 << 32)).to_bytes(4, "big") + data[at + 4 :]
        await send(client, data)

    return carry


def misdate(seconds: float) -> Callable[[socket.socket, bytes], Awaitable[None]]:
    """The camera's wall clock is wrong by so much: sender reports have another NTP time, packets stay as they are."""

    async def carry(client: socket.socket, data: bytes) -> None:
        at = 4 + 8  # whole seconds
        if data[:1] == b"$" and data[1] % 2 == 1 and data[5] == _SENDER_REPORT:
            wrong = int.from_bytes(data[at : at + 4], "big") + round(seconds)
            data = data[:at] + wrong.to_bytes(4, "big") + data[at + 4 :]
        await send(client, data)

    return carry


def says(head: str, *, then: bytes = b"", again_every_seconds: float | None = None) -> Behaviour:
    """Answers every request so, whatever it was; then perhaps goes on with something for ever."""

    async def answer(client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        request = await loop.sock_recv(client, _CHUNK_BYTES)
        while request:
            sequence = [line for line in request.split(b"\r\n") if line.lower().startswith(b"cseq")]
            port = str(client.getsockname()[1])
            await send(client, head.replace("{cseq}", (sequence or [b""])[0].decode()).replace("{port}", port).encode())
            while again_every_seconds is not None:
                await send(client, then)
                await asyncio.sleep(again_every_seconds)
            if head.startswith("HTTP"):
                return
            request = await loop.sock_recv(client, _CHUNK_BYTES)

    return Behaviour(answer=answer, ends="closed")


class Units:
    """Cuts what an RTSP server sends into messages and interleaved packets (RFC 2326, 10.12), each whole."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, data: bytes) -> list[bytes]:
        self._rest += data
        units = []
        while (end := self._end()) is not None:
            units.append(self._rest[:end])
            self._rest = self._rest[end:]
        return units

    def _end(self) -> int | None:
        rest = self._rest
        if rest[:1] == b"$":
            end = 4 + int.from_bytes(rest[2:4], "big") if len(rest) >= 4 else len(rest) + 1
        else:
            head, blank, _ = rest.partition(b"\r\n\r\n")
            lengths = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
            end = len(head) + 4 + int((lengths or [b"0"])[0]) if blank else len(rest) + 1
        return end if end <= len(rest) else None


class Weather:
    """The thread in which all fronts live; enter it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="weather", daemon=True)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Has it done there, and waits."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        join(self._thread)
        self._loop.close()

    @staticmethod
    async def _end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Front:
    """One address of its own, before a server of 127.0.0.1.

    Args:
        weather: where it lives.
        behaviour: from the beginning.
        pieces: makes what cuts the server's bytes into pieces; None for as they come.

    Attributes:
        port: where clients connect; it stays its own while no one listens there.
        server_port: of the healthy server.
        accepted: connections so far.
    """

    def __init__(self, weather: Weather, server_port: int, behaviour: Behaviour, pieces: type[Units] | None) -> None:
        self.server_port = server_port
        self.accepted = 0
        self._weather = weather
        self._behaviour = behaviour
        self._pieces = pieces
        self._holder = _bound(0)
        self.port: int = self._holder.getsockname()[1]
        self._listening: asyncio.Task[None] | None = None
        self._serving: dict[asyncio.Task[None], socket.socket] = {}
        weather.do(self._listen_or_not())

    def behave(self, behaviour: Behaviour) -> None:
        """From now on."""
        self._weather.do(self._behave(behaviour))

    def close(self) -> None:
        """Ends everything."""
        self._weather.do(self._behave(Behaviour(listens=False, ends="closed")))
        self._holder.close()

    async def _behave(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        for task, client in list(self._serving.items()):
            if behaviour.ends == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if behaviour.ends is not None:
                task.cancel()
        await self._listen_or_not()

    async def _listen_or_not(self) -> None:
        if self._behaviour.listens and self._listening is None:
            listener = _bound(self.port)
            listener.listen(64)
            self._listening = asyncio.ensure_future(self._accept(listener))
        elif not self._behaviour.listens and self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await asyncio.get_running_loop().sock_accept(listener)
                client.setblocking(False)  # noqa: FBT003 - the name says it
                self.accepted += 1
                task = asyncio.ensure_future(self._serve(client, self._behaviour))
                self._serving[task] = client
                task.add_done_callback(self._serving.pop)

    async def _serve(self, client: socket.socket, at_first: Behaviour) -> None:
        with client:
            try:
                if at_first.answer is not None and not at_first.strikes:
                    await at_first.answer(client)
                else:
                    await self._connect(client, at_first)
            except OSError:
                return  # one of the two has hung up

    async def _connect(self, client: socket.socket, at_first: Behaviour) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            server.setblocking(False)  # noqa: FBT003 - the name says it
            await loop.sock_connect(server, ("127.0.0.1", self.server_port))
            back = asyncio.ensure_future(self._carry_back(server, client, at_first))
            try:
                while data := await loop.sock_recv(client, _CHUNK_BYTES):
                    await send(server, data)
            finally:
                back.cancel()
                await asyncio.gather(back, return_exceptions=True)

    async def _carry_back(self, server: socket.socket, client: socket.socket, at_first: Behaviour) -> None:
        loop = asyncio.get_running_loop()
        cut = self._pieces() if self._pieces is not None else lambda data: [data]
        while data := await loop.sock_recv(server, _CHUNK_BYTES):
            for piece in cut(data):
                now = self._behaviour
                if now.carry is None or (now.strikes and now is at_first):
                    await send(client, piece)
                else:
                    await now.carry(client, piece)
        client.shutdown(socket.SHUT_RDWR)


def _bound(port: int) -> socket.socket:
    # Two may be bound to one port as long as only the second one listens: so no one else can have it meanwhile.
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    bound.setblocking(False)  # noqa: FBT003 - the name says it
    return bound
