"""container/compose.yml as it is, with podman-compose and real servers, in a network of the test's own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.images import IMAGE, PATIENCE_SECONDS, needs_image
from support.paths import ROOT
from support.waiting import wait_until

pytestmark = [pytest.mark.timeout(1200), pytest.mark.root, needs_image]

SERVICES = {"streamdet", "page", "mqtt-bridge", "mosquitto", "prometheus"}
# Each has 30 s, one after the other, and what needs longer is killed: its exit code shows that.
STOP_SECONDS = 150.0
FETCH = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[2])
print(urllib.request.urlopen(sys.argv[1], context=context, timeout=20).read().decode())
"""


class Compose:
    """A checkout's files for compose, in a project and a network of their own.

    Args:
        folder: gets the files.
        network: the process whose network it is.
    """

    def __init__(self, folder: Path, network: int) -> None:
        self.folder = folder / "container"
        self.project = f"streamdet-test-{secrets.token_hex(4)}"
        self._inside = ["nsenter", f"--net=/proc/{network}/ns/net", "--"]
        for name in ("container", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("secrets"))

    def compose(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.prefix, "bin/podman-compose"))
        path = str(self.folder / "compose.yml")
        return self.run(program, "-p", self.project, "-f", path, *words, check=check)

    def run(self, *words: str, check: bool = True, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a program of this machine in the network of the test."""
        done = subprocess.run(
            [*self._inside, *words], capture_output=True, text=True, check=False, input=text, timeout=PATIENCE_SECONDS,
            env={**os.environ, "STREAMDET_IMAGE": IMAGE, "IMAGE": IMAGE, "ENGINE": "podman"},
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def containers(self) -> dict[str, dict[str, Any]]:
        """What podman says of each container, by service."""
        words = ("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        ids = self.run("podman", *words).stdout.split()
        found = json.loads(self.run("podman", "inspect", *ids).stdout) if ids else []
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}

    def inside(self, service: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a program in a container."""
        return self.run("podman", "exec", self.containers()[service]["Id"], *words, check=check)

    def up(self) -> None:
        """Starts everything, and waits until the daemon detects."""
        self.compose("up", "--detach", "--no-build")

        def is_ready() -> bool:
            found = self.containers()
            down = [name for name in SERVICES if not found[name]["State"]["Running"]]
            assert down == [], "".join(self.log(name) for name in down)
            return self.inside("streamdet", "streamdet-health", "ready", check=False).returncode == 0

        wait_until(is_ready, "the daemon detects", PATIENCE_SECONDS)

    def log(self, service: str) -> str:
        done = self.run("podman", "logs", self.containers()[service]["Id"], check=False)
        return f"{service}: {done.stdout}{done.stderr}"

    def fetch(self, url: str) -> str:
        """What a published port of this machine answers; empty while it does not."""
        words = (sys.executable, "-P", "-c", FETCH, url, str(self.folder / "secrets" / "page.pem"))
        return self.run(*words, check=False).stdout

    def prometheus(self, path: str) -> Any:
        answer = self.fetch(f"http://127.0.0.1:9090/api/v1/{path}")
        return json.loads(answer)["data"] if answer else None


@contextmanager
def network() -> Iterator[int]:
    """A network without a way out, for as long as it is entered; the process that keeps it."""
    command = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as keeper:
        try:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == b"ready\n"
            yield keeper.pid
        finally:
            keeper.kill()


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Compose]:
    """With a clip for a camera and a rule, beside the camera that the shipped file names, and with all secrets.

    No engine is tried: test_image.py does that.
    """
    with network() as keeper:
        made = Compose(tmp_path, keeper)
        clip = made.run(
            "podman", "run", "--rm", "--network=none", "--entrypoint=python3", IMAGE,
            "-c", "from streamdet.assets import sample_clip; print(sample_clip())",
        ).stdout.strip()  # fmt: skip
        config = made.folder / "streamdet.toml"
        config.write_text(
            f'{config.read_text()}\n[[streams]]\nname = "clip"\nurl = "{clip}"\nloop = true\nmax_fps = 5\n'
            '[detector]\nengine = "torch"\nprecision = "fp32"\nmax_batch_size = 1\n'
            '[[rules]]\nname = "seen"\nlabels = ["person"]\n'
        )
        config.chmod(0o644)
        made.run(str(made.folder / "secrets.sh"), text="admin:wonderland\n")
        try:
            yield made
        finally:
            made.compose("down", "--volumes", check=False)


def test_all_of_it_runs_stops_in_time_and_keeps_what_it_knows(composed: Compose) -> None:
    composed.up()
    found = composed.containers()
    assert found.keys() == SERVICES
    assert composed.run("podman", "healthcheck", "run", found["streamdet"]["Id"], check=False).returncode == 0

    # An alert goes from the daemon over the bridge and the broker to the host, with the password of both.
    password = (composed.folder / "secrets" / "MQTT_PASSWORD").read_text().strip()
    broker = ("-h", "127.0.0.1", "-p", "1883", "-u", "streamdet")
    heard = composed.run(
        "mosquitto_sub", *broker, "-P", password, "-t", "streamdet/clip/alerts/seen", "-C", "1", "-W", "180"
    )
    alert = json.loads(heard.stdout)
    assert (alert["stream"], alert["alert"]["rule"]) == ("clip", "seen")
    assert composed.run("mosquitto_sub", *broker, "-P", "wrong", "-t", "#", "-W", "5", check=False).returncode != 0

    def scraped() -> bool:
        targets = (composed.prometheus("targets") or {}).get("activeTargets", [])
        return {each["labels"]["job"]: each["health"] for each in targets} == {
            "streamdet": "up", "streamdet-bridge": "up",
        }  # fmt: skip

    def evaluated() -> bool:
        groups = (composed.prometheus("rules") or {}).get("groups", [])
        return {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}

    wait_until(scraped, "Prometheus reads both pages", PATIENCE_SECONDS)
    wait_until(evaluated, "Prometheus evaluates the alert rules", PATIENCE_SECONDS)
    wait_until(lambda: "<html" in composed.fetch("https://localhost:8095/"), "the page", PATIENCE_SECONDS)

    logs = "".join(map(composed.log, sorted(SERVICES)))
    assert "wonderland" not in logs
    assert password not in logs

    started = time.monotonic()
    composed.compose("stop")
    assert time.monotonic() - started < STOP_SECONDS
    codes = {name: each["State"]["ExitCode"] for name, each in composed.containers().items()}
    assert codes == dict.fromkeys(SERVICES, 0), "".join(map(composed.log, sorted(SERVICES)))
    composed.compose("down")
    assert composed.containers() == {}

    composed.up()
    kept = composed.inside("streamdet", "streamdet", "alerts", "--since", "1 h ago", "--json").stdout
    assert alert["alert"]["alert_id"] in {json.loads(line)["alert"]["alert_id"] for line in kept.splitlines()}
