"""The Unix socket that the control API listens at, and who may use it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from streamdet.errors import EndpointError
from streamdet.http.server import Peer
from streamdet.security.endpoints import bind_advice, gid_of, remove_stale_socket

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
    gid = None if group is None else gid_of(group, "[control]")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        remove_stale_socket(path)
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
        message = f"[control] path: cannot listen at {path}: {bind_advice(error, 'path', path, group)}"
        raise EndpointError(message) from None
    return listener


def may_use(peer: Peer, gid: int | None) -> bool:
    """Whether a process is the daemon's user, root, or in the group.

    The mode of the file says the same; but an open socket can be passed on, and the mode of the file be changed.
    """
    return peer.uid in (0, os.geteuid()) or gid in peer.groups
