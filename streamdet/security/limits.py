"""Rates and shares of time that may not be exceeded for long."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple


class Rate:
    """Lets `per_second` things pass per second, and after a pause as many at once; for one thread.

    Args:
        per_second: how many.
        clock: monotonic seconds.
    """

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._clock = clock
        self._left = float(per_second)
        self._at = clock()

    def passes(self) -> bool:
        """Whether another one may pass now; if so, it has."""
        now = self._clock()
        self._left = min(self._left + (now - self._at) * self.per_second, float(self.per_second))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Share:
    """Lets work take a share of the time, and after a pause a burst of it; for one thread.

    Args:
        share: of the time, above 0 and at most 1.
        burst_seconds: of work that may be done at once after a pause.
        clock: monotonic seconds.
    """

    def __init__(self, share: float, burst_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._burst_seconds = burst_seconds
        self._clock = clock
        self._left_seconds = burst_seconds
        self._at = clock()

    def wait_seconds(self) -> float:
        """How long to wait before more may be done; 0 when it may be done now."""
        self._refill()
        return 0.0 if self._left_seconds > 0 else -self._left_seconds / self._share

    def worked(self, seconds: float) -> None:
        """Notes that so much time was spent."""
        self._refill()
        self._left_seconds -= seconds

    def _refill(self) -> None:
        now = self._clock()
        self._left_seconds = min(self._left_seconds + (now - self._at) * self._share, self._burst_seconds)
        self._at = now


class FairRate:
    """Lets `per_second` requests pass per second, and after a pause as many at once; the others wait for their turn.

    Clients take turns, so that one that asks all the time delays the others by a moment only. Belongs to one event
    loop.

    Args:
        per_second: how many.
        most_waiting: requests of one client that may wait.
    """

    def __init__(self, per_second: int, most_waiting: int) -> None:
        self._rate = Rate(per_second)
        self._most_waiting = most_waiting
        # The client whose turn is next comes first.
        self._waiting: dict[str, deque[_Waiting]] = {}

    async def turn(self, client: str, is_gone: Callable[[], bool]) -> bool:
        """Waits until a request of this client may pass; false at once when too many of its requests wait already.

        Args:
            client: who asks.
            is_gone: whether it does not wait for an answer any more; then its turn is given to the next one.
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


class _Waiting(NamedTuple):
    may_pass: asyncio.Future[None]
    is_gone: Callable[[], bool]


def _let_gone_pass(waiting: deque[_Waiting]) -> bool:
    """Takes out those that do not wait for an answer any more; whether there were any."""
    gone = [each for each in waiting if each.may_pass.done() or each.is_gone()]
    for each in gone:
        waiting.remove(each)
        if not each.may_pass.done():
            each.may_pass.set_result(None)
    return bool(gone)


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
