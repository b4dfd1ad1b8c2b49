"""Makes the authority of a cluster, and the certificates of its machines; needs the extra `cluster`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

_NAME = "streamdet cluster"
_VALID = timedelta(days=3650)
# A machine whose clock is late by a day still accepts a certificate that was made now.
_LATE = timedelta(days=1)


def make_authority() -> tuple[str, str]:
    """A certificate (PEM) that signs those of machines, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    signs = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    unsigned = _unsigned(_NAME, key, key).add_extension(constraints, critical=True).add_extension(signs, critical=True)
    certificate = unsigned.sign(key, SHA256())
    return _pem(certificate, key)


def make_certificate(authority_key: str, hosts: Sequence[str]) -> tuple[str, str]:
    """A certificate (PEM) of a machine, and its key.

    Args:
        authority_key: of `make_authority`.
        hosts: names and addresses of the machine.
    """
    authority = load_pem_private_key(authority_key.encode(), None)
    if not isinstance(authority, ec.EllipticCurvePrivateKey):
        message = "the key is not one of make_authority"
        raise TypeError(message)
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
    certificate = _unsigned(hosts[0], key, authority).add_extension(names, critical=False).sign(authority, SHA256())
    return _pem(certificate, key)


def _unsigned(
    subject: str, key: ec.EllipticCurvePrivateKey, authority: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    """A certificate with what strict clients ask for, such as Python 3.13: which key it has, and which key signs it."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject)).issuer_name(_name(_NAME)).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - _LATE).not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )  # fmt: skip


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[str, str]:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), private.decode()
