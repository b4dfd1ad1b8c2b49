"""A look at connections that belong to ZeroMQ, by their file descriptors, and a way to end them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# linux/tcp.h: tcpi_bytes_received is the 64-bit number at this offset of struct tcp_info.
_TCP_INFO_RECEIVED_OFFSET = 128


@contextmanager
def borrowed(descriptor: int) -> Iterator[socket.socket | None]:
    """A connection of ZeroMQ's by its descriptor; None when there is none.

    A duplicate, so that whatever ZeroMQ does meanwhile, the descriptor cannot come to mean another connection.
    """
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        yield None
        return
    try:
        connection = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        yield None
        return
    with connection:
        yield connection


def address_of(connection: socket.socket | None) -> tuple[str, str]:
    """Host, and host with port for people, of the other end; the host is empty where there is none."""
    try:
        peer = connection.getpeername() if connection is not None else ()
    except OSError:
        peer = ()
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = str(peer[0])
        return host, f"[{host}]:{peer[1]}" if ":" in host else f"{host}:{peer[1]}"
    return "", "an unknown address" if peer == () else "a program on this machine"


def received_bytes(connection: socket.socket) -> int:
    """What has come in over a TCP connection so far; 0 for a Unix socket, where the kernel does not count."""
    if connection.family == socket.AF_UNIX:
        return 0
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RECEIVED_OFFSET + 8)
    return int(struct.unpack_from("=Q", information, _TCP_INFO_RECEIVED_OFFSET)[0])
