"""Who tries a password too often."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

MAX_TRIES = 5
MAX_TRIES_OF_ALL = 60
_PER_SECONDS = 60.0
_MAX_CLIENTS = 1000


class LoginAttempts:
    """Lets everybody try a password a few times a minute, and all together not often.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: deque[float] = deque()
        self._by_client: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_seconds(self, client: str) -> float:
        """Counts a try of a client, and says 0; or how long it has to wait, and does not count."""
        now = self._clock()
        own = self._by_client.setdefault(client, deque())
        self._by_client.move_to_end(client)
        while len(self._by_client) > _MAX_CLIENTS:
            self._by_client.popitem(last=False)
        wait = max(_wait(own, MAX_TRIES, now), _wait(self._all, MAX_TRIES_OF_ALL, now))
        if wait == 0:
            own.append(now)
            self._all.append(now)
        return wait

    def forget(self, client: str) -> None:
        """The client has shown the password."""
        self._by_client.pop(client, None)


def _wait(tries: deque[float], most: int, now: float) -> float:
    while tries and now - tries[0] >= _PER_SECONDS:
        tries.popleft()
    return 0.0 if len(tries) < most else tries[0] + _PER_SECONDS - now
