"""Masks secrets in everything that people read: logs, events, metrics, error messages.

It works in two ways. Known secrets (`remember_secret`) are masked everywhere, raw or escaped. Text that looks
like a secret (the login in a URL, a token in a query, an `Authorization` header) is masked even if it is not known.
Where a text is ambiguous, too much is masked rather than too little.
"""

from __future__ import annotations

import base64
import functools
import re
import threading
from collections.abc import Callable
from urllib.parse import unquote

MASK = "***"

# Shorter values are found in ordinary text so often that masking them would make logs unreadable. In the login part of
# a URL they are masked anyway.
_SHORTEST_SECRET = 3
# Values below this length are masked only as a word of their own: "1234" must not destroy "frame 51234".
_SHORTEST_ANYWHERE = 8

# One URL that directly follows another ("rtsp://a:b@c,rtsp://d:e@f") begins at one of these; text
# before another "://" may as well belong to a password.
_NEXT_URL = re.compile(r"(?<![A-Za-z0-9])(?=(?:rtsps?|rtmps?|https?|wss?|ftp|file|tcp|udp|ipc)://)", re.IGNORECASE)
# "://", also as JSON may escape it.
_AFTER_SCHEME = re.compile(r":\\?/\\?/")
_WORD = re.compile(r"\S+")

_ANYWHERE_NAME = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key)"
_QUERY_WORD = "pass|pas|pwd|secret|token|key|auth|sig|credential|session|jwt|user|usr|login"
_QUERY_NAME = rf"[\w.~%-]{{0,40}}(?:{_QUERY_WORD})[\w.~%-]{{0,40}}"
_QUERY = re.compile(rf"([?&;]{_QUERY_NAME}=|(?<![A-Za-z0-9]){_ANYWHERE_NAME}=)[^&\s\"'<>]*", re.IGNORECASE)
# As in an environment or an environment file: FRONT_DOOR_LOGIN=user:password.
_VARIABLE = re.compile(
    r"(?<![A-Za-z0-9_?&;{-])((?:[A-Z0-9]{1,40}_){0,9}(?:LOGIN|PASS|PW|AUTH|CREDENTIALS?|KEY|TOKEN|SECRET)=)"
    r"(?:\"[^\"\r\n]*\"|'[^'\r\n]*'|[^\s\"'<>]*)"
)
# A reference is no secret, but what to write instead of one.
_REFERENCE = r"\$\{[A-Za-z_][A-Za-z0-9_.-]*\}"
_REFERENCES = re.compile(rf"{_REFERENCE}(?::{_REFERENCE})?")
_HEADER = re.compile(
    r"((?:authorization|(?:set-)?cookie|x-api-key|x-auth-token)\\?[\"']?\s*[:=]|\bdigest\s+(?=username=))[^\r\n]*",
    re.IGNORECASE,
)

# More than all streams of one configuration have. Reading a configuration remembers its secrets again, so the oldest
# ones, which are forgotten beyond this, belong to configurations that were replaced long ago.
_MAX_REMEMBERED = 50_000

# Reentrant, because a signal handler may log while this thread remembers.
_lock = threading.RLock()
_remembered: dict[str, None] = {}  # the last remembered comes last
# Each secret with its longest run of letters and digits, which every spelling keeps; longest first, so that no part of
# a secret stays behind. None where it has to be made again.
_longest_first: tuple[tuple[str, str], ...] | None = ()


def redact(text: str | bytes) -> str:
    """Returns the text with every secret replaced by `***`.

    Args:
        text: anything; bytes are read as UTF-8, and what is not UTF-8 is shown escaped.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    for core, secret in _known():
        if core in text:
            text = _spellings(secret).sub(MASK, text)
    if "/" in text:
        text = _WORD.sub(_mask_logins, text)
    text = _QUERY.sub(_mask_value, text)
    text = _VARIABLE.sub(_mask_value, text)
    return _HEADER.sub(rf"\1 {MASK}", text)


def remember_secret(value: str) -> None:
    """Masks a value from now on, raw, percent-encoded or escaped.

    Of a login `user:password` the password is masked on its own too, and the whole also in base64; the user name is
    masked only in URLs and logins, because it is often an ordinary word. Values of fewer than three characters are not
    remembered: they would be found in every line.
    """
    values = {value, value.strip(), unquote(value)}
    for login in tuple(values):
        _user, colon, password = login.partition(":")
        if colon:
            values |= {password, base64.b64encode(login.encode("utf-8", "surrogatepass")).decode()}
    global _longest_first  # noqa: PLW0603 - the memory is one per process, as the log is
    with _lock:
        for secret in values:
            if len(secret) < _SHORTEST_SECRET or not secret.strip("*"):
                continue
            if secret in _remembered:
                del _remembered[secret]
            else:
                _longest_first = None
            _remembered[secret] = None
        while len(_remembered) > _MAX_REMEMBERED:
            del _remembered[next(iter(_remembered))]


def remember_url(url: str) -> None:
    """Remembers what is secret in a URL: its login, and query values with names such as `token`."""
    rest = url.partition("://")[2]
    login, at, _ = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")
    if at:
        remember_secret(login)
    # A password with / or # that was not encoded.
    raw, at, _ = rest.rpartition("@")
    if at and raw != login:
        remember_secret(raw)
    for match in _QUERY.finditer(rest):
        remember_secret(match[0].removeprefix(match[1]))


def replace_secrets(url: str, replacement: Callable[[str, str], str]) -> str:
    """A url with something else in place of its login, and of the passwords and tokens in its query.

    Args:
        url: a valid one.
        replacement: takes what a secret is (LOGIN, or the name of the query value in capitals) and the secret, and
            returns what replaces it.
    """
    scheme, separator, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, host = authority.rpartition("@")
    if login:
        rest = f"{replacement('LOGIN', login)}{at}{host}{rest[len(authority) :]}"

    def in_query(match: re.Match[str]) -> str:
        value = match[0].removeprefix(match[1])
        what = re.sub(r"[^A-Z0-9]+", "_", match[1].strip("?&;=").upper())
        return f"{match[1]}{replacement(what, value)}" if value else match[0]

    return f"{scheme}{separator}{_QUERY.sub(in_query, rest)}" if separator else url


def forget_secrets() -> None:
    """Forgets all remembered values; for tests, which must not change each other's output."""
    global _longest_first  # noqa: PLW0603 - the memory is one per process, as the log is
    with _lock:
        _remembered.clear()
        _longest_first = ()


def _known() -> tuple[tuple[str, str], ...]:
    global _longest_first  # noqa: PLW0603 - the memory is one per process, as the log is
    known = _longest_first
    if known is None:
        with _lock:
            known = tuple((_core(secret), secret) for secret in sorted(_remembered, key=len, reverse=True))
            _longest_first = known
    return known


def _core(secret: str) -> str:
    return max(re.findall(r"[A-Za-z0-9]+", secret), key=len, default="")


@functools.lru_cache(maxsize=1024)
def _spellings(secret: str) -> re.Pattern[str]:
    """Matches a secret in all its spellings."""
    pattern = "".join(map(_character_pattern, secret))
    if len(secret) >= _SHORTEST_ANYWHERE:
        return re.compile(pattern)
    # A word of its own may also follow an escape: user%3Asecret, \nsecret.
    return re.compile(rf"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{{2}})|(?<=\\[nrt])){pattern}(?![A-Za-z0-9])")


def _character_pattern(character: str) -> str:
    """Matches a character raw, percent-encoded, and as JSON or `repr` would escape it."""
    if character.isascii() and character.isalnum():
        return character
    encoded = character.encode("utf-8", "surrogatepass")
    forms = [
        re.escape(character),
        "".join(f"(?i:%{byte:02x})" for byte in encoded),
        "".join(rf"\\x{byte:02x}" for byte in encoded),
        rf"\\u(?i:{ord(character):04x})",
    ]
    if character in "\"'/":
        forms.append(rf"\\+{character}")
    if character == "\\":
        forms.insert(0, r"\\{2}")
    if character == " ":
        forms.append(r"\+")
    return f"(?:{'|'.join(forms)})"


def _mask_logins(word: re.Match[str]) -> str:
    """Masks the login of every URL in a run of characters without white space.

    The login ends at the last `@`, since passwords are often written into URLs with `@`, `:` and `/` unescaped.
    """
    return "".join(map(_mask_login, _NEXT_URL.split(word[0])))


def _mask_login(url: str) -> str:
    scheme = _AFTER_SCHEME.search(url)
    if scheme is None:
        return url
    begin, end = scheme.end(), url.rfind("@")
    if _REFERENCES.fullmatch(url, begin, max(begin, end)):
        return url
    return f"{url[:begin]}{MASK}{url[end:]}" if end > begin else url


def _mask_value(match: re.Match[str]) -> str:
    """`name=` without what is behind it, unless that is a reference."""
    if _REFERENCES.fullmatch(match[0], match.end(1) - match.start()):
        return match[0]
    return f"{match[1]}{MASK}"
