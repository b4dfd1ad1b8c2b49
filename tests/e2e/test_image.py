"""The image, as it would run on a machine that has never seen this checkout; `container/test` builds it.

Every container has a read-only file system, an unprivileged user, no capabilities and no network.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.images import IMAGE, PATIENCE_SECONDS, needs_image, podman
from support.paths import ROOT
from support.waiting import wait_until

HARDENED = (
    "--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none",
    "--tmpfs=/tmp:size=64m,mode=1777", "--pids-limit=4096", "--memory=4g",
)  # fmt: skip

pytestmark = [pytest.mark.timeout(900), needs_image]


def run(*words: str, check: bool = True, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs a command of streamdet in a container of its own."""
    return podman("run", "--rm", *HARDENED, *options, IMAGE, *words, check=check)


class Running:
    """A daemon in a container of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def inside(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return podman("exec", self.name, *words, check=check)

    def log(self) -> str:
        done = podman("logs", self.name, check=False)
        return done.stdout + done.stderr

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.state()["Running"], self.log()
            return self.inside("streamdet-health", "ready", check=False).returncode == 0

        wait_until(is_ready, "the daemon detects", PATIENCE_SECONDS)

    def state(self) -> dict[str, object]:
        (found,) = json.loads(podman("inspect", self.name).stdout)
        state: dict[str, object] = found["State"]
        return state

    def stop(self) -> tuple[float, object]:
        """Ends it as engines do; seconds and exit code."""
        started = time.monotonic()
        podman("stop", "--time", "60", self.name)
        return time.monotonic() - started, self.state()["ExitCode"]


@pytest.fixture(scope="module")
def state() -> Iterator[str]:
    """A volume, new to the first container that uses it."""
    name = f"streamdet-test-{secrets.token_hex(4)}"
    podman("volume", "create", name)
    yield name
    podman("volume", "rm", "--force", name)


@contextlib.contextmanager
def daemon(folder: Path, state: str) -> Iterator[Running]:
    clip = run(
        "-c", "from streamdet.assets import sample_clip; print(sample_clip())", options=("--entrypoint=python3",)
    )
    config = folder / "streamdet.toml"
    config.write_text(
        f'[[streams]]\nname = "clip"\nurl = "{clip.stdout.strip()}"\nloop = true\nmax_fps = 5\n'
        '[[streams]]\nname = "camera"\nurl = "rtsp://${CAMERA_LOGIN}@192.0.2.5/stream1"\n'
        '[spool]\ndirectory = "/var/lib/streamdet/spool"\n'
    )
    (folder / "CAMERA_LOGIN").write_text("admin:wonderland\n")
    for path in (config, folder / "CAMERA_LOGIN"):
        path.chmod(0o644)
    name = f"streamdet-test-{secrets.token_hex(4)}"
    podman(
        "run", "--detach", f"--name={name}", *HARDENED, f"--volume={state}:/var/lib/streamdet",
        f"--volume={config}:/etc/streamdet/streamdet.toml:ro",
        f"--volume={folder / 'CAMERA_LOGIN'}:/run/secrets/CAMERA_LOGIN:ro", IMAGE,
    )  # fmt: skip
    try:
        yield Running(name)
    finally:
        podman("rm", "--force", "--time", "0", name)


def test_a_daemon_detects_is_healthy_and_ends_in_time(tmp_path: Path, state: str) -> None:
    with daemon(tmp_path, state) as running:
        assert running.inside("streamdet-health", "ready", check=False).returncode == 1
        running.wait_until_ready()
        assert podman("healthcheck", "run", running.name, check=False).returncode == 0
        streams = json.loads(running.inside("streamdet", "streams", "list", "--json").stdout)["streams"]
        assert {each["name"]: each["state"] for each in streams}["clip"] == "up"
        assert "wonderland" not in running.log() + str(streams)
        assert running.inside("id", "-u").stdout == "10001\n"
        assert running.inside("touch", "/etc/streamdet/x", "/opt/streamdet/x", "/x", check=False).returncode != 0
        assert "CapEff:\t0000000000000000" in running.inside("cat", "/proc/1/status").stdout
        took, code = running.stop()
        assert code == 0, running.log()
        assert took < 15
    # What the first one found out about engines, and its events, are there for the next one.
    with daemon(tmp_path, state) as running:
        running.wait_until_ready()
        assert "spool" in running.inside("ls", "/var/lib/streamdet").stdout
        running.stop()
        kept = running.log()
    assert "candidate" not in kept


def test_the_page_and_the_bridge_of_compose_work_beside_it(tmp_path: Path, state: str) -> None:
    """With the options that compose gives them, in the network of the daemon."""
    compose = yaml.safe_load((ROOT / "container" / "compose.yml").read_text())
    made = subprocess.run(
        [ROOT / "container" / "secrets.sh", tmp_path / "secrets"], input="admin:wonderland\n", text=True,
        env={**os.environ, "IMAGE": IMAGE, "ENGINE": "podman"}, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with daemon(tmp_path, state) as running, contextlib.ExitStack() as stack:
        for volume in ("page-state", "bridge-state"):
            stack.callback(podman, "volume", "rm", "--force", f"{running.name}-{volume}")
        running.wait_until_ready()
        (tmp_path / "streamdet.toml").write_text((ROOT / "container" / "streamdet.toml").read_text())
        for name in ("page", "mqtt-bridge"):
            service = compose["services"][name]
            # Its volume is new, under a name of its own.
            sources = {"./streamdet.toml": str(tmp_path / "streamdet.toml")}
            given = [each.partition(":") for each in service.get("volumes", [])]
            volumes = [f"{sources.get(source, f'{running.name}-{source}')}:{target}" for source, _, target in given]
            volumes += [f"{tmp_path / 'secrets' / each}:/run/secrets/{each}:ro" for each in service["secrets"]]
            beside = f"{running.name}-{name}"
            stack.callback(podman, "rm", "--force", "--time", "0", "--volumes", beside)
            podman(
                "run", "--detach", f"--name={beside}", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all",
                "--security-opt=no-new-privileges", f"--network=container:{running.name}", "--no-healthcheck",
                *(f"--tmpfs={each}" for each in service["tmpfs"]), *(f"--volume={each}" for each in volumes),
                *(f"--env={key}={value}" for key, value in service.get("environment", {}).items()),
                IMAGE, *service["command"],
            )  # fmt: skip
        ask = (
            "import ssl, sys, urllib.request; context = ssl._create_unverified_context();"
            "print(urllib.request.urlopen(sys.argv[1], context=context if 'https' in sys.argv[1] else None).read())"
        )

        def answers(address: str, text: str) -> bool:
            done = running.inside("python3", "-c", ask, address, check=False)
            return text in done.stdout + done.stderr

        wait_until(lambda: answers("https://localhost:8095/", "<html"), "the page", PATIENCE_SECONDS)
        wait_until(lambda: answers("http://127.0.0.1:9098/metrics", "streamdet_bridge"), "the bridge", PATIENCE_SECONDS)


def test_a_signal_ends_it_before_it_is_ready(tmp_path: Path, state: str) -> None:
    """Process 1 ignores what it has no handler for, and Python takes a second until it has."""
    with daemon(tmp_path, state) as running:
        took, _ = running.stop()
        assert took < 15


def test_a_wrong_configuration_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    config = tmp_path / "streamdet.toml"
    config.write_text('[[streams]]\nname = "a"\nurl = "rtsp://h/"\nmax_fsp = 5\n')
    config.chmod(0o644)
    done = run(check=False, options=(f"--volume={config}:/etc/streamdet/streamdet.toml:ro",))
    assert done.returncode == 2
    assert "max_fsp" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_of_the_checkout_or_of_the_build_is_in_it() -> None:
    find = f"grep -rlF -e {ROOT} -e /src/ /opt/streamdet/bin /opt/streamdet/lib/python3*/site-packages/streamdet; true"
    assert run("-c", find, options=("--entrypoint=sh",)).stdout == ""
    tools = "command -v gcc make pip pytest git curl; ls -d /src /var/cache/packages 2>/dev/null; true"
    assert run("-c", tools, options=("--entrypoint=sh",)).stdout == ""


def test_it_is_small_and_says_what_it_is() -> None:
    (image,) = json.loads(podman("image", "inspect", IMAGE).stdout)
    # Of the image for CUDA, most are NVIDIA's libraries.
    assert image["Size"] < (7e9 if IMAGE.endswith(":cuda") else 2.3e9)
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == "streamdet"
    assert run("--version").stdout.startswith("streamdet, version")


def test_other_commands_need_no_daemon(state: str) -> None:
    done = run("demo", "--seconds", "3", check=False, options=(f"--volume={state}:/var/lib/streamdet",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "people" in done.stdout
