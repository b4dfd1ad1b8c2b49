"""Waiting for what another thread or process does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0


def wait_until(condition: Callable[[], object], what: str = "it", seconds: float = PATIENCE_SECONDS) -> None:
    """Returns once `condition()` is true; an assertion that names `what` fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


def join(thread: threading.Thread, seconds: float = 30.0) -> None:
    """Waits until a thread has ended; an assertion fails after `seconds`."""
    thread.join(seconds)
    assert not thread.is_alive(), f"thread {thread.name} does not end"
