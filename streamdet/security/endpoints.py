"""Where sockets listen: ZeroMQ endpoints (`tcp://HOST:PORT`, `ipc://PATH`), Unix sockets, and who can reach them."""

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

# The path of a Unix socket has at most 108 bytes with the zero at its end.
MAX_SOCKET_PATH_BYTES = 107
_TCP = re.compile(r"tcp://(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
HOW_TO_LET_OTHERS_IN = (
    "make keys with `streamdet keys generate` and set curve_server_key_file and curve_allowed_clients_directory"
)
"""What to do before other machines may connect."""

_EXAMPLES = "expected something like tcp://127.0.0.1:5555 or ipc:///run/streamdet/events"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A ZeroMQ endpoint.

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
        return self.transport == "ipc" or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at an address or name."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
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
        if len(path.encode(errors="replace")) > MAX_SOCKET_PATH_BYTES:
            raise _wrong(text, f"has a path of more than {MAX_SOCKET_PATH_BYTES} bytes")
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
    """The default endpoint of replay: the next port, or the same path with `-replay` behind it.

    Raises:
        EndpointError: malformed, or there is no next port.
    """
    endpoint = parse_endpoint(text)
    if endpoint.transport == "ipc":
        return parse_endpoint(f"{text}-replay").text
    host = text.rpartition(":")[0]
    return parse_endpoint(f"{host}:{endpoint.port + 1 if endpoint.port else 0}").text


def bind(
    publisher: zmq.Socket[bytes], text: str, *, encrypted: bool = False, group: str | None = None, what: str = "publish"
) -> str:
    """Binds a socket that only this machine can reach, or, with keys, any machine.

    The file of an ipc endpoint gets mode 0660; one that a dead process left behind is replaced.

    Args:
        publisher: the socket.
        text: the endpoint.
        encrypted: whether the socket asks for keys (CURVE).
        group: whose members may use an ipc endpoint; None for the group of this process.
        what: it is for, as a verb for the error message.

    Returns:
        What was bound, with the real port where port 0 was asked for.

    Raises:
        EndpointError: malformed, open to others without keys, in use, or not permitted.
    """
    endpoint = parse_endpoint(text)
    if not endpoint.is_local and not encrypted:
        why = f"other machines could read it; {HOW_TO_LET_OTHERS_IN}, or use 127.0.0.1 or ipc://"
        raise _cannot(endpoint, why, what)
    gid = None if group is None else gid_of(group, "[publisher]")
    publisher.ipv6 = endpoint.is_ipv6
    try:
        if endpoint.path is not None:
            remove_stale_socket(endpoint.path)
            _bind_file(publisher, endpoint.path, gid)
        else:
            publisher.bind(text)
    except (zmq.ZMQError, OSError) as error:
        raise _cannot(endpoint, bind_advice(error, "endpoint", endpoint.path, group), what) from None
    return publisher.getsockopt_string(zmq.LAST_ENDPOINT)


def remove_file(text: str) -> None:
    """Removes the file of an ipc endpoint that is about to be closed; ZeroMQ leaves it behind."""
    path = parse_endpoint(text).path
    if path is not None:
        path.unlink(missing_ok=True)


def gid_of(group: str, table: str) -> int:
    """The number of a group that may use a Unix socket.

    Args:
        group: its name.
        table: of the configuration that names it, such as "[control]", for the error.

    Raises:
        EndpointError: there is no group of this name.
    """
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        message = f"{table} group: there is no group {group!r} on this machine; make it, or leave the key out"
        raise EndpointError(message) from None


def give_to_group(path: Path, gid: int) -> None:
    """Gives a file to a group, unless it has it already: as a service, the daemon may not change any file's group.

    Raises:
        OSError: EPERM, this process is not in the group, or may not change groups.
    """
    if path.stat().st_gid != gid:
        os.chown(path, -1, gid)


def remove_stale_socket(path: Path) -> None:
    """Removes the file of a Unix socket whose process is dead; binding would fail, or cut off a living one.

    Raises:
        OSError: EADDRINUSE, a process listens there; EEXIST, the path is no socket; or the file cannot be removed.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except TimeoutError:
            pass  # a process listens, and is busy
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def bind_advice(error: OSError | zmq.ZMQError, choose: str, path: Path | None = None, group: str | None = None) -> str:
    """Why a socket cannot be bound, and what to do.

    Args:
        error: of the attempt.
        choose: what to choose another one of, such as "endpoint" or "path".
        path: of a Unix socket; None for a TCP port.
        group: that should get the Unix socket.
    """
    folder = None if path is None else path.parent
    return {
        errno.EADDRINUSE: f"another process uses it; stop that one or choose another {choose}",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.ENODEV: "this machine has no such address",
        errno.EEXIST: f"{path} exists and is not a socket; remove it or choose another path",
        errno.EPERM: f"this user is not in group {group}; add it, or start as root" if group else "not permitted",
        errno.EACCES: f"no permission; let this user write to {folder}"
        if folder
        else "ports below 1024 need a privilege; choose a higher one",
        errno.ENOENT: f"there is no folder {folder}, or it takes no files",
        errno.EROFS: f"{folder} is read-only; choose a path that can be written",
        errno.ENOTDIR: f"{folder} is not a folder",
    }.get(error.errno or 0, error.strerror or str(error))


def _bind_file(publisher: zmq.Socket[bytes], path: Path, gid: int | None) -> None:
    # At no moment may others use it; files that other threads create meanwhile get fewer permissions, not more.
    before = os.umask(0o177)
    try:
        publisher.bind(f"ipc://{path}")
    finally:
        os.umask(before)
    if gid is not None:
        give_to_group(path, gid)
    path.chmod(0o660)


def _wrong(text: str, problem: str) -> EndpointError:
    return EndpointError(f"{text[:200]!r} {problem}; {_EXAMPLES}")


def _cannot(endpoint: Endpoint, why: str, what: str = "publish") -> EndpointError:
    return EndpointError(f"cannot {what} at {endpoint.text}: {why}")
