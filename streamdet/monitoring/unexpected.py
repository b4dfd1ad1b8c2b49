"""Errors that no code foresaw, and that one camera, request or client is at fault for: counted, logged, survived.

What goes wrong with a single datum must end neither its thread nor the process. Who handles the datum catches what
it raises, reports it here, drops the datum, and goes on with the next one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter

PARTS = (
    "capture",
    "detection",
    "analytics",
    "events",
    "preview",
    "replay",
    "subscription",
    "control",
    "reload",
    "http",
)
"""Where such an error may be caught: the values of the metric's label."""

QUIET_SECONDS = 600.0
_MAX_KNOWN = 1000

_Place = tuple[object, ...]
_Value = TypeVar("_Value")


class UnexpectedErrors:
    """Counts and logs unexpected errors: each distinct one with its traceback once, then in a line now and then.

    Errors are distinct when they differ in part, type or the line of code that raised them. A repetition is logged
    at most every `QUIET_SECONDS` for each stream, with the number of those that were left out. Thread-safe.

    Args:
        registry: gets the metric `streamdet_unexpected_errors_total`.
        clock: monotonic seconds.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        total = Counter(
            "streamdet_unexpected_errors",
            "Errors that no code foresaw; each cost one frame, request or connection.",
            ["part"],
            registry=registry,
        )
        self._counts = {part: total.labels(part) for part in PARTS}
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[_Place, None] = {}
        self._quiet: dict[_Place, tuple[float, int]] = {}

    def report(self, part: str, error: BaseException, consequence: str, stream: str | None = None) -> None:
        """Counts an error and logs it, if it is due.

        Args:
            part: one of `PARTS`.
            error: what was raised.
            consequence: what it cost, as in "one frame is dropped".
            stream: whose datum it was; None where it was no stream's.
        """
        self._counts[part].inc()
        place = (part, type(error), _line_of(error.__traceback__))
        now = self._clock()
        with self._lock:
            is_new = place not in self._known
            _remember(self._known, place, None)
            quiet_until, left_out = self._quiet.get((*place, stream), (float("-inf"), 0))
            is_due = is_new or now >= quiet_until
            quiet = (now + QUIET_SECONDS, 0) if is_due else (quiet_until, left_out + 1)
            _remember(self._quiet, (*place, stream), quiet)
        if is_due:
            more = f" ({left_out} more like this since the last such line)" if left_out else ""
            logging.getLogger(f"streamdet.{part}").error(
                "unexpected error, %s: %s%s",
                consequence,
                describe(error),
                more,
                exc_info=error if is_new else None,
                extra={} if stream is None else {"stream": stream},
            )


def describe(error: BaseException) -> str:
    """The error's type and the first line of its text."""
    try:
        text = next(iter(str(error).splitlines()), "")
    except Exception:  # noqa: BLE001 - str() of an error may raise anything; its type is known all the same
        text = ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _remember(known: dict[_Place, _Value], key: _Place, value: _Value) -> None:
    """Sets a value; the one that was set first is forgotten when there are too many."""
    known[key] = value
    if len(known) > _MAX_KNOWN:
        del known[next(iter(known))]


def _line_of(traceback: TracebackType | None) -> tuple[str, int] | None:
    """File and line of the code that raised."""
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
