"""Where the secrets of a configuration file are: a folder with a file for each `${NAME}`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from streamdet.security.redact import replace_secrets

SERVICE_FOLDER = Path("/etc/streamdet")
_SERVICE_FILE = "streamdet.toml"
_VARIABLE = "CREDENTIALS_DIRECTORY"


def secrets_folder(file: Path) -> Path:
    """NAME.secrets beside NAME.toml; for the service itself, /etc/streamdet/secrets."""
    folder = file.absolute().parent
    return folder / ("secrets" if folder == SERVICE_FOLDER and file.name == _SERVICE_FILE else f"{file.stem}.secrets")


def environ_for(file: Path, environ: Mapping[str, str] = os.environ, *, of_bridges: bool = False) -> Mapping[str, str]:
    """The environment in which the daemon, or a bridge, reads a configuration file: it names the folder of its secrets.

    Args:
        file: the configuration file.
        environ: of this process; where it names a folder already, as that of a service does, it stays.
        of_bridges: whether a bridge reads the file, which has secrets of its own in the service.
    """
    if _VARIABLE in environ:
        return environ
    is_service = file.absolute().parent == SERVICE_FOLDER
    return {
        **environ,
        _VARIABLE: str(SERVICE_FOLDER / "bridges.secrets" if is_service and of_bridges else secrets_folder(file)),
    }


def use_secrets_of(file: Path) -> None:
    """Makes the secrets of a file those of this process, for as long as it runs the file."""
    os.environ[_VARIABLE] = environ_for(file)[_VARIABLE]


def without_secrets(name: str, url: str) -> tuple[str, dict[str, str]]:
    """A url with `${NAME}` in place of its secrets, and what each NAME stands for.

    Args:
        name: of the stream; the secrets are named after it, such as FRONT_DOOR_LOGIN.
        url: with a login, or with passwords and tokens in its query.
    """
    begin = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    begin = f"STREAM_{begin}" if begin[:1].isdecimal() else begin
    found: dict[str, str] = {}

    def reference(what: str, value: str) -> str:
        if "${" in value:
            return value
        found[f"{begin}_{what}"] = value
        return f"${{{begin}_{what}}}"

    return replace_secrets(url, reference), found
