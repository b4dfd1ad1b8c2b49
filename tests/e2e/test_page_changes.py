"""Changes on the page: a whole daemon, the page's own process, and users; only the detector is a stand-in."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import cv2
import numpy as np
import pytest

from streamdet.assets import sample_clip
from streamdet.bench.stand_in import StandIn
from streamdet.client.control import ask
from streamdet.config import load_config
from streamdet.detector.pool import DetectorPool
from streamdet.errors import ControlError
from streamdet.security.passwords import Password, User, write_password, write_user
from streamdet.service.daemon import Daemon
from streamdet.web.changes import CHANGES_AT_ONCE
from support.paths import ROOT
from support.processes import free_ports
from support.waiting import PATIENCE_SECONDS, join, wait_until

WORDS = "correct horse battery"
SECRET = "pl4nted-Secret"  # noqa: S105 - a planted one
PROBLEM_OF_NONE = "there is no stream none; streamdet streams list names them"
ZONE = {"name": "gate", "polygon": [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]}
Json = dict[str, Any]


def add_user(file: Path, name: str, role: Any, words: str = WORDS) -> None:
    write_user(file, User(name, role, Password.of(words, cost=(4, 8, 1))))


class Site:
    """A daemon in a thread, and the page beside it in a process."""

    def __init__(self, folder: Path, web: str = "allow_changes = true") -> None:
        self.config, self.socket, self.users = folder / "streamdet.toml", folder / "c.sock", folder / "page.users"
        add_user(self.users, "alice", "operator")
        add_user(self.users, "bob", "viewer")
        port, _ = free_ports()
        self.endpoint = f"tcp://127.0.0.1:{port}"
        stream = f'url = "{sample_clip()}"\nloop = true\n'
        self.config.write_text(
            f'[publisher]\nendpoint = "{self.endpoint}"\n[metrics]\nendpoint = "127.0.0.1:0"\n'
            f'[control]\npath = "{self.socket}"\n[web]\n{web}\npassword_file = "page.users"\n'
            f'[[streams]]\nname = "east"\n# A comment.\n{stream}'
            f'[[streams]]\nname = "west"\nurl = "rtsp://u:{SECRET}@127.0.0.1:1/x"\n'
        )
        self.sessions: dict[str, Session] = {}
        self.log = (folder / "page.log").open("w+")
        self.daemon = Daemon(load_config(self.config), self.config, load=lambda *_: DetectorPool([StandIn()]))
        self.thread = threading.Thread(target=self.daemon.run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        wait_until(self.answers, "the daemon")
        self.start_page()
        return self

    def answers(self) -> bool:
        try:
            ask(self.socket, "GET", "/v1/streams")
        except ControlError:
            return False
        return True

    def start_page(self, *options: str) -> None:
        self.page = subprocess.Popen(
            [sys.executable, "-m", "streamdet", "web", self.endpoint, "--listen", "127.0.0.1:0", "--metrics", "",
             "--state-directory", str(self.config.parent), "--end-with-stdin", "--config", str(self.config), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        assert self.page.stdout is not None
        line = self.page.stdout.readline()
        self.netloc = urlsplit(line.removeprefix("the page is at ").strip()).netloc
        assert self.netloc, self.logged()

    def stop_daemon(self) -> None:
        self.daemon.stop()
        join(self.thread)

    def __exit__(self, *_: object) -> None:
        self.page.communicate(timeout=PATIENCE_SECONDS)
        self.stop_daemon()
        logged = self.logged()
        self.log.close()
        assert "Traceback" not in logged, logged

    def logged(self) -> str:
        return Path(self.log.name).read_text()

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.netloc, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def session(self, name: str) -> Session:
        """A session that several tests share: only sixty logins a minute are let in."""
        if name not in self.sessions:
            self.sessions[name] = self.log_in(name)
        return self.sessions[name]

    def operator(self) -> Session:
        """A session of an operator whom no other test uses: each has a number of changes that they may make at once."""
        name = f"operator-{len(self.sessions)}"
        add_user(self.users, name, "operator")
        return self.session(name)

    def log_in(self, name: str, words: str = WORDS) -> Session:
        body = urlencode({"username": name, "password": words}).encode()
        status, headers, _ = self.request("POST", "/login", body)
        assert status == 303
        return Session(self, headers["Set-Cookie"].partition(";")[0])


class Session:
    """One browser that has logged in."""

    def __init__(self, site: Site, cookie: str) -> None:
        self.site, self.cookie = site, cookie
        account = self.get("/api/account")[1]
        self.name, self.csrf = str(account["user"]), str(account["csrf_token"])

    def get(self, path: str) -> tuple[int, Json]:
        status, _, body = self.site.request("GET", path, Cookie=self.cookie)
        return status, json.loads(body) if body.startswith(b"{") else {"text": body.decode("latin-1")}

    def change(self, body: object, path: str = "/api/changes", **headers: str) -> tuple[int, Json]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Cookie": self.cookie, "Content_Type": "application/json", "X_CSRF_Token": self.csrf, **headers}
        status, _, answer = self.site.request("POST", path, data, **given)
        return status, json.loads(answer) if answer.startswith(b"{") else {"text": answer.decode()}

    def zones(self, stream: str = "east") -> Any:
        return self.get(f"/api/streams/{stream}/settings")[1]["settings"]["zones"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as site:
        yield site


def test_an_operator_changes_zones_and_sees_what_is_wrong(own: Site) -> None:
    alice = own.log_in("alice")
    account = alice.get("/api/account")[1]
    assert (account["user"], account["role"], account["may_change"]) == ("alice", "operator", True)
    seen = alice.get("/api/streams/east/settings")[1]
    assert (seen["name"], seen["settings"]["zones"], seen["changed"]) == ("east", [], [])
    wrong = {"zones": [ZONE, {**ZONE, "name": "b", "polygon": [[0, 0]]}]}
    status, answer = alice.change({"stream": "east", "patch": wrong, "try_only": True})
    assert (status, answer["code"]) == (422, "invalid")
    assert [(problem["key"], problem["path"]) for problem in answer["problems"]] == [
        ("zones[#2].polygon", ["zones", 1, "polygon"])
    ]
    assert alice.change({"stream": "east", "patch": {"zones": [ZONE]}, "try_only": True})[1]["tried"] is True
    assert alice.zones() == []
    before = own.config.read_bytes()
    patch = {"stream": "east", "patch": {"zones": [ZONE], "max_fps": 5}, "version": seen["version"], "persist": True}
    status, answer = alice.change(patch)
    assert (status, answer["settings"]["max_fps"], answer["settings"]["zones"][0]["name"]) == (200, 5.0, "gate")
    assert own.daemon.config.streams[0].zones[0].name == "gate"
    assert own.config.read_bytes() == before
    assert "gate" in own.config.with_suffix(".streams.json").read_text()
    status, answer = alice.change({"stream": "east", "patch": {"zones": []}, "version": seen["version"]})
    assert (status, answer["code"], answer["changed"]) == (409, "changed", ["max_fps", "zones"])
    assert answer["now"]["settings"]["max_fps"] == 5.0
    line = next(line for line in own.logged().splitlines() if "streams.change east zones" in line)
    assert "alice (operator) from 127.0.0.1 asked for streams.change east zones: +gate max_fps=5 (was null)" in line
    assert line.endswith("kept over restarts: done")


def test_rules_are_tried_put_in_force_and_reset(own: Site) -> None:
    alice = own.log_in("alice")
    rule = {"name": "at the gate", "streams": ["east"], "zone": "gate"}
    status, answer = alice.change({"rules": [{"name": "any"}, rule], "try_only": True})
    assert (status, answer["problems"][0]["path"]) == (422, ["rules", 1, "zone"])
    assert answer["problems"][0]["key"] == "rules[at the gate].zone"
    assert alice.change({"stream": "east", "patch": {"zones": [ZONE]}})[0] == 200
    version = alice.get("/api/rules")[1]["version"]
    assert alice.change({"rules": [rule], "version": version})[1]["rules"] == [rule]
    assert alice.change({"rules": [], "version": version})[0] == 409
    assert own.daemon.config.rules[0].name == "at the gate"
    status, answer = alice.change({"stream": "east", "patch": {"zones": []}})
    assert (status, answer["problems"][0]["path"]) == (422, ["zones"])
    assert alice.change({"reset_rules": True})[1]["rules"] == []


def test_a_viewer_changes_nothing_and_no_one_without_a_login(site: Site) -> None:
    bob = site.session("bob")
    account = bob.get("/api/account")[1]
    assert (account["role"], account["may_change"], account["csrf_token"]) == ("viewer", False, None)
    assert account["why_not"] == "bob is a viewer; only operators may change anything"
    alice = site.operator()
    for csrf in ("", "None", alice.csrf):
        for body in ({"stream": "east", "patch": {"zones": [ZONE]}}, {"stream": "east", "patch": {}, "try_only": True}):
            status, answer = bob.change(body, X_CSRF_Token=csrf)
            assert (status, answer["code"]) == (403, "not_allowed")
    assert Session.change(alice, {"stream": "east", "patch": {"zones": [ZONE]}}, Cookie="streamdet=x")[0] == 401
    assert site.request("GET", "/api/account")[0] == 401
    assert alice.zones() == []
    assert "bob (viewer) from 127.0.0.1 asked for a change: refused: bob is a viewer" in site.logged()


def test_a_change_needs_the_token_of_its_own_session(site: Site) -> None:
    alice = site.operator()
    again = site.log_in(alice.name)
    assert alice.csrf != again.csrf
    change = {"stream": "east", "patch": {"zones": [ZONE]}, "try_only": True}
    for token in ("", "x" * 44, again.csrf, alice.csrf + "x", alice.csrf[:-1], "é"):
        status, answer = alice.change(change, X_CSRF_Token=token)
        assert (status, answer["code"]) == (403, "csrf")
    assert alice.change(change)[0] == 200
    for origin in ("https://evil.example", "null", f"http://{site.netloc}.evil.example", f"https://{site.netloc}"):
        assert alice.change(change, Origin=origin)[0] == 403
    for fetch_site in ("cross-site", "same-site"):
        assert alice.change(change, Sec_Fetch_Site=fetch_site)[0] == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert alice.change(change, Content_Type=kind)[0] == 415
    site.request("POST", "/logout", Cookie=alice.cookie)
    assert alice.change(change)[0] == 401
    # Another login has another token: the old one is worth nothing in it.
    status, answer = again.change(change, X_CSRF_Token=alice.csrf)
    assert (status, answer["code"]) == (403, "csrf")


WRONG: tuple[tuple[object, int], ...] = (
    (b"", 400), (b"[]", 400), (b"null", 400), (b"[" * 30_000, 400), (b'{"a":' * 5_000, 400), (b"x" * 70_000, 413),
    ({}, 404), ({"stream": "east"}, 400), ({"stream": "east", "patch": []}, 400), ({"stream": 5, "patch": {}}, 404),
    ({"stream": "../rules", "patch": {"zones": []}}, 404), ({"stream": "east/reset", "patch": {"zones": []}}, 404),
    ({"stream": "east\n", "patch": {"zones": []}}, 404), ({"stream": "\u202eeast", "patch": {"zones": []}}, 404),
    ({"stream": "none", "patch": {"zones": []}}, 404), ({"stream": "east%2Freset", "patch": {"zones": []}}, 404),
    ({"stream": "east", "patch": {"url": "rtsp://127.0.0.1/"}}, 403),
    ({"stream": "east", "patch": {"name": "other", "zones": []}}, 403),
    ({"stream": "east", "patch": {"tls_ca_file": "/etc/shadow"}}, 403),
    ({"stream": "east", "patch": {"zones": [{**ZONE, "name": "${HOME}"}]}}, 400),
    ({"stream": "east", "patch": {"score_thresholds": {"${HOME}": 0.5}}}, 400),
    ({"rules": [{"name": "${HOME}"}]}, 400), ({"rules": {}}, 400), ({"rules": [], "stream": "east"}, 400),
    ({"rules": [], "reset_rules": True}, 400), ({"reset_rules": False}, 400),
    ({"stream": "east", "patch": {"zones": []}, "persist": "yes"}, 400),
    ({"stream": "east", "patch": {"zones": []}, "version": '"\r\nX: y'}, 400),
    ({"stream": "east", "patch": {"zones": []}, "more": 1}, 400),
    ({"stream": "east", "patch": {"zones": []}, "renamed": [["zone", "a"]]}, 400),
    ({"stream": "east", "patch": {"zones": []}, "renamed": [["zone", "a", "b&persist=true"]]}, 400),
    ({"stream": "east", "patch": {"zones": []}, "renamed": [["mask", "a", "b"]]}, 400),
    ({"rules": [], "renamed": [["zone", "a", "b"]]}, 400),
    ({"stream": "east", "patch": {"zones": "x" * 50_000}}, 422),
    ({"stream": "east", "patch": {"zones": [[[[[[[[[[[]]]]]]]]]]]}}, 400),
    (b'{"stream":"east","patch":{"max_fps":1e999}}', 400), ({"remove": 5}, 404), ({"remove": "../rules"}, 404),
    ({"remove": "west", "stream": "east", "patch": {"zones": []}}, 400), ({"remove": "west", "add": {}}, 400),
)  # fmt: skip


UNWANTED: tuple[tuple[object, int, str], ...] = (
    ({}, 422, "invalid"), ({"url": ""}, 422, "invalid"), ({"url": 5}, 400, "bad_request"), ([], 400, "bad_request"),
    ({"url": "rtsp://${HOME}/x"}, 400, "bad_request"), ({"url": "rtsp://h/x", "max_fps": 5}, 400, "bad_request"),
    ({"url": "/etc/passwd"}, 403, "not_allowed"), ({"url": "file:///etc/passwd"}, 403, "not_allowed"),
    ({"url": "FILE:///etc/passwd"}, 403, "not_allowed"), ({"url": "0"}, 403, "not_allowed"),
    ({"url": "/dev/video0"}, 403, "not_allowed"), ({"url": " rtsp://h/x"}, 422, "invalid"),
    ({"url": "rtsp://h/a@b"}, 422, "invalid"), ({"url": "concat:a|b"}, 403, "not_allowed"),
    ({"url": "rtsp://h/" + "x" * 5000}, 422, "invalid"), ({"url": "ipc:///run/x"}, 422, "invalid"),
)  # fmt: skip


@pytest.mark.parametrize("path", ["/api/probe", "/api/changes"])
def test_a_stream_of_the_network_alone_is_tried_or_added(site: Site, path: str) -> None:
    alice, before = site.operator(), site.logged()
    for stream, status, code in UNWANTED:
        body = stream if path == "/api/probe" else {"add": stream}
        answered, answer = alice.change(body, path)
        assert (answered, answer["code"]) == (status, code), (body, answer)
        assert answer["problems"][0]["key"] in ("url", None)
    assert [stream.name for stream in site.daemon.config.streams] == ["east", "west"]
    assert "/etc/passwd" not in site.logged().removeprefix(before)


def test_a_viewer_tries_and_adds_nothing_and_no_one_without_the_token(site: Site) -> None:
    alice, bob = site.operator(), site.session("bob")
    stream = {"url": "rtsp://127.0.0.1:1/x", "name": "new"}
    for path, body in (("/api/probe", stream), ("/api/changes", {"add": stream})):
        assert bob.change(body, path, X_CSRF_Token=alice.csrf)[1]["code"] == "not_allowed"
        assert alice.change(body, path, X_CSRF_Token=alice.csrf + "x")[1]["code"] == "csrf"
        assert alice.change(body, path, Origin="https://evil.example")[0] == 403
        assert alice.change(body, path, Cookie="streamdet=x")[0] == 401
        assert alice.change(body, path, Content_Type="text/plain")[0] == 415
    assert "new" not in [stream.name for stream in site.daemon.config.streams]


def test_a_login_that_is_typed_reaches_the_daemon_and_nothing_else(own: Site) -> None:
    alice = own.log_in("alice")
    stream = {"url": f"rtsp://u:{SECRET}2@127.0.0.1:1/new", "name": "new"}
    status, probed = alice.change({"url": stream["url"]}, "/api/probe")
    assert (status, probed["reason"]) == (200, "refused")
    status, tried = alice.change({"add": stream, "try_only": True})
    assert (status, tried["tried"], tried["streams"]["added"]) == (200, True, ["new"])
    assert len(own.daemon.config.streams) == 2
    status, added = alice.change({"add": stream, "persist": True})
    assert (status, added["streams"]["added"]) == (200, ["new"])
    assert own.daemon.config.streams[-1].url == stream["url"]
    status, again = alice.change({"add": stream})
    assert (status, again["code"]) == (409, "exists")
    answers = [probed, tried, added, again, alice.get("/api/streams/new/settings")[1]]
    assert SECRET not in json.dumps(answers)
    assert "url" not in added["settings"]
    kept = own.config.with_suffix(".streams.json")
    assert (SECRET in kept.read_text(), kept.stat().st_mode & 0o777) == (True, 0o600)
    logged = own.logged()
    assert SECRET not in logged
    assert "alice (operator) from 127.0.0.1 asked for probe of 127.0.0.1: refused" in logged
    assert "alice (operator) from 127.0.0.1 asked for streams.add new url kept over restarts: done" in logged


def test_an_operator_removes_a_stream_and_no_one_else_does(own: Site) -> None:
    alice, bob = own.log_in("alice"), own.log_in("bob")
    change = {"remove": "west", "persist": True}
    assert bob.change(change, X_CSRF_Token=alice.csrf)[1]["code"] == "not_allowed"
    assert alice.change(change, X_CSRF_Token=alice.csrf + "x")[1]["code"] == "csrf"
    assert alice.change(change, Origin="https://evil.example")[0] == 403
    assert alice.change({"remove": "none"}) == (
        404, {"code": "not_found", "problems": [{"key": None, "path": [], "text": PROBLEM_OF_NONE}]}
    )  # fmt: skip
    status, tried = alice.change(change | {"try_only": True})
    assert (status, tried["tried"], tried["streams"]["removed"]) == (200, True, ["west"])
    status, answer = alice.change(change | {"version": "0123456789abcdef"})
    assert (status, answer["code"]) == (409, "changed")
    assert [stream.name for stream in own.daemon.config.streams] == ["east", "west"]
    status, answer = alice.change(change)
    assert (status, answer["streams"]["removed"], answer.get("settings")) == (200, ["west"], None)
    assert [stream.name for stream in own.daemon.config.streams] == ["east"]
    assert '"remove"' in own.config.with_suffix(".streams.json").read_text()
    done = "alice (operator) from 127.0.0.1 asked for streams.remove west kept over restarts: done"
    wait_until(lambda: done in own.logged(), "the line in the log")  # written by a thread of its own
    logged = own.logged()
    assert "bob (viewer) from 127.0.0.1 asked for a change: refused: bob is a viewer" in logged
    assert SECRET not in logged


def test_what_the_page_would_not_send_is_one_clear_refusal(site: Site) -> None:
    alice = site.operator()
    for body, status in WRONG:
        answered, answer = alice.change(body)
        while answered == 429:  # the rate of changes is that of a person
            time.sleep(1)
            answered, answer = alice.change(body)
        assert answered == status, (body, answer)
        assert all(problem["text"].isprintable() for problem in answer["problems"])
    assert site.daemon.config.streams[0].zones == ()


def test_no_secret_reaches_a_browser(site: Site) -> None:
    alice = site.operator()
    for session in (alice, site.session("bob")):
        for path in ("/api/streams/west/settings", "/api/rules", "/api/account"):
            assert SECRET not in json.dumps(session.get(path)[1])
        assert "url" not in session.get("/api/streams/west/settings")[1]["settings"]
    status, answer = alice.change({"stream": "west", "patch": {"max_fps": 5}, "try_only": True})
    assert status == 200, answer
    assert "url" not in answer["settings"]
    assert SECRET not in site.logged()


def test_more_changes_than_a_person_makes_are_refused_and_others_are_not(own: Site) -> None:
    alice, change = own.log_in("alice"), {"stream": "east", "patch": {"zones": []}, "try_only": True}
    statuses = [alice.change(change)[0] for _ in range(CHANGES_AT_ONCE + 10)]
    assert statuses[:CHANGES_AT_ONCE] == [200] * CHANGES_AT_ONCE
    assert 429 in statuses
    again = own.log_in("alice")  # another session is no other user
    status, headers, _ = own.request(
        "POST", "/api/changes", json.dumps(change).encode(), Cookie=again.cookie, X_CSRF_Token=again.csrf,
        Content_Type="application/json",
    )  # fmt: skip
    if status == 429:
        assert headers["Retry-After"] == "1"
    add_user(own.users, "carol", "operator")
    assert own.log_in("carol").change(change)[0] == 200


def test_the_file_of_users_is_read_again_and_ends_sessions(own: Site) -> None:
    alice, bob = own.log_in("alice"), own.log_in("bob")
    add_user(own.users, "alice", "operator", "another password")
    assert alice.get("/api/account")[0] == 401
    assert own.request("POST", "/login", urlencode({"username": "alice", "password": WORDS}).encode())[0] == 403
    own.log_in("alice", "another password")
    assert bob.get("/api/account")[1]["may_change"] is False
    add_user(own.users, "bob", "operator")
    assert bob.get("/api/account")[0] == 401  # hashed again, with another salt
    bob = own.log_in("bob")
    assert bob.change({"stream": "east", "patch": {"zones": []}, "try_only": True})[0] == 200
    own.users.write_text(own.users.read_text().replace("bob:operator", "bob:viewer"))
    assert bob.change({"stream": "east", "patch": {"zones": []}, "try_only": True})[0] == 403
    own.users.chmod(0o644)
    assert bob.get("/api/account")[0] == 200  # a file that cannot be used changes nothing
    own.users.chmod(0o600)
    own.users.write_text("".join(line for line in own.users.read_text().splitlines(keepends=True) if "bob" not in line))
    assert bob.get("/api/account")[0] == 401
    assert "the users stay as they were: others can read the password file" in own.logged()


def test_logins_are_logged_and_wrong_ones_show_nothing(own: Site) -> None:
    own.log_in("alice")
    assert 'name="username" autocomplete="username"' in own.request("GET", "/login")[2].decode()
    for name in ("alice", "a-password-typed-here\r\nfaked line"):
        body = urlencode({"username": name, "password": "wrong"}).encode()
        status, _, page = own.request("POST", "/login", body)
        assert (status, b"not the name or not the password" in page) == (403, True)
        time.sleep(1.1)
    logged = own.logged()
    assert "alice (operator) logged in from 127.0.0.1" in logged
    assert "login refused: alice (operator) from 127.0.0.1" in logged
    assert "login refused: an unknown name from 127.0.0.1" in logged
    assert "typed-here" not in logged
    assert WORDS not in logged


def test_a_daemon_that_is_away_hangs_or_is_another_one_is_one_clear_sentence(own: Site) -> None:
    alice = own.log_in("alice")
    change = {"stream": "east", "patch": {"zones": []}}
    own.stop_daemon()
    for _ in range(2):
        status, answer = alice.change(change)
        assert (status, answer["code"]) == (503, "unavailable")
        assert answer["problems"][0]["text"].startswith("there is no socket ")
    assert alice.get("/api/streams/east/settings")[0] == 503
    assert alice.get("/api/streams/east/picture")[0] == 503
    for answer_of_it, status in (
        (b'HTTP/1.1 404 Not Found\r\n\r\n{"detail": "there is no such path"}', 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 502),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 503),
        (b"", 503),
    ):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(own.socket))
            other.listen()
            answers = threading.Thread(target=answer_once, args=(other, answer_of_it), daemon=True)
            answers.start()
            answered, answer = alice.get("/api/streams/east/settings")
            join(answers)
        own.socket.unlink()
        assert (answered, len(answer["problems"])) == (status, 1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(own.socket))
        silent.listen()
        waiting = [threading.Thread(target=alice.change, args=(change,), daemon=True) for _ in range(6)]
        for each in waiting:
            each.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert own.request("GET", "/healthz")[0] == 200
        own.log_in("bob")  # which needs threads, too
        assert time.monotonic() - began < 10
    own.socket.unlink()
    for each in waiting:
        join(each)


def answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


@pytest.mark.root
def test_a_socket_without_permission_is_one_clear_sentence() -> None:
    """Root may use any socket, so another user asks; the folders of tests are closed to others, so it is in /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        ask_without_permission(Path(folder, "c.sock"))


def ask_without_permission(path: Path) -> None:
    code = f"""
import asyncio, os, pathlib
from streamdet.errors import ControlError
from streamdet.web.changes import Daemon
os.setgid(65534)
os.setuid(65534)
try:
    asyncio.run(Daemon(pathlib.Path({str(path)!r}), None).ask("GET", "/v1/rules"))
except ControlError as error:
    print(error)
"""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == (
        f"this user may not use {path}; be the daemon's user or root, or join the group of [control] group\n"
    ), done.stderr


def test_a_picture_for_drawing_is_the_newest_frame_in_full(site: Site) -> None:
    for name in ("alice", "bob"):
        session = site.session(name)

        def picture(session: Session = session) -> bool:
            return session.get("/api/streams/east/picture")[1].get("text", "").startswith("\xff\xd8\xff")

        wait_until(picture, "a picture")
        assert session.get("/api/streams/east/picture?width=9")[0] == 400
        assert session.get("/api/streams/east/picture?boxes=1")[0] == 400
        assert session.get("/api/streams/west/picture")[0] == 503
        assert session.get("/api/streams/%2e%2e/picture")[0] == 404


def test_a_mask_that_is_drawn_hides_its_area_from_every_role(own: Site) -> None:
    alice, bob = own.log_in("alice"), own.log_in("bob")
    mask = {"name": "left", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}
    assert alice.change({"stream": "east", "patch": {"masks": [mask]}})[0] == 200

    def left_of(session: Session) -> float:
        status, _, jpeg = own.request("GET", "/api/streams/east/picture", Cookie=session.cookie)
        if status != 200:
            return 255.0
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert picture is not None
        assert picture[:, picture.shape[1] * 6 // 10 :].mean() > 20
        return float(picture[:, : picture.shape[1] * 4 // 10].mean())

    for session in (alice, bob):
        wait_until(lambda session=session: left_of(session) < 2, "a masked picture")


def test_where_changes_are_off_nothing_reaches_the_daemon(tmp_path: Path) -> None:
    with Site(tmp_path, web="") as site:
        alice = site.log_in("alice")
        account = alice.get("/api/account")[1]
        assert (account["role"], account["may_change"], account["csrf_token"]) == ("operator", False, None)
        assert account["why_not"].startswith("changes are off; set allow_changes = true in [web]")
        assert alice.change({"stream": "east", "patch": {"zones": []}})[0] == 403
        for path in ("/api/streams/east/settings", "/api/rules", "/api/streams/east/picture"):
            assert (alice.get(path)[0], alice.get(path)[1]["code"]) == (403, "off")


def run(*options: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamdet", "web", *options]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, check=False)


def test_changes_without_a_login_are_refused_at_the_start(tmp_path: Path) -> None:
    config = tmp_path / "streamdet.toml"
    config.write_text("streams = []\n[web]\nallow_changes = true\n")
    done = run("--config", str(config), "--listen", "127.0.0.1:0")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "[web] allow_changes needs a login, also where only this machine can reach the page" in done.stderr
    command = [sys.executable, "-m", "streamdet", "run", str(config), "--page"]
    beside = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (beside.returncode, beside.stderr.count("\n")) == (2, 1)
    assert "[web] allow_changes needs a login" in beside.stderr
    config.write_text('streams = []\n[web]\nallow_changes = 1\npassword_file = "gone"\n')
    done = run("--config", str(config), "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert f"{config}:3: web.allow_changes: " in done.stderr
    check = [sys.executable, "-m", "streamdet", "check", str(config)]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert (checked.returncode, "web.allow_changes" in checked.stdout + checked.stderr) == (2, True)


def test_users_are_made_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "page.users"
    assert run("--set-password", str(file), typed=f"{WORDS}\n").stdout == f"wrote {file}, readable by you only\n"
    done = run("--set-password", str(file), "--user", "alice", "--role", "operator", typed=f"{WORDS}\n")
    assert done.stdout == (
        f"wrote {file}, readable by you only: the operator alice may log in\n"
        "its password without a name is still valid, for a viewer; delete its line to end that\n"
    )
    assert file.stat().st_mode & 0o777 == 0o600
    assert [line.split(":")[0:2] for line in file.read_text().splitlines()] == [["scrypt", "15"], ["alice", "operator"]]
    # A new password keeps the role.
    assert "the operator alice" in run("--set-password", str(file), "--user", "alice", typed=f"{WORDS}!\n").stdout
    assert len(file.read_text().splitlines()) == 2
    for options, words in (
        ((), "name one with --user"),
        (("--user", "a:b"), "is no name of a user"),
        (("--user", "shared"), "is no name of a user"),
        (("--user", "x\ny"), "is no name of a user"),
        (("--role", "admin", "--user", "x"), "'admin' is not one of 'viewer', 'operator'"),
    ):
        done = run("--set-password", str(file), *options, typed=f"{WORDS}\n")
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert "belong to --set-password" in run("--user", "alice").stderr


def test_one_password_for_all_keeps_working_and_asks_for_no_name(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        write_password(site.users, Password.of(WORDS, cost=(4, 8, 1)))
        page = site.request("GET", "/login")[2].decode()
        assert re.search('name="username" value="streamdet" autocomplete="username" hidden', page)
        shared = site.log_in("streamdet")
        account = shared.get("/api/account")[1]
        assert (account["user"], account["role"], account["may_change"]) == ("shared", "viewer", False)
        add_user(site.users, "", "operator")
        shared = site.log_in("")
        assert shared.change({"stream": "east", "patch": {"max_fps": 5}})[0] == 200
        asked = "shared (operator) from 127.0.0.1 asked for streams.change east max_fps=5"
        wait_until(lambda: asked in site.logged(), "the line of the change")


def test_many_logins_end_no_session_of_another_user(own: Site) -> None:
    bob = own.log_in("bob")
    add_user(own.users, "alice", "operator")
    for _ in range(50):
        own.log_in("alice")
    assert bob.get("/api/account")[0] == 200
    os.kill(own.page.pid, signal.SIGCONT)  # it is still there
