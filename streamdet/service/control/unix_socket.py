"""The Unix socket that the control API listens at, and who may use it."""

from __future__ import annotations

import logging
import os
import socket
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request

from streamdet.errors import EndpointError
from streamdet.http.access import Refused
from streamdet.http.server import Peer, connection_of
from streamdet.monitoring.log import LogThrottle
from streamdet.security.endpoints import bind_advice, gid_of, give_to_group, remove_stale_socket
from streamdet.security.limits import FairRate

_BACKLOG = 512

_log = logging.getLogger(__name__)


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
            give_to_group(path, gid)
            path.chmod(0o660)
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - the library's own signature
    except OSError as error:
        listener.close()
        message = f"[control] path: cannot listen at {path}: {bind_advice(error, 'path', path, group)}"
        raise EndpointError(message) from None
    return listener


class PeerGuard:
    """Admits requests of processes of the daemon's user, of root and of a group, and paces them.

    The mode of the file says the same; but an open socket can be passed on, and the mode of the file be changed.

    Args:
        group: its members may ask, too; None for no group.

    Raises:
        EndpointError: there is no such group.
    """

    def __init__(self, group: str | None = None) -> None:
        self._gid = None if group is None else gid_of(group, "[control]")
        self._throttle = LogThrottle()

    async def refusal(self, request: Request, rate: FairRate) -> Refused | None:
        """Why a request is refused; None for one that may pass, when it is its turn."""
        connection = connection_of(request.scope)
        peer = connection.peer
        if peer is None or not self._may_ask(peer):
            text = "refused a process of user %d at the control socket"
            self._throttle.log(_log, logging.WARNING, text, -1 if peer is None else peer.uid)
            why = "only the daemon's user, root and the group of [control] may ask"
            return Refused(HTTPStatus.FORBIDDEN, why, {"Connection": "close"})
        if not await rate.turn(connection.network, lambda: connection.closed):
            why = "too many requests of this user are waiting; try again"
            return Refused(HTTPStatus.TOO_MANY_REQUESTS, why, {"Retry-After": "1"})
        return None

    def _may_ask(self, peer: Peer) -> bool:
        return peer.uid in (0, os.geteuid()) or self._gid in peer.groups
