"""The file that makes a machine part of a cluster, and the certificates that it makes itself with it."""

from __future__ import annotations

import json
import re
import ssl
import sys
from pathlib import Path

import pytest

from streamdet.cluster.keys import ClusterKeyError, ClusterKeys, read_keys
from streamdet.security.redact import redact


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cluster" / "cluster.key"
    ClusterKeys.make().write(path)
    return path


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Both sides of TLS, without a network."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not sides


def contexts(keys: ClusterKeys, folder: Path, *hosts: str) -> ssl.SSLContext:
    environ = keys.prepare(folder, hosts)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(environ["RAY_TLS_SERVER_CERT"], environ["RAY_TLS_SERVER_KEY"])
    return server


def test_a_machine_proves_with_the_file_that_it_is_one_of_the_cluster(path: Path, tmp_path: Path) -> None:
    server = contexts(read_keys(path), tmp_path, "192.0.2.7", "hall-2.example")
    client = ssl.create_default_context(cafile=path.with_name("ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 does by default
    for name in ("192.0.2.7", "hall-2.example", "localhost", "127.0.0.1"):
        handshake(server, client, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        handshake(server, client, "192.0.2.8")
    stranger = ssl.create_default_context(cadata=ClusterKeys.make().ca_certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, stranger, "localhost")


def test_no_one_else_can_read_the_secrets_and_no_log_shows_them(path: Path, tmp_path: Path) -> None:
    keys = read_keys(path)
    folder = tmp_path / "ray"
    folder.mkdir()
    keys.prepare(folder, ["192.0.2.7"])
    modes = {each: each.stat().st_mode & 0o777 for each in [*path.parent.iterdir(), *folder.iterdir()]}
    assert modes.pop(path.with_name("ca.pem")) == 0o644
    assert set(modes.values()) == {0o600}
    for secret in (keys.token, keys.reader_token, keys.ca_key):
        assert secret not in repr(keys)
        assert secret not in redact(f"got {secret}")
    assert keys.reader_token != keys.token
    assert path.with_name("reader.token").read_text() == keys.reader_token


def test_a_cluster_that_exists_keeps_its_keys(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ClusterKeyError, match="is there already"):
        ClusterKeys.make().write(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "x", "[]", "{}", '{"token": "x", "ca_certificate": 5, "ca_key": "y"}'])
def test_what_is_no_token_file_is_one_clear_line(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ClusterKeyError, match=re.escape(f"{path} is no token file of a cluster; streamdet cluster")):
        read_keys(path)


def test_a_file_that_others_can_read_or_that_is_missing_is_refused(path: Path) -> None:
    path.chmod(0o640)
    with pytest.raises(ClusterKeyError, match="others can read"):
        read_keys(path)
    with pytest.raises(ClusterKeyError, match="streamdet cluster init makes one"):
        read_keys(path.with_name("none"))
    assert json.loads(path.read_text())["token"]


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterKeyError, match="needs the extra cluster, which is not installed: make setup"):
        ClusterKeys.make()


def test_a_file_that_cannot_be_written_leaves_nothing_in_the_way_of_the_next_try(tmp_path: Path) -> None:
    path, obstacle = tmp_path / "cluster.key", tmp_path / "reader.token"
    obstacle.mkdir()
    with pytest.raises(ClusterKeyError, match="cannot write"):
        ClusterKeys.make().write(path)
    assert not path.exists()
    obstacle.rmdir()
    keys = ClusterKeys.make()
    keys.write(path)
    assert read_keys(path) == keys
