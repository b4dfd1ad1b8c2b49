from __future__ import annotations

import base64
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from streamdet.config import MetricsConfig
from streamdet.errors import EndpointError
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.security.limits import MAX_TRIES
from streamdet.security.passwords import Password, write_password
from streamdet.service.pages import LIMITS, HealthServer, HealthSnapshot
from support.certificates import make_certificate
from support.prometheus_server import prometheus_of

_PATIENCE_SECONDS = 30.0
_WORDS = "correct horse battery staple"
_RIGHT = f"streamdet:{_WORDS}"


class Page:
    """The metrics page behind TLS and a login."""

    def __init__(self, folder: Path, endpoint: str = "127.0.0.1:0") -> None:
        self.certificate, key = make_certificate(folder)
        password = folder / "password"
        write_password(password, Password.of(_WORDS, cost=(10, 8, 1)))
        config = MetricsConfig(
            endpoint=endpoint,
            tls_certificate_file=str(self.certificate),
            tls_key_file=str(key),
            password_file=str(password),
        )
        registry = Metrics(Ledger()).registry
        self.server = HealthServer(config, registry, lambda: HealthSnapshot(healthy=True, ready=True))
        self.port = urlsplit(self.server.url).port or 0

    def get(self, login: str | None, path: str = "/metrics") -> tuple[int, str]:
        headers = {} if login is None else {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=_PATIENCE_SECONDS, context=context)
        with closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE_SECONDS)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path)
    with page.server:
        yield page


def test_who_knows_the_password_reads_every_page(page: Page) -> None:
    assert page.server.url.startswith("https://")
    status, body = page.get(_RIGHT)
    assert status == 200
    assert "streamdet_build_info" in body
    assert [page.get(_RIGHT, path)[0] for path in ("/", "/healthz", "/readyz", "/nowhere")] == [200, 200, 200, 404]


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/nowhere"])
def test_no_one_reads_any_page_without_it(page: Page, path: str) -> None:
    assert page.get(None, path) == (401, "a name and a password are needed\n")


@pytest.mark.parametrize("login", ["streamdet:", "streamdet:wrong", f"root:{_WORDS}", f":{_WORDS}", "streamdet"])
def test_half_of_a_login_is_none(page: Page, login: str) -> None:
    status, body = page.get(login)
    assert status == 401
    assert _WORDS not in body


def test_guessing_is_slow_and_does_not_lock_out_who_is_known(page: Page) -> None:
    assert page.get(_RIGHT)[0] == 200
    statuses = [page.get(f"streamdet:guess number {number}")[0] for number in range(MAX_TRIES + 2)]
    assert statuses == [401] * MAX_TRIES + [429] * 2
    assert page.get(_RIGHT)[0] == 200


def test_no_password_travels_in_the_clear(page: Page) -> None:
    with page.connect() as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        try:
            while received := connection.recv(1000):
                answer += received
        except ConnectionError:
            pass
    assert b"HTTP" not in answer


def test_who_dawdles_in_the_handshake_holds_up_no_one(page: Page) -> None:
    silent = [page.connect() for _ in range(LIMITS.waiting_per_address - 1)]
    assert page.get(_RIGHT)[0] == 200
    silent += [page.connect() for _ in range(LIMITS.waiting_per_address)]
    began = time.monotonic()
    assert page.get(_RIGHT)[0] == 200
    assert time.monotonic() - began < _PATIENCE_SECONDS
    for connection in silent:
        # Each was hung up on after its time.
        connection.settimeout(_PATIENCE_SECONDS + LIMITS.request_seconds)
        assert connection.recv(1) == b""
        connection.close()


def test_a_certificate_without_its_key_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, _ = make_certificate(tmp_path)
    _, key = make_certificate(tmp_path / "other")
    config = MetricsConfig(endpoint="127.0.0.1:0", tls_certificate_file=str(certificate), tls_key_file=str(key))
    with pytest.raises(EndpointError, match="cannot be used") as caught:
        HealthServer(config, Metrics(Ledger()).registry, lambda: HealthSnapshot(healthy=True, ready=True))
    assert "\n" not in str(caught.value)


@pytest.mark.package("prometheus")
def test_prometheus_logs_in(page: Page, tmp_path: Path) -> None:
    (tmp_path / "prometheus.password").write_text(_WORDS)
    options = (
        f", scheme: https, tls_config: {{ca_file: {page.certificate}, server_name: localhost}}"
        f", basic_auth: {{username: streamdet, password_file: {tmp_path / 'prometheus.password'}}}"
    )
    with prometheus_of(f"127.0.0.1:{page.port}", tmp_path, "500ms", options) as prometheus:
        prometheus.wait_for("up", {"": 1.0})


def test_off_this_machine_only_with_both_or_when_asked_to_be_insecure(tmp_path: Path) -> None:
    for also in ({}, {"password_file": "x"}, {"tls_certificate_file": "x", "tls_key_file": "x"}):
        with pytest.raises(ValueError, match="would be open to other machines"):
            MetricsConfig(endpoint="0.0.0.0:9095", **also)  # type: ignore[arg-type] # texts, all of them
    MetricsConfig(endpoint="0.0.0.0:9095", insecure=True)
    with Page(tmp_path, "0.0.0.0:0").server as server:
        assert server.url.startswith("https://0.0.0.0:")
