"""A container with a real systemd as process 1, for tests of the service.

Its root is a folder of the test's own, with the machine's /usr and this environment mounted read-only: nothing of the
machine is changed, and what is installed lasts over a reboot of the container. It has a network of its own.
"""

from __future__ import annotations

import fcntl
import functools
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from support.paths import ROOT

_PATIENCE_SECONDS = 90.0
# EXIT_FORCE_RESTART of systemd-nspawn.
_WANTS_REBOOT = 133
# Nothing but the service is to be seen, and nothing of what else is installed on this machine is to be started.
_MASKED = ("console-getty", "systemd-networkd", "systemd-logind", "systemd-timesyncd", "systemd-resolved")


def visible_paths() -> list[Path]:
    """What the container needs besides /usr: this environment, its interpreter, the code."""
    paths = {Path(sys.prefix), Path(sys.base_prefix), ROOT}
    paths = {path for path in paths if not path.is_relative_to("/usr")}
    return sorted(path for path in paths if not any(path.is_relative_to(other) for other in paths - {path}))


@functools.cache
def why_no_container() -> str:
    """What keeps this machine from starting containers, in one line; empty when nothing does."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _make_root(root)
        command = [*_nspawn(root, "probe"), "/bin/true"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "" if result.returncode == 0 else (result.stderr.strip().splitlines() or ["systemd-nspawn fails"])[-1]


def _make_root(root: Path) -> None:
    for name in ("usr", "etc", "var", "run", "tmp", "dev", "proc", "sys", "opt", "home", "srv"):
        (root / name).mkdir()
    (root / "root").mkdir(mode=0o700)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    shutil.copy("/etc/os-release", root / "etc/os-release")
    (root / "etc/machine-id").write_text(secrets.token_hex(16) + "\n")


def _nspawn(root: Path, name: str) -> list[str]:
    binds = [f"--bind-ro={path}" for path in (Path("/usr"), *visible_paths())]
    machine = f"streamdet-{name}-{secrets.token_hex(4)}"
    return [
        "systemd-nspawn", "--quiet", f"--directory={root}", f"--machine={machine}", "--register=no", "--keep-unit",
        "--private-network", *binds,
    ]  # fmt: skip


class Container:
    """A booted container while it is entered.

    Args:
        folder: an empty folder for its root and its console's log.
        realtime: its systemd is scheduled in real time, as on some hosts of containers.
    """

    def __init__(self, folder: Path, *, realtime: bool = False) -> None:
        self._scheduling = ["chrt", "--rr", "1"] if realtime else []
        self.root = folder / "root"
        self.console = folder / "console.log"
        self.root.mkdir()
        _make_root(self.root)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Two at a time would share their control groups, and so end each other's services.
        self._lock = Path(tempfile.gettempdir(), "streamdet-test-container.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_PATIENCE_SECONDS)
        finally:
            self._lock.close()

    def init_pid(self) -> int | None:
        """The process that is number 1 inside."""
        assert self._process is not None
        assert self._process.poll() is None, self.console.read_text(errors="replace")
        for path in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
            for pid in map(int, path.read_text().split()):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return pid
        return None

    def run(self, *command: str, check: bool = True, seconds: float = 100) -> subprocess.CompletedProcess[str]:
        """Runs a command inside."""
        entered = ["nsenter", "--target", str(self.init_pid()), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        result = subprocess.run([*entered, *command], capture_output=True, text=True, check=False, timeout=seconds)
        assert not check or result.returncode == 0, f"{command}: {result.stdout}{result.stderr}\n{self.journal()}"
        return result

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` prints it."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def journal(self, *options: str) -> str:
        """What has been logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", *options, check=False).stdout

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits patiently; fails with the journal."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what}: did not happen\n{self.journal()}"
            time.sleep(0.1)

    def reboot(self) -> None:
        """Reboots, and waits until everything has been started."""
        assert self._process is not None
        self.run("systemctl", "reboot")
        # With --keep-unit restarting is left to the caller.
        assert self._process.wait(_PATIENCE_SECONDS) == _WANTS_REBOOT
        self._boot()

    def _boot(self) -> None:
        boot = ["--boot", "systemd.firstboot=off", *(f"systemd.mask={name}.service" for name in _MASKED)]
        with self.console.open("ab") as console:
            command = [*self._scheduling, *_nspawn(self.root, "test"), *boot]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.init_pid() is None or not self._is_up():
            assert time.monotonic() < deadline, self.console.read_text(errors="replace")
            time.sleep(0.1)

    def _is_up(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in {"running", "degraded"}
