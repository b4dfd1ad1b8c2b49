"""Credentials of systemd: files that it hands out to one service."""

from __future__ import annotations

import os
from pathlib import Path


def is_credential(path: Path) -> bool:
    """Whether a file was handed out by systemd, in a folder that no one else can enter.

    It may have an ACL for its reader, and then shows the mode 0440.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and path.absolute().is_relative_to(str(folder))
