"""ZeroMQ endpoints: `tcp://HOST:PORT` and `ipc://PATH`, and what is wrong with one."""

from __future__ import annotations

import errno
import grp
import os
import re
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import zmq

from streamdet.errors import EndpointError

# The kernel's limit for the path of a Unix socket is 108 bytes with the zero at its end.
_MAX_IPC_PATH_BYTES = 107
_TCP = re.compile(r"tcp://(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
HOW_TO_LET_OTHERS_IN = (
    "make keys with `streamdet keys generate` and set curve_server_key_file and curve_allowed_clients_directory"
)
"""What to do before other machines may connect."""

_EXAMPLES = "expected something like tcp://127.0.0.1:5555 or ipc:///run/streamdet/events"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where events are to be had.

    Attributes:
        text: as it was written.
        transport: "tcp" or "ipc".
        host: name or address without brackets; empty for ipc.
        port: 0 to 65535, 0 meaning any free one; 0 for ipc.
        path: of the Unix socket; None for tcp.
    """

    text: str
    transport: Literal["tcp", "ipc"]
    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is a numeric IPv6 address."""
        return ":" in self.host

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.transport == "ipc" or self.host.lower() == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_endpoint(text: str) -> Endpoint:
    """Reads an endpoint.

    Raises:
        EndpointError: it is not one; the message says what would be.
    """
    if text.startswith("ipc://"):
        path = text.removeprefix("ipc://")
        if not path or path[0] in "@*" or "\0" in path:
            raise _wrong(text, "needs the path of a file after ipc://")
        if len(path.encode(errors="replace")) > _MAX_IPC_PATH_BYTES:
            raise _wrong(text, f"has a path of more than {_MAX_IPC_PATH_BYTES} bytes")
        return Endpoint(text, "ipc", path=Path(path))
    match = _TCP.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise _wrong(text, "is not an endpoint")
    host: str = match["host"] or match["six"]
    if match["six"]:
        try:
            ip_address(host)
        except ValueError:
            raise _wrong(text, "has no valid IPv6 address between the brackets") from None
    return Endpoint(text, "tcp", host=host, port=int(match["port"]))


def beside(text: str) -> str:
    """Where requests for replay go unless told otherwise: the next port, or the same path with `-replay` behind it.

    Raises:
        EndpointError: malformed, or there is no next port.
    """
    endpoint = parse_endpoint(text)
    if endpoint.transport == "ipc":
        return parse_endpoint(f"{text}-replay").text
    host = text.rpartition(":")[0]
    return parse_endpoint(f"{host}:{endpoint.port + 1 if endpoint.port else 0}").text


def _wrong(text: str, problem: str) -> EndpointError:
    return EndpointError(f"{text[:200]!r} {problem}; {_EXAMPLES}")


def bind(
    publisher: zmq.Socket[bytes], text: str, *, encrypted: bool = False, group: str | None = None, what: str = "publish"
) -> str:
    """Binds a socket where only this machine can reach it, or, with keys, any other.

    The file of an ipc endpoint is readable and writable by owner and group; that of a dead process is replaced.

    Args:
        publisher: the socket.
        text: the endpoint.
        encrypted: whether the socket asks for keys (CURVE).
        group: whose members may use an ipc endpoint; None for the group of this process.
        what: it is for, to be told if it cannot be had.

    Returns:
        What was bound, with the real port where port 0 was asked for.

    Raises:
        EndpointError: malformed, open to others without keys, in use, or not permitted.
    """
    endpoint = parse_endpoint(text)
    if not endpoint.is_local and not encrypted:
        why = f"other machines could read it; {HOW_TO_LET_OTHERS_IN}, or use 127.0.0.1 or ipc://"
        raise _cannot(endpoint, why, what)
    gid = None if group is None else _gid_of(endpoint, group)
    publisher.ipv6 = endpoint.is_ipv6
    try:
        if endpoint.path is not None:
            _remove_stale(endpoint, endpoint.path)
            _bind_file(publisher, endpoint.path, gid)
        else:
            publisher.bind(text)
    except (zmq.ZMQError, OSError) as error:
        raise _cannot(endpoint, _explain(error.errno or 0, endpoint), what) from None
    return publisher.getsockopt_string(zmq.LAST_ENDPOINT)


def _bind_file(publisher: zmq.Socket[bytes], path: Path, gid: int | None) -> None:
    # There must be no moment in which others may use it; until the end of the block other files get less, not more.
    before = os.umask(0o177)
    try:
        publisher.bind(f"ipc://{path}")
    finally:
        os.umask(before)
    if gid is not None:
        os.chown(path, -1, gid)
    path.chmod(0o660)


def _gid_of(endpoint: Endpoint, group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise _cannot(endpoint, f"there is no group {group!r} on this machine; make it, or leave it out") from None


def remove_file(text: str) -> None:
    """Removes the file of an ipc endpoint that is about to be closed; ZeroMQ leaves it behind."""
    path = parse_endpoint(text).path
    if path is not None:
        path.unlink(missing_ok=True)


def _remove_stale(endpoint: Endpoint, path: Path) -> None:
    """Removes the file of a dead process; ZeroMQ itself would remove that of a living one, too."""
    if not path.exists():
        return
    if not path.is_socket():
        raise _cannot(endpoint, f"{path} exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "")


def _explain(code: int, endpoint: Endpoint) -> str:
    folder = None if endpoint.path is None else endpoint.path.parent
    return {
        errno.EADDRINUSE: "another process uses it; stop that one or choose another endpoint",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.ENODEV: "this machine has no such address",
        errno.EPERM: "this user is not in the group; add it, or start as root",
        errno.EACCES: f"no permission; let this user write to {folder}" if folder else "no permission for this port",
        errno.ENOENT: f"there is no folder {folder}, or it takes no files",
        errno.EROFS: f"{folder} is read-only",
        errno.ENOTDIR: f"{folder} is not a folder",
    }.get(code, os.strerror(code))


def _cannot(endpoint: Endpoint, why: str, what: str = "publish") -> EndpointError:
    return EndpointError(f"cannot {what} at {endpoint.text}: {why}")
