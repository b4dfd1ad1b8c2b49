"""What was changed at run time: streams added, changed and removed beside the configuration file, and what keeps it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from streamdet.config import Config, StreamConfig
from streamdet.config.single_stream import read_stream
from streamdet.config.toml import MAX_FILE_BYTES
from streamdet.errors import ConfigError, ControlError, Refusal
from streamdet.security.redact import redact

Action = Literal["add", "change", "remove"]
_ACTIONS: tuple[Action, ...] = get_args(Action)
_VERSION = 1
_STREAM_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to one stream, all in all.

    Attributes:
        action: "add" for a stream that the file does not have, "change" and "remove" for one that it has.
        values: of an added stream, or those of a changed one that differ; as they would stand in the file, with
            `${NAME}`.
    """

    action: Action
    values: Mapping[str, Any] = field(default_factory=dict)


Changes = Mapping[str, Change]


def merge(config: Config, changes: Changes, folder: Path, where: str = "at run time") -> tuple[StreamConfig, ...]:
    """The streams of a file, with what was changed at run time.

    Args:
        config: what the file says.
        changes: by the name of the stream; one of a stream that is not in the file any more has no effect.
        folder: where relative paths begin.
        where: where the changes were made, for messages.

    Raises:
        ConfigError: with everything that does not fit, a line each.
    """
    streams, problems = merge_what_fits(config, changes, folder, where)
    if problems:
        raise ConfigError([line for lines in problems.values() for line in lines])
    return streams


def merge_what_fits(
    config: Config, changes: Changes, folder: Path, where: str = "at run time"
) -> tuple[tuple[StreamConfig, ...], dict[str, list[str]]]:
    """As `merge`, and leaves out what does not fit.

    Returns:
        The streams, and by the name of the stream of each change that is left out, why, in lines.
    """
    streams: list[StreamConfig] = []
    problems: dict[str, list[str]] = {}
    in_file = {stream.name: stream for stream in config.streams}
    for name, stream in in_file.items():
        change = changes.get(name)
        if change is None:
            streams.append(stream)
        elif change.action == "add":
            streams.append(stream)
            taken = f"streams[{name}].name: a stream of this name was added {where}"
            way_out = "give the one in the file another name, or remove the other: streamdet streams remove"
            problems[name] = [f"{taken}; {way_out} {name} --persist"]
        elif change.action == "change":
            values = {**change.values, "name": name}
            try:
                streams.append(read_stream(values, stream.model_dump(exclude_unset=True), folder))
            except ConfigError as error:
                streams.append(stream)
                problems[name] = error.problems
    for name, change in changes.items():
        if change.action == "add" and name not in in_file:
            try:
                streams.append(read_stream({**change.values, "name": name}, config.stream_defaults, folder))
            except ConfigError as error:
                problems[name] = error.problems
    return tuple(streams), problems


def without_effect(config: Config, changes: Changes) -> list[str]:
    """Streams that were changed or removed at run time, and are not in the file any more."""
    in_file = {stream.name for stream in config.streams}
    return [name for name, change in changes.items() if change.action != "add" and name not in in_file]


class ChangesFile:
    """Keeps changes over restarts: a JSON file that only the daemon writes, old or new and never half of one.

    Args:
        path: of the file; None where nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Change], list[str]]:
        """What was kept, and what is wrong with the rest of the file, a line each.

        Whatever cannot be read keeps nothing else from being used. The file is then kept as it was beside the next one
        that is written, with `.bad` behind its name.
        """
        if self.path is None:
            return {}, []
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return {}, []
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return {}, [f"{self.path}: cannot be read: {reason}; it keeps what was changed at run time"]
        try:
            if len(data) > MAX_FILE_BYTES:
                problem = "it is larger than 1 MiB"
                raise ValueError(problem)  # noqa: TRY301 - one place tells what is wrong with the file
            changes, problems = _decode(data)
        except (ValueError, RecursionError) as error:
            changes, problems = {}, [f"is not what streamdet wrote there: {redact(str(error))}"]
        if problems:
            self._save_bad(data)
        return changes, [f"{self.path}: {problem}" for problem in problems]

    def _save_bad(self, data: bytes) -> None:
        """Keeps what cannot be used, as far as that is possible: the next change that is kept would overwrite it."""
        if self.path is None:
            return
        with suppress(OSError):
            _write_new(self.path.with_name(self.path.name + ".bad"), data)

    def stage(self, changes: Changes) -> StagedChanges:
        """Writes the next contents beside the file, so that nothing but a renaming is left to do.

        Raises:
            ControlError: there is no file, or it cannot be written.
        """
        if self.path is None:
            problem = "there is nowhere to keep this over a restart; set [control] changes_file, or leave --persist out"
            raise ControlError(Refusal.FAILED, problem)
        body = {name: {"action": change.action, "values": change.values} for name, change in sorted(changes.items())}
        data = json.dumps({"version": _VERSION, "streams": body}, indent=2, ensure_ascii=False).encode() + b"\n"
        if len(data) > MAX_FILE_BYTES:
            raise ControlError(Refusal.TOO_MANY, "what is kept over restarts would be larger than 1 MiB")
        beside = self.path.with_name(self.path.name + ".new")
        try:
            _write_new(beside, data)
        except OSError as error:
            message = f"cannot be kept in {self.path}: {error.strerror or error}; nothing was changed"
            raise ControlError(Refusal.FAILED, message) from None
        return StagedChanges(beside, self.path)


class StagedChanges:
    """The next contents of a file, written and not in force yet."""

    def __init__(self, beside: Path, path: Path) -> None:
        self._beside = beside
        self._path = path

    def commit(self) -> None:
        """Puts them into the place of the old ones.

        Raises:
            ControlError: that could not be done.
        """
        try:
            self._beside.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            message = f"was changed, but a restart will forget it: {self._path}: {error.strerror or error}"
            raise ControlError(Refusal.FAILED, message) from None

    def discard(self) -> None:
        """Forgets them."""
        self._beside.unlink(missing_ok=True)


def _write_new(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    # Values may hold passwords.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _decode(data: bytes) -> tuple[dict[str, Change], list[str]]:
    file = json.loads(data.decode())
    if not isinstance(file, dict) or file.get("version") != _VERSION or not isinstance(file.get("streams"), dict):
        problem = f'it needs "version": {_VERSION} and "streams"'
        raise ValueError(problem)
    changes: dict[str, Change] = {}
    problems = []
    for name, change in file["streams"].items():
        try:
            changes[name] = _decode_change(name, change)
        except ValueError as error:
            problems.append(f"is not what streamdet wrote there: {error}")
    return changes, problems


def _decode_change(name: str, change: object) -> Change:
    action = change.get("action") if isinstance(change, dict) else None
    values = change.get("values", {}) if isinstance(change, dict) else None
    known = next((each for each in _ACTIONS if each == action), None)
    if not _STREAM_NAME.fullmatch(name) or known is None or not isinstance(values, dict):
        problem = (
            f'{json.dumps(name[:64])} needs the name of a stream, an "action" of {", ".join(_ACTIONS)}, and "values"'
        )
        raise ValueError(problem)
    return Change(known, values)
