"""The Unix socket that the control API listens at, and who may use it."""

from __future__ import annotations

import errno
import grp
import os
import socket
from pathlib import Path

from streamdet.errors import EndpointError
from streamdet.http.server import Peer

_BACKLOG = 512


def listen_at(path: Path, group: str | None = None) -> socket.socket:
    """Binds the socket, for the daemon's own user and root alone, or also for the members of a group.

    The file of a dead process is replaced. A folder that is missing is made, for the daemon's user alone.

    Args:
        path: of the socket.
        group: whose members may connect, too.

    Raises:
        EndpointError: in use, or not permitted, or there is no such group.
    """
    gid = None if group is None else gid_of(group)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _remove_stale(path)
        # Linux gives the file the mode of the unbound socket, so it never has another one.
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


def may_use(peer: Peer, gid: int | None) -> bool:
    """Whether a process is the daemon's user, root, or in the group.

    The mode of the file says the same; but an open socket can be passed on, and the mode of the file be changed.
    """
    return peer.uid in (0, os.geteuid()) or gid in peer.groups


def gid_of(group: str) -> int:
    """The number of a group.

    Raises:
        EndpointError: there is no group of this name.
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
            pass  # a process listens, and is busy
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
