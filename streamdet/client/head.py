"""Asks the head of a cluster, again and again, where its nodes are."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamdet.errors import EndpointError, StreamdetError
from streamdet.security.endpoints import is_loopback, parse_endpoint
from streamdet.security.files import read_start
from streamdet.worker import Worker

DEFAULT_PORT = 9094
UNSPECIFIED = ("0.0.0.0", "::", "*")  # noqa: S104 - what a node may listen at, not what is listened at here
_ASK_EVERY_SECONDS = 2.0
_TIMEOUT_SECONDS = 5.0
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_MAX_TOKEN_BYTES = 16384
_BARE = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Where a node publishes.

    Attributes:
        node: its name.
        events: the endpoint of its events.
        replay: the endpoint to ask for lost ones; None where it answers nowhere.
    """

    node: str
    events: str
    replay: str | None


@dataclass(frozen=True, slots=True)
class HeadAddress:
    """Where a head answers.

    Attributes:
        host: name or address, without brackets.
        port: of TCP.
        tls: checks its certificate; None for plain HTTP.
        token: that it wants to see; empty for none.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    token: str

    @classmethod
    def parse(cls, text: str, ca_file: Path | str | None = None, token_file: Path | str | None = None) -> HeadAddress:
        """Reads `HOST`, `HOST:PORT`, or a URL.

        Args:
            text: without a scheme it is HTTPS, except on loopback, as the head is.
            ca_file: the `ca.pem` of the cluster, which must have signed the head's certificate; None for any authority
                that the system trusts.
            token_file: such as the `reader.token` of the cluster; None for none.

        Raises:
            EndpointError: it is none of these, or a file cannot be used.
        """
        scheme, separator, rest = text.partition("://")
        rest = rest if separator else text
        match = _BARE.fullmatch(rest.removesuffix("/"))
        port = int(match["port"] or DEFAULT_PORT) if match else 0
        host = match["host"].strip("[]") if match else ""
        if not separator:
            scheme = "http" if is_loopback(host) else "https"
        if match is None or scheme not in ("http", "https") or not 0 < port < 65536:
            message = f"{text[:200]!r} is no head of a cluster; expected something like head.example:{DEFAULT_PORT}"
            raise EndpointError(message)
        tls = None
        if scheme == "https":
            try:
                tls = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
                # Only machines of the cluster have certificates of its own authority, whatever they are called.
                tls.check_hostname = ca_file is None
            except (OSError, ValueError) as error:
                message = f"cannot use the certificates in {ca_file}: {error}"
                raise EndpointError(message) from None
        token = "" if token_file is None else _read_token(Path(token_file))
        if token and tls is None and not is_loopback(host):
            message = f"a token is sent to {host} over HTTPS only"
            raise EndpointError(message)
        return cls(host, port, tls, token)

    def __str__(self) -> str:
        """As it is written in messages; without the token."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}"


class HeadWatch(Worker):
    """Keeps what the head says of the nodes; while it is away, what it has said last.

    Args:
        address: of the head.
        on_change: called by the thread of the watch whenever `nodes` or `problem` have changed.

    Attributes:
        address: of the head.
        nodes: of the newest answer; empty before the first. Replaced as a whole when it changes.
        status: the newest answer, all of it; empty before the first.
        answered_at: monotonic seconds of it; None before the first.
        problem: why there is no newer answer, or what is wrong with it; empty while all is well.
    """

    def __init__(self, address: HeadAddress, on_change: Callable[[], None] | None = None) -> None:
        super().__init__("head-watch")
        self.address = address
        self._listeners = [] if on_change is None else [on_change]
        self._socket: socket.socket | None = None
        self.nodes: tuple[NodeAddress, ...] = ()
        self.status: Mapping[str, Any] = {}
        self.answered_at: float | None = None
        self.problem = ""

    def listen(self, on_change: Callable[[], None]) -> None:
        """Adds one that is called as `on_change` is."""
        self._listeners = [*self._listeners, on_change]

    def forget(self, on_change: Callable[[], None]) -> None:
        """Calls one of them no longer."""
        self._listeners = [each for each in self._listeners if each != on_change]

    def run(self) -> None:
        """Asks every 2 s."""
        while not self.stopping:
            before = self.nodes, self.problem
            try:
                answer = self._ask()
                nodes, self.problem = _nodes_in(answer, self.address)
                self.nodes = self.nodes if nodes == self.nodes else nodes
                self.status, self.answered_at = answer, time.monotonic()
            except StreamdetError as error:
                self.problem = str(error)
            if (self.nodes, self.problem) != before:
                for listener in self._listeners:
                    listener()
            self.sleep(_ASK_EVERY_SECONDS)

    def wake(self) -> None:
        """Ends a request that is under way."""
        connection = self._socket
        if connection is not None:
            with suppress(OSError):  # it has ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def _ask(self) -> Any:  # noqa: ANN401 - whatever the other side sends
        address = self.address
        connection = (
            http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_SECONDS)
            if address.tls is None
            else http.client.HTTPSConnection(
                address.host, address.port, timeout=_TIMEOUT_SECONDS, context=address.tls
            )
        )  # fmt: skip
        headers = {"Accept": "application/json"} | (
            {"Authorization": f"Bearer {address.token}"} if address.token else {}
        )
        try:
            connection.connect()
            self._socket = connection.sock
            connection.request("GET", "/v1/cluster", headers=headers)
            response = connection.getresponse()
            body = response.read(_MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            problem = (
                f"the head {address} cannot be asked: {getattr(error, 'strerror', None) or error or 'it hangs up'}"
            )
            raise EndpointError(problem) from None
        finally:
            self._socket = None
            connection.close()
        if response.status != http.HTTPStatus.OK:
            problem = f"the head {address} refuses: {response.status} {response.reason}"
            raise EndpointError(problem)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            problem = f"what answers at {address} is no head of a cluster"
            raise EndpointError(problem) from None


def _nodes_in(answer: Any, head: HeadAddress) -> tuple[tuple[NodeAddress, ...], str]:  # noqa: ANN401 - of the other side
    """The nodes in an answer, and which of them cannot be connected to.

    Raises:
        EndpointError: it is no answer of a head.
    """
    listed = answer.get("nodes") if isinstance(answer, dict) else None
    if not isinstance(listed, list):
        problem = f"what answers at {head} is no head of a cluster"
        raise EndpointError(problem)
    found: list[NodeAddress] = []
    problems: list[str] = []
    for one in listed:
        name = one.get("name") if isinstance(one, dict) else None
        addresses = one.get("addresses") if isinstance(one, dict) else None
        if not isinstance(name, str) or not _NODE.fullmatch(name) or not isinstance(addresses, dict):
            continue
        try:
            events = _checked(addresses.get("events"))
            replay = addresses.get("replay")
            found.append(NodeAddress(name, events, None if replay is None else _checked(replay)))
        except EndpointError as error:
            problems.append(f"node {name}: {error}")
    return tuple(found), "; ".join(problems)


def _checked(endpoint: object) -> str:
    """An endpoint that can be connected to.

    Raises:
        EndpointError: it is none.
    """
    if not isinstance(endpoint, str):
        message = "the head has no address of it yet"
        raise EndpointError(message)
    parsed = parse_endpoint(endpoint)
    if parsed.host in UNSPECIFIED:
        message = f"listens at every address ({endpoint}), and the head has none of it"
        raise EndpointError(message)
    return endpoint


def _read_token(path: Path) -> str:
    """The token in a file: all of it, or `token` of a file of JSON.

    Raises:
        EndpointError: it cannot be read, or holds none.
    """
    try:
        content, _ = read_start(path, _MAX_TOKEN_BYTES)
        text = content.decode("ascii").strip()
        if text.startswith("{"):
            text = str(json.loads(text)["token"])
    except OSError as error:
        message = f"cannot read the token file {path}: {error.strerror}"
        raise EndpointError(message) from None
    except (ValueError, KeyError):
        text = ""
    if not text or not text.isprintable() or " " in text:
        message = f"{path} holds no token"
        raise EndpointError(message)
    return text
