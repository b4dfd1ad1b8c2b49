"""How a server is verified over TLS, for everything that connects to one."""

from __future__ import annotations

import ssl
from pathlib import Path


def client_context(ca_file: str | Path | None) -> ssl.SSLContext:
    """Verifies a server by its certificate and its host name.

    Certificates of an authority of the user's own need no key identifiers, which small private authorities leave out:
    Python 3.13 refuses them without by default, earlier versions and most other programs do not.

    Args:
        ca_file: certificates (PEM) of the authorities that are trusted; None for those of this machine.

    Raises:
        OSError: the file cannot be read; `ssl.SSLError` if it holds no certificate.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if ca_file is not None:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
