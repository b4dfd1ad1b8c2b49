"""Who is subscribed to what, told apart by connection.

ZeroMQ passes on that a connection does not want a prefix any more even where it never wanted it, or has said so
before. Taken at its word, one subscriber would switch off what others look at: so it can only take back its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

SUBSCRIBE, UNSUBSCRIBE = b"\x01", b"\x00"
# Of one connection to one prefix each. More are not remembered: they are not counted, and never taken back.
_MAX_SUBSCRIPTIONS = 100_000
# Looking which connections have ended takes some microseconds for each.
_PAUSE_SECONDS = 0.1
# The descriptor of one that has ended may have become that of another, which is noticed when that one ends.
_LOOK_AGAIN_SECONDS = 5.0


class Subscriptions:
    """Keeps which connections are subscribed to which prefix; for the one thread that reads the socket.

    Args:
        is_open: whether a connection, by its descriptor, has not ended.
        clock: monotonic seconds.
    """

    def __init__(self, is_open: Callable[[int], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._is_open = is_open
        self._clock = clock
        self._by_connection: dict[int, set[bytes]] = {}
        # How many connections are subscribed to each prefix.
        self._readers: dict[bytes, int] = {}
        self._count = 0
        self._some_ended = False
        self._looked_at = clock()

    def __len__(self) -> int:
        """How many prefixes there are."""
        return len(self._readers)

    def note(self, message: bytes, descriptor: int | None) -> bytes | None:
        """Takes a message of an XPUB socket that passes on every one, also of prefixes that others want, too.

        Args:
            message: 1 (subscribe) or 0 (unsubscribe), then the prefix.
            descriptor: of the connection that sent it; None where ZeroMQ says that one that was subscribed has ended.

        Returns:
            The message where it is news: a connection subscribes, or the last one does not want the prefix any more.
        """
        prefix = message[1:]
        if descriptor is None:
            self._some_ended = True
            return None
        own = self._by_connection.get(descriptor, set())
        if message[:1] == SUBSCRIBE:
            if prefix not in own and self._count < _MAX_SUBSCRIPTIONS:
                own.add(prefix)
                self._by_connection[descriptor] = own
                self._readers[prefix] = self._readers.get(prefix, 0) + 1
                self._count += 1
            return message
        if prefix not in own:
            return None
        own.remove(prefix)
        if not own:
            del self._by_connection[descriptor]
        return message if self._is_last(prefix) else None

    def ended(self) -> Iterator[bytes]:
        """Messages about prefixes to which only connections were subscribed that have ended."""
        now = self._clock()
        if now - self._looked_at < (_PAUSE_SECONDS if self._some_ended else _LOOK_AGAIN_SECONDS):
            return
        self._some_ended, self._looked_at = False, now
        for descriptor in list(self._by_connection):
            if self._is_open(descriptor):
                continue
            for prefix in self._by_connection.pop(descriptor):
                if self._is_last(prefix):
                    yield UNSUBSCRIBE + prefix

    def _is_last(self, prefix: bytes) -> bool:
        """Counts one less."""
        self._count -= 1
        self._readers[prefix] -= 1
        if self._readers[prefix]:
            return False
        del self._readers[prefix]
        return True
