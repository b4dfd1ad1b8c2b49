"""The endpoints at which the daemon listens, and checks that they do not conflict."""

from __future__ import annotations

import re
from typing import NamedTuple

from streamdet.config.values import refuse
from streamdet.errors import EndpointError
from streamdet.security.endpoints import HOW_TO_LET_OTHERS_IN, parse_endpoint

HOW_TO_CLOSE_CONTROL = (
    "set tls_certificate_file, tls_key_file and password_file in [metrics] (streamdet web --set-password FILE makes "
    "one), or listen at 127.0.0.1:9096 or [::1]:9096"
)
_HOST_PORT = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._*-]*)):(?P<port>[0-9]{1,5})")


class ListenAddress(NamedTuple):
    """A TCP address at which the daemon listens; `host` is without brackets and in small letters."""

    host: str
    port: int


def parse_publisher_endpoint(endpoint: str) -> ListenAddress | None:
    """The TCP address of a ZeroMQ endpoint; None for `ipc://`.

    Raises:
        ValueError: not an endpoint.
    """
    try:
        parsed = parse_endpoint(endpoint)
    except EndpointError:
        if endpoint.startswith("tcp://*:"):
            refuse(f"must be like tcp://127.0.0.1:5555; every address of this machine is tcp://0.0.0.0:{endpoint[8:]}")
        if not endpoint.startswith("ipc://"):
            refuse("must be like tcp://127.0.0.1:5555 or ipc:///run/streamdet/events")
        refuse("must be like ipc:///run/streamdet/events, a path of at most 107 bytes")
    return None if parsed.transport == "ipc" else ListenAddress(parsed.host.lower(), parsed.port)


def refuse_others_without_keys(endpoint: str) -> None:
    """Refuses a publisher endpoint that other machines can reach.

    Raises:
        ValueError: they can; the message says how to let them in.
    """
    if not parse_endpoint(endpoint).is_local:
        refuse(
            f"would be open to other machines without any check: {HOW_TO_LET_OTHERS_IN}; "
            "or use tcp://127.0.0.1:5555, tcp://[::1]:5555 or ipc://",
            key="endpoint",
        )


def parse_host_port(endpoint: str) -> ListenAddress:
    """The TCP address of an HTTP endpoint, `HOST:PORT`.

    Raises:
        ValueError: not `host:port`.
    """
    match = _HOST_PORT.fullmatch(endpoint)
    if match is None or int(match["port"]) > 65535:
        refuse("must be host:port, without http://, like 127.0.0.1:9095 or [::1]:9095")
    host = (match["six"] or match["host"]).lower()
    if not host or "*" in host:
        refuse(f"must name an address, like 127.0.0.1:9095; every one of this machine is 0.0.0.0:{match['port']}")
    return ListenAddress(host, int(match["port"]))


def same_port(one: ListenAddress, other: ListenAddress) -> bool:
    """Whether two addresses cannot both be bound; port 0 is any free one."""
    same_host = one.host == other.host or bool({"localhost", "0.0.0.0", "::"} & {one.host, other.host})  # noqa: S104
    return one.port == other.port != 0 and same_host
