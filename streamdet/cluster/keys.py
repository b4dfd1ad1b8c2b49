"""What a machine needs to belong to a cluster: a token, and an authority that signs certificates.

One file holds both. It is made once, on the head, and copied to each node. Anyone who has it can run programs on every
machine of the cluster, because that is what Ray is for. Each machine makes itself a certificate whenever it starts.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from streamdet.errors import EXIT_USAGE, StreamdetError
from streamdet.extras import how_to_install
from streamdet.security.files import others_can_read, read_start, write_atomically
from streamdet.security.redact import remember_secret

_MAX_FILE_BYTES = 16384
_WAY = "streamdet cluster init makes one on the head; copy it to each node"


class ClusterKeyError(StreamdetError):
    """The file with the token and the certificates of a cluster cannot be used."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True, repr=False)
class ClusterKeys:
    """The secrets of a cluster.

    Attributes:
        token: that every request carries.
        ca_certificate: of the authority that signs the certificates of the machines (PEM).
        ca_key: of that authority (PEM).
    """

    token: str
    ca_certificate: str
    ca_key: str

    @classmethod
    def make(cls) -> ClusterKeys:
        """Makes new ones.

        Raises:
            ClusterKeyError: the extra `cluster` is not installed.
        """
        require_extra()
        from streamdet.cluster.certificates import make_authority  # noqa: PLC0415 - needs the extra

        return cls(secrets.token_hex(32), *make_authority())

    @property
    def reader_token(self) -> str:
        """What those who only read, such as Prometheus, have instead of the token."""
        return hmac.digest(self.token.encode(), b"reader", "sha256").hex()

    def write(self, path: Path) -> None:
        """Writes them to a new file that only its owner can read.

        Beside it come `ca.pem`, which checks certificates of the cluster, and `reader.token`, which only the owner can
        read, too.

        Raises:
            ClusterKeyError: there is such a file, or it cannot be written.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, json.dumps(asdict(self), indent=1).encode() + b"\n", replace=False)
            try:
                write_atomically(path.with_name("ca.pem"), self.ca_certificate.encode(), mode=0o644)
                write_atomically(path.with_name("reader.token"), self.reader_token.encode())
            except OSError:
                path.unlink()  # without the others it would be in the way of the next try
                raise
        except FileExistsError:
            message = f"{path} is there already; delete it to make a new one, which every node then needs"
            raise ClusterKeyError(message) from None
        except OSError as error:
            message = f"cannot write {path}: {error.strerror}"
            raise ClusterKeyError(message) from None

    def prepare(self, folder: Path, hosts: Sequence[str]) -> Mapping[str, str]:
        """Writes what Ray reads into a folder, with a new certificate of this machine.

        Args:
            folder: that only this user may enter.
            hosts: names and addresses of this machine.

        Returns:
            The environment of every process of Ray on this machine.

        Raises:
            ClusterKeyError: the folder cannot be written, or the extra `cluster` is not installed.
        """
        require_extra()
        from streamdet.cluster.certificates import make_certificate  # noqa: PLC0415 - needs the extra

        certificate, key = make_certificate(self.ca_key, [*hosts, "localhost", "127.0.0.1"])
        files = {"token": self.token, "ca.pem": self.ca_certificate, "machine.pem": certificate, "machine.key": key}
        try:
            for name, content in files.items():
                write_atomically(folder / name, content.encode())
        except OSError as error:
            message = f"cannot write to {folder}: {error.strerror}"
            raise ClusterKeyError(message) from None
        return {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_USE_TLS": "1",
            "RAY_TLS_CA_CERT": str(folder / "ca.pem"), "RAY_TLS_SERVER_CERT": str(folder / "machine.pem"),
            "RAY_TLS_SERVER_KEY": str(folder / "machine.key"),
        }  # fmt: skip


def read_keys(path: Path) -> ClusterKeys:
    """Reads a file that `ClusterKeys.write` made.

    Raises:
        ClusterKeyError: it is missing, others can read it, or it is no such file.
    """
    try:
        content, mode = read_start(path, _MAX_FILE_BYTES)
    except OSError as error:
        message = f"cannot read the token file {path}: {error.strerror}; {_WAY}"
        raise ClusterKeyError(message) from None
    if others_can_read(path, mode):
        message = f"others can read the token file {path}; run: chmod 600 {path}"
        raise ClusterKeyError(message)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    names = [each.name for each in fields(ClusterKeys)]
    values = {name: found[name] for name in names if found.get(name)} if isinstance(found, dict) else {}
    if len(values) < len(names) or not all(isinstance(value, str) for value in values.values()):
        message = f"{path} is no token file of a cluster; {_WAY}"
        raise ClusterKeyError(message)
    keys = ClusterKeys(**values)
    remember_secret(keys.token)
    remember_secret(keys.reader_token)
    remember_secret(keys.ca_key)
    return keys


def require_extra() -> None:
    """Checks that the packages of the extra `cluster` are installed.

    Raises:
        ClusterKeyError: they are not; says how to install them.
    """
    from importlib.util import find_spec  # noqa: PLC0415 - for this alone

    if find_spec("ray") is None or find_spec("cryptography") is None:
        message = f"a cluster needs the extra cluster, which is not installed: {how_to_install('cluster')}"
        raise ClusterKeyError(message)
