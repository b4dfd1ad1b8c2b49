"""Inserts the values of `${NAME}`: environment variables, or credential files of systemd."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from streamdet.config.addresses import MAX_URL_CHARACTERS, URL_KEYS
from streamdet.config.toml import KeyPath
from streamdet.config.values import Substituted
from streamdet.security.redact import remember_secret, remember_url

# A credential is a password or a token.
MAX_CREDENTIAL_BYTES = 64 * 1024

FOLDER_PREFIX = "secret_"
"""LoadCredential=secret:FOLDER in our units adds this before the name of each file of the folder."""
_CREDENTIALS = Path("/run/credentials")
_UNIT = re.compile(r"streamdet(?:@(?P<instance>.+)|(?P<bridge>-bridge@.+))?\.service")

# No slash, and no dot at the beginning: a name cannot leave the folder of the credentials.
_NAME = r"[A-Za-z_][A-Za-z0-9_.-]*"
_REFERENCE = re.compile(rf"(?P<escaped>\$\$\{{)|\$\{{(?P<name>{_NAME})\}}|(?P<broken>\$\{{)")
_LOGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:\$\{[^}]*\}|[^/?#@$])*@")
_SAFE_IN_LOGIN = "!$%&'()*+,;=:~"


class Substitution:
    """Replaces `${NAME}` in the values of a configuration.

    Args:
        environ: searched first; then the folder that its CREDENTIALS_DIRECTORY names.

    Attributes:
        problems: what is wrong, by the path of the value.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: dict[KeyPath, str] = {}

    def apply(self, value: object, path: KeyPath = ()) -> object:
        """Returns the value with all references in it replaced, at any depth; a wrong one stays as it is."""
        if isinstance(value, dict):
            return {key: self.apply(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.apply(inner, (*path, number)) for number, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        is_url = bool(path) and path[-1] in URL_KEYS
        replaced = self._replace(value, path, is_url=is_url) if "${" in value else value
        # A longer one is refused, and its message does not repeat it; to mask it would take seconds.
        if is_url and path not in self.problems and len(replaced) <= MAX_URL_CHARACTERS:
            remember_url(replaced)
        return replaced

    def _replace(self, text: str, path: KeyPath, *, is_url: bool) -> str:
        pieces: list[str] = []
        at, references = 0, 0
        login = _LOGIN.match(text)
        for match in _REFERENCE.finditer(text):
            pieces.append(text[at : match.start()])
            at = match.end()
            if match["escaped"]:
                pieces.append("${")
                continue
            try:
                value = self._look_up(match["name"])
            except ValueError as error:
                self.problems[path] = str(error)
                return text
            references += 1
            if is_url and not _is_host(text, match) and not _is_user(text, match):
                remember_secret(value)
            if login is not None and match.end() < login.end():
                value = _encode_login(value)
            pieces.append(value)
        replaced = "".join([*pieces, text[at:]])
        return Substituted(replaced, text) if references else replaced

    def _look_up(self, name: str | None) -> str:
        if name is None:
            problem = (
                'contains a "${" that does not begin a name; write ${NAME}, or $${ for these two characters themselves'
            )
            raise ValueError(problem)
        if name in self._environ:
            return self._environ[name]
        folder = self._environ.get("CREDENTIALS_DIRECTORY")
        if folder:
            for path in (Path(folder, name), Path(folder, FOLDER_PREFIX + name)):
                try:
                    return _read_credential(path)
                except FileNotFoundError:
                    continue
                except (OSError, ValueError) as error:
                    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
                    problem = f"credential file {path} cannot be read: {reason}"
                    raise ValueError(problem) from None
        where = "$CREDENTIALS_DIRECTORY is not set either"
        if folder:
            where = f"there is no file {_source_of(folder) / name}"
        problem = f"${{{name}}} is not set: no environment variable {name} is set, and {where}; provide one of the two"
        raise ValueError(problem)


def _source_of(folder: str) -> Path:
    """Where the user keeps the files that our units hand over in this folder; itself for any other folder."""
    path = Path(folder)
    unit = _UNIT.fullmatch(path.name) if path.parent == _CREDENTIALS else None
    if unit is None:
        return path
    instance = "bridges" if unit["bridge"] else unit["instance"]
    return Path("/etc/streamdet", f"{instance}.secrets" if instance else "secrets")


def _read_credential(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_CREDENTIAL_BYTES + 1)
    if len(data) > MAX_CREDENTIAL_BYTES:
        problem = f"it is larger than {MAX_CREDENTIAL_BYTES // 1024} KiB"
        raise ValueError(problem)
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        problem = "it is not UTF-8"
        raise ValueError(problem) from None


def _is_host(text: str, reference: re.Match[str]) -> bool:
    """Whether a reference is the host or port of a URL, or all of it: these are not secrets."""
    before, after = text[: reference.start()], text[reference.end() :]
    authority = before.partition("://")[2]
    starts = before == "" or re.search(r"(?:://|@)[^/?#@]*$", before) is not None
    return starts and "@" not in after and not re.search(r"[/?#]", authority)


def _is_user(text: str, reference: re.Match[str]) -> bool:
    """Whether a reference is the user name of a login with a password, which is often an ordinary word."""
    return text[: reference.start()].endswith("://") and text[reference.end() :].startswith(":")


def _encode_login(value: str) -> str:
    """Percent-encodes characters that would end the login of a URL; encoded ones stay as they are."""
    value = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", value)
    return quote(value, safe=_SAFE_IN_LOGIN, errors="surrogatepass")
