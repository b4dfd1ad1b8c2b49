"""A higher priority for scenes in which many processes and threads have to keep time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def ahead_of_other_tests(by: int = 5) -> Iterator[None]:
    """What this thread starts meanwhile goes ahead of other tests; where that is not allowed, nothing changes."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, before - by)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
