"""What tests of keys and the gate share: key files, a guarded publisher socket, and those who knock at it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import zmq
from prometheus_client import CollectorRegistry

from streamdet.config import PublisherConfig
from streamdet.delivery.connections import ConnectionGuard, ConnectionLimits
from streamdet.monitoring.metrics import DeliveryMetrics
from streamdet.security.curve import allow, client_keys, generate
from streamdet.security.endpoints import parse_endpoint
from support.waiting import join

PATIENCE_SECONDS = 30.0


class Keys:
    """A folder with the keys of a daemon and of clients, of whom some are allowed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients = folder / "clients"
        self.clients.mkdir()
        self.server_key, self.server_secret = generate(folder, "server", "server")

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Those that another process has made."""
        keys = cls.__new__(cls)
        keys.folder, keys.clients = folder, folder / "clients"
        keys.server_key, keys.server_secret = folder / "server.key", folder / "server.key_secret"
        return keys

    def make(self, name: str, *, allowed: bool = True) -> Path:
        public, secret = generate(self.folder, name, "client")
        if allowed:
            allow(public, self.clients)
        return secret

    def config(self, endpoint: str = "tcp://127.0.0.1:0") -> PublisherConfig:
        return PublisherConfig(
            endpoint=endpoint,
            curve_server_key_file=str(self.server_secret),
            curve_allowed_clients_directory=str(self.clients),
        )


class Door:
    """A guarded XPUB socket that says "tick" all the time, as the publisher does with events."""

    def __init__(self, config: PublisherConfig, **limits: int) -> None:
        # Clients that are refused try again only after the time for a handshake.
        chosen = replace(ConnectionLimits(handshake_seconds=1.0), **limits)
        self.registry = CollectorRegistry()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.xpub_verbose = 1
        self._socket.maxmsgsize = 4096
        self.gate = ConnectionGuard(config, self._context, DeliveryMetrics(self.registry), limits=chosen)
        self.endpoint = self.gate.bind(self._socket, "events", config.endpoint)
        self.longest_pause_seconds = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self.gate.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        join(self._thread)
        self.gate.close()
        self._context.destroy(linger=0)
        assert self.gate.error is None

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"streamdet_subscriber_{name}", {"socket": "events", **labels}) or 0.0

    def refused(self, reason: str) -> float:
        return self.value("handshake_failures_total", reason=reason)

    def cut(self, reason: str) -> float:
        return self.value("cuts_total", reason=reason)

    def _tick(self) -> None:
        number = 0
        before = time.monotonic()
        while not self._ended.wait(0.005):
            number += 1
            self._socket.send_multipart([b"tick/", str(number).encode()], zmq.NOBLOCK)
            for _ in range(1000):
                try:
                    frame = self._socket.recv(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                self.gate.admits(frame)
            now = time.monotonic()
            self.longest_pause_seconds = max(self.longest_pause_seconds, now - before)
            before = now


@contextmanager
def subscriber(
    endpoint: str, server_key: Path | None = None, secret: Path | None = None, *, silent: bool = False
) -> Iterator[zmq.Socket[Any]]:
    """A bare ZeroMQ socket, so that the gate is not tested with its own client."""
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.linger = 0
        sub.reconnect_ivl, sub.reconnect_ivl_max = 20, 500
        keys = client_keys(server_key, secret)
        if keys is not None:
            keys.apply_to(sub)
        if not silent:
            sub.subscribe("tick/")
        sub.connect(endpoint)
        yield sub


def hears(sub: zmq.Socket[Any]) -> bool:
    return bool(sub.poll(PATIENCE_SECONDS * 1000))


class RawSubscriber:
    """Speaks just enough ZMTP 3.0 to subscribe, or to ask, without any bound, as no library would."""

    def __init__(self, endpoint: str, kind: bytes = b"SUB", source: str = "127.0.0.1") -> None:
        parsed = parse_endpoint(endpoint)
        self._connection = socket.create_connection(
            (parsed.host, parsed.port), timeout=PATIENCE_SECONDS, source_address=(source, 0)
        )
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
        self._connection.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
        answer = b""
        while b"READY" not in answer:
            if not (received := self._connection.recv(1000)):
                return
            answer += received

    def subscribe(self, count: int, topic_bytes: int) -> int:
        """Asks for so many different topics; returns how many it could send before it was cut."""
        head = b"\x02" + struct.pack(">Q", topic_bytes + 1) + b"\x01"
        for number in range(0, count, 100):
            topics = (b"%d/" % n for n in range(number, number + 100))
            try:
                self._connection.sendall(b"".join(head + topic.ljust(topic_bytes, b"x") for topic in topics))
            except OSError:
                return number
        return count

    def send(self, data: bytes) -> bool:
        """Sends bytes as they are; False when it was cut."""
        try:
            self._connection.sendall(data)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._connection.close()
