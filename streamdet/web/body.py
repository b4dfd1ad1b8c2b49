"""Reads the body of a request, up to a limit."""

from __future__ import annotations

from starlette.requests import Request

from streamdet.errors import StreamdetError


class BadRequestError(StreamdetError):
    """A browser sent what this version of the page would not send."""


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        BadRequestError: it has more bytes than `limit`.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            message = f"the body has more than {limit} bytes"
            raise BadRequestError(message)
    return body
