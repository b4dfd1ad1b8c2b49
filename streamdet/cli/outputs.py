"""Files that a command was asked to write: what is said where they cannot be written."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamdet.errors import ConfigError, StoreError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Reports in one line that what `--out` names cannot be written.

    Args:
        path: of the file or folder that the block writes.

    Raises:
        StoreError: the disk is full, or fails.
        ConfigError: this is no place to write to.
    """
    try:
        yield
    except OSError as error:
        msg = f"--out: cannot write {path}: {error.strerror}"
        if error.errno in _DISK_ERRORS:
            raise StoreError(msg) from None
        raise ConfigError([msg]) from None
