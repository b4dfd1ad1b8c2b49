"""Tries streams for clients of the control API, as `streamdet check --probe` does: a few at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamdet.capture.probe import Probe, probe
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.config import StreamConfig

AT_ONCE = 2
"""More are refused: each decodes in a thread of the daemon, for some seconds."""


class Probes:
    """Tries streams, each in a thread of its own; thread-safe.

    Args:
        try_stream: opens a stream once; ends soon when its interrupt is set.
    """

    def __init__(self, try_stream: Callable[[StreamConfig, Interrupt], Probe] = probe) -> None:
        self._try_stream = try_stream
        self._lock = threading.Lock()
        self._running: dict[threading.Thread, Interrupt] = {}
        self._is_closed = False

    def begin(self, config: StreamConfig, put: Callable[[Probe | Exception], None]) -> bool:
        """Begins to try a stream.

        Args:
            config: the stream.
            put: called with what was found, or with an error that no code foresaw, from another thread.

        Returns:
            Whether it was begun: not where too many are tried already.

        Raises:
            RuntimeError: there is no thread for it.
        """
        interrupt = Interrupt()
        thread = threading.Thread(target=self._run, args=(config, interrupt, put), name=f"probe {config.name}")
        with self._lock:
            if self._is_closed or len(self._running) >= AT_ONCE:
                return False
            self._running[thread] = interrupt
        try:
            thread.start()
        except BaseException:
            self._forget(thread)
            raise
        return True

    def close(self) -> None:
        """Ends the tries that are under way, and waits for their threads."""
        with self._lock:
            self._is_closed = True
            running = dict(self._running)
        for interrupt in running.values():
            interrupt.set()
        for thread in running:
            if thread.ident is not None:
                thread.join()

    def _run(self, config: StreamConfig, interrupt: Interrupt, put: Callable[[Probe | Exception], None]) -> None:
        result: Probe | Exception
        try:
            result = self._try_stream(config, interrupt)
        except Exception as error:  # noqa: BLE001 - the client's answer reports it, and it is counted there
            result = error
        self._forget(threading.current_thread())
        put(result)

    def _forget(self, thread: threading.Thread) -> None:
        with self._lock:
            self._running.pop(thread, None)
