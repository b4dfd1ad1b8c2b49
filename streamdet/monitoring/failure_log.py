"""Says that something fails, and works again: once a minute at the most, however fast it goes to and fro."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

QUIET_SECONDS = 60.0


class FailureLog:
    """What the log is told of one thing that may fail again and again; for one thread.

    Args:
        logger: that gets the lines.
        counted: says how much was lost, as in "{} events were not kept".
        clock: monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, counted: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._counted = counted
        self._clock = clock
        self._quiet_until = float("-inf")
        self._lost = 0
        self._has_told = False

    def failed(self, problem: str, lost: int = 1) -> None:
        """It has failed, and so much was lost with it."""
        self._lost += lost
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + QUIET_SECONDS
            self._tell(logging.WARNING, problem)
            self._has_told = True

    def works(self, text: str) -> None:
        """It has not failed; said when it was said that it does, and when failures of the minute before were not."""
        if self._has_told or (self._lost and self._clock() >= self._quiet_until):
            self._tell(logging.INFO, text)
            self._has_told = False

    def end(self, text: str) -> None:
        """Says what has been lost and not been told."""
        if self._lost:
            self._tell(logging.WARNING, text)

    def _tell(self, level: int, text: str) -> None:
        count = f" ({self._counted.format(self._lost)} since the last such line)" if self._lost else ""
        self._logger.log(level, "%s%s", text, count)
        self._lost = 0
