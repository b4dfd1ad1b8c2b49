"""`streamdet cluster head` and `join` as processes of their own, with all that Ray starts below them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from support.waiting import wait_until

# Ray starts nine processes, each of which takes seconds on a busy machine.
PATIENCE_SECONDS = 600.0
# As RestartSec of the units: commands that begin again at once would take the processor from what they wait for.
RESTART_SECONDS = 2.0


class ClusterProcess:
    """A command that runs until it is stopped; starts it again where it has ended, as systemd does.

    Args:
        log: gets what it prints.
        ready: what it prints when it is ready.
        arguments: of `streamdet cluster`.
        under: a command that runs it, such as `Machine.command`.

    Attributes:
        arguments: of the next start.
    """

    def __init__(self, log: Path, ready: str, *arguments: str, under: Sequence[str] = ()) -> None:
        self._log, self._ready, self.arguments = log, ready, arguments
        self._under = under
        # For Ray's files, which are left behind where all is killed; paths of sockets have to be short.
        self._files = tempfile.mkdtemp(prefix="sd-", dir="/tmp")
        self._environ = {**os.environ, "RUNTIME_DIRECTORY": self._files}
        self.process: subprocess.Popen[bytes] | None = None
        self._began = 0
        self._ended_at: float | None = None

    def start(self) -> Self:
        with self._log.open("ab") as log:
            self._began, self._ended_at = log.tell(), None
            self.process = subprocess.Popen(
                [*self._under, sys.executable, "-P", "-m", "streamdet", "cluster", *self.arguments], stdout=log,
                stderr=log, env=self._environ,
            )  # fmt: skip
        return self

    def ready(self) -> Self:
        """Waits until it is; meanwhile it is started again if it ends."""

        def is_ready() -> bool:
            self.keep_running()
            return self._ready in self.printed()

        wait_until(is_ready, f"{self._ready}: {self._log}", PATIENCE_SECONDS)
        return self

    def keep_running(self) -> None:
        """Starts it again some time after it has ended, as systemd does; to be called again and again."""
        if self.process is not None and self.process.poll() is None:
            return
        if self._ended_at is None:
            self._ended_at = time.monotonic()
        if self.process is None or time.monotonic() >= self._ended_at + RESTART_SECONDS:
            self.start()

    def printed(self) -> str:
        """What it has printed since it was started last."""
        return self._log.read_bytes()[self._began :].decode()

    def kill(self) -> None:
        """Kills it and all that it has started, as a machine that loses power."""
        assert self.process is not None
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)

    def pids(self) -> list[int]:
        """All processes that it has started, and its own as the last one."""
        assert self.process is not None
        return [*_below(self.process.pid), self.process.pid]

    def pid_of(self, program: str) -> int:
        """One of the processes that it has started, by the name of its program."""
        assert self.process is not None
        pids = [pid for pid in _below(self.process.pid) if Path(f"/proc/{pid}/comm").read_text() == f"{program}\n"]
        return pids[0]

    def stop(self) -> int:
        """Asks it to end; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
        self.forget()

    def forget(self) -> None:
        """Deletes the files of Ray; after its end."""
        shutil.rmtree(self._files, ignore_errors=True)


def _below(pid: int) -> Iterator[int]:
    """All processes that a process and its children have started; they are listed before any is yielded."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    yield from found
