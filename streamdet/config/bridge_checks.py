"""Checks of the tables of bridges that need more than one value: files, and what must fit the daemon's own tables."""

from __future__ import annotations

import importlib.util
import ssl
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from streamdet.config.bridges import METRICS_KEYS
from streamdet.config.files import FilesConfig
from streamdet.config.listening import ListenAddress, parse_host_port, parse_publisher_endpoint, same_port
from streamdet.config.models import Config
from streamdet.config.substitute import FOLDER_PREFIX
from streamdet.config.toml import KeyPath, Tables
from streamdet.config.values import nearest_or
from streamdet.extras import how_to_install
from streamdet.security.curve import KeyFileError, read_pair, read_public

SECRETS = Path("/etc/streamdet/bridges.secrets")
"""What the service of a bridge gets of the machine's files, besides the configuration."""

_FILE_KEYS = {
    "bridges": ("server_key_file", "client_key_file"),
    "webhooks": ("ca_file",),
    "mqtt": ("ca_file", "certificate_file", "key_file"),
    "web": ("password_file",),
}
# The table of a bridge that has not its name, and the key without which a bridge does nothing.
_TABLES = {"webhook": "webhooks"}
_NEEDED = {"mqtt": "broker", "files": "directory"}
_STATES_UNTIL_GONE = 3
_MAX_NAMES = 20


class _File(NamedTuple):
    """A file that a table of a bridge names: the path of its key, and its own, absolute."""

    key: KeyPath
    path: Path


def resolve_files(tables: Tables, folder: Path, credentials: Path | None) -> Tables:
    """Returns the tables of bridges with every file's path made absolute; a value of a wrong type stays as it is.

    Args:
        tables: as they were written.
        folder: of the configuration.
        credentials: the folder that a file is looked for in if it is not beside the configuration.
    """

    def absolute(table: object, keys: Sequence[str]) -> object:
        if not isinstance(table, dict):
            return table
        found = {key: _absolute(table[key], folder, credentials) for key in keys if isinstance(table.get(key), str)}
        return {**table, **found}

    resolved = dict(tables)
    for name, keys in _FILE_KEYS.items():
        value = tables.get(name)
        if isinstance(value, list):
            resolved[name] = [absolute(each, keys) for each in value]
        elif value is not None:
            resolved[name] = absolute(value, keys)
    return resolved


def _absolute(value: str, folder: Path, credentials: Path | None) -> str:
    beside = folder / value
    if not value or _is_file(beside) or credentials is None or Path(value).is_absolute():
        return str(beside) if value else value
    as_credential = credentials / f"{FOLDER_PREFIX}{value}"
    return str(as_credential if _is_file(as_credential) else credentials / value)


def unusable_files(tables: Tables) -> Iterator[tuple[KeyPath, str]]:
    """Finds files of bridges that are missing, or hold something else than they should.

    Args:
        tables: their paths made absolute.
    """
    for key, path in _files(tables):
        if key[0] == "web" and not _is_file(path):
            yield key, f"there is no file {path}; streamdet web --set-password {path} --user NAME makes it"
        elif key[0] != "bridges" and not _is_file(path):
            yield key, f"there is no file {path}; give the path of a PEM file"
        elif key[-1] == "ca_file" and (problem := _problem_of_authority(path)):
            yield key, f"{path} {problem}"
    bridges = tables.get("bridges")
    if not isinstance(bridges, dict):
        return
    state = bridges.get("state_directory")
    if isinstance(state, str) and _is_file(Path(state)):
        yield ("bridges", "state_directory"), f"{state} is a file; give the path of a directory"
    readers: dict[str, Callable[[Path], object]] = {
        "server_key_file": read_public,
        "client_key_file": lambda path: read_pair(path, "client"),
    }
    for name, read in readers.items():
        file = bridges.get(name)
        try:
            if isinstance(file, str) and file:
                read(Path(file))
        except KeyFileError as error:
            yield ("bridges", name), str(error)


def closed_to_service(tables: Tables) -> Iterator[tuple[KeyPath, str]]:
    """Finds files and directories that the service of a bridge, which runs as a user of its own, cannot use.

    Args:
        tables: their paths made absolute.
    """
    bridges = tables.get("bridges", {})
    if bridges.get("state_directory", "auto") != "auto":
        problem = 'is a directory that the service of the bridge cannot write; write "auto", or delete the line'
        yield ("bridges", "state_directory"), problem
    directory = tables.get("files", {}).get("directory")
    if isinstance(directory, str) and Path(directory).is_relative_to(SECRETS.parent):
        problem = "is no directory that the service of the bridge can write; write /var/lib/streamdet-files"
        yield ("files", "directory"), problem
    for key, path in _files(tables):
        if _is_file(path) and not path.is_relative_to(SECRETS) and not _is_open(path):
            yield (
                key,
                f"the service of the bridge cannot read {path}; put the file into {SECRETS} and write its name alone",
            )


def _files(tables: Tables) -> Iterator[_File]:
    for name, keys in _FILE_KEYS.items():
        value = tables.get(name)
        several = isinstance(value, list)
        for number, table in enumerate(value if isinstance(value, list) else [value]):
            for key in keys:
                path = table.get(key) if isinstance(table, dict) else None
                if isinstance(path, str) and path:
                    yield _File((name, number, key) if several else (name, key), Path(path))


def _problem_of_authority(path: Path) -> str:
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        return "holds no certificate (PEM)"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _is_open(path: Path) -> bool:
    """Whether every user can read a file, as far as modes show it."""
    try:
        reachable = all(folder.stat().st_mode & stat.S_IXOTH for folder in path.absolute().parents)
        return reachable and bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def bridge_problems(
    config: Config, bridges: Config, tables: Tables, weights_labels: Sequence[str] | None
) -> Iterator[tuple[KeyPath, str]]:
    """Finds what does not fit together in the tables of bridges, and between them and those of the daemon.

    Args:
        config: the tables that the daemon reads.
        bridges: the tables that bridges read, of the same file.
        tables: as they were written.
        weights_labels: that the weights know; None if only the detector itself knows them.
    """
    for name, key in _NEEDED.items():
        if name in tables and getattr(getattr(bridges, name), key) is None:
            example = type(getattr(bridges, name)).model_fields[key].examples or [""]
            yield (name, key), f'is missing; add a line such as {key} = "{example[0]}"'
    yield from _shared_ports(config, bridges, tables)
    if bridges.bridges.endpoint != "auto" or not _used(tables):
        return  # what another daemon detects and publishes is not known here
    if config.replay.endpoint == "off":
        yield ("replay", "endpoint"), 'is "off", but bridges ask for what they have missed; delete it'
    if config.publisher.curve_server_key_file is not None and bridges.bridges.server_key_file is None:
        problem = "is missing: the daemon asks for keys; make some with `streamdet keys generate`"
        yield ("bridges", "client_key_file"), problem
    interval, forget = config.publisher.state_interval_seconds, bridges.mqtt.forget_after_seconds
    if "mqtt" in tables and forget < _STATES_UNTIL_GONE * interval:
        need = f"three times state_interval_seconds = {interval:g} s of [publisher]"
        yield ("mqtt", "forget_after_seconds"), f"is {forget:g} s; must be at least {need}"
    known = {"rules": [rule.name for rule in config.rules]}
    if labels := config.detector.labels or weights_labels:
        known["labels"] = list(labels)
    yield from _unknown_names(known, tables)


def _used(tables: Mapping[str, Any]) -> tuple[str, ...]:
    """The bridges that have a table."""
    return tuple(bridge for bridge in METRICS_KEYS if _TABLES.get(bridge, bridge) in tables)


def _shared_ports(config: Config, bridges: Config, tables: Tables) -> Iterator[tuple[KeyPath, str]]:
    known: dict[KeyPath, ListenAddress | None] = {}
    if bridges.bridges.endpoint == "auto":
        events = parse_publisher_endpoint(config.publisher.endpoint)
        replay = events and events._replace(port=events.port + 1 if events.port else 0)
        if config.replay.endpoint != "auto":
            is_off = config.replay.endpoint == "off"
            replay = None if is_off else parse_publisher_endpoint(config.replay.endpoint)
        known = {
            ("publisher", "endpoint"): events,
            ("replay", "endpoint"): replay,
            ("metrics", "endpoint"): parse_host_port(config.metrics.endpoint),
            ("control", "listen"): parse_host_port(config.control.listen) if config.control.listen else None,
        }
    for bridge in _used(tables):
        table, key = METRICS_KEYS[bridge]
        page = parse_host_port(getattr(getattr(bridges, table), key))
        for other, address in known.items():
            if address is not None and same_port(address, page):
                is_written = key in tables.get(table, {})
                where = (table, key) if is_written or other[1] not in tables.get(str(other[0]), {}) else other
                theirs = f"{other[1]} of [{other[0]}]" if where == (table, key) else f"{key} of [{table}]"
                yield where, f"port {page.port} is used by {theirs} as well; give one of them another port"
        known[table, key] = page


def _unknown_names(known: Mapping[str, Sequence[str]], tables: Tables) -> Iterator[tuple[KeyPath, str]]:
    """Finds values of the keys that are none of the names known for them."""
    for bridge in _used(tables):
        name = _TABLES.get(bridge, bridge)
        several = isinstance(tables[name], list)
        for number, table in enumerate(tables[name] if several else [tables[name]]):
            for key, names in known.items():
                for index, value in enumerate(table.get(key, ())):
                    if value not in names:
                        some = f"the {key} are {', '.join(names[:_MAX_NAMES])}" if names else f"there are no {key}"
                        path = (name, number, key, index) if several else (name, key, index)
                        meant = nearest_or(value, names, some)
                        yield path, f'is "{value[:40]}", which is none of the {key} of this file; {meant}'


def bridge_warnings(config: Config, bridges: Config, tables: Tables) -> Iterator[tuple[KeyPath, str]]:
    """What is allowed in the tables of bridges, but hardly meant.

    Args:
        config: the tables that the daemon reads.
        bridges: the tables that bridges read, of the same file.
        tables: as they were written.
    """
    if bridges.bridges.endpoint != "auto" or not _used(tables):
        return
    # Streams may also be added while the daemon runs.
    yield from _unknown_names({"streams": [stream.name for stream in config.streams]}, tables)
    if config.spool.directory is None:
        problem = "is missing: what a bridge misses while it or the daemon is down may be lost"
        yield ("spool", "directory"), f"{problem}; add [spool], and a directory below it"
    yield from _doubts_of_files(config, bridges.files, tables)
    for number, webhook in enumerate(bridges.webhooks):
        if not config.rules and set(webhook.events) <= {"raised", "cleared"}:
            yield ("webhooks", number, "events"), "are alerts, but there are no [[rules]] that raise any"
        if webhook.picture_url is not None and webhook.picture != "url":
            yield ("webhooks", number, "picture_url"), 'is not used; set picture = "url" as well'
        has_pictures = any(rule.picture for rule in config.rules) or (
            "ended" in webhook.events and config.pictures.directory is not None
        )
        if webhook.picture != "none" and not has_pictures:
            problem = f'is "{webhook.picture}", but no event has a picture; set picture = true in a rule'
            yield ("webhooks", number, "picture"), problem


def _doubts_of_files(config: Config, files: FilesConfig, tables: Tables) -> Iterator[tuple[KeyPath, str]]:
    if "files" not in tables:
        return
    kept_seconds = config.spool.max_age_seconds
    if config.spool.directory is not None and kept_seconds < 2 * files.rotate_seconds:
        problem = f"is {files.rotate_seconds:g} s, and the spool keeps events for {kept_seconds:g} s"
        yield ("files", "rotate_seconds"), f"{problem}: those of an unfinished file may be lost; at most half is safe"
    if files.needs_pyarrow and importlib.util.find_spec("pyarrow") is None:
        what = "formats" if "formats" in files.needs_pyarrow else "compression"
        yield ("files", what), f"needs pyarrow, which is not installed here: {how_to_install('files')}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
