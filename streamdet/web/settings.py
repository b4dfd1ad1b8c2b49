"""The settings of the page, and checks that refuse those under which others could see pictures or change streams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamdet.client.head import HeadAddress
from streamdet.errors import EXIT_USAGE, StreamdetError
from streamdet.security.endpoints import is_loopback


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve.

    Attributes:
        endpoint: where the daemon publishes; empty for a cluster.
        cluster: the head of a cluster, all of whose nodes are shown; None for one daemon.
        metrics: HOST:PORT of the daemon's metrics page; None when it is not to be read.
        server_key: file with the daemon's public key, where it asks for keys; of a cluster also a folder of NODE.key.
        client_key_file: file with the page's own keys.
        host: address to listen at.
        port: 0 for any free one.
        password_file: asks for a login; needed when other machines can reach the page, and for changes.
        allow_changes: whether operators may change streams and rules.
        socket_path: of the daemon's control API; None to look for it.
        config_path: the file that the daemon runs; None if that is not known.
        tls_certificate: PEM file; None to serve http.
        tls_key: PEM file of its key.
        behind_proxy: whether a reverse proxy in front serves https.
        state_directory: where marks are kept; None for nowhere.
        host_names: further names under which browsers call the page.
        end_with_stdin: whether to end when standard input ends, as that of a child whose parent is gone.
    """

    endpoint: str
    cluster: HeadAddress | None = None
    metrics: str | None = None
    server_key: Path | None = None
    client_key_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8095
    password_file: Path | None = None
    allow_changes: bool = False
    socket_path: Path | None = None
    config_path: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    behind_proxy: bool = False
    state_directory: Path | None = None
    host_names: tuple[str, ...] = ()
    end_with_stdin: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


class WebError(StreamdetError):
    """The settings would let unauthorized clients see the page, or its files cannot be used."""

    exit_code = EXIT_USAGE


def check_settings(settings: Settings) -> None:
    """Refuses settings under which unauthorized clients could see pictures or change streams.

    Raises:
        WebError: the message says what to add.
    """
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        message = "--tls-certificate and --tls-key go together"
        raise WebError(message)
    if settings.tls_certificate is not None and settings.behind_proxy:
        message = "--behind-proxy means that the proxy has the certificate; leave --tls-certificate out"
        raise WebError(message)
    if settings.allow_changes and settings.cluster is not None:
        message = (
            "[web] allow_changes does not go with --cluster: streams of a cluster are changed with "
            "streamdet cluster apply"
        )
        raise WebError(message)
    if settings.allow_changes and settings.password_file is None:
        message = (
            "[web] allow_changes needs a login, also where only this machine can reach the page: make one with "
            "streamdet web --set-password FILE --user NAME --role operator, and set password_file in [web]"
        )
        raise WebError(message)
    reachable = not settings.is_loopback or settings.behind_proxy
    if reachable and settings.password_file is None:
        message = (
            "other machines could see the pictures: add --password-file FILE "
            "(streamdet web --set-password FILE makes one)"
        )
        raise WebError(message)
    if not settings.is_loopback and settings.tls_certificate is None and not settings.behind_proxy:
        message = (
            f"{settings.host} can be reached by other machines, and the password would travel in the clear: "
            "add --tls-certificate and --tls-key, or --behind-proxy if a reverse proxy in front serves https"
        )
        raise WebError(message)
