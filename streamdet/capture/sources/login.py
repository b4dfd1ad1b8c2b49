"""Answers a server that asks for a login: Digest (RFC 7616) and Basic (RFC 7617), by HTTP and RTSP alike."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_HASHES: dict[str, Callable[[bytes], hashlib._Hash]] = {
    "SHA-512-256": lambda data: hashlib.new("sha512_256", data),
    "SHA-256": hashlib.sha256,
    "MD5": hashlib.md5,
}
_SESSION = "-SESS"
# The best first; which of them a server accepts, it says.
_METHODS = ("SHA-512-256", "SHA-256", "MD5", "BASIC")
KNOWN = "Digest with SHA-256 or MD5, and Basic"
_LONGEST_HEADER = 8192
_MOST_CHALLENGES = 16

_CHARACTER = r"[A-Za-z0-9!#$%&'*+.^_`|~-]"
# Each begins where a word begins and is taken whole, so that a long header takes time in proportion to its length.
_TOKEN = rf"(?<!{_CHARACTER})({_CHARACTER}++)"
_VALUE = r'(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]*+))'
_NEXT = re.compile(rf"{_TOKEN}(?:\s*+=\s*+{_VALUE}|(?=\s|,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to log in that a server offers.

    Attributes:
        scheme: such as "digest", in small letters.
        parameters: by their names in small letters.
    """

    scheme: str
    parameters: dict[str, str]

    @property
    def method(self) -> str:
        """Such as "SHA-256" or "BASIC"; "" for an unknown one."""
        if self.scheme == "basic":
            return "BASIC"
        qop = self.parameters.get("qop")
        knows_qop = qop is None or "auth" in re.split(r"[\s,]+", qop.lower())
        if self.scheme != "digest" or "nonce" not in self.parameters or not knows_qop:
            return ""
        name = self.parameters.get("algorithm", "MD5").upper().removesuffix(_SESSION)
        return name if name in _HASHES else ""

    def __str__(self) -> str:
        algorithm = self.parameters.get("algorithm", "")
        algorithm = f" {algorithm[:20]}" if re.fullmatch(f"{_CHARACTER}+", algorithm) else ""
        return f"{self.scheme[:20].capitalize()}{algorithm}"


def challenges_in(headers: Sequence[str]) -> list[Challenge]:
    """All ways in the WWW-Authenticate headers of one answer, of which each may hold several."""
    found: list[Challenge] = []
    for header in headers[:_MOST_CHALLENGES]:
        for match in _NEXT.finditer(header[:_LONGEST_HEADER]):
            word, quoted, bare = match.groups()
            if quoted is None and bare is None:
                if len(found) == _MOST_CHALLENGES:
                    return found
                found.append(Challenge(word.lower(), {}))
            elif found:
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
                found[-1].parameters.setdefault(word.lower(), value)
    return found


class Login:
    """The login of one server, and what that server has asked for; for one thread.

    Args:
        user: its name.
        password: not encoded.
    """

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._challenge: Challenge | None = None
        self._count = 0
        self._refused: set[str] = set()

    @classmethod
    def of_url(cls, url: str) -> Login | None:
        """The login in a url; None if the url has no login."""
        parts = urlsplit(url)
        if parts.username is None:
            return None
        return cls(unquote(parts.username), unquote(parts.password or ""))

    @property
    def method(self) -> str:
        """Of the challenge that was chosen: "SHA-256", "MD5" or "BASIC"; "" before the first."""
        return "" if self._challenge is None else self._challenge.method

    @property
    def is_session(self) -> bool:
        """Whether the algorithm is one of those with -sess behind their name."""
        parameters = {} if self._challenge is None else self._challenge.parameters
        return parameters.get("algorithm", "").upper().endswith(_SESSION)

    def choose(self, challenges: Sequence[Challenge]) -> bool:
        """Takes the best method that a server offers; false if it offers no known one, or each was refused."""
        known = [challenge for challenge in challenges if challenge.method and challenge.method not in self._refused]
        if not known:
            return False
        self._challenge = min(known, key=lambda challenge: _METHODS.index(challenge.method))
        self._count = 0
        return True

    def was_refused(self, challenges: Sequence[Challenge]) -> None:
        """The server asks again, although it has just got what it asked for: from now on another way is tried.

        Args:
            challenges: of its answer; one that says "stale" is no refusal, but asks for the same with a new nonce.
        """
        if not any(challenge.parameters.get("stale", "").lower() == "true" for challenge in challenges):
            self._refused.add(self.method)

    def header(self, method: str, uri: str) -> str | None:
        """The value of an Authorization header; None before a challenge was chosen.

        Args:
            method: of the request, such as "GET".
            uri: as in the first line of the request.
        """
        challenge = self._challenge
        if challenge is None:
            return None
        if challenge.scheme == "basic":
            return "Basic " + base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        self._count += 1
        return _digest(challenge, self._user, self._password, method, uri, self._count)


def _digest(challenge: Challenge, user: str, password: str, method: str, uri: str, count: int) -> str:
    asked = challenge.parameters
    algorithm = asked.get("algorithm", "MD5")
    realm, nonce, cnonce, number = asked.get("realm", ""), asked["nonce"], os.urandom(8).hex(), f"{count:08x}"

    def hashed(*parts: str) -> str:
        return _HASHES[challenge.method](":".join(parts).encode()).hexdigest()

    secret = hashed(user, realm, password)
    if algorithm.upper().endswith(_SESSION):
        secret = hashed(secret, nonce, cnonce)
    request = hashed(method, uri)
    with_qop = "qop" in asked
    response = hashed(secret, nonce, number, cnonce, "auth", request) if with_qop else hashed(secret, nonce, request)
    hides_user = asked.get("userhash", "").lower() == "true"
    fields = {
        "username": _quoted(hashed(user, realm) if hides_user else user),
        "realm": _quoted(realm),
        "nonce": _quoted(nonce),
        "uri": _quoted(uri),
        "response": _quoted(response),
    }
    if "algorithm" in asked:
        fields["algorithm"] = algorithm
    if "opaque" in asked:
        fields["opaque"] = _quoted(asked["opaque"])
    if with_qop:
        fields |= {"qop": "auth", "nc": number, "cnonce": _quoted(cnonce)}
    elif algorithm.upper().endswith(_SESSION):
        fields["cnonce"] = _quoted(cnonce)
    if hides_user:
        fields["userhash"] = "true"
    return "Digest " + ", ".join(f"{name}={value}" for name, value in fields.items())


def _quoted(text: str) -> str:
    escaped = re.sub(r'(["\\])', r"\\\1", re.sub(r"[\r\n\0]", "", text))
    return f'"{escaped}"'


def with_password(url: str) -> str:
    """The same address, with an empty password for a user without one: otherwise FFmpeg would not log in."""
    parts = urlsplit(url)
    login, at, server = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login}:@{server}").geturl() if at and ":" not in login else url
