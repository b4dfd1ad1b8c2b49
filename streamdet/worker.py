"""Threads that can be stopped and watched, whose errors are never lost, and what ends their waits."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self


class Worker(ABC):
    """Runs `run` in a thread of its own.

    A worker is a context manager: entering starts it, leaving asks it to stop and waits. What `run` raises is stored
    in `error`, and `on_error` is called with the worker.

    Attributes:
        name: name of the thread.
        error: what `run` raised, or a thread that works for it; None while there was none.
        heartbeat_monotonic_seconds: `time.monotonic()` of the last `beat()`.
        quiet_seconds: how long one that beats may go without a `beat()` while all is well.
    """

    join_timeout_seconds = 10.0
    quiet_seconds = 60.0

    def __init__(self, name: str, on_error: Callable[[Worker], None] | None = None) -> None:
        self.name = name
        self.error: BaseException | None = None
        self.heartbeat_monotonic_seconds = time.monotonic()
        self._on_error = on_error
        self._stopping = threading.Event()
        self._cpu_clock: int | None = None
        self._thread = threading.Thread(target=self._run_and_store, name=name, daemon=True)

    @abstractmethod
    def run(self) -> None:
        """The work; returns soon after `stopping` turns true."""

    def wake(self) -> None:  # noqa: B027 - most workers need nothing
        """Ends a wait of `run`; called by another thread, after `stopping` turned true."""

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to stop."""
        return self._stopping.is_set()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def cpu_seconds(self) -> float:
        """CPU time that the thread has used; 0 before it runs and after its end."""
        if self._cpu_clock is None or not self.is_alive():
            return 0.0
        try:
            return time.clock_gettime(self._cpu_clock)
        except OSError:  # it ended just now
            return 0.0

    def beat(self) -> None:
        """Notes that work is being done."""
        self.heartbeat_monotonic_seconds = time.monotonic()

    def is_stuck(self) -> bool:
        """Whether a worker that beats has been quiet for too long."""
        return time.monotonic() - self.heartbeat_monotonic_seconds > self.quiet_seconds

    def sleep(self, seconds: float) -> bool:
        """Waits, at most until a stop is asked for.

        Returns:
            Whether it was.
        """
        return self._stopping.wait(seconds)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the worker to stop and does not wait."""
        self._stopping.set()
        self.wake()

    def join(self) -> bool:
        """Waits for the end; false when it took longer than `join_timeout_seconds`."""
        if self._thread.ident is not None:
            self._thread.join(self.join_timeout_seconds)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.join()

    def fail(self, error: BaseException) -> None:
        """Stores an error that `run` raised, or another thread that works for this one, and calls `on_error`."""
        self.error = error
        if self._on_error is not None:
            self._on_error(self)

    def _run_and_store(self) -> None:
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        _show_name(self.name)
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001 - stored, and raised again by the thread that watches
            self.fail(error)


def _show_name(name: str) -> None:
    """Shows the first 15 bytes of its name for the calling thread in `top -H` and `ps -T`, as Python 3.14 does."""
    with contextlib.suppress(OSError):  # no /proc, or a sandbox that keeps it from being written
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name, "utf-8")


class Wakeup:
    """Ends a wait for sockets, from any thread or signal handler: a pair of sockets, one of which is waited for."""

    def __init__(self) -> None:
        self._receive, self._send = socket.socketpair()
        self._receive.settimeout(0)
        self._send.settimeout(0)

    def fileno(self) -> int:
        """The descriptor to wait for; readable after `wake`, until `clear`."""
        return self._receive.fileno()

    def wake(self) -> None:
        """Ends the wait that is under way, or else the next one."""
        try:
            self._send.send(b"\0")
        except (BlockingIOError, OSError):
            # Full: the wait is about to end anyway. Closed: nothing waits any more.
            return

    def clear(self) -> None:
        """Makes the next wait a new one."""
        try:
            self._receive.recv(4096)
        except BlockingIOError:
            return

    def wait(self, seconds: float) -> None:
        """Sleeps until woken, at most for this time; one thread only."""
        select.select([self._receive], [], [], seconds)
        self.clear()

    def close(self) -> None:
        """Frees the sockets; waking does nothing afterwards."""
        self._receive.close()
        self._send.close()


class Stop:
    """A wish to stop: signal handlers and threads express it, one thread waits for it.

    `threading.Event` is not made for signal handlers: the thread that a handler interrupts may hold the event's lock,
    and a signal right before a wait without a limit is handled only after it.
    """

    def __init__(self) -> None:
        self._wakeup = Wakeup()
        self._is_set = False

    def set(self) -> None:
        """Asks for the stop."""
        self._is_set = True
        self._wakeup.wake()

    def wait(self, seconds: float) -> bool:
        """Waits at most for this time; whether to stop."""
        if not self._is_set:
            self._wakeup.wait(seconds)
        return self._is_set

    def close(self) -> None:
        """Frees what it waits with; it can be asked for afterwards."""
        self._wakeup.close()
