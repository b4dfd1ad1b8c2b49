"""The page's server as a stranger meets it: what it answers, and what it refuses."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from streamdet.cli.beside import WebChild
from streamdet.errors import StreamdetError
from streamdet.http.server import Connection, Limits, _Connections, network_of
from streamdet.security.limits import MAX_TRIES, MAX_TRIES_OF_ALL, LoginAttempts
from streamdet.security.passwords import Password, PasswordError, User, read_password, write_password
from streamdet.web.access import MAX_IDLE_SECONDS, MAX_SESSIONS, Sessions
from streamdet.web.settings import Settings, check_settings
from support.certificates import make_certificate
from support.page import PageProcess, Published
from support.ports import free_port
from support.waiting import wait_until

_WORDS = "correct horse battery"
_ASK = {"instance": "", "revision": 0, "sample": 0, "event": 0, "pictures": {}, "filter": {}, "detail": None}


@pytest.fixture(scope="module")
def published() -> Iterator[Published]:
    with Published("gate") as published:
        yield published


@pytest.fixture(scope="module")
def server(published: Published) -> Iterator[PageProcess]:
    with PageProcess(published.endpoint) as server:
        yield server


@pytest.fixture(scope="module")
def locked(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageProcess]:
    file = tmp_path_factory.mktemp("web") / "password"
    write_password(file, Password.of(_WORDS, cost=(10, 8, 1)))
    with PageProcess(published.endpoint, "--password-file", str(file)) as server:
        yield server


def request(
    server: PageProcess, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def ask(server: PageProcess, **changes: Any) -> tuple[int, dict[str, Any], bytes]:
    body = json.dumps({**_ASK, **changes}).encode()
    status, _, answer = request(server, "POST", "/api/updates", body, Content_Type="application/json")
    if status != 200:
        return status, {}, answer
    (length,) = struct.unpack(">I", answer[:4])
    return status, json.loads(answer[4 : 4 + length]), answer[4 + length :]


def test_an_answer_holds_what_is_new_and_carries_pictures(server: PageProcess) -> None:
    answered: list[tuple[dict[str, Any], bytes]] = []

    def has_picture() -> bool:
        _, head, pictures = ask(server, pictures={"gate": 0})
        answered.append((head, pictures))
        return bool(head["pictures"])

    wait_until(has_picture, "a picture")
    head, pictures = answered[-1]
    (shot,) = head["pictures"]
    assert pictures.startswith(b"\xff\xd8\xff")
    assert len(pictures) == shot["bytes"]
    assert shot["detections"][0]["box"][1] == 100.0
    assert head["overview"]["streams"][0]["name"] == "gate"
    known = {"instance": head["instance"], "revision": head["revision"], "event": head["event"]}
    _, later, _ = ask(server, **known, pictures={"gate": shot["id"]})
    assert all(entry["id"] > head["event"] for entry in later.get("events", []))
    assert all(newer["id"] > shot["id"] for newer in later["pictures"])


def test_numbers_of_another_server_count_as_nothing(server: PageProcess) -> None:
    wait_until(lambda: ask(server)[1]["overview"]["streams"], "streams")
    _, head, _ = ask(server, instance="another", revision=10**9, event=10**9, sample=10**9)
    assert head["overview"]["streams"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b"null", b"[" * 20_000, b'{"pictures":{"a/b":0},"filter":{}}',
        json.dumps({**_ASK, "pictures": {f"s{n}": 0 for n in range(129)}}).encode(),
        json.dumps({**_ASK, "pictures": {"": 0}}).encode(),
        json.dumps({**_ASK, "filter": {"min_score": 2}}).encode(),
        json.dumps({**_ASK, "filter": {"stream": "x" * 200}}).encode(),
        json.dumps({**_ASK, "detail": 5}).encode(),
        b"x" * 100_000,
    ],
)  # fmt: skip
def test_what_the_page_would_not_send_is_refused(server: PageProcess, body: bytes) -> None:
    status, _, answer = request(server, "POST", "/api/updates", body, Content_Type="application/json")
    assert status == 400
    assert answer.count(b"\n") == 1


def test_every_answer_forbids_framing_sniffing_and_foreign_code(server: PageProcess) -> None:
    for path in ("/", "/healthz", "/nothing"):
        _, headers, body = request(server, "GET", path)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "server" not in headers
        assert not re.search(rb"(?:src|href)=\"https?:|@import|url\(", body)


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8095", "127.0.0.1.evil.example", "", "localhost.evil"),
        *(
            "[::1]evil.example",
            "[::1]@evil.example",
            "[::1",
            "localhost:evil",
            "localhost:80/@evil.example",
            "[evil]:1",
        ),
    ],
)
def test_other_names_are_refused_so_that_dns_cannot_be_rebound(server: PageProcess, host: str) -> None:
    status, _, answer = request(server, "GET", "/", Host=host)
    assert status == 403
    assert b"--host-name" in answer


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1", "[::1]:8095"])
def test_own_names_are_served(server: PageProcess, host: str) -> None:
    assert request(server, "GET", "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_sites_are_refused(server: PageProcess, headers: dict[str, str]) -> None:
    body = json.dumps(_ASK).encode()
    assert request(server, "POST", "/api/updates", body, Content_Type="application/json", **headers)[0] == 403
    # A form of another site can send this type without being asked first.
    assert request(server, "POST", "/api/updates", body, Content_Type="text/plain")[0] == 415


def test_without_the_password_there_is_nothing_to_see(locked: PageProcess) -> None:
    assert ask(locked)[0] == 401
    status, headers, _ = request(locked, "GET", "/")
    assert (status, headers["Location"]) == (303, "/login")
    assert request(locked, "GET", "/healthz")[0] == 200
    assert request(locked, "GET", "/", Cookie="streamdet=guess")[0] == 303


def test_the_password_gives_a_cookie_that_scripts_cannot_read(locked: PageProcess) -> None:
    status, headers, _ = request(locked, "POST", "/login", f"password={_WORDS.replace(' ', '+')}".encode())
    cookie = headers["Set-Cookie"]
    assert status == 303
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    token = cookie.partition(";")[0]
    assert request(locked, "GET", "/", Cookie=token)[0] == 200
    request(locked, "POST", "/logout", Cookie=token)
    assert request(locked, "GET", "/", Cookie=token)[0] == 303


def test_guessing_is_slowed_down(published: Published, tmp_path: Path) -> None:
    write_password(tmp_path / "password", Password.of(_WORDS, cost=(10, 8, 1)))
    with PageProcess(published.endpoint, "--password-file", str(tmp_path / "password")) as server:
        statuses = [request(server, "POST", "/login", b"password=guess")[0] for _ in range(MAX_TRIES + 2)]
        assert statuses == [403] * MAX_TRIES + [429] * 2
        status, headers, _ = request(server, "POST", "/login", _WORDS.encode())
        assert status == 429
        assert 0 < int(headers["Retry-After"]) <= 60


@pytest.mark.parametrize(
    "headers_of",
    [
        lambda number: [f"198.51.100.{number}", "192.0.2.1"],
        lambda number: [f"198.51.100.{number}, 192.0.2.1"],
        lambda number: [f"2001:db8::{number}"],
    ],
)
def test_a_guesser_behind_a_proxy_has_one_address(
    published: Published, tmp_path: Path, headers_of: Callable[[int], list[str]]
) -> None:
    write_password(tmp_path / "password", Password.of(_WORDS, cost=(10, 8, 1)))
    with PageProcess(published.endpoint, "--behind-proxy", "--password-file", str(tmp_path / "password")) as server:
        statuses = []
        for number in range(MAX_TRIES + 1):
            connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
            connection.putrequest("POST", "/login")
            for value in headers_of(number):
                connection.putheader("X-Forwarded-For", value)
            connection.putheader("Content-Length", "14")
            connection.endheaders(b"password=guess")
            statuses.append(connection.getresponse().status)
            connection.close()
        assert statuses == [403] * MAX_TRIES + [429]


def test_https_with_a_secure_cookie(published: Published, tmp_path: Path) -> None:
    write_password(tmp_path / "password", Password.of(_WORDS, cost=(10, 8, 1)))
    certificate, key = make_certificate(tmp_path)
    options = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    with PageProcess(published.endpoint, "--password-file", str(tmp_path / "password"), *options) as server:
        assert server.url.startswith("https://")
        command = ["curl", "--silent", "--insecure", "--include", "--data-urlencode", f"password={_WORDS}"]
        answer = subprocess.run([*command, f"{server.url}login"], capture_output=True, text=True, check=True).stdout
        assert re.search(r"set-cookie: __Host-streamdet=[^;]+;.* Secure", answer)
        assert "strict-transport-security" in answer


def settings(**changes: Any) -> Settings:
    return Settings("tcp://127.0.0.1:5555", **changes)


SECRET, CERTIFICATE, KEY = Path("password"), Path("cert.pem"), Path("key.pem")


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"host": "0.0.0.0"}, "--password-file"),  # noqa: S104 - that is what must be refused
        ({"host": "camera-server"}, "--password-file"),
        ({"behind_proxy": True}, "--password-file"),
        ({"host": "::", "password_file": SECRET}, "--tls-certificate"),
        ({"host": "::", "password_file": SECRET, "tls_certificate": CERTIFICATE}, "go together"),
        ({"tls_certificate": CERTIFICATE, "tls_key": KEY, "behind_proxy": True}, "leave --tls-certificate out"),
    ],
)
def test_what_would_show_pictures_to_strangers_is_refused(changes: dict[str, Any], advice: str) -> None:
    with pytest.raises(StreamdetError, match=advice):
        check_settings(settings(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"host": "::1"}, {"host": "localhost"}, {"behind_proxy": True, "password_file": SECRET},
        {"host": "::", "password_file": SECRET, "tls_certificate": CERTIFICATE, "tls_key": KEY},
        {"host": "::", "password_file": SECRET, "behind_proxy": True},
    ],
)  # fmt: skip
def test_what_is_safe_is_served(changes: dict[str, Any]) -> None:
    check_settings(settings(**changes))


def web(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamdet", "web", *arguments]
    return subprocess.run(command, input=typed, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--head-ca", "ca.pem"], "belong to --cluster HEAD"),
        (["--cluster", "head", "tcp://127.0.0.1:5555"], "leave ENDPOINT, --metrics and --socket out"),
        (["--cluster", "head", "--metrics", ""], "leave ENDPOINT, --metrics and --socket out"),
        (["--cluster", "head", "--socket", "c"], "leave ENDPOINT, --metrics and --socket out"),
        (["--cluster", "a b"], "is no head of a cluster"),
        (["--cluster", "127.0.0.1", "--listen", "0.0.0.0:0"], "--password-file"),
        (["--cluster", "127.0.0.1", "--config", "CONFIG"], "are changed with streamdet cluster apply"),
    ],
)
def test_what_does_not_go_with_a_cluster_is_one_clear_line(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:  # fmt: skip
    config = tmp_path / "c.toml"
    config.write_text('[web]\nallow_changes = true\npassword_file = "p"\n')
    write_password(tmp_path / "p", Password.of(_WORDS, cost=(10, 8, 1)))
    done = web(*(str(config) if word == "CONFIG" else word for word in arguments))
    assert done.returncode != 0
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_of_a_cluster_whose_head_is_away_says_so_and_changes_nothing() -> None:
    with PageProcess(None, "--cluster", f"127.0.0.1:{free_port()}") as server:

        def has_noticed() -> bool:
            return "cannot be asked" in ask(server)[1]["overview"]["cluster"]["problem"]

        wait_until(has_noticed)
        overview = ask(server)[1]["overview"]
        assert (overview["streams"], overview["has_none"]) == ([], False)
        account = json.loads(request(server, "GET", "/api/account")[2])
        assert account["may_change"] is False
        assert "streamdet cluster apply" in account["why_not"]
        status, _, body = request(server, "GET", "/api/review")
        assert (status, json.loads(body)["problem"]) == (200, {"kind": "away", "text": "no node is connected"})
        assert request(server, "GET", "/api/pictures/abc?node=n1")[0] == 503
        assert request(server, "GET", "/api/streams/gate/settings")[0] == 403


def test_a_password_is_stored_and_its_file_guarded(tmp_path: Path) -> None:
    file = tmp_path / "password"
    assert web("--set-password", str(file), typed=f"{_WORDS}\n").returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert _WORDS not in file.read_text()
    assert read_password(file).matches(_WORDS)
    assert not read_password(file).matches(_WORDS + " ")
    file.chmod(0o640)
    refused = web("--password-file", str(file), "--listen", "127.0.0.1:0")
    assert refused.returncode == 2
    assert refused.stderr.strip() == (f"streamdet: others can read the password file {file}; run: chmod 600 {file}")


def test_a_password_from_systemd_may_show_as_readable_by_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    write_password(file, Password.of(_WORDS, cost=(10, 8, 1)))
    file.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_password(file).matches(_WORDS)


@pytest.mark.parametrize("content", ["", "secret", "scrypt:99:8:3:AAAA:AAAA", "scrypt:15:8:3:!:!", "scrypt:a:b:c:d:e"])
def test_what_is_no_password_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text(content)
    with pytest.raises(PasswordError, match="not a password file"):
        read_password(file)
    with pytest.raises(PasswordError, match="--set-password"):
        read_password(tmp_path / "none")
    with pytest.raises(PasswordError, match="10 to 1000"):
        Password.of("short")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 69, "is not an endpoint"),
        (["--listen", "8095"], 2, "is not an address"),
        (["--listen", "0.0.0.0:0"], 2, "--password-file"),
    ],
)
def test_wrong_options_end_in_one_clear_line(arguments: list[str], code: int, words: str) -> None:
    ended = web(*arguments)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = web("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert ended.returncode == 69
    assert "another process uses it" in ended.stderr


def test_the_page_as_a_child_ends_with_its_parent(published: Published) -> None:
    port = free_port()
    with WebChild(published.endpoint, "127.0.0.1:1", f"127.0.0.1:{port}") as child:
        wait_until(lambda: answers(port), "the page")
        assert child.address == f"http://127.0.0.1:{port}/"
    assert not answers(port)


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30):
            return True
    except ConnectionRefusedError:
        return False


def user_of(name: str, text: str = _WORDS) -> User:
    return User(name, "viewer", Password.of(text, cost=(1, 8, 1)))


def test_sessions_end_and_stay_few() -> None:
    now = [0.0]
    alice, bob = user_of("alice"), user_of("bob")
    sessions = Sessions({"alice": alice, "bob": bob}.get, lambda: now[0])
    token = sessions.begin(alice)
    assert sessions.user_of(token) is alice
    assert sessions.user_of("") is None
    now[0] = MAX_IDLE_SECONDS + 1
    assert sessions.user_of(token) is None
    of_bob, first = sessions.begin(bob), sessions.begin(alice)
    for _ in range(MAX_SESSIONS):
        sessions.begin(alice)
    assert sessions.user_of(first) is None
    # However often alice logs in, bob stays logged in.
    assert sessions.user_of(of_bob) is bob
    assert len(sessions._sessions) == MAX_SESSIONS


def test_a_session_ends_with_its_user_and_its_password() -> None:
    users = {"alice": user_of("alice"), "bob": user_of("bob")}
    sessions = Sessions(users.get)
    of_alice, of_bob = sessions.begin(users["alice"]), sessions.begin(users["bob"])
    users["alice"] = User("alice", "operator", users["alice"].password)
    assert sessions.user_of(of_alice) is users["alice"]
    users["alice"] = user_of("alice", "another password")
    assert sessions.user_of(of_alice) is None
    del users["bob"]
    assert sessions.user_of(of_bob) is None
    assert not sessions._sessions


def test_tries_are_counted_per_client_and_forgotten_in_time() -> None:
    now = [0.0]
    tries = LoginAttempts(lambda: now[0])
    for _ in range(MAX_TRIES):
        assert tries.wait_seconds("a") == 0
    assert tries.wait_seconds("a") == 60
    assert tries.wait_seconds("b") == 0
    now[0] = 61.0
    assert tries.wait_seconds("a") == 0


def test_all_together_may_try_no_more_than_sixty_times_a_minute() -> None:
    now = [0.0]
    tries = LoginAttempts(lambda: now[0])
    for number in range(MAX_TRIES_OF_ALL):
        now[0] += 0.5
        assert tries.wait_seconds(f"192.0.2.{number}") == 0
    # The first of them counts until a minute after it.
    assert tries.wait_seconds("192.0.2.200") == pytest.approx(30.5)
    now[0] = 60.5
    assert tries.wait_seconds("192.0.2.200") == 0
    assert tries.wait_seconds("192.0.2.201") == pytest.approx(0.5)


@pytest.mark.parametrize(
    "begin",
    [b"", b"GET / HTTP/1.1\r\nHost: ", b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\npass"],
    ids=["idle", "half a head", "half a body"],
)
def test_connections_that_never_ask_lock_no_one_out(locked: PageProcess, begin: bytes) -> None:
    _, headers, _ = request(locked, "POST", "/login", f"password={_WORDS.replace(' ', '+')}".encode())
    cookie = headers["Set-Cookie"].partition(";")[0]
    netloc = urlsplit(locked.url).netloc
    known = http.client.HTTPConnection(netloc, timeout=60)
    known.request("GET", "/", headers={"Cookie": cookie})
    assert known.getresponse().read()
    host, _, port = netloc.partition(":")
    silent = []
    for _ in range(600):
        silent.append(socket.create_connection((host, int(port)), timeout=60))
        silent[-1].sendall(begin)
    began = time.monotonic()
    assert request(locked, "GET", "/healthz")[0] == 200
    assert request(locked, "GET", "/login")[0] == 200
    assert request(locked, "GET", "/", Cookie=cookie)[0] == 200
    # Who has logged in has kept its connection, although it came before all of them.
    sock = known.sock
    known.request("GET", "/", headers={"Cookie": cookie})
    assert known.getresponse().read()
    assert known.sock is sock
    assert time.monotonic() - began < 10
    known.close()
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("most", [6, 100])
def test_a_connection_that_is_cut_is_the_oldest_of_the_address_with_the_most(most: int) -> None:
    connections = _Connections(Limits(connections=most, waiting_per_address=4))
    closed: list[str] = []

    def connect(address: str, *, trusted: bool = False) -> Connection:
        connection = Connection(address)
        connection.close = lambda: closed.append(address)
        connection.trusted = trusted
        connections.add(connection)
        return connection

    connect("192.0.2.1", trusted=True)
    answering = connect("192.0.2.2")
    connections.answers(answering)
    for number in range(6):
        # All of one /64, which one client has for itself.
        connect(f"2001:db8::{number}")
    assert closed == ["2001:db8::0", "2001:db8::1"]
    # Six are open; where there may be no more, another address gets in at the cost of the one with the most.
    connect("192.0.2.3")
    assert closed[2:] == (["2001:db8::2"] if most == 6 else [])
    for number in range(4, 9):
        connect(f"192.0.2.{number}")
    assert "192.0.2.1" not in closed
    assert "192.0.2.2" not in closed
    connections.close_all()
    assert {"192.0.2.1", "192.0.2.2"} < set(closed)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_a_client_is_counted_by_its_network(address: str, network: str) -> None:
    assert network_of(address) == network
