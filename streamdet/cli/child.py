"""The page as a child process: it ends with its parent, however that ends."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self

_END_SECONDS = 5.0


class WebChild:
    """Runs `streamdet web` while it is entered as a context manager.

    Args:
        endpoint: where the daemon publishes.
        metrics: HOST:PORT of the daemon's metrics page.
        listen: HOST:PORT for browsers.

    Attributes:
        address: of the page, for people.
    """

    def __init__(self, endpoint: str, metrics: str, listen: str) -> None:
        self.address = f"http://{listen}/"
        options = ["--metrics", metrics, "--listen", listen, "--end-with-stdin"]
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
