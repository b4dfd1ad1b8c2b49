"""Connections to servers of streams: what fails leaves nothing open."""

from __future__ import annotations

import socket
import ssl
import time

import pytest

from streamdet.capture.sources.connections import ConnectionBudget


def test_a_connection_whose_encryption_cannot_begin_is_closed() -> None:
    budget = ConnectionBudget(time.monotonic() + 10, 10, 10)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="server_hostname"):
            budget.encrypt(ours, ssl.create_default_context(), "")
        assert theirs.recv(1) == b""
