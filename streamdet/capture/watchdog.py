"""Reports calls that take too long: one thread for all streams.

A library may block a capture's thread without limit, and the thread then cannot report that its stream has stalled. So
it sets a deadline before each call, and the watch reports a deadline that has passed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_INTERVAL_SECONDS = 0.2


class Watched:
    """A call with a deadline; watched while it is entered.

    Args:
        watch: that checks it.
        on_overdue: called once when the deadline has passed, by the watch's thread or in `end`, before that returns.
        on_error: called with what `on_overdue` raised in the watch's thread, which goes on with all others.
    """

    def __init__(
        self, watch: StallWatch, on_overdue: Callable[[], None], on_error: Callable[[BaseException], None]
    ) -> None:
        self._watch = watch
        self._on_overdue = on_overdue
        self.on_error = on_error
        self._lock = threading.Lock()
        self._due: float | None = None
        self._overdue = False

    def begin(self, seconds: float) -> None:
        """Starts a call; `end` is due within `seconds`."""
        self._overdue = False
        self._due = time.monotonic() + seconds

    def end(self) -> bool:
        """The call has returned; true when it was late."""
        self.check(time.monotonic())
        with self._lock:
            self._due = None
            return self._overdue

    def check(self, now: float) -> None:
        """Calls `on_overdue` when the deadline has passed, once for each call."""
        with self._lock:
            if self._due is not None and now > self._due:
                self._due = None
                self._overdue = True
                self._on_overdue()

    def __enter__(self) -> Self:
        self._watch.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watch.remove(self)


class StallWatch:
    """Checks any number of `Watched`; its thread runs while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: set[Watched] = set()
        self._thread: threading.Thread | None = None
        self._empty = threading.Event()

    def watched(self, on_overdue: Callable[[], None], on_error: Callable[[BaseException], None]) -> Watched:
        """A call to watch; enter it."""
        return Watched(self, on_overdue, on_error)

    def add(self, watched: Watched) -> None:
        """Begins to check it."""
        with self._lock:
            self._all.add(watched)
            self._empty.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stall-watch", daemon=True)
                self._thread.start()

    def remove(self, watched: Watched) -> None:
        """Stops checking it; the last one ends the thread."""
        with self._lock:
            self._all.discard(watched)
            if not self._all:
                self._empty.set()

    def _run(self) -> None:
        while True:
            self._empty.wait(_INTERVAL_SECONDS)
            with self._lock:
                if not self._all:
                    self._thread = None
                    return
                everything = list(self._all)
            now = time.monotonic()
            for watched in everything:
                try:
                    watched.check(now)
                except BaseException as error:  # noqa: BLE001 - its owner reports it; here it would end the watch for all
                    watched.on_error(error)
