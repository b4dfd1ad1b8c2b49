from __future__ import annotations

import errno
import gzip
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from streamdet.config import MetricsConfig, StreamConfig
from streamdet.errors import EXIT_UNAVAILABLE, EndpointError
from streamdet.http.server import Limits
from streamdet.inference.batch_queue import BatchQueue
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.security.limits import FairRate
from streamdet.service import pages as module
from streamdet.service.pages import LIMITS, HealthServer, HealthSnapshot
from streamdet.types import Drop, Frame, Reason, State, StreamStatus
from streamdet.worker import Worker
from support.waiting import join

_LOOPBACK = MetricsConfig(endpoint="127.0.0.1:0")


def _at(endpoint: str) -> MetricsConfig:
    """Whatever the endpoint: what the configuration would refuse must be refused when binding, too."""
    return MetricsConfig.model_construct(endpoint=endpoint)


_PATIENCE_SECONDS = 20.0
_STATUSES = {
    "door": StreamStatus("door", State.UP, None, "", 1_700_000_000.0),
    "yard": StreamStatus("yard", State.DOWN, Reason.UNAUTHORIZED, "401 from 192.0.2.7", 1_700_000_100.0),
}
_WELL = HealthSnapshot(healthy=True, ready=True, streams=_STATUSES, last_frame_at={"door": 1_700_000_200.5})


class NoPicture:
    """No one looks at it."""

    width = 0
    height = 0

    def to_rgb(self) -> NDArray[np.uint8]:
        raise AssertionError


class Daemon:
    """What the pages show, and the server that shows it; made for every request, unless a test is about that."""

    def __init__(
        self,
        limits: Limits = LIMITS,
        rate: FairRate | None = None,
        metrics_age_seconds: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.metrics = Metrics(Ledger())
        self.metrics.set_stream("door", ["person"])
        self.snapshot = _WELL
        self.failed: list[Worker] = []
        self.server = HealthServer(
            _LOOPBACK,
            self.metrics.registry,
            lambda: self.snapshot,
            on_error=self.failed.append,
            limits=limits,
            rate=rate,
            metrics_age_seconds=metrics_age_seconds,
            health_age_seconds=0.0,
        )

    def connect(self) -> socket.socket:
        address = urlsplit(self.server.url)
        return socket.create_connection((address.hostname, address.port), timeout=_PATIENCE_SECONDS)

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=_PATIENCE_SECONDS)
        with closing(connection):
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            response = connection.getresponse()
            return response, response.read()

    def say(self, request: bytes) -> bytes:
        """All that comes back for these bytes."""
        with self.connect() as connection:
            # The server may refuse, and stop reading, before everything is sent.
            with suppress(ConnectionError):
                connection.sendall(request)
            answer = b""
            while received := connection.recv(65536):
                answer += received
        return answer


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    with daemon.server:
        yield daemon
    assert [worker.error for worker in daemon.failed] == []


def test_the_metrics_page(daemon: Daemon) -> None:
    daemon.metrics.frame_captured("door", 1.0)
    response, body = daemon.get("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in read_text(body.decode())}
    assert [s.value for s in families["streamdet_frames_captured"].samples] == [1.0]


def test_the_metrics_page_in_the_format_and_size_that_the_client_asks_for(daemon: Daemon) -> None:
    response, body = daemon.get("/metrics", Accept="application/openmetrics-text;version=1.0.0", Accept_Encoding="gzip")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Encoding"] == "gzip"
    text = gzip.decompress(body).decode()
    assert "streamdet_frames_captured" in {family.name for family in read_openmetrics(text)}


def test_some_metrics_by_name(daemon: Daemon) -> None:
    _, body = daemon.get("/metrics?name[]=streamdet_frames_in_flight")
    assert [family.name for family in read_text(body.decode())] == ["streamdet_frames_in_flight"]


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text;version=1.0.0"])
def test_metrics_by_name_are_those_of_the_whole_page(daemon: Daemon, accept: str) -> None:
    daemon.metrics.frame_captured("door", 1.0)
    daemon.metrics.frame_dropped("door", Drop.STALE)
    daemon.metrics.preview_encoded("door", 0.002)
    names = {
        "streamdet_frames_captured_total",
        "streamdet_frames_dropped_total",
        "streamdet_preview_encode_seconds_sum",
        "streamdet_preview_encode_seconds_bucket",
    }
    query = "&".join(f"name[]={name}" for name in sorted(names))
    asked, whole = (daemon.get(path, Accept=accept)[1].decode() for path in (f"/metrics?{query}", "/metrics"))
    lines = [line for line in whole.splitlines() if re.split(r"[{ ]", line)[0] in names]
    assert len(lines) > len(names)
    assert sorted(line for line in asked.splitlines() if not line.startswith("#")) == sorted(lines)
    assert asked.endswith("# EOF\n") == whole.endswith("# EOF\n")


def test_metrics_that_are_not_asked_for_by_name_are_not_collected(daemon: Daemon) -> None:
    collected: list[int] = []

    class Slow:
        def describe(self) -> list[Metric]:
            return [Metric("slow", "", "gauge")]

        def collect(self) -> list[Metric]:
            collected.append(1)
            return self.describe()

    daemon.metrics.registry.register(Slow())
    assert b"streamdet_frames_in_flight" in daemon.get("/metrics?name[]=streamdet_frames_in_flight")[1]
    assert not collected
    daemon.get("/metrics")
    assert collected


def test_readyz_reports_every_stream(daemon: Daemon) -> None:
    response, body = daemon.get("/readyz")
    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {
        "healthy": True,
        "ready": True,
        "problem": "",
        "engine": None,
        "streams": {
            "door": {
                "state": "up",
                "reason": None,
                "detail": "",
                "since": 1_700_000_000.0,
                "last_frame_at": 1_700_000_200.5,
            },
            "yard": {
                "state": "down",
                "reason": "unauthorized",
                "detail": "401 from 192.0.2.7",
                "since": 1_700_000_100.0,
                "last_frame_at": None,
            },
        },
    }


@pytest.mark.parametrize(
    ("snapshot", "healthz", "readyz"),
    [
        (_WELL, 200, 200),
        (HealthSnapshot(healthy=True, ready=False), 200, 503),
        (HealthSnapshot(healthy=False, ready=True, problem="inference is stuck"), 503, 503),
    ],
)
def test_statuses(daemon: Daemon, snapshot: HealthSnapshot, healthz: int, readyz: int) -> None:
    daemon.snapshot = snapshot
    response, body = daemon.get("/healthz")
    assert (response.status, json.loads(body)["problem"]) == (healthz, snapshot.problem)
    assert daemon.get("/readyz")[0].status == readyz


def test_the_first_page_links_to_the_others(daemon: Daemon) -> None:
    response, body = daemon.get("/")
    assert (response.status, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for path in ("/metrics", "/healthz", "/readyz"):
        assert f'href="{path}"'.encode() in body


def test_another_path_is_one_line(daemon: Daemon) -> None:
    response, body = daemon.get("/metrics/../etc/passwd")
    assert (response.status, body) == (404, b"not found: see /metrics, /healthz and /readyz\n")


@pytest.mark.parametrize("path", ["/", "/healthz", "/nothing"])
def test_head_is_get_without_the_body(daemon: Daemon, path: str) -> None:
    get, body = daemon.get(path)
    head, nothing = daemon.get(path, "HEAD")
    assert nothing == b""
    assert (head.status, head.headers["Content-Length"]) == (get.status, str(len(body)))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_refused(daemon: Daemon, method: str) -> None:
    response, body = daemon.get("/metrics", method)
    assert (response.status, set(response.headers["Allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert body == b"Method Not Allowed"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00 hello\r\n\r\n", 400),
        (b"GET / HTTP/2\r\nHost: [::1]\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon here\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * LIMITS.head_bytes * 2 + b"\r\n\r\n", 400),
        (b"POST /metrics HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 9999999\r\n\r\n" + b"a" * 9_999_999, 405),
    ],
    ids=["HTTP/0.9", "TLS", "HTTP/2", "no colon", "folded", "no host", "too large", "large body"],
)
def test_nonsense_is_refused(daemon: Daemon, request_bytes: bytes, status: int) -> None:
    answer = b""
    # A client that sends megabytes after its request may lose the answer; the server must not lose its thread.
    with suppress(ConnectionError):
        answer = daemon.say(request_bytes)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer or len(request_bytes) > LIMITS.head_bytes
    assert daemon.get("/healthz")[0].status == 200


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\nX: ",
        b"GET / HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 9999\r\n\r\n",
    ],
    ids=["from the first byte on", "within the head", "within the body"],
)
def test_a_slow_client_is_cut_off_however_busily_it_drips(begin: bytes) -> None:
    daemon = Daemon(replace(LIMITS, request_seconds=0.4))
    with daemon.server, daemon.connect() as connection:
        began = time.monotonic()
        with suppress(ConnectionError):
            connection.sendall(begin)
            connection.settimeout(0.02)
            while time.monotonic() < began + _PATIENCE_SECONDS:
                connection.sendall(b"G")
                with suppress(TimeoutError):
                    if connection.recv(4096) == b"":
                        break
        assert time.monotonic() - began < 0.5 * _PATIENCE_SECONDS


def test_a_client_that_says_nothing_is_cut_off() -> None:
    daemon = Daemon(replace(LIMITS, request_seconds=0.3))
    with daemon.server, daemon.connect() as connection, suppress(ConnectionError):
        assert connection.recv(1) == b""


@pytest.mark.parametrize("begin", [b"", b"GET /metrics HTTP/1.1\r\nHost: "])
def test_half_sent_requests_delay_no_others(daemon: Daemon, begin: bytes) -> None:
    slow = []
    for _ in range(LIMITS.connections + 100):
        slow.append(daemon.connect())
        slow[-1].sendall(begin)
    began = time.monotonic()
    assert daemon.get("/healthz")[0].status == 200
    assert daemon.get("/metrics")[0].status == 200
    # 0.1 s where the machine is quiet: the time to accept all the others first.
    assert time.monotonic() - began < 0.5 * _PATIENCE_SECONDS
    assert len(daemon.server._server._open._open) <= LIMITS.waiting_per_address + 2
    for connection in slow:
        connection.close()


def test_a_client_that_hangs_up_harms_no_one(daemon: Daemon) -> None:
    for request in (b"", b"GET /metrics", b"GET /metrics HTTP/1.1\r\nHost: [::1]\r\n\r\n"):
        for _ in range(20):
            with daemon.connect() as connection:
                # Closing resets the connection, whatever is under way.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(request)
    assert daemon.get("/healthz")[0].status == 200


def test_clients_that_never_read_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(replace(LIMITS, answer_seconds=0.3))
    # More than the kernel takes off the server's hands.
    monkeypatch.setattr(module, "_PAGE", bytes(30_000_000))
    with daemon.server:
        idle = [daemon.connect() for _ in range(30)]
        for connection in idle:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
        assert daemon.get("/", "HEAD")[0].headers["Content-Length"] == "30000000"
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while daemon.server._server._open._open:
            assert time.monotonic() < deadline, "they are still there"
            time.sleep(0.02)
        for connection in idle:
            connection.close()


def test_a_small_rest_of_an_answer_that_is_not_taken_is_no_reason_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAGE", bytes(60_000))
    daemon = Daemon(replace(LIMITS, answer_seconds=0.5, idle_seconds=1000), FairRate(10_000, 80))
    with daemon.server, daemon.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (open_now := list(daemon.server._server.server_state.connections)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (protocol,) = open_now
        # Until the kernel takes no more; what is left then is too little to pause the writing.
        while protocol.transport.get_write_buffer_size() == 0:
            assert time.monotonic() < deadline
            answered = daemon.server._server.server_state.total_requests
            with suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            while daemon.server._server.server_state.total_requests == answered and not protocol.transport.is_closing():
                assert time.monotonic() < deadline
                time.sleep(0.001)
        while daemon.server._server._open._open:
            assert time.monotonic() < deadline, "it is still there"
            time.sleep(0.02)


@pytest.fixture
def minute_old() -> Iterator[Daemon]:
    """One whose /metrics may be a minute old."""
    daemon = Daemon(metrics_age_seconds=(60.0, 60.0))
    with daemon.server:
        yield daemon


def test_readers_without_a_pause_share_one_page_and_are_all_answered(minute_old: Daemon) -> None:
    daemon = minute_old
    collected: list[int] = []

    class Counting:
        def collect(self) -> list[Metric]:
            collected.append(1)
            return []

    daemon.metrics.registry.register(Counting())
    collected.clear()
    statuses: list[int] = []
    ended = threading.Event()

    def read(path: str) -> None:
        while not ended.is_set():
            statuses.append(daemon.get(path)[0].status)

    names = [f"/metrics?name[]={name}" for name in ("up", "a", "b", "c")]
    paths = ["/metrics", *names, "/healthz", "/readyz", "/nothing"]
    readers = [threading.Thread(target=read, args=(path,), daemon=True) for path in paths * 4]
    for reader in readers:
        reader.start()
    began, cpu_began = time.monotonic(), daemon.server.cpu_seconds()
    # One that scrapes now and then, from the same address.
    for _ in range(3):
        assert daemon.get("/metrics")[0].status == 200
        time.sleep(0.3)
    share = (daemon.server.cpu_seconds() - cpu_began) / (time.monotonic() - began)
    ended.set()
    for reader in readers:
        join(reader)
    # The whole page and two sets of names at most.
    assert 1 <= len(collected) <= 3
    assert set(statuses) == {200, 404}
    # 0.09 of a core; on a busy machine 0.45 were seen.
    assert share < 0.7


def test_more_answers_at_the_same_time_than_may_be_are_refused() -> None:
    daemon = Daemon(replace(LIMITS, answering=0))
    with daemon.server:
        assert daemon.get("/metrics")[0].status == 503
        assert daemon.get("/healthz")[0].status == 200


def test_more_readers_than_can_wait_are_asked_to_come_back() -> None:
    daemon = Daemon(rate=FairRate(5, 2))
    with daemon.server:
        asking = []
        for _ in range(40):
            asking.append(daemon.connect())
            asking[-1].sendall(b"GET /nothing HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n")
        assert daemon.get("/healthz")[0].status == 200
        answers = []
        for connection in asking:
            with connection:
                answers.append(connection.makefile("rb").read())
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429 ")]
    assert len(refused) >= 10
    assert all(b"retry-after: 1\r\n" in answer for answer in refused)
    assert sum(answer.startswith(b"HTTP/1.1 404 ") for answer in answers) >= 5


@pytest.mark.parametrize(
    ("changes", "host", "status"),
    [
        ({}, "evil.example", 403),
        ({}, "evil.example:9095", 403),
        ({}, "127.0.0.1.evil.example", 403),
        ({}, "localhost:9095", 200),
        ({}, "192.0.2.7:9095", 200),
        ({}, "[::1]", 200),
        ({"hosts": ["Metrics.Example.org"]}, "metrics.example.org:9095", 200),
        ({"hosts": ["metrics.example.org"]}, "example.org", 403),
        ({}, "localhost.example.org", 403),
        ({"endpoint": "0.0.0.0:0", "insecure": True}, "camera-server.lan:9095", 200),
        ({"endpoint": "0.0.0.0:0", "insecure": True, "hosts": ["a.example"]}, "b.example", 403),
    ],
)
def test_names_that_are_not_ours_are_refused(changes: dict[str, Any], host: str, status: int) -> None:
    config = MetricsConfig(**{"endpoint": "127.0.0.1:0", **changes})
    with HealthServer(config, Metrics(Ledger()).registry, lambda: _WELL) as server:
        with closing(http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port or 0, timeout=30)) as connection:
            for path in ("/metrics", "/healthz"):
                connection.request("GET", path, headers={"Host": host})
                response = connection.getresponse()
                body = response.read()
                assert response.status == status
        assert (b"[metrics] hosts" in body) == (status == 403)


def test_metrics_are_served_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 8e9)  # the year 2223, as a machine without a battery may believe
    with (
        HealthServer(MetricsConfig(endpoint="127.0.0.1:0"), Metrics(Ledger()).registry, lambda: _WELL) as server,
        closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)) as connection,
    ):
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        response = connection.getresponse()
        assert response.status == 200
        assert b"streamdet_build_info" in gzip.decompress(response.read())


def test_who_sends_many_requests_at_once_gets_one_answer(daemon: Daemon) -> None:
    with daemon.connect() as connection, suppress(ConnectionError):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\n\r\n" * 50)
        assert connection.makefile("rb").read().count(b"HTTP/1.1 200 ") == 1


@pytest.mark.parametrize(
    "begin",
    [b"HEAD /readyz HTTP/1.0\r\n\r\n", b"GET /readyz HTTP/1.0\r\n\r\n", b"GET /readyz HTTP/1.1\r\nHost: [::1]\r\n\r\n"],
)
@pytest.mark.parametrize("pause_seconds", [0.0, 0.1])
def test_nonsense_behind_a_request_is_not_said_in_the_log(
    daemon: Daemon, begin: bytes, pause_seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with daemon.connect() as connection, suppress(ConnectionError):
            connection.sendall(begin)
            time.sleep(pause_seconds)
            connection.sendall(b"nonsense\r\n\r\n" * 20)
            connection.makefile("rb").read()
    assert daemon.get("/healthz")[0].status == 200
    assert caplog.text == ""


def test_a_connection_is_kept_for_the_next_request(daemon: Daemon) -> None:
    with closing(http.client.HTTPConnection(urlsplit(daemon.server.url).netloc, timeout=_PATIENCE_SECONDS)) as kept:
        kept.connect()
        sock = kept.sock
        for path in ("/healthz", "/metrics", "/nothing"):
            kept.request("GET", path)
            assert kept.getresponse().read()
            assert kept.sock is sock


def test_who_sends_no_host_is_no_browser(daemon: Daemon) -> None:
    assert daemon.say(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPROTO])
def test_a_connection_that_cannot_be_accepted_is_tried_again(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = Daemon(replace(LIMITS, accept_retry_seconds=0.01))
    failing = [number] * 2
    accept = socket.socket.accept

    def sometimes(listener: socket.socket) -> Any:
        if failing:
            raise OSError(failing.pop(), os.strerror(number))
        return accept(listener)

    with daemon.server:
        monkeypatch.setattr(socket.socket, "accept", sometimes)
        # The one that the server waits for already, and one that meets the failures.
        assert [daemon.get("/healthz")[0].status for _ in range(2)] == [200, 200]
    assert failing == []
    assert os.strerror(number) in caplog.text


def test_the_pages_answer_while_20_threads_report_and_one_hangs(daemon: Daemon) -> None:
    """A thread that hangs holds no lock that the pages need; those at work hold one only while they count."""
    names = [f"stream-{n}" for n in range(20)]
    for name in names:
        daemon.metrics.set_stream(name, ["person"])
    queue = BatchQueue(8, 0.0, daemon.metrics.frame_dropped)
    queue.set_stream(StreamConfig(name="hangs", url="video.mkv", pace="fastest"))
    daemon.server._snapshot = lambda: HealthSnapshot(healthy=queue.pending_since() is not None, ready=True)
    done = threading.Event()

    def capture(name: str) -> None:
        while not done.wait(0.001):
            daemon.metrics.frame_captured(name, time.time())
            daemon.metrics.frame_dropped(name, Drop.SUPERSEDED)
            daemon.metrics.frame_published(name, 0.01, ["person"])

    def hang() -> None:
        for seq in (1, 2):
            queue.put(Frame("hangs", seq, None, 0.0, "daemon", time.monotonic(), NoPicture()))

    threads = [threading.Thread(target=capture, args=(name,), daemon=True) for name in names]
    threads.append(threading.Thread(target=hang, daemon=True))
    for thread in threads:
        thread.start()
    while queue.pending() != {"hangs": 2}:
        time.sleep(0.001)
    times_seconds = []
    for _ in range(9):
        began = time.monotonic()
        response, body = daemon.get("/metrics")
        times_seconds.append(time.monotonic() - began)
        assert response.status == 200
        assert len(list(read_text(body.decode()))) > 20
        assert daemon.get("/readyz")[0].status == 200
    done.set()
    queue.close()
    for thread in threads:
        join(thread)
    # Usually 0.05 s; far more only because tests run on machines that are busy with other things.
    assert min(times_seconds) < 1.0


def test_closing_cuts_connections_and_frees_the_port() -> None:
    daemon = Daemon()
    with daemon.server:
        endpoint = daemon.server.url.removeprefix("http://")
        waiting = daemon.connect()
        waiting.sendall(b"GET /")
        assert daemon.get("/healthz")[0].status == 200
        began = time.monotonic()
    assert time.monotonic() - began < LIMITS.request_seconds
    waiting.close()
    daemon.server.close()
    with HealthServer(_at(endpoint), daemon.metrics.registry, lambda: _WELL) as again:
        assert again.url == daemon.server.url


def test_a_server_that_was_never_entered_can_be_closed() -> None:
    daemon = Daemon()
    daemon.server.close()
    with pytest.raises(ConnectionRefusedError):
        daemon.connect()


def test_an_error_in_a_request_is_the_answer_of_that_request(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> HealthSnapshot:
        message = "no snapshot"
        raise LookupError(message)

    daemon = Daemon()
    daemon.server._snapshot = broken
    with daemon.server:
        assert [daemon.get("/readyz")[0].status for _ in range(3)] == [500] * 3
        assert daemon.get("/metrics")[0].status == 200
    assert daemon.failed == []
    # With traceback, once.
    assert caplog.text.count("in broken") == 1


def test_an_error_of_the_server_itself_ends_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_listener: socket.socket) -> None:
        raise OSError(errno.EBADF, "")

    monkeypatch.setattr(socket.socket, "accept", broken)
    daemon = Daemon()
    with daemon.server:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not daemon.failed:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [type(worker.error) for worker in daemon.failed] == [OSError]


def refuse(endpoint: str) -> str:
    with pytest.raises(EndpointError) as caught:
        HealthServer(_at(endpoint), Metrics(Ledger()).registry, lambda: _WELL)
    assert caught.value.exit_code == EXIT_UNAVAILABLE
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = f"127.0.0.1:{other.getsockname()[1]}"
        advice = "another process uses it; stop that one or choose another endpoint"
        assert refuse(endpoint) == f"metrics: cannot listen on {endpoint}: {advice}"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("192.0.2.1:0", "metrics: cannot listen on 192.0.2.1:0: this machine has no such address"),
        ("", "metrics: '' is not an endpoint; expected something like 127.0.0.1:9095"),
        ("9095", "metrics: '9095' is not an endpoint; expected something like 127.0.0.1:9095"),
        (
            "http://127.0.0.1:1",
            "metrics: 'http://127.0.0.1:1' is not an endpoint; expected something like 127.0.0.1:9095",
        ),
        ("127.0.0.1:65536", "metrics: '127.0.0.1:65536' is not an endpoint; expected something like 127.0.0.1:9095"),
        ("a..b:1", "metrics: cannot listen on 'a..b:1': that is not the name of a machine"),
    ],
)
def test_an_endpoint_that_cannot_be_had_is_one_clear_line(endpoint: str, expected: str) -> None:
    assert refuse(endpoint) == expected


def test_a_host_that_does_not_exist() -> None:
    assert refuse("nowhere.invalid:1").startswith("metrics: cannot listen on nowhere.invalid:1: ")


def _has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
def test_ipv6() -> None:
    metrics = Metrics(Ledger())
    with HealthServer(MetricsConfig(endpoint="[::1]:0"), metrics.registry, lambda: _WELL) as server:
        assert server.url.startswith("http://[::1]:")
        with closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)) as connection:
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200


def test_nothing_is_printed(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[Callable[[], object]] = [lambda: daemon.get("/nothing"), lambda: daemon.say(b"x\r\n\r\n")]
    for call in calls:
        call()
    assert capfd.readouterr() == ("", "")
