"""Fetches the picture that an event names: when to send which request, and what the answers mean.

`PictureFetch` neither sends nor receives, so it works for threads and for asyncio.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from streamdet.errors import EndpointError, WireError
from streamdet.types import AlertEvent, ObjectEvent, PictureInfo
from streamdet.wire.replay import FetchedPicture, PictureRequest, Refused, decode_answer, encode_request

Pictured = ObjectEvent | AlertEvent | PictureInfo | str | None
"""What may name a picture: an event, its `PictureInfo`, or the id of the picture."""

# An answer may be lost, and a picture may still have to be written.
_ASK_AGAIN_SECONDS = 2.0
_BUSY_SECONDS = 0.25

_ids = itertools.count(1)


def picture_info(pictured: Pictured) -> PictureInfo | None:
    """The description of the picture; None if there is no picture."""
    if isinstance(pictured, ObjectEvent | AlertEvent):
        return pictured.picture
    return PictureInfo(pictured, 0, 0, 0, None) if isinstance(pictured, str) else pictured


class PictureFetch:
    """The fetching of one picture.

    Args:
        info: describes the picture; None if there is no picture.
        now: monotonic seconds.
        timeout_seconds: from now on.

    Attributes:
        is_done: whether `jpeg` is final.
        jpeg: the picture; None if there is no picture.
    """

    def __init__(self, info: PictureInfo | None, now: float, timeout_seconds: float) -> None:
        self.is_done = info is None or info.jpeg is not None
        self.jpeg = None if info is None else info.jpeg
        self._request = PictureRequest(next(_ids), "" if info is None else info.picture_id)
        self._ask_at = now
        self._until = now + timeout_seconds
        self._timeout_seconds = timeout_seconds

    def request(self, now: float) -> bytes | None:
        """The request to send now; None if nothing is to be sent.

        Raises:
            TimeoutError: `timeout_seconds` are over.
        """
        if self.is_done:
            return None
        if now >= self._until:
            message = f"no picture within {self._timeout_seconds:g} seconds"
            raise TimeoutError(message)
        if now < self._ask_at:
            return None
        self._ask_at = now + _ASK_AGAIN_SECONDS
        return encode_request(self._request)

    def answer(self, parts: Sequence[bytes], now: float) -> None:
        """Handles an answer; one to an earlier request is ignored, and one that cannot be read counts as lost.

        Raises:
            EndpointError: the daemon cannot answer.
        """
        try:
            answer = decode_answer(parts)
        except WireError:
            return
        if answer.id != self._request.id:
            return
        if isinstance(answer, FetchedPicture):
            self.jpeg, self.is_done = answer.jpeg, True
        elif isinstance(answer, Refused) and answer.code == "not_found":
            self.is_done = True
        elif isinstance(answer, Refused) and answer.code in ("busy", "too_many"):
            self._ask_at = now + _BUSY_SECONDS
        else:
            why = answer.message if isinstance(answer, Refused) else "it sent another answer"
            message = f"the daemon refuses the picture: {why}"
            raise EndpointError(message)

    def wait_milliseconds(self, now: float) -> int:
        """How long to wait for an answer, rounded up."""
        return max(0, math.ceil((min(self._ask_at, self._until) - now) * 1000))
