"""Who has logged in."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_SESSIONS = 1000
MAX_AGE_SECONDS = 7 * 24 * 3600.0
MAX_IDLE_SECONDS = 12 * 3600.0


class Sessions:
    """Tokens of those who have logged in; only their hashes are kept, so that a look at the memory opens nothing.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By hash of the token: when it began, when it was used last.
        self._sessions: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def begin(self) -> str:
        """A token for who has just shown the password; the oldest session ends when there are too many."""
        token = secrets.token_urlsafe(32)
        now = self._clock()
        self._sessions[_hash(token)] = (now, now)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return token

    def is_open(self, token: str) -> bool:
        """Whether the token is one of ours and not too old; counts as use."""
        key, now = _hash(token), self._clock()
        began, used = self._sessions.get(key, (float("-inf"), float("-inf")))
        if now - began > MAX_AGE_SECONDS or now - used > MAX_IDLE_SECONDS:
            self._sessions.pop(key, None)
            return False
        self._sessions[key] = (began, now)
        return True

    def end(self, token: str) -> None:
        """Forgets a token."""
        self._sessions.pop(_hash(token), None)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
