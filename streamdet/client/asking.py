"""The requests that a subscriber has under way: what is sent when, how many at once, and when again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from streamdet.wire.replay import Request, encode_request

_MAX_ASKED = 8
_ASK_AGAIN_SECONDS = 2.0
# A daemon that has much to read answers late: asking again and again would only add to it.
_MAX_ASK_AGAIN_SECONDS = 8.0
_REFUSED_SECONDS = 0.25

Subject = TypeVar("Subject")


@dataclass(slots=True)
class Asked(Generic[Subject]):
    """One request.

    Attributes:
        request: as it is sent.
        subject: what it is about; None for everything.
        send_at: when it is due, in monotonic seconds.
        is_sent: whether an answer may come.
        tries: how often it was sent since the daemon refused it.
        waits_since: when it was sent first, in monotonic seconds.
        is_fruitless: whether it was answered, and the answer brought nothing.
    """

    request: Request
    subject: Subject | None
    send_at: float
    is_sent: bool = False
    tries: int = 0
    waits_since: float = math.inf
    is_fruitless: bool = False


class PendingRequests(Generic[Subject]):
    """All requests that are under way, by their id.

    Attributes:
        not_before: nothing is sent earlier, in monotonic seconds; the daemon has asked for that.
    """

    def __init__(self) -> None:
        self.not_before = 0.0
        self._last_id = 0
        self._asked: dict[int, Asked[Subject]] = {}

    @property
    def asks_for_all(self) -> bool:
        """Whether one of them is about everything."""
        return any(asked.subject is None for asked in self._asked.values())

    def ask(self, subject: Subject | None, request: Request, now: float) -> int:
        """Has something asked for as soon as there is room; its id."""
        self._last_id += 1
        self._asked[self._last_id] = Asked(replace(request, id=self._last_id), subject, now)
        return self._last_id

    def get(self, number: int) -> Asked[Subject] | None:
        """One of them; None when it is not under way any more."""
        return self._asked.get(number)

    def all(self) -> list[tuple[int, Asked[Subject]]]:
        """Each with its id, the oldest first."""
        return list(self._asked.items())

    def subjects(self) -> Iterator[Subject]:
        """What they are about, each, but everything."""
        return (asked.subject for asked in self._asked.values() if asked.subject is not None)

    def done(self, number: int) -> None:
        """It was answered, or is given up."""
        del self._asked[number]

    def refused(self, asked: Asked[Subject], now: float) -> None:
        """The daemon wants to be asked later."""
        self.not_before = now + _REFUSED_SECONDS
        asked.is_sent, asked.send_at, asked.tries = False, self.not_before, 0

    def requests(self, now: float) -> list[bytes]:
        """What is to be sent now."""
        if now < self.not_before:
            return []
        sent = sum(asked.is_sent for asked in self._asked.values())
        requests = []
        for asked in self._asked.values():
            if asked.send_at > now or (not asked.is_sent and sent >= _MAX_ASKED):
                continue
            sent += not asked.is_sent
            asked.is_sent = True
            asked.send_at = now + min(_ASK_AGAIN_SECONDS * 2**asked.tries, _MAX_ASK_AGAIN_SECONDS)
            asked.tries += 1
            asked.waits_since = min(asked.waits_since, now)
            requests.append(encode_request(asked.request))
        return requests

    def due(self) -> float:
        """When the next one is to be sent, in monotonic seconds; infinity for never."""
        dues = [asked.send_at for asked in self._asked.values() if asked.is_sent]
        if len(dues) < _MAX_ASKED:
            dues += [asked.send_at for asked in self._asked.values() if not asked.is_sent]
        return min(dues, default=math.inf)
