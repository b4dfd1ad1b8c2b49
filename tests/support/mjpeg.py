"""A camera that sends Motion JPEG over HTTP, or what a test gives it instead."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import cv2
import numpy as np

from support.waiting import PATIENCE_SECONDS, join


def jpeg(number: int = 0, *options: int) -> bytes:
    grey = np.full((48, 64, 3), 40 + number % 20 * 10, np.uint8)
    return cv2.imencode(".jpg", grey, options)[1].tobytes()


PICTURES = [jpeg(n) for n in range(20)]


@contextmanager
def camera(
    content_type: str | None, body: Callable[[], Iterator[bytes]], pause_seconds: float = 0.0, status: str = "200 OK"
) -> Iterator[str]:
    """Sends it to each who asks; the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            while True:
                with suppress(ConnectionError), listener.accept()[0] as client:
                    client.settimeout(PATIENCE_SECONDS)
                    client.recv(4096)
                    header = f"Content-Type: {content_type}\r\n" if content_type else ""
                    client.sendall(f"HTTP/1.0 {status}\r\n{header}\r\n".encode())
                    for data in body():
                        client.sendall(data)
                        if closing.wait(pause_seconds) if pause_seconds else closing.is_set():
                            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        join(thread)
