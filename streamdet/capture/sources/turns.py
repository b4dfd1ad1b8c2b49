"""Lets a few threads at a time do what takes much memory for a moment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from streamdet.capture.sources.interrupt import current_interrupt

_LOOK_SECONDS = 0.1


class Turns:
    """Turns of threads; one that takes long, as on a network drive that hangs, does not hold up the others for good.

    Args:
        at_once: threads that may have their turn at the same time.
        longest_wait_seconds: how long a thread waits for its turn, at the most; then it goes on without one.
    """

    def __init__(self, at_once: int, longest_wait_seconds: float) -> None:
        self.at_once = at_once
        self.longest_wait_seconds = longest_wait_seconds
        self._free = threading.BoundedSemaphore(at_once)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for a turn, until this thread is interrupted; ends it."""
        until = time.monotonic() + self.longest_wait_seconds
        has_turn = False
        while not has_turn and time.monotonic() < until and not current_interrupt().is_set():
            has_turn = self._free.acquire(timeout=_LOOK_SECONDS)
        try:
            yield
        finally:
            if has_turn:
                self._free.release()


OPENING = Turns(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 2.0)
"""Of those who open a file: FFmpeg decodes its first pictures to know it, with a decoder of 10 MB for 1080p. Where
sixteen of them were at work at the same time, on two cores, a process that reads sixteen films in a loop grew to 260 MB
instead of 220."""
