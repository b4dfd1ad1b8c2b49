"""Cameras are found on a real network: two network namespaces and a virtual cable between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamdet.cli.discover import command
from streamdet.config import StreamConfig
from streamdet.errors import ConfigError
from support.onvif import onvif_camera
from support.paths import SUPPORT
from support.waiting import wait_until

Done = subprocess.CompletedProcess[str]
# The time for cameras that do not answer; and what Python takes to start on a busy machine.
SHORT = ("--seconds", "2", "--seconds-per-camera", "4")


class Network:
    """A machine in a namespace of its own, connected with a network of cameras.

    Attributes:
        pid: of a process in the namespace of the machine.
    """

    def __init__(self, stack: ExitStack) -> None:
        def start(*command: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.communicate, "")
            return process

        server = str(SUPPORT / "servers" / "onvif_network.py")
        cameras = start("unshare", "--net", sys.executable, server, "cable1")
        machine = start("unshare", "--net", "sh", "-c", "echo here; exec cat")
        assert cameras.stdout is not None
        assert cameras.stdin is not None
        assert machine.stdout is not None
        assert cameras.stdout.readline() == "waiting\n"
        assert machine.stdout.readline() == "here\n"
        self.pid = machine.pid
        for words in (
            "link set lo up",
            f"link add cable0 type veth peer name cable1 netns {cameras.pid}",
            "address add 192.0.2.1/24 dev cable0",
            # Without the second in which an address is only tried.
            "address add fe80::1/64 dev cable0 nodad",
            "link set cable0 up",
        ):
            self.ip(words)
        cameras.stdin.write("go\n")
        cameras.stdin.flush()
        assert cameras.stdout.readline() == "ready\n"

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def run(self, *words: str, check: bool = False, text: str = "", **environ: str) -> Done:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, check=check, input=text, timeout=100,
            env={**os.environ, **environ},
        )  # fmt: skip

    def ip(self, words: str) -> None:
        self.run("ip", *words.split(), check=True)

    def discover(self, *options: str, **more: str) -> Done:
        return self.run(sys.executable, "-m", "streamdet", "discover", *SHORT, *options, **more)


def in_network(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.root(pytest.mark.package("iproute2")(test))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack)


def by_host(done: Done) -> dict[str, dict[str, Any]]:
    assert "Traceback" not in done.stderr
    return {each["host"]: each for each in json.loads(done.stdout)["cameras"]}


@in_network
def test_a_search_finds_the_cameras_and_their_streams(network: Network) -> None:
    started = time.monotonic()
    done = network.discover("--json", "--login", "${CAMERAS}", CAMERAS="admin:secret")
    assert done.returncode == 0, done.stderr
    assert "cable0" in json.loads(done.stdout)["interfaces"]
    found = by_host(done)
    for host, model, skew_seconds in (("192.0.2.5", "M1135", 0), ("192.0.2.6", "P3245", 3600)):
        camera = found[host]
        assert (camera["manufacturer"], camera["model"], camera["reason"]) == ("Acme", model, None)
        assert abs(camera["clock_skew_seconds"] - skew_seconds) <= 2
        assert [each["url"] for each in camera["profiles"]] == [f"rtsp://{host}:554/main", f"rtsp://{host}:554/sub"]
    six = found["fe80::5%cable0"]["profiles"]
    assert [each["url"] for each in six] == [f"rtsp://[fe80::5%cable0]:554/{name}" for name in ("main", "sub")]
    assert StreamConfig(name="six", url=six[0]["url"]).url == six[0]["url"]
    assert found["192.0.2.7"]["detail"] == "192.0.2.7 refuses this login"
    assert (found["192.0.2.8"]["reason"], found["192.0.2.8"]["name"]) == ("timeout", "cam8")
    assert found["192.0.2.9"]["reason"] == "decode_error"
    # It is asked where it answered, not where it says to be.
    assert found["192.0.2.10"]["profiles"][0]["url"] == "rtsp://192.0.2.10:554/main"
    assert found["192.0.2.10"]["profiles"][0]["problem"].startswith("the camera names 198.51.100.1 in its url")
    assert "192.0.2.6: its clock is 3600 s ahead of this machine's" in done.stderr
    # A recorder has several devices in one answer.
    hosts = [each["host"] for each in json.loads(done.stdout)["cameras"]]
    assert hosts.count("192.0.2.11") == 8
    # The flood is one line.
    assert len(hosts) == 7 + 8 + 1
    assert time.monotonic() - started < 60


@in_network
def test_the_login_is_read_from_standard_input_and_becomes_a_reference(network: Network) -> None:
    done = network.discover("--toml", "--login-from-stdin", "--interface", "cable0", text="admin:secret\n")
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout.replace("streamdet.secrets/", "") + done.stderr
    tables = tomllib.loads(done.stdout)["streams"]
    hosts = ("192.0.2.5", "192.0.2.6", "192.0.2.10", *["192.0.2.11"] * 8, "[fe80::5%cable0]")
    assert [each["url"] for each in tables] == [f"rtsp://${{CAMERA_LOGIN}}@{host}:554/sub" for host in hosts]
    assert "192.0.2.7 is left out: 192.0.2.7 refuses this login" in done.stderr


@in_network
def test_the_table_shows_one_stream_in_a_line(network: Network) -> None:
    done = network.discover("192.0.2.5", "192.0.2.7", "--login-from-stdin", text="admin:secret\n")
    lines = done.stdout.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["192.0.2.5", "Acme", "M1135", "main", "h264", "1920x1080", "25", "rtsp://192.0.2.5:554/main"],
        ["sub", "h264", "640x360", "15", "rtsp://192.0.2.5:554/sub"],
    ]
    assert "unauthorized: 192.0.2.7 refuses this login" in lines[3]
    assert done.returncode == 0


@in_network
def test_a_network_without_cameras_is_one_line(network: Network) -> None:
    network.ip("link add empty0 type veth peer name empty1")
    network.ip("address add 203.0.113.1/24 dev empty0")
    for name in ("empty0", "empty1"):
        network.ip(f"link set {name} up")
    done = network.discover("--interface", "empty0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("streamdet: no camera answered within 2 s on empty0; switch on ONVIF")
    assert done.stderr.count("\n") == 1


@in_network
def test_an_interface_that_cannot_be_searched_is_one_line(network: Network) -> None:
    done = network.discover("--interface", "eth9")
    assert done.stderr.startswith("streamdet: there is no interface 'eth9'; there are ")
    assert "cable0" in done.stderr
    network.ip("link add down0 type veth peer name down1")
    done = network.discover("--interface", "down0")
    assert done.stderr == "streamdet: down0 cannot be searched: it is not up, or has no address\n"
    assert done.returncode == 1


@in_network
def test_an_interrupt_ends_a_search_at_once(network: Network) -> None:
    interrupted = network.command(sys.executable, "-m", "streamdet", "discover", "--seconds", "60", "192.0.2.8")
    with subprocess.Popen([*interrupted, "--seconds-per-camera", "60"], stderr=subprocess.PIPE, text=True) as process:
        connections = Path(f"/proc/{process.pid}/net/tcp")
        # Established with port 80 of 192.0.2.8.
        wait_until(lambda: " 080200C0:0050 01 " in connections.read_text() or process.poll() is not None)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("options", [("--login", "admin:secret"), ("--login", "${NO_SUCH_LOGIN}")])
def test_a_login_in_the_command_line_is_refused_and_not_repeated(options: tuple[str, str]) -> None:
    done = CliRunner().invoke(command, options)
    assert isinstance(done.exception, ConfigError) or done.exit_code == 2
    assert "admin:secret" not in f"{done.output}{done.exception}"


@pytest.mark.parametrize("text", ["", "admin\n", ":x\n", "a:\x1b\n", f"a:{'b' * 2000}\n"])
def test_a_login_that_is_none_is_one_line(text: str) -> None:
    with onvif_camera() as camera:
        done = CliRunner().invoke(command, [f"127.0.0.1:{camera.port}", "--login-from-stdin"], input=text)
        assert str(done.exception) == "--login-from-stdin: is not user:password"
        assert camera.asked == []
