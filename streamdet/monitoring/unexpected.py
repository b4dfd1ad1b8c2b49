"""Unexpected errors that one camera, request or client causes: counts and logs them.

An error with a single datum must end neither its thread nor the process. The code that handles the datum catches
what it raises, reports it here, drops the datum, and goes on with the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from types import TracebackType

from prometheus_client import Counter

from streamdet.monitoring.log import LogThrottle, more_like_this

PARTS = (
    "capture",
    "gate",
    "detection",
    "analytics",
    "events",
    "preview",
    "pictures",
    "clips",
    "replay",
    "subscription",
    "control",
    "reload",
    "http",
)
"""Where such an error may be caught: the values of the metric's label."""

QUIET_SECONDS = 600.0
_MAX_KNOWN = 1000


class UnexpectedErrors:
    """Counts and logs unexpected errors: each distinct one with its traceback once, then in a line now and then.

    Errors are distinct when they differ in part, type or the line of code that raised them. A repetition is logged
    at most every `QUIET_SECONDS` for each stream, with the number of those that were left out. Thread-safe.

    Args:
        counts: a counter for each of `PARTS`; None to count nothing.
        clock: monotonic seconds.
    """

    def __init__(
        self, counts: Mapping[str, Counter] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counts = counts
        self._throttle = LogThrottle(QUIET_SECONDS, clock)
        self._lock = threading.Lock()
        # The oldest is forgotten when there are too many.
        self._known: dict[Hashable, None] = {}

    def report(self, part: str, error: BaseException, consequence: str, stream: str | None = None) -> None:
        """Counts an error and logs it, if it is due.

        Args:
            part: one of `PARTS`.
            error: what was raised.
            consequence: what it cost, as in "one frame is dropped".
            stream: whose datum it was; None where it was no stream's.
        """
        if self._counts is not None:
            self._counts[part].inc()
        place = (part, type(error), _line_of(error.__traceback__))
        with self._lock:
            is_new = place not in self._known
            self._known[place] = None
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
        left_out = self._throttle.admit((*place, stream))
        if left_out is not None:
            logging.getLogger(f"streamdet.{part}").error(
                "unexpected error, %s: %s%s",
                consequence,
                describe(error),
                more_like_this(left_out),
                exc_info=error if is_new else None,
                extra={} if stream is None else {"stream": stream},
            )


def describe(error: BaseException) -> str:
    """The error's type and the first line of its text."""
    try:
        text = next(iter(str(error).splitlines()), "")
    except Exception:  # noqa: BLE001 - str() of an error may raise anything; its type is still known
        text = ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _line_of(traceback: TracebackType | None) -> tuple[str, int] | None:
    """File and line of the code that raised."""
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
