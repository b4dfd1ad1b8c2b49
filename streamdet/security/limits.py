"""Rate limits: requests per second, shares of time, and attempts to log in."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

MAX_TRIES = 5
MAX_TRIES_OF_ALL = 60
_PER_SECONDS = 60.0
_MAX_CLIENTS = 1000


class Rate:
    """Allows `per_second` uses per second, and after a pause a burst; for one thread.

    Args:
        per_second: uses per second.
        clock: monotonic seconds.
        burst: uses at once after a pause; those of a second unless given.
    """

    def __init__(
        self, per_second: float, clock: Callable[[], float] = time.monotonic, burst: float | None = None
    ) -> None:
        self.per_second = per_second
        self._clock = clock
        self._left = self._burst = float(per_second if burst is None else burst)
        self._at = clock()

    def passes(self) -> bool:
        """Whether one more is allowed now; if so, it is counted."""
        now = self._clock()
        self._left = min(self._left + (now - self._at) * self.per_second, self._burst)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Share:
    """Allows work to take a share of the time, and after a pause a burst; for one thread.

    Args:
        share: of the time, above 0 and at most 1.
        burst_seconds: work that may be done at once after a pause.
        clock: monotonic seconds.
    """

    def __init__(self, share: float, burst_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._burst_seconds = burst_seconds
        self._clock = clock
        self._left_seconds = burst_seconds
        self._at = clock()

    def wait_seconds(self) -> float:
        """How long to wait before more work is allowed; 0 if it is allowed now."""
        self._refill()
        return 0.0 if self._left_seconds > 0 else -self._left_seconds / self._share

    def worked(self, seconds: float) -> None:
        """Counts time that was spent."""
        self._refill()
        self._left_seconds -= seconds

    def _refill(self) -> None:
        now = self._clock()
        self._left_seconds = min(self._left_seconds + (now - self._at) * self._share, self._burst_seconds)
        self._at = now


class FairRate:
    """Allows `per_second` requests per second, and after a pause as many at once; others wait, fairly among clients.

    Waiting clients are served in turns, so that one that sends many requests delays the others only a little. Belongs
    to one event loop.

    Args:
        per_second: requests per second.
        most_waiting: requests of one client that may wait.
    """

    def __init__(self, per_second: int, most_waiting: int) -> None:
        self._rate = Rate(per_second)
        self._most_waiting = most_waiting
        # The client whose turn is next comes first.
        self._waiting: dict[str, deque[_Waiting]] = {}

    async def turn(self, client: str, is_gone: Callable[[], bool]) -> bool:
        """Waits until a request of this client is allowed; False at once if too many of its requests wait already.

        Args:
            client: that sends the request.
            is_gone: whether it no longer waits for an answer; then the next one is served.
        """
        if not self._waiting and self._rate.passes():
            return True
        own = self._waiting.get(client, deque())
        if len(own) >= self._most_waiting and not _let_gone_pass(own):
            return False
        if not self._waiting:
            asyncio.get_running_loop().call_later(1 / self._rate.per_second, self._let_pass)
        waiting = _Waiting(asyncio.get_running_loop().create_future(), is_gone)
        own.append(waiting)
        self._waiting[client] = own
        await waiting.may_pass
        return True

    def _let_pass(self) -> None:
        while self._waiting:
            client, own = next(iter(self._waiting.items()))
            waiting = own[0]
            if not waiting.may_pass.done() and not waiting.is_gone() and not self._rate.passes():
                asyncio.get_running_loop().call_later(1 / self._rate.per_second, self._let_pass)
                return
            own.popleft()
            del self._waiting[client]
            if own:
                self._waiting[client] = own
            if not waiting.may_pass.done():
                waiting.may_pass.set_result(None)


class LoginAttempts:
    """Limits how often a password may be tried: by one client in a minute, and by all clients together.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: deque[float] = deque()
        self._by_client: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_seconds(self, client: str) -> float:
        """Counts an attempt of a client and returns 0, or returns how long it has to wait and counts nothing."""
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
        """Forgets the attempts of a client that has given the right password."""
        self._by_client.pop(client, None)


class _Waiting(NamedTuple):
    may_pass: asyncio.Future[None]
    is_gone: Callable[[], bool]


def _let_gone_pass(waiting: deque[_Waiting]) -> bool:
    """Removes requests whose clients no longer wait for an answer; returns whether there were any."""
    gone = [each for each in waiting if each.may_pass.done() or each.is_gone()]
    for each in gone:
        waiting.remove(each)
        if not each.may_pass.done():
            each.may_pass.set_result(None)
    return bool(gone)


def _wait(tries: deque[float], most: int, now: float) -> float:
    while tries and now - tries[0] >= _PER_SECONDS:
        tries.popleft()
    return 0.0 if len(tries) < most else tries[0] + _PER_SECONDS - now
