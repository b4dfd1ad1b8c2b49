"""Sends requests to the head of a cluster."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from typing import Any

from streamdet.client.control import decode_answer
from streamdet.cluster.keys import ClusterKeys
from streamdet.errors import ControlError, Refusal
from streamdet.security.endpoints import is_loopback

DEFAULT_PORT = 9094
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HeadClient:
    """Asks one head; a connection for each request.

    Attributes:
        host: name or address. The head speaks TLS unless it is on loopback.
        port: of TCP.
        keys: of the cluster; None to read on loopback without.
    """

    host: str
    port: int
    keys: ClusterKeys | None = None

    def ask(self, method: str, path: str, body: str | None = None) -> Json:
        """Sends a request, and returns its result.

        Raises:
            ConfigError: the head found mistakes in a file of streams.
            ControlError: no head answers, or it refused the request for another reason.
        """
        where = f"the head at {self.host}:{self.port}"
        headers = {} if self.keys is None else {"Authorization": f"Bearer {self.keys.token}"}
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(_ANSWER_SECONDS)
            connection.request(method, path, None if body is None else body.encode(), headers)
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except ssl.SSLCertVerificationError:
            message = (
                f"{where} has no certificate of this cluster; is the token file that of its streamdet cluster init?"
            )
            raise ControlError(Refusal.NOT_ALLOWED, message) from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            message = f"{where} does not answer: {why}; streamdet cluster head starts one"
            raise ControlError(Refusal.UNAVAILABLE, message) from None
        finally:
            connection.close()
        return decode_answer(status, answer)

    def _connection(self) -> http.client.HTTPConnection:
        if is_loopback(self.host):
            return http.client.HTTPConnection(self.host, self.port, timeout=_CONNECT_SECONDS)
        tls = ssl.create_default_context(cadata=None if self.keys is None else self.keys.ca_certificate)
        # Only machines of the cluster have certificates of its authority, whatever name they are reached by.
        tls.check_hostname = False
        return http.client.HTTPSConnection(self.host, self.port, timeout=_CONNECT_SECONDS, context=tls)
