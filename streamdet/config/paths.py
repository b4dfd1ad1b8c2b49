"""Files that a configuration names: relative paths begin at the folder of the configuration, whoever starts us."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.config.locate import Path as KeyPath
from streamdet.security.curve import KeyFileError, public_files, read_pair
from streamdet.security.passwords import PasswordError, read_password

BUILT_IN_WEIGHTS = ("embedded", "coco")
_FILE_KEYS = (
    ("publisher", "curve_server_key_file"),
    ("publisher", "curve_allowed_clients_directory"),
    ("metrics", "tls_certificate_file"),
    ("metrics", "tls_key_file"),
    ("metrics", "password_file"),
)
_WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")


def resolve_paths(tables: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the tables with every relative path made absolute; whatever has the wrong type stays as it is."""
    resolved = dict(tables)
    if isinstance(tables.get("detector"), dict):
        resolved["detector"] = _absolute(tables["detector"], "weights", folder, _is_weights_file)
    if isinstance(tables.get("control"), dict):
        control = _absolute(tables["control"], "path", folder, lambda path: path not in ("auto", "off"))
        resolved["control"] = _absolute(control, "changes_file", folder, lambda path: path != "auto")
    for table, key in _FILE_KEYS:
        if isinstance(resolved.get(table), dict):
            resolved[table] = _absolute(resolved[table], key, folder, bool)
    if isinstance(tables.get("spool"), dict):
        resolved["spool"] = _absolute(tables["spool"], "directory", folder, bool)
    if isinstance(tables.get("streams"), list):
        resolved["streams"] = [_resolve_stream(stream, folder) for stream in tables["streams"]]
    return resolved


def missing_files(tables: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Tells which of the resolved files are not there; files that streams read may come and go."""
    detector = tables.get("detector")
    weights = detector.get("weights") if isinstance(detector, dict) else None
    if isinstance(weights, str) and _is_weights_file(weights) and (problem := _weights_problem(Path(weights))):
        yield ("detector", "weights"), problem
    yield from _unusable_keys(tables)
    streams = tables.get("streams")
    for number, stream in enumerate(streams if isinstance(streams, list) else []):
        ca_file = stream.get("tls_ca_file") if isinstance(stream, dict) else None
        if isinstance(ca_file, str) and ca_file and not _is_file(Path(ca_file)):
            yield ("streams", number, "tls_ca_file"), f"there is no file {ca_file}; give the path of a PEM file"


def _unusable_keys(tables: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Tells which keys and passwords of the daemon cannot be used."""

    def file_of(table: str, key: str) -> Path | None:
        value = tables[table].get(key) if isinstance(tables.get(table), dict) else None
        return Path(value) if isinstance(value, str) and value else None

    checks: dict[tuple[str, str], Callable[[Path], object]] = {
        ("publisher", "curve_server_key_file"): lambda path: read_pair(path, "server"),
        ("publisher", "curve_allowed_clients_directory"): public_files,
        ("metrics", "password_file"): read_password,
    }
    for table, key in _FILE_KEYS:
        path = file_of(table, key)
        if path is None:
            continue
        if (table, key) in checks:
            try:
                checks[table, key](path)
            except (KeyFileError, PasswordError, ValueError) as error:
                yield (table, key), str(error)
        elif not _is_file(path):
            yield (table, key), f"there is no file {path}; give the path of a PEM file"


def _weights_problem(path: Path) -> str:
    if _is_file(path):
        return ""
    if path.suffix in _WEIGHTS_SUFFIXES:
        return f'there is no file {path}; give the path of one, or "embedded"'
    near = difflib.get_close_matches(path.name, BUILT_IN_WEIGHTS, 1)
    meant = f'did you mean "{near[0]}"?' if near else 'must be "embedded", "coco", or a .safetensors or .pth file'
    return f'is "{path.name}", which is no file; {meant}'


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_weights_file(weights: str) -> bool:
    return bool(weights) and weights not in BUILT_IN_WEIGHTS


def _is_path(url: str) -> bool:
    try:
        return kind_of_url(url) is UrlKind.FILE and "://" not in url
    except ValueError:
        return False


def _resolve_stream(stream: object, folder: Path) -> object:
    if not isinstance(stream, dict):
        return stream
    return _absolute(_absolute(stream, "url", folder, _is_path), "tls_ca_file", folder, bool)


def _absolute(table: dict[str, Any], key: str, folder: Path, is_path: Callable[[str], bool]) -> dict[str, Any]:
    value = table.get(key)
    return {**table, key: str(folder / value)} if isinstance(value, str) and is_path(value) else table
