"""Sends SOAP 1.2 requests to one camera, with its login, and reads the answers as hostile input.

A login is sent only as a digest: whatever answers a search may pretend to be a camera. Redirections are not followed,
and a document type, which could define entities, is refused.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import escape
from http import HTTPStatus
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from streamdet.capture.sources.connections import ConnectionBudget
from streamdet.capture.sources.diagnosis import failure_of_connection
from streamdet.capture.sources.http_client import SENSELESS
from streamdet.capture.sources.login import Challenge, Login, challenges_in
from streamdet.config.addresses import has_control
from streamdet.errors import SourceError
from streamdet.security.plain_text import plain
from streamdet.types import Reason

ENVELOPE = "http://www.w3.org/2003/05/soap-envelope"
"""The namespace of SOAP 1.2."""
# OASIS Web Services Security, UsernameToken Profile 1.0.
_WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
_WSU = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
_DIGEST = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordDigest"
_NONCE_BYTES = 16
# Answers of cameras with dozens of profiles have about 100 kB.
_MAX_ANSWER_BYTES = 1 << 20
_MAX_DEPTH = 64
_MAX_ELEMENTS = 50_000
_MAX_TEXT_CHARACTERS = 200
# The first without a challenge, one with it, and one more where the nonce is out of date.
_TRIES = 3
_NOT_AUTHORIZED = ("notauthorized", "not authorized", "unauthorized", "failedauthentication")


def read_xml(data: bytes) -> Element:
    """Reads a document; the names of its elements are without their namespaces.

    Raises:
        ValueError: it is not well-formed, has a document type, or has too many or too deeply nested elements.
    """
    builder = TreeBuilder()
    depth = elements = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > _MAX_DEPTH or elements > _MAX_ELEMENTS:
            problem = "it has too many elements"
            raise ValueError(problem)
        builder.start(_local(name), attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(name))

    def refuse(*_: object) -> None:
        problem = "it has a document type"
        raise ValueError(problem)

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    # Without one there are no entities besides those of XML itself.
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)  # noqa: FBT003 - expat takes no keywords
    except (expat.ExpatError, LookupError) as error:
        problem = f"it is not XML: {error}"
        raise ValueError(problem) from None
    return builder.close()


def find(element: Element | None, *names: str) -> Element | None:
    """The first element at a path below another; None where there is none."""
    return next(find_all(element, *names), None)


def find_all(element: Element | None, *names: str) -> Iterator[Element]:
    """All elements at a path below another."""
    if element is not None:
        # Of the last name only: what leads there occurs once.
        parent = element.find("/".join(names[:-1])) if len(names) > 1 else element
        yield from () if parent is None else parent.findall(names[-1])


def text_of(element: Element | None, *names: str) -> str:
    """The text of an element at a path below another, safe to show; "" where there is none."""
    return plain(raw_text_of(element, *names), _MAX_TEXT_CHARACTERS)


def raw_text_of(element: Element | None, *names: str) -> str:
    """The same as it was sent, without white space around it."""
    found = find(element, *names) if names else element
    return "" if found is None or found.text is None else found.text.strip()


class SoapClient:
    """Asks one camera, within a budget of time; for one thread.

    Args:
        budget: of all its connections.
        login: user and password; None for none.

    Attributes:
        clock_skew_seconds: how far the camera's clock is ahead of ours; the digest contains its time.
    """

    def __init__(self, budget: ConnectionBudget, login: tuple[str, str] | None) -> None:
        self._budget = budget
        self._login = login
        # Once the camera has asked for HTTP's own digest; then it gets no other.
        self._http_login: Login | None = None
        self.clock_skew_seconds = 0.0

    def ask(self, address: str, namespace: str, name: str, body: str = "", *, logged_in: bool = True) -> Element:
        """Sends a request and returns the element `{name}Response`.

        Args:
            address: of the service, http:// or https://, without a login.
            namespace: of the service.
            name: of the operation, such as "GetProfiles".
            body: XML of its parameters, in the namespace `t`.
            logged_in: whether the login goes with it.

        Raises:
            SourceError: there is no answer, the login is refused, or the camera reports a fault.
        """
        where = urlsplit(address).netloc
        for _ in range(_TRIES):
            token = self._login if logged_in and self._http_login is None else None
            envelope = _envelope(namespace, name, body, self._token(token))
            status, offers, data = self._post(address, f"{namespace}/{name}", envelope, logged_in=logged_in)
            if status != HTTPStatus.UNAUTHORIZED or not logged_in or not self._takes(offers):
                break
        return self._response(status, data, name, where)

    def _takes(self, offers: list[Challenge]) -> bool:
        """Whether one of the ways to log in that the server offers is new, and is a digest."""
        if self._login is None:
            return False
        if self._http_login is None:
            self._http_login = Login(*self._login)
        elif self._http_login.method:
            self._http_login.was_refused(offers)
        return self._http_login.choose([offer for offer in offers if offer.scheme == "digest"])

    def _token(self, login: tuple[str, str] | None) -> str:
        if login is None:
            return ""
        user, password = login
        nonce = os.urandom(_NONCE_BYTES)
        at = datetime.now(UTC) + timedelta(seconds=self.clock_skew_seconds)
        created = at.strftime("%Y-%m-%dT%H:%M:%SZ")
        # As the profile demands; the nonce and the time make it good for one request.
        digest = hashlib.sha1(nonce + created.encode() + password.encode(), usedforsecurity=False).digest()
        return (
            f'<s:Header><w:Security xmlns:w="{_WSSE}" s:mustUnderstand="1"><w:UsernameToken>'
            f"<w:Username>{escape(user)}</w:Username>"
            f'<w:Password Type="{_DIGEST}">{base64.b64encode(digest).decode()}</w:Password>'
            f"<w:Nonce>{base64.b64encode(nonce).decode()}</w:Nonce>"
            f'<u:Created xmlns:u="{_WSU}">{created}</u:Created>'
            "</w:UsernameToken></w:Security></s:Header>"
        )

    def _post(
        self, address: str, action: str, envelope: bytes, *, logged_in: bool
    ) -> tuple[int, list[Challenge], bytes]:
        """Sends it once: the status, the ways to log in that are offered, and the answer.

        Raises:
            SourceError: there is no answer, or it is not HTTP.
        """
        parts = urlsplit(address)
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        headers = {
            # Which of our interfaces leads there is not the server's concern.
            "Host": re.sub(r"%[^\]]*", "", parts.netloc),
            "User-Agent": "streamdet",
            "Content-Type": f'application/soap+xml; charset=utf-8; action="{action}"',
            "Connection": "close",
        }
        if logged_in and self._http_login is not None:
            authorization = self._http_login.header("POST", target)
            if authorization is not None:
                headers["Authorization"] = authorization
        try:
            connection = _Connection(address, self._budget)
            try:
                connection.request("POST", target, envelope, headers)
                answer = connection.getresponse()
                data = answer.read(_MAX_ANSWER_BYTES + 1)
                offers = challenges_in(answer.headers.get_all("WWW-Authenticate") or [])
            finally:
                connection.close()
        except TimeoutError:
            raise SourceError(Reason.TIMEOUT, f"{parts.netloc} does not answer in time") from None
        except OSError as error:
            raise failure_of_connection(error, parts.netloc) from None
        except SENSELESS:
            raise SourceError(Reason.REFUSED, f"{parts.netloc} answers, but not in HTTP") from None
        if len(data) > _MAX_ANSWER_BYTES:
            raise SourceError(Reason.DECODE_ERROR, f"{parts.netloc} sends more than {_MAX_ANSWER_BYTES >> 20} MiB")
        return answer.status, offers, data

    def _response(self, status: int, data: bytes, name: str, where: str) -> Element:
        try:
            root = read_xml(data)
        except ValueError as error:
            if status == HTTPStatus.UNAUTHORIZED:
                raise self._unauthorized(where) from None
            problem = f"answers {status}" if status != HTTPStatus.OK else f"sends what cannot be read: {error}"
            reason = Reason.DECODE_ERROR if status == HTTPStatus.OK else Reason.REFUSED
            raise SourceError(reason, f"{where} {problem}") from None
        response = find(root, "Body", f"{name}Response")
        if response is not None and status == HTTPStatus.OK:
            return response
        fault = find(root, "Body", "Fault")
        codes = "" if fault is None else " ".join(each.text or "" for each in fault.iter() if each.tag != "Detail")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or _is_about_login(codes):
            raise self._unauthorized(where)
        reason_text = text_of(fault, "Reason", "Text") or f"status {status}"
        raise SourceError(Reason.REFUSED, f"{where} refuses {name}: {reason_text}")

    def _unauthorized(self, where: str) -> SourceError:
        problem = f"{where} requires a login" if self._login is None else f"{where} refuses this login"
        return SourceError(Reason.UNAUTHORIZED, problem)


class _Connection(http.client.HTTPConnection):
    """A connection within a budget, to the server of an address; without a proxy."""

    def __init__(self, address: str, budget: ConnectionBudget) -> None:
        parts = urlsplit(address)
        is_tls = parts.scheme == "https"
        if has_control(address) or parts.hostname is None:
            problem = "not an address"
            raise ValueError(problem)
        super().__init__(parts.hostname, parts.port or (443 if is_tls else 80))
        self._budget = budget
        self._is_tls = is_tls

    def connect(self) -> None:
        self.sock = self._budget.connect((self.host, self.port))
        if self._is_tls:
            # Cameras sign their certificates themselves, and the same search takes http://: only digests are sent.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.sock = self._budget.encrypt(self.sock, context, self.host)


def new_budget(seconds: float) -> ConnectionBudget:
    """The time for all questions to one camera."""
    return ConnectionBudget(time.monotonic() + seconds, burst=100, per_second=20)


def _envelope(namespace: str, name: str, body: str, header: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        f'<s:Envelope xmlns:s="{ENVELOPE}" xmlns:t="{namespace}">{header}'
        f"<s:Body><t:{name}>{body}</t:{name}></s:Body></s:Envelope>"
    ).encode()


def _is_about_login(text: str) -> bool:
    return any(word in text.lower() for word in _NOT_AUTHORIZED)


def _local(name: str) -> str:
    return name.rpartition(" ")[2]
