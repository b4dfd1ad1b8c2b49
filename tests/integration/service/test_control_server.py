"""The control socket itself, over real Unix sockets; who carries out requests is a stand-in that echoes them."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.errors import ConfigError, ControlError, EndpointError, Refusal
from streamdet.security.limits import Rate
from streamdet.service.control import server as server_module
from streamdet.service.control.client import ask, find_socket
from streamdet.service.control.paths import changes_file_of_daemon, possible_sockets, socket_of_daemon
from streamdet.service.control.protocol import (
    MAX_REQUEST_BYTES,
    Request,
    decode_answer,
    decode_request,
    encode_error,
    encode_request,
    encode_result,
)
from streamdet.service.control.server import MAX_CLIENTS, MAX_REQUESTS_PER_SECOND, ControlServer, Pending

GOOD = b'{"version": 1, "command": "echo"}\n'
_PATIENCE_SECONDS = 30.0


def echo(pending: Pending) -> None:
    pending.answer(encode_result(pending.request.id, {"arguments": pending.request.arguments}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    with ControlServer(path, None, echo) as server:
        yield server
    assert server.error is None


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE_SECONDS)
    connection.connect(str(path))
    return connection


def everything(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def exchange(path: Path, data: bytes) -> list[dict[str, object]]:
    """All answers to what is sent, after which nothing more is."""
    with connect(path) as connection:
        with suppress(BrokenPipeError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in everything(connection).splitlines()]


def test_requests_are_answered_in_their_order_with_their_ids(server: ControlServer) -> None:
    lines = [encode_request(Request("echo", {"n": n}, n)) for n in range(20)]
    answers = exchange(server.path, b"".join(lines))
    assert [(a["id"], a["result"]) for a in answers] == [(n, {"arguments": {"n": n}}) for n in range(20)]


def test_ask_gives_the_result(server: ControlServer) -> None:
    assert ask(server.path, "echo", {"a": "ä"}) == {"arguments": {"a": "ä"}}


def test_a_request_in_pieces_is_put_together(server: ControlServer) -> None:
    with connect(server.path) as connection:
        for byte in GOOD:
            connection.sendall(bytes([byte]))
        assert json.loads(connection.recv(65536))["ok"] is True


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"x\n", b"[]\n", b'"a"\n', b'{"version": 2, "command": "a"}\n', b'{"version": 1}\n',
        b'{"version": 1, "command": 3}\n', b'{"version": 1, "command": "a", "arguments": []}\n',
        b'{"version": 1, "command": "a", "id": []}\n', b'{"version": 1, "command": "a", "id": true}\n',
        b'{"version": 1, "command": "a", "more": 1}\n', b'{"version": 1, "command": "a", "id": NaN}\n',
        b'{"version": 1, "command": "\\ud800"}\n', b"\xff\xfe\n", b"[" * 60000 + b"\n",
        b'{"version": 1, "command": "a", "id": ' + b"9" * 5000 + b"}\n",
        b'{"version": 1, "command": "a", "arguments": {"a": ' + b"[" * 20 + b"]" * 20 + b"}}\n",
    ],
)  # fmt: skip
def test_what_is_no_request_gets_one_line_and_the_next_one_is_served(server: ControlServer, line: bytes) -> None:
    bad, good = exchange(server.path, line + GOOD)
    assert bad["error"]["code"] == "bad_request"  # type: ignore[index]
    assert good["ok"] is True


def test_a_request_without_end_is_refused_at_its_largest_size(server: ControlServer) -> None:
    (answer,) = exchange(server.path, b"x" * (MAX_REQUEST_BYTES + 20_000))
    assert f"larger than {MAX_REQUEST_BYTES} bytes" in str(answer["error"])
    assert ask(server.path, "echo") == {"arguments": {}}


def test_a_flood_is_refused_and_others_are_served_after_it(server: ControlServer) -> None:
    answers = exchange(server.path, GOOD * (MAX_REQUESTS_PER_SECOND * 20))
    assert answers[-1]["error"]["code"] == "too_many"  # type: ignore[index]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while exchange(server.path, GOOD)[-1]["ok"] is not True:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_more_clients_than_there_is_room_for_are_told(server: ControlServer) -> None:
    clients = [connect(server.path) for _ in range(MAX_CLIENTS)]
    for client in clients:
        client.sendall(GOOD)
        assert client.recv(65536)
    with pytest.raises(ControlError) as caught:
        ask(server.path, "echo")
    assert caught.value.code == Refusal.TOO_MANY
    for client in clients:
        client.close()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with suppress(ControlError):
            ask(server.path, "echo")
            break
        assert time.monotonic() < deadline


def test_a_client_that_does_not_finish_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT_SECONDS", 0.1)
    with ControlServer(path, None, echo), connect(path) as connection:
        connection.sendall(GOOD[:5])
        assert everything(connection) == b""


def test_a_client_that_does_not_take_its_answer_holds_up_no_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT_SECONDS", 0.3)
    big = encode_result(None, {"text": "x" * 5_000_000})
    with ControlServer(path, None, lambda pending: pending.answer(big)) as server, connect(path) as lazy:
        lazy.sendall(GOOD)
        assert len(str(ask(path, "big"))) > 5_000_000
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while server._clients:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_an_answer_that_comes_late_comes(path: Path) -> None:
    waiting: list[Pending] = []
    with ControlServer(path, None, waiting.append), connect(path) as connection:
        connection.sendall(GOOD)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not waiting:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        threading.Timer(0.3, echo, (waiting[0],)).start()
        assert json.loads(connection.recv(65536))["ok"] is True
    # The client has gone, and so has the server: no one minds.
    echo(waiting[0])


def test_only_its_user_may_use_the_file_and_it_is_gone_at_the_end(path: Path) -> None:
    with ControlServer(path, None, echo):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become someone else")
def test_others_are_refused_whatever_the_mode_says_and_members_of_the_group_are_not(path: Path) -> None:
    path.parent.chmod(0o755)
    for folder in path.parents:
        if folder.name.startswith(("pytest", "popen")):
            folder.chmod(0o755)
    with ControlServer(path, "nogroup", echo) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        path.chmod(0o666)
        assert _ok_as(path, uid=12345, gid=server._gid or 0, groups=[])
        assert _ok_as(path, uid=12345, gid=12345, groups=[server._gid or 0])
        assert not _ok_as(path, uid=12345, gid=12345, groups=[])
        assert _ok_as(path, uid=0, gid=0, groups=[])


def _ok_as(path: Path, uid: int, gid: int, groups: list[int]) -> bool:
    """Whether a process of this user and these groups is served."""
    code = f"""
import contextlib, socket
connection = socket.socket(socket.AF_UNIX)
connection.connect({str(path)!r})
with contextlib.suppress(BrokenPipeError):
    connection.sendall({GOOD!r})
print(connection.recv(65536).decode())
"""
    command = ["/usr/bin/python3", "-I", "-S", "-c", code]
    answer = subprocess.run(
        command, user=uid, group=gid, extra_groups=groups, capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    served = json.loads(answer)["ok"]
    assert served or "not_allowed" in answer
    return bool(served)


def test_a_file_of_a_dead_process_is_replaced_and_a_living_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with ControlServer(path, None, echo):
        assert ask(path, "echo")
        with pytest.raises(EndpointError, match="another daemon uses it"):
            ControlServer(path, None, echo)
        assert ask(path, "echo")


def test_what_is_in_the_way_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(EndpointError, match="is not a socket"):
        ControlServer(file, None, echo)
    with pytest.raises(EndpointError, match="there is no group 'no-such-group'"):
        ControlServer(tmp_path / "c.sock", "no-such-group", echo)
    with pytest.raises(EndpointError, match="there is no folder"):
        ControlServer(tmp_path / "a" / "b" / "c.sock", None, echo)


def test_what_a_client_is_told_when_there_is_no_one(path: Path) -> None:
    with pytest.raises(ControlError, match="there is no socket") as caught:
        ask(path, "echo")
    assert caught.value.exit_code == 69
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ControlError, match="no one listens at"):
        ask(path, "echo")
    with socket.socket(socket.AF_UNIX) as deaf:
        path.unlink()
        deaf.bind(str(path))
        deaf.listen()
        with pytest.raises(ControlError, match=r"did not answer within 0\.2 s"):
            ask(path, "echo", timeout_seconds=0.2)


def test_errors_come_back_as_they_went_in() -> None:
    with pytest.raises(ConfigError) as invalid:
        decode_answer(encode_error(1, ConfigError(["a", "b"])))
    assert invalid.value.problems == ["a", "b"]
    with pytest.raises(ControlError, match="no such") as refused:
        decode_answer(encode_error(None, ControlError(Refusal.NOT_FOUND, "no such")))
    assert refused.value.code == Refusal.NOT_FOUND
    for line in (b"", b"HTTP/1.1 400\n", b"{}", b'{"ok": false}', b'{"ok": false, "error": {"problems": []}}'):
        with pytest.raises(ControlError):
            decode_answer(line)


def test_an_error_shows_no_password() -> None:
    line = encode_error(None, ControlError(Refusal.FAILED, "rtsp://user:pl4nted-Secret@h/ does not work"))
    assert b"pl4nted" not in line


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["version", "command", "arguments", "id", "x"]), inner, max_size=5),
    max_leaves=10,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    try:
        request = decode_request(line)
    except ControlError as error:
        refusal = error
    else:
        assert decode_request(encode_request(request)) == request
        return
    assert refusal.code == Refusal.BAD_REQUEST
    assert len(str(refusal).splitlines()) == 1


def test_a_rate_lets_as_many_pass_as_it_says() -> None:
    now = [0.0]
    rate = Rate(10, lambda: now[0])
    assert sum(rate.passes() for _ in range(30)) == 10
    now[0] = 0.55
    assert sum(rate.passes() for _ in range(30)) == 5
    now[0] = 100.0
    assert sum(rate.passes() for _ in range(30)) == 10


def test_where_a_daemon_listens(tmp_path: Path) -> None:
    config = tmp_path / "yard.toml"
    user = {"XDG_RUNTIME_DIR": "/r"}
    assert socket_of_daemon("off", config, user) is None
    assert socket_of_daemon("auto", None, user) is None
    assert socket_of_daemon("/x/y", config, user) == Path("/x/y")
    assert socket_of_daemon("auto", config, {"RUNTIME_DIRECTORY": "/run/a:/run/b", **user}) == Path(
        "/run/a/control.sock"
    )
    own = socket_of_daemon("auto", config, user)
    assert own is not None
    assert own.parent == Path("/r/streamdet")
    assert own.name.startswith("yard-")
    assert own != socket_of_daemon("auto", tmp_path / "other" / "yard.toml", user)
    assert socket_of_daemon("auto", config, {"XDG_RUNTIME_DIR": "/" + "r" * 120}) is None


def test_where_changes_are_kept(tmp_path: Path) -> None:
    config = tmp_path / "yard.toml"
    assert changes_file_of_daemon("auto", config, {"STATE_DIRECTORY": "/s:/t"}) == Path("/s/streams.json")
    assert changes_file_of_daemon("auto", config, {}) == tmp_path / "yard.streams.json"
    assert changes_file_of_daemon("auto", None, {}) is None
    assert changes_file_of_daemon("/x", None, {}) == Path("/x")


def about(config: Path) -> ControlServer:
    path = config.with_suffix(".sock")
    path.parent.mkdir(exist_ok=True)
    return ControlServer(path, None, lambda p: p.answer(encode_result(p.request.id, {"config": str(config.resolve())})))


def test_a_client_finds_the_one_daemon_or_names_them_all(tmp_path: Path) -> None:
    folder = tmp_path / "streamdet"
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with about(folder / "east.toml") as east:
        assert east.path in list(possible_sockets(environ))
        assert find_socket(None, folder / "east.toml", environ) == east.path
        with about(folder / "west.toml"):
            with pytest.raises(ControlError, match="several daemons are running") as caught:
                find_socket(None, None, environ)
            assert caught.value.code == Refusal.AMBIGUOUS
            assert str(east.path) in str(caught.value)
            assert find_socket(None, folder / "west.toml", environ) == folder / "west.sock"
    with pytest.raises(ControlError, match="no daemon runs"):
        find_socket(None, folder / "east.toml", environ)
    assert find_socket(Path("/given"), None, environ) == Path("/given")


def test_a_client_finds_the_socket_that_a_broken_file_names(tmp_path: Path) -> None:
    config = tmp_path / "streamdet.toml"
    config.write_text('[control]\npath = "run/c.sock"\n[publisher]\nendpoint = 3\n')
    assert find_socket(None, config, {}) == tmp_path / "run/c.sock"
    config.write_text('[control]\npath = "off"\n')
    with pytest.raises(ControlError, match="cannot be asked; SIGHUP"):
        find_socket(None, config, {})


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO])
def test_a_connection_that_cannot_be_accepted_is_tried_again(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing = [number] * 2
    accept = socket.socket.accept

    def sometimes(listener: socket.socket) -> object:
        if failing:
            raise OSError(failing.pop(), os.strerror(number))
        return accept(listener)

    monkeypatch.setattr(server_module, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(socket.socket, "accept", sometimes)
    with ControlServer(path, None, echo) as server:
        assert len(exchange(path, GOOD)) == 1
        assert len(exchange(path, GOOD)) == 1
    assert server.error is None
    assert failing == []
    # Said once, not for every try.
    assert caplog.text.count(os.strerror(number)) == 1
