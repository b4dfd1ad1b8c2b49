"""The head over HTTP: who may ask, and what comes back; without Ray."""

from __future__ import annotations

import http.client
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.request import urlopen

import pytest
from click.testing import CliRunner, Result

from streamdet import __version__, subscribe
from streamdet.cli.cluster import command
from streamdet.cluster.agent import Report
from streamdet.cluster.api import make_app
from streamdet.cluster.head import Head
from streamdet.cluster.keys import ClusterKeys
from streamdet.cluster.ray_processes import RayError
from streamdet.cluster.reconciler import Reconciler
from streamdet.cluster.requests import HeadClient
from streamdet.errors import ConfigError, ControlError
from streamdet.http.server import HttpServer, HttpThread, Limits, listen, tls_context
from support.ports import free_port
from support.waiting import wait_until

KEYS = ClusterKeys.make()
CAMERAS = '[[streams]]\nname = "gate"\nurl = "rtsp://u:${LOGIN}@192.0.2.9/x"\nmax_fps = 5\n'

Serve = Callable[..., int]


@pytest.fixture
def head(tmp_path: Path) -> Head:
    head = Head(tmp_path, Reconciler(settle_seconds=0))
    head.take([(Report("n1", __version__), "machine", 10.0)])
    return head


@pytest.fixture
def serve(head: Head) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(
            *, is_open: bool = True, tls: ssl.SSLContext | None = None, ray: str = "192.0.2.1:6379", port: int = 0
        ) -> int:
            listener = listen("the head", "127.0.0.1", port, "address")
            app = make_app(head, KEYS, {"ray": ray}, is_open=is_open)
            stack.enter_context(HttpThread("head", [HttpServer(app, listener, Limits(), tls)]))
            return int(listener.getsockname()[1])

        yield start


def status_of(port: int, method: str, path: str, **headers: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, CAMERAS if method == "PUT" else None, headers)
        return connection.getresponse().status


def test_those_who_have_the_token_change_and_those_with_the_other_only_read(serve: Serve, head: Head) -> None:
    port = serve(is_open=False)
    reader = f"Bearer {KEYS.reader_token}"
    for method, path in [("PUT", "/v1/cluster/cameras"), ("POST", "/v1/cluster/nodes/n1/drain")]:
        assert status_of(port, method, path) == 401
        assert status_of(port, method, path, Authorization=reader) == 401
    for path in ("/v1/cluster", "/v1/about"):
        assert status_of(port, "GET", path) == 401
        assert status_of(port, "GET", path, Authorization="Bearer x") == 401
        assert status_of(port, "GET", path, Authorization=reader) == 200
    assert head.status()["streams"] == []
    assert status_of(port, "PUT", "/v1/cluster/cameras", Authorization=f"Bearer {KEYS.token}") == 200
    assert [stream["name"] for stream in head.status()["streams"]] == ["gate"]


def test_on_loopback_anyone_may_read_but_no_web_site(serve: Serve) -> None:
    port = serve()
    assert status_of(port, "GET", "/v1/cluster") == 200
    assert status_of(port, "GET", "/v1/cluster", Host="evil.example") == 401
    assert status_of(port, "GET", "/v1/cluster", Authorization="Bearer x") == 401
    assert status_of(port, "PUT", "/v1/cluster/cameras") == 401


def test_prometheus_gets_metrics_and_targets(serve: Serve, head: Head) -> None:
    report = Report("n1", __version__, addresses={"metrics": "http://192.0.2.7:9095/metrics"})
    head.take([(report, "machine", 10.0)])
    port = serve()
    with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        assert page.headers["Content-Type"].startswith("text/plain")
        text = page.read().decode()
    assert 'streamdet_cluster_nodes{state="up"} 1.0' in text
    assert 'streamdet_cluster_node_capacity_fps{node="n1"} 10.0' in text
    with urlopen(f"http://127.0.0.1:{port}/v1/sd") as page:
        assert page.headers["Content-Type"] == "application/json"
        assert [each["targets"] for each in json.load(page)] == [["192.0.2.7:9095"]]


def test_a_reader_finds_the_nodes_with_the_files_for_readers(serve: Serve, tmp_path: Path, head: Head) -> None:
    report = Report("n1", __version__, addresses={"events": "tcp://127.0.0.1:5"})
    head.take([(report, "machine", 10.0)])
    KEYS.write(tmp_path / "keys" / "cluster.key")
    environ = KEYS.prepare(tmp_path, ["192.0.2.1"])
    port = serve(
        is_open=False, tls=tls_context(Path(environ["RAY_TLS_SERVER_CERT"]), Path(environ["RAY_TLS_SERVER_KEY"]))
    )
    files = {"head_ca_file": tmp_path / "keys" / "ca.pem", "head_token_file": tmp_path / "keys" / "reader.token"}
    with subscribe(cluster=f"https://127.0.0.1:{port}", **files) as events:
        wait_until(lambda: events.receive(0.05) is None and events.nodes == ["n1"])
        assert events.problem == ""
    other = ClusterKeys.make()
    other.write(tmp_path / "other" / "cluster.key")
    with subscribe(cluster=f"https://127.0.0.1:{port}", head_ca_file=tmp_path / "other" / "ca.pem") as events:
        wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in events.problem)
    with subscribe(cluster=f"https://127.0.0.1:{port}", head_ca_file=files["head_ca_file"]) as events:
        wait_until(lambda: "401" in events.problem)


def test_a_client_asks_applies_and_drains(serve: Serve, head: Head) -> None:
    client = HeadClient("127.0.0.1", serve(), KEYS)
    assert client.ask("GET", "/v1/about") == {"version": __version__, "ray": "192.0.2.1:6379"}
    assert client.ask("PUT", "/v1/cluster/cameras?dry_run=true", CAMERAS)["added"] == ["gate"]
    assert head.status()["streams"] == []
    client.ask("PUT", "/v1/cluster/cameras", CAMERAS)
    assert [stream["name"] for stream in client.ask("GET", "/v1/cluster")["streams"]] == ["gate"]
    client.ask("POST", "/v1/cluster/nodes/n1/drain")
    assert client.ask("GET", "/v1/cluster")["nodes"][0]["state"] == "draining"
    client.ask("DELETE", "/v1/cluster/nodes/n1/drain")
    assert client.ask("GET", "/v1/cluster")["nodes"][0]["state"] == "up"
    with pytest.raises(ConfigError, match="more than any node can do"):
        client.ask("PUT", "/v1/cluster/cameras", CAMERAS.replace("= 5", "= 11"))
    with pytest.raises(ControlError, match="no node 'x'; there are n1"):
        client.ask("POST", "/v1/cluster/nodes/x/drain")
    with pytest.raises(ControlError, match="that is not the token of this cluster"):
        HeadClient("127.0.0.1", client.port, ClusterKeys.make()).ask("GET", "/v1/about")


def test_off_loopback_a_client_knows_the_head_by_its_certificate(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = KEYS.prepare(tmp_path, ["192.0.2.1"])
    port = serve(
        is_open=False, tls=tls_context(Path(environ["RAY_TLS_SERVER_CERT"]), Path(environ["RAY_TLS_SERVER_KEY"]))
    )
    monkeypatch.setattr("streamdet.cluster.requests.is_loopback", lambda _host: False)
    assert HeadClient("127.0.0.1", port, KEYS).ask("GET", "/v1/about")["version"] == __version__
    with pytest.raises(ControlError, match="has no certificate of this cluster"):
        HeadClient("127.0.0.1", port, ClusterKeys.make()).ask("GET", "/v1/about")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_the_command_applies_all_or_nothing_shows_and_drains(serve: Serve, tmp_path: Path, head: Head) -> None:
    key, cameras = tmp_path / "k", tmp_path / "streams.toml"
    KEYS.write(key)
    cameras.write_text(CAMERAS)
    at = ("--head", f"127.0.0.1:{serve()}", "--token-file", str(key))
    dry = run("apply", str(cameras), "--dry-run", *at)
    assert dry.output.splitlines() == ["added: gate", "nothing is changed: --dry-run"]
    assert head.status()["streams"] == []
    assert run("apply", str(cameras), *at).output.splitlines() == ["added: gate", "applied: 1 stream"]
    head.step()
    assert "n1    up     1        5     10" in run("status", *at).output
    assert '"name": "gate"' in run("status", "--json", *at).output
    head.take([(Report("n1", __version__, slow_seconds=7.0), "machine", 10.0)])
    assert "its daemon has not finished a request for 7 s" in run("status", *at).output
    cameras.write_text(CAMERAS.replace("= 5", "= 50"))
    refused = run("apply", str(cameras), *at)
    assert isinstance(refused.exception, ConfigError)
    assert str(refused.exception).startswith(f"{cameras}: streams[gate].max_fps: 50 frames per second are more than")
    assert head.status()["streams"][0]["fps"] == 5
    assert "n1 is being emptied" in run("drain", "n1", *at).output
    assert head.status()["nodes"][0]["state"] == "draining"
    assert "takes streams again" in run("drain", "n1", "--undo", *at).output
    assert isinstance(run("drain", "x", *at).exception, ControlError)


def test_a_node_of_another_version_does_not_join(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KEYS.write(tmp_path / "k")
    monkeypatch.setattr("streamdet.cluster.api.__version__", "9.9.9")
    arguments = (f"127.0.0.1:{serve()}", "--token-file", str(tmp_path / "k"), "--socket", "c", "--fps", "40")
    refused = run("join", *arguments).exception
    assert str(refused) == f"the head runs streamdet 9.9.9, and this node {__version__}; upgrade one of them"


def test_a_node_that_cannot_reach_ray_says_so_in_seconds(
    serve: Serve, tmp_path: Path, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamdet.cluster.ray_processes._CONNECT_SECONDS", 0.5)
    KEYS.write(tmp_path / "k")

    def join(ray: str) -> str:
        joined = run("join", f"127.0.0.1:{serve(ray=ray)}", "--token-file", str(tmp_path / "k"), "--socket", "c",
                     "--fps", "40")  # fmt: skip
        assert isinstance(joined.exception, RayError)
        assert joined.exception.exit_code == 69
        return str(joined.exception)

    silent = f"127.0.0.1:{silent_port}"
    assert (
        join(silent) == f"Ray of the head at {silent} did not answer within 0.5 s; is this port open to this machine?"
    )
    closed = f"127.0.0.1:{free_port()}"
    assert join(closed).startswith(f"Ray of the head at {closed} does not answer: Connection refused; is this port")
    folder = tmp_path / "other"
    folder.mkdir()
    environ = ClusterKeys.make().prepare(folder, ["127.0.0.1"])
    tls = tls_context(Path(environ["RAY_TLS_SERVER_CERT"]), Path(environ["RAY_TLS_SERVER_KEY"]))
    assert "has no certificate of this cluster" in join(f"127.0.0.1:{serve(tls=tls)}")


def test_a_node_that_waits_joins_once_its_head_answers_and_ends_at_a_signal(serve: Serve, tmp_path: Path) -> None:
    KEYS.write(tmp_path / "k")
    port, closed = free_port(), f"127.0.0.1:{free_port()}"
    ways = [sys.executable, "-m", "streamdet", "cluster", "join", f"127.0.0.1:{port}", "--wait"]
    ways += ["--token-file", str(tmp_path / "k"), "--socket", "c", "--fps", "40"]
    with ExitStack() as stack:
        patient, stopped = (
            stack.enter_context(subprocess.Popen(ways, stderr=subprocess.PIPE, text=True)) for _ in range(2)
        )
        stack.callback(patient.kill)
        stack.callback(stopped.kill)
        for process in (patient, stopped):
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith(f"waiting for the head: the head at 127.0.0.1:{port} does not answer")
        stopped.send_signal(signal.SIGTERM)
        assert stopped.communicate(timeout=60) == (None, "")
        assert stopped.returncode == 0
        serve(ray=closed, port=port)
        _, said = patient.communicate(timeout=60)
        assert f"Ray of the head at {closed} does not answer" in said
        assert patient.returncode == 69


def test_bad_addresses_are_one_clear_line(tmp_path: Path) -> None:
    KEYS.write(tmp_path / "k")
    for head_at in ("x:y", "127.0.0.1:70000", ""):
        result = run("status", "--head", head_at, "--token-file", str(tmp_path / "k"))
        assert (result.exit_code, "HEAD: " in result.output) == (2, True), result.output
    refused = run("status", "--head", "127.0.0.1:1", "--token-file", str(tmp_path / "k")).exception
    assert "the head at 127.0.0.1:1 does not answer: Connection refused" in str(refused)
