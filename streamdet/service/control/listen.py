"""Makes the Unix socket that the daemon listens at, and says who may use it."""

from __future__ import annotations

import errno
import grp
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from streamdet.errors import EndpointError

_BACKLOG = 16
# linux/socket.h; Python names it from 3.14 on.
_SO_PEERGROUPS = 59
# The most that Python reads at once: 256 groups.
_MAX_GROUPS_BYTES = 1024


class Peer(NamedTuple):
    """The process at the other end, as the kernel knows it since it connected."""

    pid: int
    uid: int
    gid: int


def listen_at(path: Path, group: str | None, gid: int | None) -> socket.socket:
    """Binds the socket, for the daemon's own user and root alone, or also for the members of a group.

    The file of a dead process is replaced. A folder that is missing is made, for the daemon's user alone.

    Raises:
        EndpointError: in use, or not permitted.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _remove_stale(path)
        # Linux gives the file the mode of the unbound socket, so there is no moment with another one.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid)
            path.chmod(0o660)
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - the library's own signature
    except OSError as error:
        listener.close()
        raise _cannot(path, _explain(error, path, group)) from None
    except EndpointError:
        listener.close()
        raise
    return listener


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end."""
    return Peer(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


def may_use(connection: socket.socket, gid: int | None) -> bool:
    """Whether the process at the other end is the daemon's user, root, or in the group.

    The mode of the file says the same; but a file can be passed on, or its mode be changed.
    """
    peer = peer_of(connection)
    if peer.uid in (0, os.geteuid()):
        return True
    return gid is not None and gid in _groups_of(connection, peer)


def _groups_of(connection: socket.socket, peer: Peer) -> set[int]:
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except OSError:
        data = b""  # a kernel before 4.13, or more groups than that: the main group still counts
    return {peer.gid, *struct.unpack(f"{len(data) // 4}I", data)}


def gid_of(group: str) -> int:
    """The number of a group.

    Raises:
        EndpointError: there is none of this name.
    """
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        message = f"[control] group: there is no group {group!r} on this machine; make it, or leave the key out"
        raise EndpointError(message) from None


def _remove_stale(path: Path) -> None:
    """Removes the file of a dead process; that of a living one is an error."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise _cannot(path, "it exists and is not a socket; remove it or choose another path")
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
            pass  # somebody listens, and is busy
    raise OSError(errno.EADDRINUSE, "")


def _explain(error: OSError, path: Path, group: str | None) -> str:
    return {
        errno.EADDRINUSE: "another daemon uses it; stop that one or choose another path",
        errno.EACCES: f"no permission; let this user write to {path.parent}",
        errno.EPERM: f"this user is not in group {group}; add it, or start as root" if group else "not permitted",
        errno.EROFS: f"{path.parent} is read-only; choose a path that can be written",
        errno.ENOENT: f"there is no folder {path.parent.parent}",
        errno.ENOTDIR: f"{path.parent} is not a folder",
    }.get(error.errno or 0, error.strerror or str(error))


def _cannot(path: Path, why: str) -> EndpointError:
    return EndpointError(f"[control] path: cannot listen at {path}: {why}")
