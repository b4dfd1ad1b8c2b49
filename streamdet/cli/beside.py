"""What a command starts beside a daemon of its own on this machine: the page, at ports that are free."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from streamdet.config.listening import parse_host_port
from streamdet.errors import EndpointError
from streamdet.security.endpoints import is_loopback

# How long the page may take to end.
_END_SECONDS = 5.0


def free_endpoint(endpoint: str, prefix: str = "") -> str:
    """The endpoint, or the same with a free port if its port is taken, so that what is tried always starts.

    Raises:
        EndpointError: it is no address that only this machine can reach.
    """
    text = endpoint.removeprefix(prefix)
    try:
        host, port = parse_host_port(text)
    except ValueError:
        host, port = "", 0
    if not endpoint.startswith(prefix) or not is_loopback(host):
        message = f"{endpoint[:200]!r}: what is tried stays on this machine; write it like {prefix}127.0.0.1:5555"
        raise EndpointError(message) from None
    for candidate in (port, 0):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return f"{prefix}{text.rpartition(':')[0]}:{probe.getsockname()[1]}"
    return endpoint


class WebChild:
    """Runs `streamdet web` while it is entered as a context manager.

    Args:
        endpoint: where the daemon publishes.
        metrics: HOST:PORT of the daemon's metrics page.
        listen: HOST:PORT for browsers.
        config: the configuration whose [web] it serves; None for none.

    Attributes:
        address: of the page.
    """

    def __init__(self, endpoint: str, metrics: str, listen: str, config: Path | None = None) -> None:
        self.address = f"http://{listen}/"
        options = ["--metrics", metrics, "--listen", listen, "--end-with-stdin"]
        options += [] if config is None else ["--config", str(config)]
        self._command = [sys.executable, "-P", "-m", "streamdet", "web", endpoint, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # The pipe closes when this process ends, even by SIGKILL; that is how the child learns of it.
        self._process = subprocess.Popen(  # noqa: S603 - this very program
            self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
