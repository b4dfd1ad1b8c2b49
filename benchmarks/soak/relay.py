# ruff: noqa: INP001 - part of a program, not a module
"""A TCP relay in front of a camera that can damage what the camera sends."""

from __future__ import annotations

import random
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

_CHUNK_BYTES = 65536
_TICK_SECONDS = 0.2


class Relay:
    """Listens on a free port of 127.0.0.1 and hands everything on; while `damage` is above 0, with wrong bytes.

    Attributes:
        damage: share of the camera's bytes that are changed, 0 to 1.
    """

    def __init__(self, camera_port: int, seed: int) -> None:
        self.damage = 0.0
        self._camera_port = camera_port
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._others: dict[socket.socket, tuple[socket.socket, bool]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")

    @property
    def port(self) -> int:
        """Where the daemon connects."""
        port: int = self._listener.getsockname()[1]
        return port

    def _run(self) -> None:
        while not self._ending.is_set():
            for key, _ in self._selector.select(_TICK_SECONDS):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj in self._others:
                    self._hand_on(key.fileobj)
        for end in list(self._others):
            end.close()
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        reader, _ = self._listener.accept()
        try:
            camera = socket.create_connection(("127.0.0.1", self._camera_port), timeout=1)
        except OSError:
            reader.close()
            return
        for end, other, from_camera in ((reader, camera, False), (camera, reader, True)):
            end.settimeout(2)
            self._others[end] = (other, from_camera)
            self._selector.register(end, selectors.EVENT_READ)

    def _hand_on(self, end: socket.socket) -> None:
        other, from_camera = self._others[end]
        try:
            data = bytearray(end.recv(_CHUNK_BYTES))
            for _ in range(round(len(data) * self.damage) if from_camera else 0):
                data[self._random.randrange(len(data))] ^= self._random.randrange(1, 256)
            other.sendall(data)
        except OSError:
            data = bytearray()
        if not data:
            for gone in (end, other):
                self._selector.unregister(gone)
                del self._others[gone]
                gone.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
