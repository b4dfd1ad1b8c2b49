"""Why a stream could not be opened or read, in one word and one line."""

from __future__ import annotations

import errno
from urllib.parse import urlsplit

import av

from streamdet.capture.sources.diagnosis import address_of, look_at_connection
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.errors import SourceError
from streamdet.security.redact import redact
from streamdet.types import Reason

_Table = tuple[tuple[type[Exception], Reason, str], ...]

# FFmpeg is exact about these.
_NETWORK: _Table = (
    (av.HTTPUnauthorizedError, Reason.UNAUTHORIZED, "{where} {login} (401)"),
    (av.HTTPForbiddenError, Reason.UNAUTHORIZED, "{where} forbids access to this path (403)"),
    (av.HTTPNotFoundError, Reason.NOT_FOUND, "{where} has no stream at this path (404)"),
    (ConnectionRefusedError, Reason.REFUSED, "{where} refuses the connection"),
    (av.DecoderNotFoundError, Reason.UNSUPPORTED_CODEC, "there is no decoder for it"),
    (av.error.MemoryError, Reason.DECODE_ERROR, "{where} sends a picture that takes too much memory"),
)
# These mean many things; they count when the connection itself shows nothing wrong.
_NETWORK_VAGUE: _Table = (
    (av.HTTPError, Reason.REFUSED, "{where} refuses: {text}"),
    (av.ExitError, Reason.TIMEOUT, "{where} does not answer in time"),
    (TimeoutError, Reason.TIMEOUT, "{where} does not answer in time"),
    (ConnectionError, Reason.ENDED, "{where} has closed the connection"),
    (av.EOFError, Reason.ENDED, "{where} has closed the connection"),
    # "Input/output error": what HTTP began does not come to its end.
    (OSError, Reason.ENDED, "{where} has broken off: {text}"),
    (Exception, Reason.DECODE_ERROR, "what {where} sends cannot be read: {text}"),
)
_FILE: _Table = (
    (FileNotFoundError, Reason.NOT_FOUND, "there is no such file"),
    (NotADirectoryError, Reason.NOT_FOUND, "there is no such file"),
    (IsADirectoryError, Reason.NO_VIDEO, "it is a folder, not a file"),
    (PermissionError, Reason.UNAUTHORIZED, "it may not be read: permission denied"),
    (av.DecoderNotFoundError, Reason.UNSUPPORTED_CODEC, "there is no decoder for it"),
    (av.InvalidDataError, Reason.DECODE_ERROR, "it is not a video, or a damaged one"),
    (Exception, Reason.DECODE_ERROR, "it cannot be read: {text}"),
)


def failure_of(error: Exception, config: StreamConfig) -> SourceError:
    """Turns an error of PyAV into one of ours; its whole text, which holds the URL, is not taken over.

    FFmpeg's error says it exactly in most cases. In the others (a name that is not known, a certificate that is
    not trusted and a server that hangs up are all "Input/output error") a look at the connection itself tells.

    Args:
        error: what PyAV raised.
        config: of the stream.
    """
    if kind_of_url(config.url) is UrlKind.FILE:
        return _from_table(_FILE, error, config) or SourceError(Reason.DECODE_ERROR, "it cannot be read")
    # FFmpeg's word for redirections that lead round in circles, among much else.
    ask_http = isinstance(error, OSError) and error.errno == errno.EIO
    found = _from_table(_NETWORK, error, config) or look_at_connection(config, ask_http=ask_http)
    vague = _from_table(_NETWORK_VAGUE, error, config)
    return found or vague or SourceError(Reason.DECODE_ERROR, "it cannot be read")


def refuse_text(codec: str) -> None:
    """Refuses text files, which FFmpeg would show as pictures of their letters.

    Raises:
        SourceError: no_video.
    """
    if codec in ("ansi", "bintext", "xbin", "idf"):
        raise SourceError(Reason.NO_VIDEO, "it is a text, not a video")


def _from_table(table: _Table, error: Exception, config: StreamConfig) -> SourceError | None:
    for kind, reason, detail in table:
        if isinstance(error, kind):
            has_login = urlsplit(config.url).username is not None
            login = "refuses this login" if has_login else "wants a login, and the url has none"
            where = ":".join(map(str, address_of(config)))
            # What PyAV puts behind `strerror` is the URL.
            text = redact(getattr(error, "strerror", None) or type(error).__name__)
            return SourceError(reason, detail.format(where=where, login=login, text=text))
    return None
