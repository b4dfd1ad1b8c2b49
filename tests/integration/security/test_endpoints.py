from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from streamdet.errors import EndpointError
from streamdet.security.endpoints import Endpoint, bind, parse_endpoint


@pytest.fixture
def publisher() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        yield socket


def test_an_endpoint_is_read() -> None:
    assert parse_endpoint("tcp://127.0.0.1:5555") == Endpoint("tcp://127.0.0.1:5555", "tcp", "127.0.0.1", 5555)
    assert parse_endpoint("tcp://[::1]:0") == Endpoint("tcp://[::1]:0", "tcp", "::1", 0)
    assert parse_endpoint("ipc:///run/x") == Endpoint("ipc:///run/x", "ipc", path=Path("/run/x"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://localhost:1", True),
        ("tcp://127.8.9.1:1", True),
        ("tcp://[::1]:1", True),
        ("ipc:///run/x", True),
        ("tcp://127.0.0.1.example.org:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://[::]:1", False),
        ("tcp://0.0.0.0:1", False),
    ],
)
def test_what_other_machines_can_reach_is_known(text: str, expected: bool) -> None:
    assert parse_endpoint(text).is_local is expected


def test_any_free_port_can_be_taken(publisher: zmq.Socket[bytes]) -> None:
    assert parse_endpoint(bind(publisher, "tcp://127.0.0.1:0")).port > 0


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://0.0.0.0:0", "other machines"),
        ("tcp://192.0.2.1:5555", "other machines"),
        ("tcp://[::]:0", "other machines"),
        ("tcp://example.org:5555", "other machines"),
        ("127.0.0.1:5555", "expected something like"),
        ("tcp://127.0.0.1", "expected"),
        ("tcp://127.0.0.1:70000", "expected"),
        ("tcp://127.0.0.1:http", "expected"),
        ("tcp://*:5555", "expected"),
        ("tcp://[::zz]:1", "expected"),
        ("udp://127.0.0.1:1", "expected"),
        ("", "expected"),
        ("ipc://", "needs the path"),
        ("ipc://@abstract", "needs the path"),
        ("ipc:///" + "x" * 120, "bytes"),
        ("ipc:///nowhere/at/all", "no folder"),
    ],
)
def test_a_wrong_endpoint_is_one_clear_line(publisher: zmq.Socket[bytes], endpoint: str, expected: str) -> None:
    with pytest.raises(EndpointError, match=expected) as caught:
        bind(publisher, endpoint)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_had_is_named(publisher: zmq.Socket[bytes]) -> None:
    with pytest.raises(EndpointError, match="cannot offer replay at ipc:///nowhere/x: there is no folder /nowhere"):
        bind(publisher, "ipc:///nowhere/x", what="offer replay")


def test_a_folder_that_takes_no_files(publisher: zmq.Socket[bytes]) -> None:
    with pytest.raises(EndpointError, match="it takes no files"):
        bind(publisher, "ipc:///proc/x")


def test_missing_permission_is_one_clear_line(publisher: zmq.Socket[bytes], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may do everything
        with pytest.raises(EndpointError, match="no permission; let this user write to"):
            bind(publisher, f"ipc://{tmp_path}/events")
    finally:
        os.seteuid(user)


def test_a_file_that_is_no_socket_is_left_alone(publisher: zmq.Socket[bytes], tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text("dear diary")
    with pytest.raises(EndpointError, match="not a socket"):
        bind(publisher, f"ipc://{path}")
    assert path.read_text() == "dear diary"
