"""Which certificates are accepted; tests of the bridges and of RTSP over TLS have the rest."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from streamdet.security.tls import client_context
from support.waiting import join

_PLAIN = "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = {name}\n"
_OF_SERVER = "subjectAltName = DNS:localhost\nsubjectKeyIdentifier = none\nauthorityKeyIdentifier = none\n"


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the Debian package openssl")
def test_a_private_authority_without_key_identifiers_is_trusted_with_every_python(tmp_path: Path) -> None:
    for name in ("ca", "server"):
        (tmp_path / f"{name}.cnf").write_text(_PLAIN.format(name=name))
        request = ("req", "-new", "-newkey", "rsa:2048", "-nodes", "-config", f"{name}.cnf", "-keyout", f"{name}.key")
        _openssl(tmp_path, *request, "-out", f"{name}.csr")
    (tmp_path / "ca.ext").write_text("basicConstraints = CA:TRUE\nsubjectKeyIdentifier = none\n")
    (tmp_path / "server.ext").write_text(_OF_SERVER)
    x509 = ("x509", "-req", "-days", "2")
    _openssl(tmp_path, *x509, "-in", "ca.csr", "-key", "ca.key", "-extfile", "ca.ext", "-out", "ca.pem")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "server.ext", "-out", "server.pem")
    _openssl(tmp_path, *x509, "-in", "server.csr", *signed)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with server_side.wrap_socket(theirs, server_side=True) as server:
            server.sendall(b"x")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    context = client_context(tmp_path / "ca.pem")
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT  # the flag that newer Pythons set
    with context.wrap_socket(ours, server_hostname="localhost") as client:
        assert client.recv(1) == b"x"
    join(thread)


def test_public_authorities_are_judged_as_python_judges_them() -> None:
    assert client_context(None).verify_flags == ssl.create_default_context().verify_flags
