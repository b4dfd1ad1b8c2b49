from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamdet.monitoring import systemd


@pytest.fixture(params=["file", "abstract"])
def notifications(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if request.param == "file":
            address = str(tmp_path / "notify")
            receiver.bind(address)
        else:
            # The kernel chooses a free abstract name.
            receiver.bind("")
            name = receiver.getsockname()
            assert isinstance(name, bytes)
            address = "@" + name[1:].decode()
        receiver.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield receiver


def test_each_call_sends_what_systemd_expects(notifications: socket.socket) -> None:
    systemd.ready()
    systemd.status("3 of 4 streams up")
    systemd.watchdog()
    systemd.stopping()
    assert [notifications.recv(4096) for _ in range(4)] == [
        b"READY=1",
        b"STATUS=3 of 4 streams up",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_a_reload_carries_the_moment_it_began(notifications: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    systemd.reloading()
    after = time.monotonic_ns() // 1000
    first, second = notifications.recv(4096).decode().split("\n")
    name, value = second.split("=")
    assert (first, name) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before <= int(value) <= after


def test_a_status_cannot_smuggle_in_another_assignment(notifications: socket.socket) -> None:
    systemd.status("all well\nWATCHDOG=trigger")
    assert notifications.recv(4096) == b"STATUS=all well WATCHDOG=trigger"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.ready()
    assert not caplog.records


def test_a_socket_that_is_gone_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        systemd.ready()
    assert [record.getMessage() for record in caplog.records] == [
        "cannot send READY to systemd: [Errno 2] No such file or directory"
    ]


@pytest.mark.parametrize(
    ("microseconds", "pid", "expected"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_interval(
    microseconds: str | None, pid: str | None, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": str(os.getpid()) if pid == "own" else pid}
    for name, value in values.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval_seconds() == expected
