"""The control API over real sockets; what carries out operations is a stand-in that echoes them."""

from __future__ import annotations

import base64
import http.client
import json
import os
import queue
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdet.capture.probe import Probe
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.client.control import _UnixConnection, ask, decode_answer, find_socket
from streamdet.config import MetricsConfig, StreamConfig
from streamdet.config.control_paths import (
    changes_file_of_daemon,
    possible_sockets,
    socket_of_daemon,
    socket_without_file,
)
from streamdet.config.load import read_stream
from streamdet.delivery.event_store import EventStore, Record
from streamdet.delivery.history import History, Query
from streamdet.errors import ApplyError, ConfigError, ControlError, EndpointError, Refusal
from streamdet.security.endpoints import gid_of
from streamdet.security.limits import FairRate, Rate
from streamdet.security.passwords import Password, write_password
from streamdet.service.control.api import LIMITS, MAX_BODY_BYTES, ControlServer, decode_body
from streamdet.service.control.operations import Json, Operation
from streamdet.service.control.probes import AT_ONCE, Probes
from streamdet.service.pages import HealthSnapshot
from streamdet.wire import to_message
from support.certificates import make_certificate
from support.occurring import alert_event
from support.stores import Counted
from support.waiting import wait_until
from support.web import WebServer

_PATIENCE_SECONDS = 30.0
_WORDS = "correct horse battery staple"
_GET = b"GET /v1/streams HTTP/1.1\r\nHost: localhost\r\n\r\n"


def echo(operation: Operation) -> None:
    operation.result.set_result(
        {
            "name": operation.name,
            "stream": operation.stream,
            "values": operation.values,
            "unset": list(operation.unset),
            "persist": operation.persist,
            "config": operation.config,
            "who": operation.who,
            "streams": {"added": ["new"]},
        }
    )


def server_at(path: Path | None, on_operation: Callable[[Operation], None] = echo, **more: Any) -> ControlServer:
    snapshot = HealthSnapshot(healthy=True, ready=False)
    return ControlServer(path, on_operation, lambda: {"config": "/x.toml"}, lambda: snapshot, **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    with server_at(path) as server:
        yield server
    assert server.error is None


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    connection.settimeout(_PATIENCE_SECONDS)
    return connection


def everything(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def request(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, Json]:
    if body is not None:
        headers.setdefault("Content_Type", "application/json")
    with suppress(BrokenPipeError):
        connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
    response = connection.getresponse()
    read = response.read()
    return response, json.loads(read) if read else {}


@pytest.fixture
def connection(path: Path, server: ControlServer) -> Iterator[http.client.HTTPConnection]:
    with closing(_UnixConnection(path, _PATIENCE_SECONDS)) as connection:
        yield connection


# ---------------------------------------------------------------- What is asked for


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "handed_on"),
    [
        ("GET", "/v1/streams", None, 200, {"name": "streams.list"}),
        ("GET", "/v1/config", None, 200, {"name": "config"}),
        ("GET", "/v1/streams/a", None, 200, {"name": "streams.get", "stream": "a"}),
        ("POST", "/v1/reload", None, 200, {"name": "reload"}),
        ("POST", "/v1/reload", {"config": "/x"}, 200, {"name": "reload", "config": "/x"}),
        ("POST", "/v1/streams?persist=true", {"name": "new", "url": "x", "max_fps": 5}, 201,
         {"name": "streams.add", "stream": "new", "values": {"url": "x", "max_fps": 5}, "persist": True}),
        ("PUT", "/v1/streams/new", {"url": "x"}, 201, {"name": "streams.set", "stream": "new", "values": {"url": "x"}}),
        ("PUT", "/v1/streams/old?persist=false", None, 200, {"name": "streams.set", "stream": "old"}),
        ("PATCH", "/v1/streams/a", {"max_fps": 5, "name": "a", "zones": None}, 200,
         {"name": "streams.change", "stream": "a", "values": {"max_fps": 5}, "unset": ["zones"]}),
        ("DELETE", "/v1/streams/a?persist=true", None, 200,
         {"name": "streams.remove", "stream": "a", "persist": True}),
        ("POST", "/v1/streams/a/reset", {}, 200, {"name": "streams.reset", "stream": "a"}),
    ],
)  # fmt: skip
def test_a_request_becomes_an_operation(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: Json | None,
    status: int,
    handed_on: Json,
) -> None:
    response, answer = request(connection, method, target, None if body is None else json.dumps(body).encode())
    nothing = {"stream": "", "values": {}, "unset": [], "persist": False, "config": None}
    assert {**nothing, **handed_on} == {key: answer[key] for key in (*nothing, "name")}
    assert answer["who"] == f"user {os.geteuid()} (process {os.getpid()})"
    assert (response.status, response.headers["Content-Type"]) == (status, "application/json")
    assert response.headers["Cache-Control"] == "no-store"
    if status == 201 and method == "POST":
        assert response.headers["Location"] == "/v1/streams/new"


def test_what_needs_no_main_thread_is_answered_without_it(path: Path) -> None:
    with server_at(path, lambda _: None), closing(_UnixConnection(path, _PATIENCE_SECONDS)) as connection:
        assert request(connection, "GET", "/v1/about")[1] == {"config": "/x.toml"}
        response, health = request(connection, "GET", "/v1/health")
        assert (response.status, health["healthy"], health["ready"]) == (503, True, False)
        assert request(connection, "GET", "/v1/openapi.json")[1]["openapi"].startswith("3.1")
        response, nothing = request(connection, "HEAD", "/v1/about")
        assert (response.status, nothing) == (200, {})


@pytest.mark.skipif(not Path("/usr/bin/curl").exists(), reason="needs curl")
def test_a_client_of_the_api_gets_pictures(path: Path, tmp_path: Path) -> None:
    jpeg = b"\xff\xd8\xff picture \xff\xd9"
    with Counted(tmp_path / "pictures") as stored, server_at(path, pictures=stored.store) as server:
        with closing(_UnixConnection(path, _PATIENCE_SECONDS)) as connection:

            def get(picture_id: str) -> tuple[int, str | None, bytes]:
                connection.request("GET", f"/v1/pictures/{picture_id}")
                response = connection.getresponse()
                return response.status, response.headers["Content-Type"], response.read()

            coming = stored.store.promise("front-door")
            connection.request("GET", f"/v1/pictures/{coming}")
            stored.store.keep(coming, jpeg)
            response = connection.getresponse()
            assert (response.status, response.headers["Content-Type"]) == (200, "image/jpeg")
            assert response.read() == jpeg
            stored.wait_for_stored(1)
            assert get(coming) == (200, "image/jpeg", jpeg)
            damaged = stored.put(b"\xff\xd8\xff half")
            for missing in (damaged, "other", "..%2F..%2Fetc%2Fpasswd", "%00", "x" * 500):
                status, kind, body = get(missing)
                assert (status, kind, json.loads(body)["code"]) == (404, "application/problem+json", "not_found")
            assert get(f"{coming}?size=small")[0] == 400
        assert server.error is None


def test_without_pictures_none_is_found_and_one_that_is_waited_for_holds_up_no_end(
    connection: http.client.HTTPConnection, path: Path, tmp_path: Path
) -> None:
    answer, problem = request(connection, "GET", "/v1/pictures/any")
    assert (answer.status, problem["code"]) == (404, "not_found")
    stored = Counted(tmp_path / "pictures")  # never started, so it answers nothing
    other = path.with_name("d.sock")
    with server_at(other, pictures=stored.store), closing(_UnixConnection(other, _PATIENCE_SECONDS)) as waiting:
        waiting.request("GET", f"/v1/pictures/{stored.store.promise('a')}")
        wait_until(lambda: stored.store._requests)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    stored.store.close()


def test_events_of_the_past_are_handed_out_as_they_were_published(path: Path, tmp_path: Path) -> None:
    seqs = {"alerts/front-door/": 3}
    with closing(EventStore(tmp_path / "spool", 2**30, "e1", seqs)) as store:
        events = [to_message(alert_event(seq=seq, published_at=1760000000.0 + seq))[1] for seq in (1, 2, 3)]
        store.append(
            [Record("e1", "alerts/front-door/", seq, 1760000000.0 + seq, events[seq - 1]) for seq in (1, 2, 3)]
        )
        with (
            History(store.path) as history,
            server_at(path, history=history),
            closing(_UnixConnection(path, _PATIENCE_SECONDS)) as connection,
        ):
            response, answer = request(connection, "GET", "/v1/alerts?limit=2&rule=at+the+door&phase=raised")
            assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
            assert answer["events"] == [json.loads(events[2]), json.loads(events[1])]
            rest = request(connection, "GET", f"/v1/alerts?after={answer['next']}")[1]
            assert rest == {"events": [json.loads(events[0])], "next": None}
            for since in ("1760000003", "2025-10-09T08:53:23Z", "2025-10-09T10:53:23%2B02:00",
                          "2025-10-09T10:53:23+02:00"):  # fmt: skip
                answer = request(connection, "GET", f"/v1/alerts?since={since}&stream=front-door")[1]
                assert [event["seq"] for event in answer["events"]] == [3], since
            assert request(connection, "GET", "/v1/alerts?until=1760000002")[1]["events"][0]["seq"] == 1
            assert request(connection, "GET", "/v1/objects")[1] == {"events": [], "next": None}
        assert history.error is None


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        ("/v1/alerts", 409, "this daemon keeps no events on disk: set directory in [spool]"),
        ("/v1/objects?label=person", 409, "keeps no events"),
        ("/v1/alerts?label=person", 400, "known are since, until, stream, rule"),
        ("/v1/objects?rule=x", 400, "known are since, until, stream, label"),
        ("/v1/alerts?phase=end", 400, "must be one of raised, cleared"),
        ("/v1/objects?phase=raised", 400, "must be one of begin, update, end"),
        *((f"/v1/alerts?since={text}", 400, '"since" must be a time')
          for text in ("yesterday", "nan", "inf", "-1", "1e300", "2026-11-29T14:00:00", "", "0001-01-01T00:00:00Z")),
        *((f"/v1/alerts?limit={text}", 400, "a whole number from 1 to 1000")
          for text in ("0", "1001", "1.5", "-1", "")),
        *((f"/v1/alerts?after={text}", 400, 'must be "next" of an answer')
          for text in ("", "x", "9223372036854775808", "1_0", "%D9%A3")),
        ("/v1/alerts?stream=*", 400, "is no name of a stream"),
        ("/v1/alerts?limit=1&limit=2", 400, "given twice"),
        ("/v1/streams/a/picture?width=1", 400, "a whole number from 16 to 3840"),
        ("/v1/streams/a/picture?boxes=yes", 400, '"boxes" must be 0 or 1'),
        ("/v1/streams/A%0a/picture", 404, "there is no stream"),
        ("/v1/streams/a/picture", 503, "a has no frame"),
    ],
)  # fmt: skip
def test_what_a_query_may_ask_for(connection: http.client.HTTPConnection, target: str, status: int, words: str) -> None:
    response, problem = request(connection, "GET", target)
    assert (response.status, words in problem["detail"]) == (status, True), problem


def test_queries_that_wait_hold_up_no_end_and_too_many_are_refused(path: Path, tmp_path: Path) -> None:
    history = History(tmp_path / "events.sqlite")  # never started, so it answers nothing
    with server_at(path, history=history), closing(_UnixConnection(path, _PATIENCE_SECONDS)) as waiting:
        waiting.request("GET", "/v1/alerts")
        wait_until(lambda: history._waiting)
        while history.fetch(Query("alerts"), lambda _: None):
            pass
        with pytest.raises(ControlError, match="cannot be read now"):
            ask(path, "GET", "/v1/objects")
        began = time.monotonic()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "target", ["/v1/alerts", "/v1/objects", "/v1/streams", "/v1/streams/a/picture", "/v1/pictures/x"]
)
def test_no_other_site_may_read_anything(path: Path, target: str) -> None:
    with server_at(path, endpoint="127.0.0.1:0") as server:
        address = urlsplit(server.urls[1]).netloc
        for over_tcp in (True, False):
            kind = http.client.HTTPConnection(address, timeout=_PATIENCE_SECONDS)
            with closing(kind if over_tcp else _UnixConnection(path, _PATIENCE_SECONDS)) as connection:
                headers = {"Origin": "https://site.example"}
                preflight = {**headers, "Access_Control_Request_Method": "GET"}
                for method, sent, refused in (
                    ("OPTIONS", preflight, 403 if over_tcp else 405), ("GET", headers, 403), ("GET", {}, None),
                ):  # fmt: skip
                    response, _ = request(connection, method, target, **sent)
                    assert not [name for name in response.headers if name.lower().startswith("access-control-")]
                    if refused is not None and (over_tcp or method == "OPTIONS"):
                        assert response.status == refused


def test_curl_speaks_to_it(server: ControlServer, path: Path) -> None:
    command = ["curl", "-sS", "--fail", "--unix-socket", str(path), "http://localhost/v1/streams"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=_PATIENCE_SECONDS)
    assert json.loads(done.stdout)["name"] == "streams.list"


# ---------------------------------------------------------------- What cannot be read


_BODIES = [
    b"x", b"[]", b'"a"', b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b"\xff\xfe", b"[" * 60000,
    b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}",
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status", "words"),
    [
        *(("POST", "/v1/streams", body, {}, 400, "the body ") for body in _BODIES),
        ("POST", "/v1/streams", b"{}", {}, 400, '"name" is missing'),
        ("POST", "/v1/streams", b'{"name": 3}', {}, 400, '"name" must be a text'),
        ("POST", "/v1/streams", b"{}", {"Content_Type": "text/plain"}, 415, "must be application/json"),
        ("POST", "/v1/streams", b"name=a", {"Content_Type": "application/x-www-form-urlencoded"}, 415, "Content-Type"),
        ("POST", "/v1/streams", b"x" * (MAX_BODY_BYTES + 1), {}, 413, f"more than {MAX_BODY_BYTES} bytes"),
        ("POST", "/v1/streams?persist=yes", b"{}", {}, 400, "must be true or false"),
        ("POST", "/v1/streams?persist=true&persist=true", b"{}", {}, 400, "given twice"),
        ("GET", "/v1/streams?persist=true", None, {}, 400, "this path takes none"),
        ("DELETE", "/v1/streams/a?persits=true", None, {}, 400, '"persits" is not known; known are persist'),
        ("DELETE", "/v1/streams/a", b'{"persist": true}', {}, 400, '"persist" is not known'),
        ("POST", "/v1/reload", b'{"config": 3}', {}, 400, '"config" must be a text'),
        ("POST", "/v1/reload", b'{"\\u001b[2J": ""}', {}, 400, "\\x1b[2J"),
        ("PATCH", "/v1/streams/a", b'{"name": "b"}', {}, 400, "a stream keeps its name"),
        ("GET", "/v1/streams/A%0a%1b", None, {}, 404, 'there is no stream "A\\n\\x1b"'),
        ("GET", "/v1/streams/..", None, {}, 404, "there is no stream"),
        ("GET", "/v1/streams/", None, {}, 404, "there is no"),
        ("GET", "/v2", None, {}, 404, "there is no such path"),
        ("BREW", "/v1/streams", None, {}, 405, "does not take this method"),
        ("DELETE", "/v1/streams", None, {}, 405, "does not take this method"),
    ],
)
def test_what_cannot_be_read_is_one_problem_and_the_next_request_is_served(
    server: ControlServer,
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
    words: str,
) -> None:
    response, problem = request(connection, method, target, body, **headers)
    assert (response.status, response.headers["Content-Type"]) == (status, "application/problem+json")
    assert words in problem["detail"]
    assert problem["problems"] == [problem["detail"]]
    assert problem["status"] == status
    assert problem["detail"].isprintable()
    assert ("Allow" in response.headers) == (status == 405)
    assert ask(server.urls and Path(server.urls[0]), "GET", "/v1/streams")["name"] == "streams.list"


def test_a_path_names_all_of_its_methods(connection: http.client.HTTPConnection) -> None:
    response, _ = request(connection, "POST", "/v1/streams/a")
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "PUT", "PATCH", "DELETE"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConfigError(["streams[a].url: is wrong", "b: rtsp://user:pl4nted-Secret@h/"]), 422, "invalid"),
        (ControlError(Refusal.NOT_FOUND, "no such"), 404, "not_found"),
        (ControlError(Refusal.EXISTS, "is there"), 409, "exists"),
        (ControlError(Refusal.TOO_MANY, "no room"), 409, "too_many"),
        (ControlError(Refusal.CONFLICT, "another file"), 409, "conflict"),
        (ControlError(Refusal.FAILED, "rtsp://user:pl4nted-Secret@h/ does not work"), 500, "failed"),
        (ApplyError("no thread"), 503, "failed"),
    ],
)
def test_errors_come_back_as_they_went_in_without_secrets(path: Path, error: Exception, status: int, code: str) -> None:
    with server_at(path, lambda operation: operation.result.set_exception(error)):
        with closing(_UnixConnection(path, _PATIENCE_SECONDS)) as connection:
            response, problem = request(connection, "POST", "/v1/reload")
        assert (response.status, problem["code"]) == (status, code)
        assert "pl4nted" not in json.dumps(problem)
        with pytest.raises((ControlError, ConfigError)) as caught:
            ask(path, "POST", "/v1/reload")
    if isinstance(error, ConfigError):
        assert isinstance(caught.value, ConfigError)
        assert caught.value.problems[0] == error.problems[0]
    else:
        assert isinstance(caught.value, ControlError)
        assert caught.value.code == code


def test_an_error_that_no_code_foresaw_is_a_problem_too(path: Path) -> None:
    def broken(_operation: Operation) -> None:
        message = "broken on purpose"
        raise RuntimeError(message)

    with server_at(path, broken) as server, closing(_UnixConnection(path, _PATIENCE_SECONDS)) as connection:
        response, problem = request(connection, "GET", "/v1/streams")
        assert (response.status, problem["code"]) == (500, "failed")
        assert request(connection, "GET", "/v1/about")[0].status == 200
    assert server.error is None


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=10,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_a_body_or_refused(data: bytes) -> None:
    try:
        body = decode_body(data)
    except ControlError as error:
        refusal = error
    else:
        assert decode_body(json.dumps(body).encode()) == body
        return
    assert refusal.code == Refusal.BAD_REQUEST
    assert len(str(refusal).splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"max_fps": 1e999}', "the body holds a number that is too large: 1e999"),
        (b'{"max_fps": -1e999}', "the body holds a number that is too large: -1e999"),
        (b'{"max_fps": 9223372036854775808}', "the body holds a number that is too large: 9223372036854775808"),
        (b'{"max_fps": ' + b"9" * 5000 + b"}", "the body holds a number that is too large: 99999999999999999999..."),
        (b'{"max_fps": NaN}', "the body is not JSON: it holds NaN, which is not a number of JSON"),
        (b'{"max_fps": -Infinity}', "the body is not JSON: it holds -Infinity, which is not a number of JSON"),
        (b'{"max_fps": 5,}', "the body is not JSON: "),
        (b'{"name": "\xff"}', "the body is not UTF-8"),
        (b'{"name": "\\ud800"}', "the body holds half of a surrogate pair, which is no character"),
        (b"[" * 40_000, "the body is nested more than 12 deep"),
        (b"[]", "the body is not a JSON object"),
    ],
)
def test_what_is_wrong_with_a_body_is_named(body: bytes, problem: str) -> None:
    with pytest.raises(ControlError) as caught:
        decode_body(body)
    assert str(caught.value).startswith(problem)
    if not problem.endswith(" "):
        assert str(caught.value) == problem


# ---------------------------------------------------------------- Slow, busy and many clients


def test_a_client_that_does_not_finish_is_closed(path: Path) -> None:
    with server_at(path, limits=replace(LIMITS, request_seconds=0.2)) as server:
        for begin in (b"", _GET[:9], b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"):
            with connect(path) as slow:
                slow.sendall(begin)
                assert everything(slow) == b""
    assert server.error is None


def test_a_client_that_does_not_take_its_answer_delays_no_other(path: Path) -> None:
    def big(operation: Operation) -> None:
        operation.result.set_result({"text": "x" * 5_000_000})

    # On a busy machine even who takes the answer at once takes its time.
    with server_at(path, big, limits=replace(LIMITS, answer_seconds=5.0)) as server, connect(path) as lazy:
        lazy.sendall(_GET)
        assert len(str(ask(path, "GET", "/v1/streams"))) > 5_000_000
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while server._servers[0]._open._open:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_more_requests_than_may_wait_are_refused_and_others_are_served_after_them(path: Path) -> None:
    with server_at(path, rate=FairRate(5, 2)):
        asking = [connect(path) for _ in range(30)]
        for each in asking:
            each.sendall(_GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = [everything(each) for each in asking]
        for each in asking:
            each.close()
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429 ")]
        assert len(refused) >= 10
        assert all(b"retry-after: 1\r\n" in answer and b'"too_many"' in answer for answer in refused)
        assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) >= 5
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with suppress(ControlError):
                ask(path, "GET", "/v1/streams")
                break
            assert time.monotonic() < deadline


def test_connections_that_say_nothing_keep_no_other_out(path: Path) -> None:
    with server_at(path) as server:
        silent = [connect(path) for _ in range(3 * LIMITS.connections)]
        assert ask(path, "GET", "/v1/streams")["name"] == "streams.list"
        assert len(server._servers[0]._open._open) <= LIMITS.waiting_per_address + 1
        for each in silent:
            each.close()


def test_an_answer_that_comes_late_comes_and_one_that_is_not_waited_for_harms_nothing(path: Path) -> None:
    handed_on: list[Operation] = []
    came = threading.Semaphore(0)

    def later(operation: Operation) -> None:
        handed_on.append(operation)
        came.release()

    with server_at(path, later) as server, connect(path) as patient:
        patient.sendall(_GET)
        with connect(path) as gone:
            gone.sendall(_GET)
            assert came.acquire(timeout=_PATIENCE_SECONDS)
            assert came.acquire(timeout=_PATIENCE_SECONDS)
        for operation in handed_on:
            echo(operation)
        assert patient.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert server.error is None


def test_what_waits_when_the_server_ends_is_reported_and_nothing_holds_up_the_end(path: Path) -> None:
    came = threading.Event()
    with server_at(path, lambda _: came.set()) as server, connect(path) as waiting:
        waiting.sendall(_GET)
        assert came.wait(_PATIENCE_SECONDS)
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 0.9  # of the second that uvicorn gives to requests under way
        answer = everything(waiting)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the daemon is stopping" in answer
    assert b'"unavailable"' in answer


# ---------------------------------------------------------------- Who may ask


def test_only_its_user_may_use_the_file_and_it_is_gone_at_the_end(path: Path) -> None:
    with server_at(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest.mark.root
def test_others_are_refused_whatever_the_mode_says_and_members_of_the_group_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gid = gid_of("nogroup", "[control]")
    # Not below pytest's own directory, which every run of pytest closes to other users.
    with tempfile.TemporaryDirectory(prefix="control-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "c.sock"
        with server_at(path, group="nogroup"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            path.chmod(0o666)
            assert status_as(path, uid=12345, gid=gid, groups=[]) == 200
            assert status_as(path, uid=12345, gid=12345, groups=[gid]) == 200
            assert status_as(path, uid=0, gid=0, groups=[]) == 200
            assert "refused" not in caplog.text
            assert status_as(path, uid=12345, gid=12345, groups=[]) == 403
    refused = [text for text in caplog.messages if "refused" in text]
    assert refused == ["refused a process of user 12345 at the control socket"]


def status_as(path: Path, uid: int, gid: int, groups: list[int]) -> int:
    """The status that a process of this user and these groups gets."""
    code = f"""
import contextlib, socket
connection = socket.socket(socket.AF_UNIX)
connection.connect({str(path)!r})
with contextlib.suppress(BrokenPipeError):
    connection.sendall({_GET!r})
print(connection.recv(65536).decode())
"""
    command = ["/usr/bin/python3", "-I", "-S", "-c", code]
    answer = subprocess.run(
        command, user=uid, group=gid, extra_groups=groups, capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    return int(answer.split()[1])


class Network:
    """The API over TCP, with what `[metrics]` asks for."""

    def __init__(self, server: ControlServer, certificate: Path | None = None) -> None:
        self.url = urlsplit(server.urls[-1])
        self._certificate = certificate

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        port = self.url.port or 0
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
        connection = plain
        if self._certificate is not None:
            context = ssl.create_default_context(cafile=str(self._certificate))
            connection = http.client.HTTPSConnection("localhost", port, timeout=_PATIENCE_SECONDS, context=context)
        with closing(connection):
            response, answer = request(connection, method, target, body, **headers)
            return response.status, str(answer.get("detail", answer.get("name")))


def test_over_tcp_a_browser_of_another_site_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handed_on: list[str] = []

    def note(operation: Operation) -> None:
        handed_on.append(operation.name)
        echo(operation)

    with server_at(path, note, endpoint="127.0.0.1:0") as server:
        assert "serves without a login" in caplog.text
        network = Network(server)
        host = network.url.netloc
        assert network.ask("GET", "/v1/streams") == (200, "streams.list")
        assert network.ask("POST", "/v1/reload", b"{}", Origin=f"http://{host}") == (200, "reload")
        handed_on.clear()
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": f"https://{host}"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Host": "evil.example"},
            {"Host": "evil.example", "Origin": "http://evil.example"},
            {"Content_Type": "text/plain"},
            {"Content_Type": "application/x-www-form-urlencoded"},
        ):
            status, _ = network.ask("POST", "/v1/reload", b"{}", **headers)
            assert status in (403, 415)
        assert network.ask("POST", "/v1/reload")[0] == 415
        assert network.ask("OPTIONS", "/v1/streams/a", Origin="https://evil.example")[0] == 403
        assert handed_on == []
        assert ask(path, "POST", "/v1/reload")["name"] == "reload"


def test_over_tcp_no_one_speaks_for_a_user_of_the_page(path: Path) -> None:
    user = "alice; operator; 192.0.2.7"
    with server_at(path, endpoint="127.0.0.1:0") as server:
        network = Network(server)
        status, detail = network.ask("POST", "/v1/reload", b"{}", Streamdet_User=user)
        assert (status, detail) == (403, "the header Streamdet-User is accepted over the Unix socket only")
        assert network.ask("GET", "/v1/streams")[0] == 200
        with closing(_UnixConnection(path, _PATIENCE_SECONDS)) as connection:
            who = request(connection, "POST", "/v1/reload", b"{}", Streamdet_User=user)[1]["who"]
            assert who.startswith("alice (operator, from 192.0.2.7) via the page of user ")
            for wrong in ("alice", "alice; operator", "al ice; operator; ::1", "alice; root; x y", f"{'a' * 99}; a; b"):
                assert request(connection, "POST", "/v1/reload", b"{}", Streamdet_User=wrong)[0].status == 400


def test_over_tcp_the_login_and_the_certificate_of_the_metrics_page_are_asked_for(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    write_password(tmp_path / "password", Password.of(_WORDS, cost=(10, 8, 1)))
    access = MetricsConfig(
        tls_certificate_file=str(certificate), tls_key_file=str(key), password_file=str(tmp_path / "password")
    )
    right = {"Authorization": "Basic " + base64.b64encode(f"streamdet:{_WORDS}".encode()).decode()}
    with server_at(None, endpoint="0.0.0.0:0", access=access) as server:
        assert server.urls[0].startswith("https://0.0.0.0:")
        network = Network(server, certificate)
        assert network.ask("GET", "/v1/streams") == (401, "a name and a password are needed")
        assert network.ask("POST", "/v1/reload", b"{}") == (401, "a name and a password are needed")
        assert network.ask("GET", "/v1/streams", **right) == (200, "streams.list")
        assert network.ask("POST", "/v1/reload", b"{}", **right, Origin="https://evil.example")[0] == 403


@pytest.mark.parametrize("access", [MetricsConfig(), MetricsConfig(endpoint="0.0.0.0:9095", insecure=True)])
def test_other_machines_are_not_let_in_without_both(access: MetricsConfig, path: Path) -> None:
    with pytest.raises(EndpointError, match="would be open to other machines: set tls_certificate_file"):
        server_at(path, endpoint="0.0.0.0:0", access=access)
    assert not path.exists()


# ---------------------------------------------------------------- Where it is


def test_a_file_of_a_dead_process_is_replaced_and_a_living_one_is_not(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with server_at(path):
        assert ask(path, "GET", "/v1/about")
        with pytest.raises(EndpointError, match="another process uses it"):
            server_at(path)
        assert ask(path, "GET", "/v1/about")


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(EndpointError, match="is not a socket"):
        server_at(file)
    with pytest.raises(EndpointError, match="there is no group 'no-such-group'"):
        server_at(tmp_path / "c.sock", group="no-such-group")
    with pytest.raises(EndpointError, match="there is no folder"):
        server_at(tmp_path / "a" / "b" / "c.sock")


def test_what_a_client_prints_when_no_daemon_answers(path: Path) -> None:
    with pytest.raises(ControlError, match="there is no socket") as caught:
        ask(path, "GET", "/v1/about")
    assert caught.value.exit_code == 69
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ControlError, match="no process listens at"):
        ask(path, "GET", "/v1/about")
    with socket.socket(socket.AF_UNIX) as deaf:
        path.unlink()
        deaf.bind(str(path))
        deaf.listen()
        with pytest.raises(ControlError, match=r"did not answer within 0\.2 s"):
            ask(path, "GET", "/v1/about", timeout_seconds=0.2)


def test_a_client_waits_where_more_connect_than_are_accepted(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = connect(path)  # as many as the kernel keeps
        with pytest.raises(ControlError, match=r"did not answer within 0\.3 s"):
            ask(path, "GET", "/v1/about", timeout_seconds=0.3)

        def serve() -> None:
            listener.accept()[0].close()
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(4096)
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Timer(0.2, serve)
        thread.daemon = True
        thread.start()
        assert ask(path, "GET", "/v1/about", timeout_seconds=_PATIENCE_SECONDS) == {}
        thread.join(_PATIENCE_SECONDS)
        waiting.close()


@pytest.mark.parametrize(
    ("answer", "words", "exit_code"),
    [
        # The lines that daemons answered before they spoke HTTP.
        (b'{"version":1,"id":null,"ok":false,"error":{"code":"bad_request","problems":["x"]}}\n', "is older than", 1),
        (b"", "closed the connection without an answer", 69),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "closed the connection without an answer", 69),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", "is no answer of a streamdet daemon", 1),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", "is no answer of a streamdet daemon", 1),
    ],
)
def test_what_else_may_listen_there_is_one_clear_line(path: Path, answer: bytes, words: str, exit_code: int) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(4096)
                accepted.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(ControlError, match=words) as caught:
            ask(path, "GET", "/v1/about", timeout_seconds=_PATIENCE_SECONDS)
        thread.join(_PATIENCE_SECONDS)
    assert caught.value.exit_code == exit_code
    assert len(str(caught.value).splitlines()) == 1


def test_answers_that_are_none_are_refused() -> None:
    for status, body in ((200, b""), (200, b"[]"), (200, b"[" * 60000), (404, b"{}"), (500, b'{"problems": []}')):
        with pytest.raises(ControlError, match="is no answer of a streamdet daemon"):
            decode_answer(status, body)


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


def test_sockets_of_dead_daemons_without_a_file_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "streamdet"
    folder.mkdir()
    child = subprocess.Popen(["true"])
    child.wait()
    dead, living, other = folder / f"run-{child.pid}.sock", folder / "run-1.sock", folder / "yard-1234.sock"
    for path in (dead, living, other):
        with closing(socket.socket(socket.AF_UNIX)) as left:
            left.bind(str(path))
    own = socket_without_file({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert own == folder / f"run-{os.getpid()}.sock"
    assert sorted(folder.iterdir()) == [living, other]
    assert socket_without_file({"XDG_RUNTIME_DIR": "/" + "r" * 120}) is None


def test_where_changes_are_kept(tmp_path: Path) -> None:
    config = tmp_path / "yard.toml"
    assert changes_file_of_daemon("auto", config, {"STATE_DIRECTORY": "/s:/t"}) == Path("/s/streams.json")
    assert changes_file_of_daemon("auto", config, {}) == tmp_path / "yard.streams.json"
    assert changes_file_of_daemon("auto", None, {}) is None
    assert changes_file_of_daemon("/x", None, {}) == Path("/x")


def about(config: Path) -> ControlServer:
    path = config.with_suffix(".sock")
    path.parent.mkdir(exist_ok=True)
    return ControlServer(
        path, echo, lambda: {"config": str(config.resolve())}, lambda: HealthSnapshot(healthy=True, ready=True)
    )


def test_a_client_finds_the_one_daemon_or_names_them_all(tmp_path: Path) -> None:
    folder = tmp_path / "streamdet"
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with about(folder / "east.toml") as east:
        assert Path(east.urls[0]) in list(possible_sockets(environ))
        assert find_socket(None, folder / "east.toml", environ) == Path(east.urls[0])
        with about(folder / "west.toml"):
            with pytest.raises(ControlError, match="several daemons are running") as caught:
                find_socket(None, None, environ)
            assert caught.value.code == Refusal.AMBIGUOUS
            assert east.urls[0] in str(caught.value)
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


def test_a_stream_is_tried_without_being_added(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "streamdet.service.control.api")
    with WebServer(login="admin:s3cret") as camera, server_at(path, read_only_streams) as server:
        right, wrong = camera.url("/mjpeg", "admin:s3cret"), camera.url("/mjpeg", "admin:wr0ng")
        found = ask(path, "POST", "/v1/probe", {"url": right})
        assert (found["reason"], found["width"], found["height"], found["live"]) == (None, 64, 48, True)
        found = ask(path, "POST", "/v1/probe", {"url": wrong, "name": "door"})
        assert (found["name"], found["reason"]) == ("door", "unauthorized")
        with pytest.raises(ConfigError, match="url"):
            ask(path, "POST", "/v1/probe", {"url": "gopher://x"})
    assert server.error is None
    assert "it can be read" in caplog.text
    assert "unauthorized" in caplog.text
    assert not any(secret in caplog.text + str(found) for secret in ("s3cret", "wr0ng"))


def read_only_streams(operation: Operation) -> None:
    """As the daemon's main thread reads the stream of a try."""
    assert operation.name == "streams.read"
    try:
        stream = read_stream({**operation.values, "name": operation.stream}, {}, Path.cwd())
    except ConfigError as error:
        operation.result.set_exception(error)
    else:
        operation.result.set_result({"stream": stream})


def test_few_streams_are_tried_at_once_and_the_end_waits_for_none() -> None:
    begun, results = threading.Semaphore(0), queue.SimpleQueue[Probe | Exception]()

    def hang(config: StreamConfig, interrupt: Interrupt) -> Probe:
        begun.release()
        assert interrupt.wait(_PATIENCE_SECONDS)
        return Probe(config.name)

    probes = Probes(hang)
    config = StreamConfig(name="door", url="rtsp://192.0.2.7/stream1")
    assert probes.begin(config, results.put)
    assert probes.begin(config, results.put)
    assert not probes.begin(config, results.put)
    assert begun.acquire(timeout=_PATIENCE_SECONDS)
    assert begun.acquire(timeout=_PATIENCE_SECONDS)
    probes.close()
    assert [results.get(timeout=_PATIENCE_SECONDS) for _ in range(2)] == [Probe("door")] * 2
    assert not probes.begin(config, results.put)


def test_an_error_in_a_try_is_its_result_and_the_next_one_is_made() -> None:
    results = queue.SimpleQueue[Probe | Exception]()

    def fail(config: StreamConfig, interrupt: Interrupt) -> Probe:
        raise ZeroDivisionError

    probes = Probes(fail)
    config = StreamConfig(name="door", url="rtsp://192.0.2.7/stream1")
    for _ in range(AT_ONCE + 1):
        assert probes.begin(config, results.put)
        assert isinstance(results.get(timeout=_PATIENCE_SECONDS), ZeroDivisionError)
    probes.close()
