"""Posts alerts and ended objects to receivers over HTTP: `streamdet bridge webhook`.

Each receiver has a thread and a position in the daemon's spool of its own, so that one that is down holds up no other.
A request is repeated until the receiver takes the event, or it is given up as a dead letter. It has the same
Idempotency-Key each time, by which a receiver finds out that it has the event already.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError, SSLError
from urllib3.util.connection import create_connection

from streamdet import wire
from streamdet.bridges.process import Forwarder, Source, run_bridge
from streamdet.bridges.shapes import Post, post_of
from streamdet.client import Subscription
from streamdet.config import Config, WebhookConfig
from streamdet.errors import ConfigError, EndpointError
from streamdet.monitoring.bridge_metrics import BridgeMetrics, TargetMetrics
from streamdet.monitoring.log import FailureLog
from streamdet.security.tls import client_context
from streamdet.types import AlertEvent, ObjectEvent
from streamdet.wire import Event, Kind
from streamdet.worker import Worker

_MAX_PAUSE_SECONDS = 300.0
# A receiver that answers this refuses the event, and would again; all else may be fixed without changing the event.
_REFUSES_THE_EVENT = frozenset({400, 406, 411, 413, 414, 415, 422, 431})
_PICTURE_TIMEOUT_SECONDS = 5.0
# For a name server that does not answer, which no timeout bounds.
_NAME_SECONDS = 60.0
# A long wait is cut into pieces, after each of which the thread reports that it is alive.
_WAIT_SECONDS = 10.0
# IPv4 addresses as IPv6 reaches them through a translator.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# All that is assigned for the public internet; what is private, of a site or reserved lies outside of it.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")

_log = logging.getLogger(__name__)


def run_webhooks(config: Config, config_path: Path) -> None:
    """Posts events until a signal ends it; main thread only.

    Raises:
        ConfigError: there is no receiver.
        StreamdetError: the daemon's replay, the port of the metrics or the state directory cannot be used.
    """
    if not config.webhooks:
        raise ConfigError([f"{config_path}: has no [[webhooks]]; docs/bridges.md shows what one looks like"])
    source = Source.of(config)
    directory = config.bridges.directory_of("webhook", config_path)
    metrics = BridgeMetrics("webhook")
    for webhook in config.webhooks:
        webhook.remember_secrets()

    def forwarders(on_error: Callable[[Worker], None]) -> Sequence[Forwarder]:
        return [Webhook(each, source, directory, metrics.of(each.name), on_error) for each in config.webhooks]

    run_bridge(metrics, config.bridges.webhook_metrics_endpoint, directory, forwarders)


class Webhook(Forwarder):
    """Posts events to one receiver.

    Args:
        config: what to post, and where.
        source: where events come from.
        directory: of the position.
        metrics: of this receiver.
        on_error: called when the thread ends with an error.
    """

    def __init__(
        self,
        config: WebhookConfig,
        source: Source,
        directory: Path,
        metrics: TargetMetrics,
        on_error: Callable[[Worker], None] | None = None,
    ) -> None:
        kinds: list[Kind] = ["objects"] if "ended" in config.events else []
        if {"raised", "cleared"}.intersection(config.events):
            kinds.append("alerts")
        super().__init__(config.name, source, kinds, directory, metrics, on_error)
        self.quiet_seconds = 2 * config.timeout_seconds + _PICTURE_TIMEOUT_SECONDS + _NAME_SECONDS
        self._config = config
        self._client = _Client(config)
        self._failures = FailureLog(_log, "{} tries failed")
        self._dead_letters = FailureLog(_log, "{} dead letters")

    def is_wanted(self, event: Event) -> bool:
        """Whether the receiver gets this event."""
        config = self._config
        if isinstance(event, AlertEvent):
            label, fits = event.alert.label, not config.rules or event.alert.rule in config.rules
            kind: str = event.phase
        elif isinstance(event, ObjectEvent) and event.phase == "end":
            label, fits, kind = event.object.label, True, "ended"
        else:
            return False
        fits = fits and (not config.streams or event.stream in config.streams)
        return fits and kind in config.events and (not config.labels or label in config.labels)

    def deliver(self, event: Event, events: Subscription) -> bool:
        """Posts one event until it is taken or given up; False if a stop was asked for before."""
        if not isinstance(event, AlertEvent | ObjectEvent):
            return True
        # A name from elsewhere may hold characters that a header cannot.
        key = quote(f"{event.epoch}:{wire.topic_of(event)}{event.seq}", safe=":/")
        picture = self._picture(event, events) if self._config.picture == "attached" else None
        post = post_of(event, self._config, picture)
        pause_seconds = self._config.retry_seconds
        while not self.stopping:
            self.beat()
            answer = self._client.post(post, key)
            if answer.is_taken:
                self.metrics.handed_on()
                self._failures.works(f"webhook {self._config.name}: events are taken again")
                return True
            if answer.refuses_event and post.has_picture:
                # It may be too large, or pictures may not be allowed there: the event is worth more.
                self._failures.failed(f"webhook {self._config.name}: {answer.problem} to a picture; it is left out")
                post = post_of(event, self._config)
                continue
            if answer.refuses_event or self.ages.seconds(event) > self._config.give_up_seconds:
                self.metrics.dead_letters.inc()
                self._dead_letters.failed(f"webhook {self._config.name}: gave up event {key}: {answer.problem}")
                return True
            self.metrics.failed()
            self._failures.failed(f"webhook {self._config.name}: {answer.problem}; it is tried again")
            wait_seconds = max(pause_seconds * random.uniform(0.75, 1.25), answer.retry_after_seconds)  # noqa: S311
            self._pause(wait_seconds)
            pause_seconds = min(2 * pause_seconds, _MAX_PAUSE_SECONDS)
        return False

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0 and not self.sleep(min(rest, _WAIT_SECONDS)):
            self.beat()

    def _picture(self, event: AlertEvent | ObjectEvent, events: Subscription) -> bytes | None:
        """The picture; None where there is none, or it cannot be had: the event is worth more."""
        try:
            return events.picture(event, min(self._config.timeout_seconds, _PICTURE_TIMEOUT_SECONDS))
        except (TimeoutError, EndpointError) as error:
            self._failures.failed(f"webhook {self._config.name}: an event goes without its picture: {error}")
            return None


class Answer(NamedTuple):
    """What became of one request.

    Attributes:
        status: of the answer; None where none came.
        problem: why it failed, without secrets.
        retry_after_seconds: not to be asked again earlier.
    """

    status: int | None
    problem: str
    retry_after_seconds: float = 0.0

    @property
    def is_taken(self) -> bool:
        """Whether the receiver has the event."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def refuses_event(self) -> bool:
        """Whether the receiver would refuse it again."""
        return self.status in _REFUSES_THE_EVENT


class _Client:
    """Sends requests to one receiver: a connection each, no redirects, no proxy, only addresses that are allowed."""

    def __init__(self, config: WebhookConfig) -> None:
        self._config = config
        parts = urlsplit(config.url)
        timeout = Timeout(connect=config.timeout_seconds, read=config.timeout_seconds)
        self._line = _Line()
        self._pool: HTTPConnectionPool
        if parts.scheme == "http":
            self._pool = HTTPConnectionPool(
                str(parts.hostname), parts.port, timeout=timeout, maxsize=1, line=self._line
            )
            self._pool.ConnectionCls = _PlainConnection
        else:
            context = _tls_context(config)
            self._pool = HTTPSConnectionPool(
                str(parts.hostname), parts.port, timeout=timeout, maxsize=1, ssl_context=context, line=self._line
            )
            self._pool.ConnectionCls = _TlsConnection if config.allow_private else _PublicConnection

    def post(self, post: Post, key: str) -> Answer:
        """Posts once; whatever happens on the way is an answer."""
        headers = {
            "User-Agent": "streamdet",
            **self._config.headers,
            **post.headers,
            "Idempotency-Key": key,
            "Connection": "close",
        }
        if self._config.secret is not None:
            headers["Streamdet-Signature"] = signature(self._config.secret, post.body, int(time.time()))
        # Timeouts of sockets begin again with each byte; this one does not.
        limit = threading.Timer(2 * self._config.timeout_seconds, self._line.cut)
        limit.start()
        try:
            response = self._pool.urlopen(
                post.method, post.target, post.body, headers, retries=False, redirect=False, preload_content=False
            )
        except (HTTPError, OSError) as error:
            problem = _problem(TimeoutError() if self._line.is_cut else error, self._config.timeout_seconds)
            return Answer(None, problem)
        finally:
            limit.cancel()
            limit.join()
            self._line.end()
        # What else it says is not read: it could take for ever.
        response.close()
        problem = f"the receiver answered {response.status}"
        if 300 <= response.status < 400:
            problem += ", a redirect, which is not followed"
        return Answer(response.status, problem, _retry_after(response.headers.get("Retry-After", "")))


def _tls_context(config: WebhookConfig) -> ssl.SSLContext:
    """How to speak TLS with a receiver.

    Raises:
        ConfigError: the file of its authority cannot be used.
    """
    try:
        return client_context(config.ca_file)
    except OSError as error:
        reason = "it holds no certificate (PEM)" if isinstance(error, ssl.SSLError) else error.strerror
        problem = f"webhooks[{config.name}].ca_file: {config.ca_file} cannot be used: {reason}"
        raise ConfigError([problem]) from error


class _Line:
    """The connection of the request that is under way, which another thread can cut, also in its TLS handshake.

    Attributes:
        is_cut: whether it was cut.
    """

    def __init__(self) -> None:
        self.is_cut = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def begin(self, connected: socket.socket) -> None:
        """Takes a connection; the limit may be over already."""
        with self._lock:
            self._socket = connected.dup()
            if self.is_cut:
                self._shut(self._socket)

    def cut(self) -> None:
        """Ends the connection: whatever waits for it fails."""
        with self._lock:
            self.is_cut = True
            if self._socket is not None:
                self._shut(self._socket)

    def end(self) -> None:
        """Prepares for the next request."""
        with self._lock:
            self.is_cut = False
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    @staticmethod
    def _shut(connected: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            connected.shutdown(socket.SHUT_RDWR)


class _PlainConnection(HTTPConnection):
    """A connection that can be cut, and names no host where the name cannot be resolved: it may hold a secret."""

    def __init__(self, *args: Any, line: _Line, **keys: Any) -> None:  # noqa: ANN401 - those of urllib3
        super().__init__(*args, **keys)
        self._line = line

    def _new_conn(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no name of a host"
            raise NewConnectionError(self, f"the name of the receiver is not known ({reason})") from error
        problem: OSError | None = None
        for address in self._allowed(list(dict.fromkeys(str(each[4][0]) for each in found))):
            try:
                connected = create_connection((address, self.port), self.timeout, socket_options=self.socket_options)
            except OSError as error:
                problem = error
            else:
                self._line.begin(connected)
                return connected
        raise NewConnectionError(self, f"cannot connect: {problem}") from problem

    def _allowed(self, addresses: list[str]) -> list[str]:
        """Those of the addresses that may be connected to."""
        return addresses


class _TlsConnection(_PlainConnection, HTTPSConnection):
    """The same, with TLS."""


class _PublicConnection(_TlsConnection):
    """A connection to a public address alone: the one that is connected to is the one that was checked."""

    def _allowed(self, addresses: list[str]) -> list[str]:
        allowed = [address for address in addresses if is_public(address)]
        if not allowed:
            refused = ", ".join(addresses)
            raise NewConnectionError(self, f"the receiver has no public address ({refused}); see allow_private")
        return allowed


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet: not to this machine, its networks or their services."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is None and parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed not in _GLOBAL_UNICAST:
            return False
    return parsed.is_global and not parsed.is_multicast


def signature(secret: str, body: bytes, at: int) -> str:
    """The header Streamdet-Signature: when it was signed, and the HMAC-SHA256 of that, a dot and the body.

    Args:
        secret: that the receiver knows, too.
        body: as it is sent.
        at: Unix time in seconds.
    """
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def _problem(error: Exception, timeout_seconds: float) -> str:
    """Why no answer came, without the address, which may hold a secret."""
    if isinstance(error, NewConnectionError):
        return str(error).partition("): ")[2]
    if isinstance(error, ReadTimeoutError | ConnectTimeoutError | TimeoutError):
        return f"the receiver did not answer within {timeout_seconds:g} s"
    if isinstance(error, SSLError):
        cause = error.args[0] if error.args else error
        return f"TLS failed: {getattr(cause, 'verify_message', '') or getattr(cause, 'reason', '') or 'no handshake'}"
    return f"the connection broke ({type(error).__name__})"


def _retry_after(text: str) -> float:
    """Seconds that a receiver asks to wait, five minutes at most; 0 where it asks for none, or gives a date."""
    return min(float(text), _MAX_PAUSE_SECONDS) if text.isdecimal() and len(text) < 10 else 0.0
