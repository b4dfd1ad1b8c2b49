"""Runs Ray's processes of one machine: the head's or a node's. Nothing here detects anything, or is a parent of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from streamdet.errors import EXIT_UNAVAILABLE, StreamdetError

HEAD_RESOURCE, NODE_RESOURCE = "streamdet_head", "streamdet_fps"
SOCKET_VARIABLE = "STREAMDET_CLUSTER_SOCKET"
"""In the environment of Ray on a node: the control socket of its daemon."""
# The least that Ray accepts; no frame and no event passes through it.
_OBJECT_STORE_BYTES = 80 * 1024 * 1024
_STARTED = "Ray runtime started."
# Ray would wait for its actors for half a minute, and there is nothing to wait for.
_STOP_SECONDS = 3.0
_POLL_SECONDS = 0.02
_CONNECT_SECONDS = 10.0
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The tables of a head that has ended are gone: nodes leave it at once, and join the next one, not after a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    # As any other process: where the daemon beside them computes on all cores, reports would come too late.
    "RAY_worker_niceness": "0",
    "PYTHONWARNINGS": "ignore",
}
# Such as "raylet [exit code=-9]", when one of the processes ends.
_EXIT = re.compile(r"\s(\w+ \[exit code=-?\d+\])")
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): (.*)$")


class RayError(StreamdetError):
    """Ray's processes cannot be started, or have ended."""

    exit_code = EXIT_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class RaySettings:
    """What Ray is started with.

    Attributes:
        address: of this machine, for Ray on other machines.
        folder: that only this user may enter, for Ray's files; of at most 50 characters, because of its sockets.
        environ: with the token and the certificates.
        head: address and port of Ray's head.
        resources: that this machine offers.
        is_head: whether it is that.
    """

    address: str
    folder: Path
    environ: Mapping[str, str]
    head: str
    resources: Mapping[str, float]
    is_head: bool = False


class RayProcesses:
    """Ray's processes, from entering until leaving; a context manager.

    Args:
        settings: what they are started with.
    """

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self._log = settings.folder / "ray.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - this Python, and Ray's own command line
                self._command(), env={**os.environ, **_SETTINGS, **self._settings.environ}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        # Its processes are in its session, actors in groups of their own, and some outlive it when it is killed.
        deadline = time.monotonic() + _STOP_SECONDS
        while (left := _in_session(self._process.pid)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(_POLL_SECONDS)
        self._process.wait()

    @property
    def is_started(self) -> bool:
        """Whether Ray has started on this machine."""
        return _STARTED in self._output()

    def check(self) -> None:
        """Checks that Ray's processes run.

        Raises:
            RayError: they have ended; says why.
        """
        if self._process is not None and self._process.poll() is not None:
            message = f"Ray has ended: {self._why()}"
            raise RayError(message)

    def _command(self) -> list[str]:
        settings = self._settings
        if settings.is_head:
            port = settings.head.rpartition(":")[2]
            role = ["--head", "--port", port, "--include-dashboard", "false", "--no-monitor"]
        else:
            role = ["--address", settings.head]
        return [
            sys.executable, "-P", "-m", "streamdet.cluster.ray_start", "start", *role, "--block",
            "--log-style", "record", "--node-ip-address", settings.address, "--temp-dir", str(settings.folder),
            "--resources", json.dumps(dict(settings.resources)), "--num-cpus", "0", "--num-gpus", "0",
            "--object-store-memory", str(_OBJECT_STORE_BYTES), "--include-log-monitor", "false",
        ]  # fmt: skip

    def _output(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def _why(self) -> str:
        """Which processes have ended, or what it has printed last: an error if there is one."""
        lines = [line.strip() for line in self._output().splitlines() if line.strip()]
        ended = [found[1] for line in lines if (found := _EXIT.search(line))]
        if ended:
            return "; ".join(ended)[:500]
        errors = [found[1] for line in lines if (found := _ERROR.match(line))]
        return (errors or lines or ["it printed nothing"])[-1][:500]


def check_reachable(settings: RaySettings) -> None:
    """Checks that Ray's head answers this machine, of which `ray start` would say nothing for minutes.

    Raises:
        RayError: it does not, or is of another cluster.
    """
    host, _, port = settings.head.rpartition(":")
    where = f"Ray of the head at {settings.head}"
    try:
        tls = ssl.create_default_context(cafile=settings.environ["RAY_TLS_CA_CERT"])
        tls.check_hostname = False  # as for the head's own port: only its machines have certificates of a cluster
        tls.load_cert_chain(settings.environ["RAY_TLS_SERVER_CERT"], settings.environ["RAY_TLS_SERVER_KEY"])
        with (
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as connection,
            tls.wrap_socket(connection),
        ):
            return
    except ssl.SSLCertVerificationError:
        message = f"{where} has no certificate of this cluster; is the token file that of its streamdet cluster init?"
    except TimeoutError:
        message = f"{where} did not answer within {_CONNECT_SECONDS:g} s; is this port open to this machine?"
    except OSError as error:
        message = f"{where} does not answer: {error.strerror or error}; is this port open to this machine?"
    raise RayError(message)


def own_address(other: str) -> str:
    """The address of this machine, as another machine sees it; one off loopback where there is one, as Ray wants it."""
    for towards in (other, "192.0.2.1", "2001:db8::1"):
        family = socket.AF_INET6 if ":" in towards else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((towards, 9))  # sends nothing
            address = str(probe.getsockname()[0])
            if not address.startswith("127.") and address != "::1":
                return address
    return "127.0.0.1"


def _in_session(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # The name before it may hold anything: state, parent, group and session follow its last parenthesis.
            if int(path.read_text("utf-8", "replace").rpartition(")")[2].split()[3]) == session:
                found.append(int(path.parent.name))
    return found
