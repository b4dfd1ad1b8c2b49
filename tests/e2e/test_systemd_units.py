"""The unit files: what systemd's own tools say, and a real systemd that runs the real daemon."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamdet.assets import sample_clip
from streamdet.config import load_config
from streamdet.security.passwords import Password, User, write_password, write_user
from support.certificates import make_certificate
from support.container import Container, why_no_container
from support.paths import ROOT

UNITS = ROOT / "systemd"
_STREAMDET = str(Path(sys.prefix, "bin/streamdet"))


def in_container(test: Callable[..., None]) -> Callable[..., None]:
    """A daemon loads its detector within seconds on an idle machine, and each of these tests waits for several."""
    for mark in (
        pytest.mark.package("systemd-container"),
        pytest.mark.root,
        pytest.mark.slow,
        pytest.mark.timeout(600),
    ):
        test = mark(test)
    return test


_WITH_DROP_IN = {
    "streamdet.service with GPUs": ("streamdet.service", "streamdet.service.d/gpu.conf"),
    "the bridge to files": ("streamdet-bridge@.service", "streamdet-bridge@files.service.d/10-files.conf"),
}


@pytest.fixture(
    params=[
        "streamdet.service",
        "streamdet@.service",
        "streamdet-web.service",
        "streamdet-cluster-head.service",
        "streamdet-cluster-node.service",
        "streamdet-bridge@.service",
        *_WITH_DROP_IN,
    ]
)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit file, alone or with a drop-in that we ship."""
    name, drop_in = _WITH_DROP_IN.get(request.param, (request.param, ""))
    path = tmp_path / name
    path.write_text((UNITS / name).read_text())
    if drop_in:
        (tmp_path / f"{name}.d").mkdir()
        (tmp_path / f"{name}.d" / Path(drop_in).name).write_text((UNITS / drop_in).read_text())
    return path


@pytest.mark.package("systemd")
def test_systemd_finds_no_fault(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=one", "--man=no", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert unit.name not in result.stderr


@pytest.mark.package("systemd")
def test_the_exposure_is_at_most_2(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_template_is_the_unit_with_the_name_of_the_instance() -> None:
    def settings(name: str) -> list[str]:
        lines = (UNITS / name).read_text().splitlines()
        return [line for line in lines if line and not line.startswith(("#", "Description="))]

    changes = {
        "/etc/streamdet/streamdet.toml": "/etc/streamdet/%i.toml",
        "Directory=streamdet/streamdet": "Directory=streamdet/%i",
        "HOME=/var/lib/streamdet/streamdet ": "HOME=/var/lib/streamdet/%i ",
        "=/var/cache/streamdet/streamdet": "=/var/cache/streamdet/%i",
        "/etc/streamdet/secrets": "/etc/streamdet/%i.secrets",
        "User=streamdet": "User=streamdet-%i",
        "Group=streamdet": "Group=streamdet-%i",
        "SyslogIdentifier=streamdet": "SyslogIdentifier=streamdet-%i",
    }
    expected = settings("streamdet.service")
    for ours, instance in changes.items():
        expected = [line.replace(ours, instance) for line in expected]
    assert settings("streamdet@.service") == expected


def _booted(folder: Path, *, realtime: bool = False) -> Iterator[Container]:
    if reason := why_no_container():
        pytest.skip(f"this machine cannot start containers: {reason}")
    with Container(folder, realtime=realtime) as booted:
        yield booted


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    yield from _booted(tmp_path)


@pytest.fixture
def realtime_container(tmp_path: Path) -> Iterator[Container]:
    yield from _booted(tmp_path, realtime=True)


def _write_config(
    container: Container,
    name: str,
    *streams: str,
    url: str = str(sample_clip()),
    engine: str = "torch",
    extra: str = "",
) -> None:
    """With a fixed engine, except where a trial of engines in the sandbox of the service is part of the test."""
    path = container.root / f"etc/streamdet/{name}.toml"
    tables = (f'[[streams]]\nname = "{stream}"\nurl = "{url}"\nloop = true\nmax_fps = 3\n' for stream in streams)
    precision = 'precision = "fp32"\n' if engine == "torch" else ""
    detector = f'[detector]\nmax_batch_size = 1\nengine = "{engine}"\n{precision}'
    path.write_text(detector + "".join(tables) + extra)


def _status(container: Container, unit: str) -> str:
    return container.show(unit, "StatusText")


def _get(container: Container, path: str) -> str:
    code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:9095{path}').read().decode())"
    return container.run(sys.executable, "-c", code).stdout


def _wait_for_reload(container: Container, successful: str) -> None:
    """The page of metrics is made once a second."""
    sample = f"streamdet_config_last_reload_successful {successful}"
    container.wait_until(lambda: sample in _get(container, "/metrics"), sample)


@in_container
def test_install_start_reload_and_stop(container: Container) -> None:
    reported = container.run(_STREAMDET, "install-service", "--here").stdout
    assert "create          /etc/systemd/system/streamdet.service\n" in reported
    load_config(container.root / "etc/streamdet/streamdet.toml")
    _write_config(container, "streamdet", "east", url="${CLIP}", engine="auto")
    # Not tried again: it would be as wrong as before.
    assert container.run("systemctl", "start", "streamdet", check=False).returncode != 0
    assert container.show("streamdet", "ActiveState") == "failed"
    assert container.show("streamdet", "ExecMainStatus") == "2"
    (container.root / "etc/streamdet/secrets/CLIP").write_text(f"{sample_clip()}\n")
    container.run("systemctl", "start", "streamdet")
    # `start` returns when the daemon has said that it is ready.
    assert json.loads(_get(container, "/readyz"))["ready"] is True
    container.wait_until(lambda: _detects(_status(container, "streamdet")), "frames come out")

    _write_config(container, "streamdet", "east", url="${CLIP}", engine="auto", extra="colour = 3\n")
    assert container.run("systemctl", "reload", "streamdet", check=False).returncode != 0
    log = container.journal("--unit=streamdet", "--priority=err")
    assert "colour" in log
    assert '"info"' not in log
    _wait_for_reload(container, "0.0")
    assert container.show("streamdet", "ActiveState") == "active"

    _write_config(container, "streamdet", "east", "west", url="${CLIP}", engine="auto")
    container.run("systemctl", "reload", "streamdet")
    _wait_for_reload(container, "1.0")
    container.wait_until(lambda: "2 of 2 streams up" in _status(container, "streamdet"), "the new stream is up")
    assert container.show("streamdet", "NRestarts") == "0"

    # What took longer than TimeoutStopSec= would be killed, and no success.
    container.run("systemctl", "stop", "streamdet")
    assert container.show("streamdet", "Result") == "success"
    assert container.show("streamdet", "ExecMainStatus") == "0"
    assert "Traceback" not in container.journal("--unit=streamdet")


def _detects(status: str) -> bool:
    return status.startswith("1 of 1 streams up") and not status.endswith(" 0.0 fps out")


def _restarted(container: Container, unit: str, pid: str) -> Callable[[], bool]:
    # While it is down, the number is 0, and the state may still be the one of a moment ago.
    return lambda: container.show(unit, "MainPID") not in {pid, "0"} and container.show(unit, "ActiveState") == "active"


def _send(container: Container, unit: str, signal_name: str) -> None:
    """Sends a signal to the daemon alone; `kill` with the number of one that just ended could hit the tests."""
    container.run("systemctl", "kill", "--kill-whom=main", f"--signal={signal_name}", unit)


@in_container
def test_an_instance_survives_a_kill_a_standstill_and_a_reboot(realtime_container: Container) -> None:
    container = realtime_container
    unit = "streamdet@yard"
    (container.root / "etc/streamdet").mkdir()
    _write_config(container, "yard", "east", url=str(sample_clip()))
    impatient = container.root / "etc/systemd/system/streamdet@.service.d/test.conf"
    impatient.parent.mkdir(parents=True)
    impatient.write_text("[Service]\nWatchdogSec=6s\n")
    container.run(_STREAMDET, "install-service", "--here", "--instance", "yard", "--enable")

    first = container.show(unit, "MainPID")
    assert "SCHED_OTHER" in container.run("chrt", "--pid", first).stdout
    _send(container, unit, "SIGKILL")
    container.wait_until(_restarted(container, unit, first), "a start after SIGKILL")

    second = container.show(unit, "MainPID")
    _send(container, unit, "SIGSTOP")
    container.wait_until(_restarted(container, unit, second), "a start after the watchdog's time")
    log = container.journal(f"--unit={unit}")
    assert "Watchdog timeout" in log
    # What each thread was doing then, and the delay that has begun to grow.
    assert "Fatal Python error: Aborted" in log
    assert "2 failures in a row: starting in 1 s" in log

    container.reboot()
    container.wait_until(lambda: container.show(unit, "ActiveState") == "active", "a start at boot")
    assert container.show(unit, "NRestarts") == "0"

    reported = container.run(_STREAMDET, "install-service", "--here", "--instance", "yard", "--uninstall").stdout
    assert "remove          /etc/systemd/system/streamdet@.service\n" in reported
    assert container.show(unit, "LoadState") == "not-found"
    assert (container.root / "etc/streamdet/yard.toml").exists()


_LOOK = """
import ssl, sys, urllib.request
page = urllib.request.urlopen(sys.argv[1], context=ssl._create_unverified_context(), timeout=30)
print(page.url, page.status)
"""


_PAGE = "http://127.0.0.1:8095/"


def _look(container: Container, url: str) -> str:
    return container.run(sys.executable, "-c", _LOOK, url, check=False).stdout


@in_container
def test_the_page_comes_back_at_boot_and_asks_for_a_password_where_strangers_can_look(
    container: Container, tmp_path: Path
) -> None:
    (container.root / "etc/streamdet").mkdir()
    _write_config(container, "streamdet", "east")
    container.run(_STREAMDET, "install-service", "--here", "--page", "--enable")
    container.wait_until(lambda: _look(container, _PAGE), "the page")
    container.reboot()
    container.wait_until(lambda: _look(container, _PAGE), "the page at boot")
    assert container.show("streamdet-web", "User") == "streamdet-web"

    drop_in = container.root / "etc/systemd/system/streamdet-web.service.d/override.conf"
    drop_in.write_text("[Service]\nEnvironment=STREAMDET_WEB_OPTIONS=--listen=0.0.0.0:8443\n")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "streamdet-web", check=False)
    container.wait_until(lambda: container.show("streamdet-web", "ActiveState") == "failed", "no page for strangers")
    assert container.show("streamdet-web", "ExecMainStatus") == "2"

    certificate, key = make_certificate(tmp_path)
    for file, name in ((certificate, "page.pem"), (key, "page.key")):
        (container.root / "etc/streamdet" / name).write_bytes(file.read_bytes())
    password = Password.of("correct horse battery", cost=(10, 8, 1))
    write_password(container.root / "etc/streamdet/page.password", password)
    drop_in.write_text(_drop_in_of_the_manual())
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "streamdet-web")
    container.wait_until(lambda: "/login" in _look(container, "https://127.0.0.1:8443/"), "the login")
    container.run("systemctl", "stop", "streamdet-web")
    assert container.show("streamdet-web", "Result") == "success"


_ASK_PAGE = """
import http.client, json, sys, urllib.parse
def request(method, path, body=None, **headers):
    page = http.client.HTTPConnection("127.0.0.1", 8095, timeout=60)
    page.request(method, path, body, headers)
    answer = page.getresponse()
    return answer, answer.read()
login = urllib.parse.urlencode({"username": sys.argv[1], "password": "correct horse battery"})
cookie = request("POST", "/login", login)[0].getheader("Set-Cookie").partition(";")[0]
account = json.loads(request("GET", "/api/account", Cookie=cookie)[1])
headers = {"Cookie": cookie, "Content-Type": "application/json", "X-CSRF-Token": account["csrf_token"] or ""}
for path, body in json.loads(sys.argv[2]):
    answer, found = request("GET" if body is None else "POST", path, body and json.dumps(body), **headers)
    print(answer.status, found.decode())
"""


def _ask_page(
    container: Container, user: str, *requests: tuple[str, dict[str, Any] | None]
) -> list[tuple[int, dict[str, Any]]]:
    """Status and answer of each request of this user to the page."""
    lines = container.run(sys.executable, "-c", _ASK_PAGE, user, json.dumps(requests)).stdout.splitlines()
    return [(int(line[:3]), json.loads(line[4:])) for line in lines]


@in_container
def test_a_change_of_an_operator_goes_through_the_unit_of_the_page_to_the_daemon(container: Container) -> None:
    folder = container.root / "etc/streamdet"
    folder.mkdir()
    web = '[control]\ngroup = "streamdet"\n[web]\nallow_changes = true\npassword_file = "page.users"\n'
    _write_config(container, "streamdet", "east", extra=web)
    written = (folder / "streamdet.toml").read_bytes()
    for name, role in (("alice", "operator"), ("bob", "viewer")):
        write_user(folder / "page.users", User(name, role, Password.of("correct horse battery", cost=(10, 8, 1))))
    container.run(_STREAMDET, "install-service", "--here", "--page", "--enable")
    container.wait_until(lambda: "/login" in _look(container, _PAGE), "the login")
    container.wait_until(lambda: "1 of 1 streams up" in _status(container, "streamdet"), "the stream")

    zone = {"name": "bay", "polygon": [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]}
    zones = ("/api/changes", {"stream": "east", "patch": {"zones": [zone]}, "persist": True})
    added = ("/api/changes", {"add": {"name": "yard", "url": "rtsp://127.0.0.1:1/x"}})
    tried = ("/api/probe", {"url": "rtsp://127.0.0.1:1/x"})
    assert [status for status, _ in _ask_page(container, "bob", zones, added, tried)] == [403, 403, 403]
    (drawn, _), (put, _), (_, found) = _ask_page(container, "alice", zones, added, tried)
    assert (drawn, put, found["reason"]) == (200, 200, "refused")
    listed = json.loads(container.run(_STREAMDET, "streams", "list", "--json").stdout)["streams"]
    assert [stream["name"] for stream in listed] == ["east", "yard"]
    for unit, asked in (
        ("streamdet", "alice (operator, from 127.0.0.1) via the page"),
        ("streamdet-web", "alice (operator) from 127.0.0.1 asked for streams.change east zones: +bay"),
    ):
        container.wait_until(lambda asked=asked, unit=unit: asked in container.journal(f"--unit={unit}"), asked)

    # What was to last does so, the rest does not, and the file is as it was.
    container.run("systemctl", "restart", "streamdet")
    # The page follows to the socket of the new daemon.
    (_, shown), (again, _) = _ask_page(container, "alice", ("/api/streams/east/settings", None), tried)
    assert ([zone["name"] for zone in shown["settings"]["zones"]], again) == (["bay"], 200)
    listed = json.loads(container.run(_STREAMDET, "streams", "list", "--json").stdout)["streams"]
    assert [stream["name"] for stream in listed] == ["east"]
    assert (folder / "streamdet.toml").read_bytes() == written
    # It can read nothing of the configuration.
    pid = container.show("streamdet-web", "MainPID")
    seen = container.run("nsenter", "--target", pid, "--mount", "ls", "/etc/streamdet", check=False).stdout
    assert "streamdet.toml" not in seen


def _commands_of_the_bridges() -> list[str]:
    """What docs/bridges.md says to type, from the folder of the source."""
    manual = (ROOT / "docs/bridges.md").read_text().partition("## As a service")[2]
    # Without a copy of the environment, which test_upgrade makes.
    return [
        line.replace("sudo ", "").replace("install-service", "install-service --here")
        for line in manual.split("```")[1].strip().splitlines()
    ]


@in_container
def test_a_bridge_runs_as_the_manual_says(container: Container) -> None:
    hook = '[[webhooks]]\nname = "phone"\nurl = "https://ntfy.sh/${NTFY_TOPIC}"\nshape = "ntfy"\n'
    (container.root / "etc/streamdet").mkdir()
    _write_config(container, "streamdet", "a", extra=hook)
    for command in _commands_of_the_bridges():
        container.run("bash", "-c", f"PATH=$PATH:{Path(_STREAMDET).parent} && {command}")
    unit = "streamdet-bridge@webhook"
    assert container.show(unit, "ActiveState") == "active"
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9097/metrics').read().decode())"
    page = container.run(sys.executable, "-c", code).stdout
    assert 'streamdet_bridge_events_total{bridge="webhook",target="phone"} 0.0' in page
    assert "my-secret-topic" not in container.journal("--unit", unit)
    container.run("systemctl", "stop", unit)
    assert container.show(unit, "Result") == "success"
    reported = container.run(_STREAMDET, "install-service", "--here", "--uninstall", "--bridge", "webhook").stdout
    assert "remove          /etc/systemd/system/streamdet-bridge@.service\n" in reported
    assert container.show(unit, "LoadState") == "not-found"
    assert container.show("streamdet", "LoadState") == "loaded"


_RECEIVER = """
import http.server, pathlib, sys
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        pathlib.Path(sys.argv[1]).write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8000), Receiver).serve_forever()
"""
_BRIDGES = """
[[rules]]
name = "seen"
[[webhooks]]
name = "phone"
url = "http://127.0.0.1:8000/"
headers = { Authorization = "Bearer ${TOKEN}" }
allow_private = true
ca_file = "ca.pem"
[mqtt]
broker = "mqtt://127.0.0.1"
[files]
directory = "/var/lib/streamdet-files"
formats = ["jsonl"]
kinds = ["objects", "alerts"]
rotate_seconds = 1
"""


@pytest.mark.package("mosquitto", "mosquitto-clients")
@in_container
def test_alerts_of_a_real_daemon_go_through_bridges_that_see_nothing_else_of_it(
    container: Container, tmp_path: Path
) -> None:
    bridges = ("--bridge", "webhook", "--bridge", "mqtt", "--bridge", "files")
    container.run(_STREAMDET, "install-service", "--here", *bridges)
    _write_config(container, "streamdet", "east", extra=_BRIDGES)
    (container.root / "etc/streamdet/secrets/LOGIN").write_text("user:password")
    secrets = container.root / "etc/streamdet/bridges.secrets"
    (secrets / "TOKEN").write_text("a-token-of-the-hook")
    make_certificate(tmp_path)[0].rename(secrets / "ca.pem")
    assert "is valid" in container.run(_STREAMDET, "check").stdout
    (container.root / "etc/mosquitto.conf").write_text("listener 1883 127.0.0.1\nallow_anonymous true\nuser root\n")
    posted = container.root / "srv/posted.json"
    container.run("systemd-run", "/usr/sbin/mosquitto", "-c", "/etc/mosquitto.conf")
    (container.root / "srv/receiver.py").write_text(_RECEIVER)
    container.run("systemd-run", sys.executable, "/srv/receiver.py", "/srv/posted.json")
    container.run(_STREAMDET, "install-service", "--here", *bridges, "--enable")
    seen = ("mosquitto_sub", "-h", "127.0.0.1", "-C", "1", "-W", "90", "-t", "streamdet/east/alerts/seen")
    assert json.loads(container.run(*seen).stdout)["alert"]["rule"] == "seen"
    container.wait_until(posted.exists, "an alert at the receiver")
    assert json.loads(posted.read_bytes())["alert"]["rule"] == "seen"
    assert "a-token-of-the-hook" not in container.journal()
    kept = container.root / "var/lib/streamdet-files"
    container.wait_until(lambda: bool([*kept.rglob("*.jsonl*")]), "a file of events")
    # Members of its group can read the files, and no one else.
    group = container.run("stat", "--format=%g", "/var/lib/streamdet-files").stdout.strip()

    def read_as(gid: str) -> subprocess.CompletedProcess[str]:
        as_user = ("setpriv", "--reuid=65534", f"--regid={gid}", "--clear-groups")
        read = ("find", "/var/lib/streamdet-files", "-name", "*.jsonl*", "-exec", "wc", "--bytes", "{}", "+")
        return container.run(*as_user, *read, check=False)

    # A file that is complete gets another name, which may be just now.
    container.wait_until(lambda: read_as(group).returncode == 0, "a member of the group can read the files")
    assert "Permission denied" in read_as("65534").stderr

    container.run("mknod", "--mode=0666", "/dev/video7", "c", "1", "5")
    container.run("mkdir", "--mode=0777", "/opt/open")
    checks = (
        "! head -c 3 /dev/video7 >/dev/null || exit 11; "
        "! cat /etc/streamdet/streamdet.toml || exit 12; "
        "! cat /etc/streamdet/secrets/LOGIN || exit 13; "
        "! cat /etc/streamdet/bridges.secrets/TOKEN || exit 14; "
        'ls $$CREDENTIALS_DIRECTORY | tr "\\n" , | grep -qx secret_TOKEN,secret_ca.pem,streamdet.toml, || exit 15; '
        "! ls /var/lib/streamdet/streamdet || exit 16; "
        "! touch /opt/open/x || exit 17; "
        "touch $$STATE_DIRECTORY/x || exit 18; "
        "! unshare --user true || exit 19"
    )
    drop_in = container.root / "etc/systemd/system/streamdet-bridge@mqtt.service.d/test.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart=/bin/sh -c '{checks}'\n")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "streamdet-bridge@mqtt", check=False)
    status = container.show("streamdet-bridge@mqtt", "ExecMainStatus")
    assert status == "0", container.journal("--unit=streamdet-bridge@mqtt")


_CAMERAS = f'[[streams]]\nname = "hall"\nurl = "{sample_clip()}"\nloop = true\nmax_fps = 2\n'


@in_container
def test_a_node_beside_the_daemon_watches_what_the_head_grants_and_the_daemon_outlives_both(
    container: Container,
) -> None:
    folder = container.root / "etc/streamdet"
    folder.mkdir()
    _write_config(container, "streamdet", extra='[control]\ngroup = "streamdet"\n[node]\nname = "hall-1"\n')
    (folder / "cameras.toml").write_text(_CAMERAS)
    container.run(_STREAMDET, "cluster", "init")
    edited = container.root / "etc/systemd/system/streamdet-cluster-node.service.d"
    edited.mkdir(parents=True)
    (edited / "override.conf").write_text(
        '[Service]\nEnvironment="STREAMDET_JOIN_OPTIONS=127.0.0.1 --fps 10 --address 127.0.0.1"\n'
    )
    head = container.root / "etc/systemd/system/streamdet-cluster-head.service.d"
    head.mkdir(parents=True)
    (head / "override.conf").write_text("[Service]\nEnvironment=STREAMDET_HEAD_OPTIONS=--address=127.0.0.1\n")
    parts = ("--cluster", "head", "--cluster", "node")
    container.run(_STREAMDET, "install-service", "--here", *parts, "--enable", seconds=400)
    container.run(_STREAMDET, "cluster", "apply", "/etc/streamdet/cameras.toml")

    def owner() -> str | None:
        found = json.loads(container.run(_STREAMDET, "cluster", "status", "--json").stdout)
        (stream,) = found["streams"] or [{"state": "", "node": None}]
        return str(stream["node"]) if stream["state"] == "up" else None

    container.wait_until(lambda: owner() == "hall-1", "the stream on the node")
    assert '"hall"' in container.run(_STREAMDET, "streams", "list", "--json").stdout
    for unit in ("streamdet-cluster-head", "streamdet-cluster-node"):
        assert int(container.show(unit, "MainPID")) > 0
        container.run("systemctl", "stop", unit, seconds=200)
        assert container.show(unit, "Result") == "success", container.journal("--unit", unit)
    reported = container.run(_STREAMDET, "install-service", "--here", "--uninstall", "--cluster", "node").stdout
    assert "remove          /etc/systemd/system/streamdet-cluster-node.service\n" in reported
    assert container.show("streamdet-cluster-node", "LoadState") in {"not-found", "masked"}
    assert container.show("streamdet", "ActiveState") == "active"


def _drop_in_of_the_manual() -> str:
    manual = (ROOT / "docs/page.md").read_text()
    (drop_in,) = re.findall(r"```ini\n(.*?)```", manual, re.DOTALL)
    return str(drop_in)


@in_container
def test_the_service_opens_cameras_and_nothing_else_of_the_machine(container: Container) -> None:
    """Of /dev, the network, homes and files; the kernel's own list of devices is not enforced inside a container."""
    container.run(_STREAMDET, "install-service", "--here")
    for name, group in (("video7", "video"), ("private", "root")):
        container.run("mknod", "--mode=0660", f"/dev/{name}", "c", "1", "5")
        container.run("chgrp", group, f"/dev/{name}")
    (container.root / "etc/streamdet/secrets/LOGIN").write_text("user:password")
    # Neither mode forbids anything: what does is the unit.
    (container.root / "home/picture").write_text("x")
    container.run("mkdir", "--mode=0777", "/opt/open")
    checks = (
        "head -c 3 /dev/video7 >/dev/null || exit 11; "
        "! head -c 3 /dev/private >/dev/null || exit 12; "
        "test -r /etc/streamdet/streamdet.toml || exit 13; "
        '[ "$$(cat $$CREDENTIALS_DIRECTORY/secret_LOGIN)" = user:password ] || exit 14; '
        "! cat /etc/streamdet/secrets/LOGIN || exit 15; "
        "! cat /home/picture || exit 16; "
        "! touch /opt/open/x || exit 17; "
        "touch $$STATE_DIRECTORY/x $$CACHE_DIRECTORY/x $$RUNTIME_DIRECTORY/x || exit 18; "
        "! unshare --user true || exit 19"
    )
    drop_in = container.root / "etc/systemd/system/streamdet.service.d/test.conf"
    drop_in.write_text(f"[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart=/bin/sh -c '{checks}'\n")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "start", "streamdet", check=False)
    assert container.show("streamdet", "ExecMainStatus") == "0", container.journal("--unit=streamdet")
    assert container.show("streamdet", "Result") == "success"


@in_container
def test_an_instance_reads_nothing_of_another(container: Container) -> None:
    container.run(_STREAMDET, "install-service", "--here")
    template = container.root / "etc/systemd/system/streamdet@.service.d/test.conf"
    for name in ("yard", "gate"):
        container.run(_STREAMDET, "install-service", "--here", "--instance", name)
        (container.root / f"etc/streamdet/{name}.secrets/LOGIN").write_text(name)
    checks = (
        "mine=$$0; other=$$1; "
        "test -r /etc/streamdet/$$mine.toml || exit 11; "
        '[ "$$(cat $$CREDENTIALS_DIRECTORY/secret_LOGIN)" = $$mine ] || exit 12; '
        "! cat /etc/streamdet/$$other.toml || exit 13; "
        "! cat /etc/streamdet/streamdet.toml || exit 14; "
        "! ls /etc/streamdet || exit 15; "
        "! cat /run/credentials/streamdet@$$other.service/secret_LOGIN || exit 16; "
        "umask 000; touch $$STATE_DIRECTORY/x $$CACHE_DIRECTORY/x $$RUNTIME_DIRECTORY/x || exit 17; "
        "for kept in /var/lib /var/cache /run; do "
        "! cat $$kept/streamdet/$$other/x || exit 18; ! mv $$kept/streamdet/$$other $$kept/streamdet/away || exit 19; "
        "done"
    )
    oneshot = "Type=oneshot\nRemainAfterExit=yes\nRestart=no\nExecStart=\n"
    for mine, other in (("yard", "gate"), ("gate", "yard"), ("yard", "gate")):
        template.write_text(f"[Service]\n{oneshot}ExecStart=/bin/sh -c '{checks}' {mine} {other}\n")
        container.run("systemctl", "daemon-reload")
        container.run("systemctl", "restart", f"streamdet@{mine}", check=False)
        unit = f"streamdet@{mine}"
        assert container.show(unit, "ExecMainStatus") == "0", container.journal(f"--unit={unit}")
        assert container.show(unit, "User") == f"streamdet-{mine}"
        assert int(container.show(unit, "TasksMax")) == 4096
        assert container.show(unit, "MemoryMax") not in {"infinity", ""}


@in_container
def test_a_restart_with_a_wrong_file_says_how_to_go_back_and_goes_back_by_itself_where_asked_to(
    container: Container,
) -> None:
    container.run(_STREAMDET, "install-service", "--here", "--no-gpu")
    _write_config(container, "streamdet", "east")
    config = container.root / "etc/streamdet/streamdet.toml"
    good = config.read_text()
    container.run("systemctl", "start", "streamdet")
    kept = container.root / "var/lib/streamdet/streamdet/last-good.toml"
    assert kept.read_text() == good
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600

    _write_config(container, "streamdet", "east", extra="colour = 3\n")
    assert container.run("systemctl", "restart", "streamdet", check=False).returncode != 0
    assert container.show("streamdet", "ExecMainStatus") == "2"
    log = container.journal("--unit=streamdet")
    assert "streamdet.toml:10: streams[east].colour" in log
    (command,) = re.findall(r"^  (sudo .*)$", log, re.MULTILINE)
    # There is no sudo inside, and we are root.
    as_user = "setpriv --reuid streamdet --regid streamdet --init-groups"
    command = command.replace("sudo -u streamdet", as_user).replace("sudo ", "")
    container.run("/bin/sh", "-c", f"cd /tmp && {command}")
    assert container.show("streamdet", "ActiveState") == "active"
    assert config.read_text() == good

    _write_config(container, "streamdet", "east", extra="colour = 3\n")
    drop_in = container.root / "etc/systemd/system/streamdet.service.d/override.conf"
    drop_in.write_text("[Service]\nEnvironment=STREAMDET_RUN_OPTIONS=--or-last-good\n")
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "restart", "streamdet")
    errors = container.journal("--unit=streamdet", "--priority=err", "--boot")
    assert "running the last configuration that worked instead" in errors
    _wait_for_reload(container, "0.0")
    assert kept.read_text() == good
