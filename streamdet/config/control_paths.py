"""Where the control socket is: the daemon decides, a client looks in the same places."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from streamdet.security.endpoints import MAX_SOCKET_PATH_BYTES, remove_stale_socket

AUTO, OFF = "auto", "off"
_SYSTEM_FOLDER = Path("/run/streamdet")
_NAME = "control.sock"


def socket_of_daemon(setting: str, config_path: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where a daemon listens; None for nowhere.

    Args:
        setting: `[control] path`.
        config_path: the file that the daemon runs; without one there is nothing that a reload could read, and "auto"
            means nowhere.
        environ: RUNTIME_DIRECTORY and XDG_RUNTIME_DIR are looked at.
    """
    if setting == OFF:
        return None
    if setting != AUTO:
        return Path(setting)
    if config_path is None:
        return None
    service = _service_folder(environ)
    if service is not None:
        return service / _NAME
    folder = _user_folder(environ)
    # Several daemons of one user have several files.
    digest = hashlib.sha256(os.fsencode(config_path.absolute())).hexdigest()[:8]
    path = None if folder is None else folder / f"{config_path.stem[:24]}-{digest}.sock"
    fits = path is not None and len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    return path if fits else None


def socket_without_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where a daemon without a configuration file listens, so that clients find it; None where there is no folder.

    Sockets that such daemons left when they were killed are removed: no other daemon takes their place.
    """
    folder = _user_folder(environ)
    for left in [] if folder is None else _files(folder, "run-*.sock"):
        if not Path("/proc", left.stem.removeprefix("run-")).exists():
            with suppress(OSError):
                remove_stale_socket(left)
    path = None if folder is None else folder / f"run-{os.getpid()}.sock"
    return path if path is not None and len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES else None


def possible_sockets(environ: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Every socket file at which a daemon with `path = "auto"` may listen, also those that dead daemons left."""
    folders = [_service_folder(environ), _user_folder(environ), _SYSTEM_FOLDER]
    seen: set[Path] = set()
    for folder in folders:
        if folder is None:
            continue
        # Instances of a service have a folder each.
        for path in [*_files(folder, "*.sock"), *_files(folder, f"*/{_NAME}")]:
            if path not in seen:
                seen.add(path)
                yield path


def changes_file_of_daemon(
    setting: str, config_path: Path | None, environ: Mapping[str, str] = os.environ
) -> Path | None:
    """Where a daemon keeps what was changed at run time; None for nowhere.

    Args:
        setting: `[control] changes_file`.
        config_path: the file that the daemon runs.
        environ: STATE_DIRECTORY is looked at.
    """
    if setting != AUTO:
        return Path(setting)
    if config_path is None:
        return None
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(state, "streams.json") if state else config_path.absolute().with_suffix(".streams.json")


def _service_folder(environ: Mapping[str, str]) -> Path | None:
    # systemd joins several with colons.
    first = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(first) if first else None


def _user_folder(environ: Mapping[str, str]) -> Path | None:
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime:
        return Path(runtime, "streamdet")
    return _SYSTEM_FOLDER if os.geteuid() == 0 else None


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_socket())
    except OSError:
        return []  # a folder of someone else's
