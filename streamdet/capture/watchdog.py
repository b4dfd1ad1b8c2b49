"""Notices, from outside, that something takes too long: one small thread for all streams.

A library may hold a capture's thread for as long as it likes, so that the thread cannot say that its stream stands
still. It says beforehand when it should be back; who is late is told on by the watch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_INTERVAL_SECONDS = 0.2


class Watched:
    """Something that must come back in time; watched while it is entered.

    Args:
        watch: that looks after it.
        on_overdue: called once when it is late, by the watch's thread or by the caller of `end`, before that returns.
        on_error: told what `on_overdue` raised in the watch's thread, which goes on looking after all others.
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
        """From now on `end` is due within so many seconds."""
        self._overdue = False
        self._due = time.monotonic() + seconds

    def end(self) -> bool:
        """It is back; true when it was late."""
        self.check(time.monotonic())
        with self._lock:
            self._due = None
            return self._overdue

    def check(self, now: float) -> None:
        """Tells when it is late, unless that has been told."""
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
    """Looks after any number of `Watched`; its thread runs while there is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: set[Watched] = set()
        self._thread: threading.Thread | None = None
        self._empty = threading.Event()

    def watched(self, on_overdue: Callable[[], None], on_error: Callable[[BaseException], None]) -> Watched:
        """Something to look after; enter it."""
        return Watched(self, on_overdue, on_error)

    def add(self, watched: Watched) -> None:
        """Looks after it."""
        with self._lock:
            self._all.add(watched)
            self._empty.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="stall-watch", daemon=True)
                self._thread.start()

    def remove(self, watched: Watched) -> None:
        """Looks after it no longer; the last one ends the thread."""
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
                except BaseException as error:  # noqa: BLE001 - told to its owner; here it would end the watch for all
                    watched.on_error(error)
