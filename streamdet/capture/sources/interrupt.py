"""Ends a read that hangs inside a library, from another thread.

FFmpeg asks a callback, about ten times a second while it waits, whether to give up. PyAV's callback compares
`time.monotonic()` with its time-out; here that module's clock is replaced by one that runs far ahead in a thread
whose `Interrupt` is set. So opening and reading alike end at once, in order, in the thread that owns the source.
Should another version of PyAV not look at this clock, its time-outs still end every read, only later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import av.container.core

_FAR_SECONDS = 1e9


class Interrupt:
    """A flag that ends what the threads bound to it wait for, as long as it is set."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ends waits and reads, present and future ones; from any thread."""
        self._event.set()

    def clear(self) -> None:
        """Lets waits and reads happen again."""
        self._event.clear()

    def is_set(self) -> bool:
        """Whether waits and reads should end."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits, at most until the flag is set; true when it is."""
        return self._event.wait(seconds)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Makes it the interrupt of the calling thread."""
        _threads.interrupt = self
        try:
            yield
        finally:
            del _threads.interrupt


_threads = threading.local()
_NEVER = Interrupt()


def current_interrupt() -> Interrupt:
    """The interrupt of the calling thread; one that is never set if none is bound."""
    interrupt: Interrupt = getattr(_threads, "interrupt", _NEVER)
    return interrupt


class _InterruptibleClock:
    """Stands in for the module `time` in PyAV's containers."""

    def __init__(self) -> None:
        self._jumps = 0

    def monotonic(self) -> float:
        now = time.monotonic()
        if not current_interrupt().is_set():
            return now
        # Each answer lies further ahead than the one before: a wait that begins now is over at its next question.
        self._jumps += 1
        return now + self._jumps * _FAR_SECONDS


av.container.core.time = _InterruptibleClock()  # type: ignore[attr-defined] # not in PyAV's stubs
