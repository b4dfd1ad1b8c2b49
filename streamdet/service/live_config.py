"""The configuration in force: what the file says, what was changed at run time, and how a reload replaces it.

`LiveConfig` owns it: the streams of the file, each with its `Change` if there is one. `ChangesFile` keeps changes over
restarts.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from streamdet.config import Config, StreamConfig, load_config
from streamdet.config.checks import labels_of_weights
from streamdet.config.last_good import last_good
from streamdet.config.load import check_labels, read_stream
from streamdet.config.toml import MAX_FILE_BYTES
from streamdet.config.values import takes_effect
from streamdet.errors import ApplyError, ConfigError, ControlError, Refusal
from streamdet.monitoring import systemd
from streamdet.monitoring.log import configure_logging
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.unexpected import describe
from streamdet.security.files import StagedFile, stage, write_atomically
from streamdet.security.redact import redact
from streamdet.service.streams import Applied, Streams

MAX_ADDED_STREAMS = 1000

Action = Literal["add", "change", "remove"]
_ACTIONS: tuple[Action, ...] = get_args(Action)
_VERSION = 1
_STREAM_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """How one stream differs from the file.

    Attributes:
        action: "add" for a stream that the file does not have, "change" and "remove" for one that it has.
        values: of an added stream, or those of a changed one that differ; as in the file, with `${NAME}`.
    """

    action: Action
    values: Mapping[str, Any] = field(default_factory=dict)


Changes = Mapping[str, Change]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did.

    Attributes:
        streams: what became of the streams.
        needs_restart: keys that differ from those at the start and take effect only then, such as "metrics.endpoint".
        notes: what a person should know besides, a line each.
    """

    streams: Applied
    needs_restart: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class LiveConfig:
    """The owner of the configuration; only the main thread uses it.

    The streams that run are those of the file, changed by what was done at run time since the start, and by what was
    kept of earlier runs. A reload replaces the file's part and leaves the changes; a restart leaves what was kept.

    Args:
        config: what the file says.
        path: the file; None without a file, so that a reload is not possible.
        changes_path: the file that keeps changes over restarts; None to keep none.
        metrics: show how reloads went.

    Attributes:
        path: as given.
        is_file_in_force: whether the newest content of the file that was read is; false after a reload that failed.

    What was kept and cannot be used is left out and logged; everything else starts.
    """

    def __init__(self, config: Config, path: Path | None, changes_path: Path | None, metrics: Metrics) -> None:
        self.path = path
        self.is_file_in_force = path is not None
        self._last_good = None if path is None else last_good(path)
        self._metrics = metrics
        self._started = config
        self._file = config
        self._changes_file = ChangesFile(changes_path)
        self._kept, problems = self._changes_file.read()
        # None where only the detector itself knows them.
        self._weights_labels: Sequence[str] | None = labels_of_weights(config.detector.weights)
        self._streams: Streams | None = None
        self._adopt_kept()
        for problem in [*problems, *(line for lines in self._left_out.values() for line in lines)]:
            _log.error("change of an earlier run not applied: %s", problem)

    def _adopt_kept(self) -> None:
        """Adopts what was kept of earlier runs, without what does not fit."""
        useful = self._useful(self._file, self._kept)
        streams, self._left_out = _merge(self._file, useful, self._folder, self._where, self._weights_labels)
        self._changes = {name: change for name, change in useful.items() if name not in self._left_out}
        self._config = self._file.model_copy(update={"streams": streams})

    @property
    def config(self) -> Config:
        """What is in force."""
        return self._config

    @property
    def changes_path(self) -> Path | None:
        """The file that keeps changes over restarts."""
        return self._changes_file.path

    def start(self, streams: Streams) -> None:
        """Makes the streams run; from now on they follow this configuration.

        Raises:
            ConfigError: it names labels that the weights do not know, and only the detector itself knows which.
        """
        self._streams = streams
        if self._weights_labels is None:
            self._weights_labels = streams.labels
            check_labels(self._file, streams.labels)
            self._adopt_kept()
        self._weights_labels = streams.labels
        for note in self._notes():
            _log.info("kept from an earlier run: %s", note)
        streams.apply(self._config.streams, self._config.rules, self._config.detector)
        # Where the last good configuration is used in place of the file, the file has not been loaded.
        self._note_reload(time.time() if self._keep() else None)

    def reload(self) -> Reloaded:
        """Reads the file again: all of it takes effect, or nothing does.

        Raises:
            ConfigError: the file is wrong, or does not fit what was changed at run time.
            ControlError: there is no file.
            ApplyError: there is no thread or memory left.
        """
        if self.path is None:
            raise ControlError(Refusal.CONFLICT, "this daemon has no configuration file to read again")
        systemd.reloading()
        try:
            config = load_config(self.path, running_labels=self._weights_labels)
            changes = self._useful(config, self._changes)
            applied = self._adopt(config, changes, self._useful(config, self._kept))
        except (ConfigError, ApplyError, ControlError) as error:
            problems = error.problems if isinstance(error, ConfigError) else [str(error)]
            for problem in problems:
                _log.error("%s", problem)
            _log.error("the configuration is unchanged: %d problems in %s", len(problems), self.path)
            self._note_reload(None)
            raise
        except Exception as error:
            self._note_reload(None)
            self._metrics.unexpected.report("reload", error, "the configuration is unchanged")
            message = f"unexpected error: {describe(error)}; see the daemon's log"
            raise ControlError(Refusal.FAILED, message) from error
        finally:
            systemd.ready()
        self._note_reload(time.time())
        self._keep()
        needs_restart = _differing_keys(self._started, config)
        if needs_restart:
            _log.warning("changed, but applied only after a restart: %s", ", ".join(needs_restart))
        _log.info("configuration loaded: %d streams", len(self._config.streams))
        return Reloaded(applied, needs_restart, self._notes())

    def add(self, name: str, values: Mapping[str, Any], *, persist: bool) -> Applied:
        """Adds a stream.

        Args:
            name: of the stream.
            values: by key, as in the file.
            persist: whether it is to survive a restart.

        Raises:
            ConfigError: the values are wrong.
            ControlError: there is a stream of this name, or no room; or it cannot be kept.
            ApplyError: there is no thread or memory left.
        """
        if self.is_removed(name):
            message = f"{name} is in the file and was removed at run time; to restore it: streamdet streams reset"
            raise ControlError(Refusal.EXISTS, f"{message} {name}")
        if self._is_there(name):
            raise ControlError(Refusal.EXISTS, f"a stream {name} exists already; choose another name, or change it")
        return self.set(name, values, persist=persist)

    def set(self, name: str, values: Mapping[str, Any], *, persist: bool) -> Applied:
        """Makes these values all that differs from the file; adds a stream that the file does not have.

        Args:
            name: of the stream.
            values: by key, as in the file.
            persist: whether it is to survive a restart.

        Raises:
            As `add`, but for a name that is taken.
        """
        if self._is_in_file(name):
            return self._change(name, Change("change", dict(values)) if values else None, persist=persist)
        added = sum(change.action == "add" for change in self._changes.values())
        if not self._is_there(name) and added >= MAX_ADDED_STREAMS:
            raise ControlError(Refusal.TOO_MANY, f"{MAX_ADDED_STREAMS} streams were added at run time already")
        return self._change(name, Change("add", dict(values)), persist=persist)

    def change(self, name: str, values: Mapping[str, Any], unset: Iterable[str] = (), *, persist: bool) -> Applied:
        """Changes keys of a stream.

        Args:
            name: of the stream.
            values: by key, as in the file.
            unset: keys that are again as the file says, or at their defaults.
            persist: whether all that was changed about this stream is to survive a restart.

        Raises:
            As `add`; also ControlError when there is no such stream.
        """
        self.find(name)
        before = self._changes.get(name, Change("change"))
        merged = {key: value for key, value in {**before.values, **values}.items() if key not in set(unset)}
        if merged.get("paused") == self._is_paused_without_changes(name):
            del merged["paused"]
        after = Change(before.action, merged)
        return self._change(name, after if merged or after.action == "add" else None, persist=persist)

    def remove(self, name: str, *, persist: bool) -> Applied:
        """Removes a stream; raises as `change`."""
        if persist and self._is_left_out(name):
            # What was kept of it goes; a stream of the file that has the same name stays.
            return self._change(name, None, persist=True)
        self.find(name)
        return self._change(name, Change("remove") if self._is_in_file(name) else None, persist=persist)

    def reset(self, name: str, *, persist: bool) -> Applied:
        """Makes a stream of the file what the file says; raises as `change`."""
        if not self._is_in_file(name):
            raise ControlError(Refusal.NOT_FOUND, f"the file has no stream {name}; one of run time can be removed")
        return self._change(name, None, persist=persist)

    def find(self, name: str) -> StreamConfig:
        """A stream that is configured.

        Raises:
            ControlError: there is no stream of this name.
        """
        for stream in self._config.streams:
            if stream.name == name:
                return stream
        raise ControlError(Refusal.NOT_FOUND, f"there is no stream {name}; streamdet streams list names them")

    def removed(self) -> list[str]:
        """Streams of the file that were removed at run time."""
        return [name for name, change in self._changes.items() if change.action == "remove"]

    def is_removed(self, name: str) -> bool:
        """Whether a stream of the file was removed at run time."""
        return name in self.removed()

    def change_of(self, name: str) -> tuple[Change | None, bool]:
        """What was done to a stream at run time, and whether it would be the same after a restart."""
        change = self._changes.get(name)
        return change, change == self._kept.get(name)

    def _change(self, name: str, change: Change | None, *, persist: bool) -> Applied:
        changes = _replaced(self._changes, name, change)
        return self._adopt(self._file, changes, _replaced(self._kept, name, change) if persist else self._kept)

    def _adopt(self, file: Config, changes: dict[str, Change], kept: dict[str, Change]) -> Applied:
        """Puts a configuration in force: whatever may fail comes before anything changes."""
        if self._streams is None:
            raise ControlError(Refusal.FAILED, "the daemon has not started its streams yet")
        config = self._merged(file, changes)
        staged = self._changes_file.stage(kept) if kept != self._kept else None
        try:
            applied = self._streams.apply(config.streams, config.rules, config.detector)
        except BaseException:
            # Raised again, whatever it is: nothing of a change that did not take effect may be kept.
            if staged is not None:
                staged.discard()
            raise
        if config.log != self._config.log:
            configure_logging(config.log)
        self._file, self._changes, self._config = file, changes, config
        if staged is not None:
            try:
                staged.commit()
            except OSError as error:
                message = f"was changed, but will be lost at a restart: {staged.path}: {error.strerror or error}"
                raise ControlError(Refusal.FAILED, message) from None
            self._kept = kept
        return applied

    def _note_reload(self, at: float | None) -> None:
        """Remembers and shows whether the file is in force: since this Unix time, or not (None)."""
        self.is_file_in_force = at is not None
        self._metrics.reloaded(at)

    def _keep(self) -> bool:
        """Keeps the file as the last one that worked, for a service; false if it is wrong."""
        return self._last_good is None or self._last_good.keep(self._file)

    def _is_there(self, name: str) -> bool:
        return any(stream.name == name for stream in self._config.streams)

    def _is_in_file(self, name: str) -> bool:
        return any(stream.name == name for stream in self._file.streams)

    def _is_left_out(self, name: str) -> bool:
        """Whether what was kept of a stream could not be used at the start, and is still there."""
        return name in self._left_out and name in self._kept and name not in self._changes

    def _is_paused_without_changes(self, name: str) -> bool:
        default = bool(self._file.stream_defaults.get("paused", False))
        return next((stream.paused for stream in self._file.streams if stream.name == name), default)

    def _merged(self, file: Config, changes: Mapping[str, Change]) -> Config:
        """The file with the changes.

        Raises:
            ConfigError: some changes do not fit; a line for each problem.
        """
        streams, problems = _merge(file, changes, self._folder, self._where, self._weights_labels)
        if problems:
            raise ConfigError([line for lines in problems.values() for line in lines])
        return file.model_copy(update={"streams": streams})

    @property
    def _folder(self) -> Path:
        return Path.cwd() if self.path is None else self.path.absolute().parent

    @property
    def _where(self) -> str:
        return f"at run time (kept in {self.changes_path})" if self._kept else "at run time"

    @staticmethod
    def _useful(config: Config, changes: Mapping[str, Change]) -> dict[str, Change]:
        """The changes without those of streams that are not in the file any more."""
        in_file = {stream.name for stream in config.streams}
        useless = [name for name, change in changes.items() if change.action != "add" and name not in in_file]
        if useless:
            _log.info("no longer in the file, so their changes made at run time are discarded: %s", ", ".join(useless))
        return {name: change for name, change in changes.items() if name not in useless}

    def _notes(self) -> list[str]:
        changed = [name for name, change in self._changes.items() if change.action == "change"]
        words = [(name, "removed") for name in self.removed()] + [(name, "changed") for name in changed]
        notes = [f"{name} was {word} at run time; to undo it: streamdet streams reset {name}" for name, word in words]
        for name, problems in self._left_out.items():
            if self._is_left_out(name):
                forget = f"to forget it: streamdet streams remove {name} --persist"
                notes.append(f"what was kept of {name} is left out: {problems[0]}; {forget}")
        return notes


def _replaced(changes: Mapping[str, Change], name: str, change: Change | None) -> dict[str, Change]:
    others = {other: value for other, value in changes.items() if other != name}
    return others if change is None else {**others, name: change}


def _differing_keys(one: Config, other: Config) -> list[str]:
    """Keys that differ, of those whose changes take effect at a restart."""
    differing = []
    for name in Config.model_fields:
        before, after = getattr(one, name), getattr(other, name)
        if not isinstance(before, BaseModel):
            continue
        keys = [key for key in type(before).model_fields if takes_effect(type(before), key) == "at a restart"]
        differing += [f"{name}.{key}" for key in keys if getattr(before, key) != getattr(after, key)]
    return differing


def _merge(
    config: Config, changes: Changes, folder: Path, where: str, weights_labels: Sequence[str] | None
) -> tuple[tuple[StreamConfig, ...], dict[str, list[str]]]:
    """The streams of a file with what was changed at run time, without the changes that do not fit.

    Args:
        config: what the file says.
        changes: by the name of the stream; a change of a stream that is not in the file any more has no effect.
        folder: that relative paths are relative to.
        where: where the changes were made, for messages.
        weights_labels: that the weights know; None where only the detector itself knows them.

    Returns:
        The streams, and for each stream whose change is left out the reasons, a line each.
    """
    streams: list[StreamConfig] = []
    problems: dict[str, list[str]] = {}
    in_file = {stream.name: stream for stream in config.streams}
    read = partial(read_stream, config=config, weights_labels=weights_labels)
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
                streams.append(read(values, stream.model_dump(exclude_unset=True), folder))
            except ConfigError as error:
                streams.append(stream)
                problems[name] = error.problems
    for name, change in changes.items():
        if change.action == "add" and name not in in_file:
            try:
                values = {**change.values, "name": name}
                streams.append(read(values, config.stream_defaults, folder))
            except ConfigError as error:
                problems[name] = error.problems
    return tuple(streams), problems


class ChangesFile:
    """Keeps changes over restarts: a JSON file that only the daemon writes, and always as a whole.

    Args:
        path: of the file; None where nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Change], list[str]]:
        """What was kept, and what is wrong with the rest of the file, a line each.

        What can be read is used, whatever the rest is. A file that is wrong is copied, with `.bad` behind its name,
        before the next one overwrites it.
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
                raise ValueError(problem)  # noqa: TRY301 - handled with what is wrong in the file
            changes, problems = _decode(data)
        except (ValueError, RecursionError) as error:
            changes, problems = {}, [f"is not what streamdet wrote there: {redact(str(error))}"]
        if problems:
            self._save_bad(data)
        return changes, [f"{self.path}: {problem}" for problem in problems]

    def _save_bad(self, data: bytes) -> None:
        """Copies a file that cannot be used, if that is possible: the next change that is kept overwrites it."""
        if self.path is None:
            return
        with suppress(OSError):
            write_atomically(self.path.with_name(self.path.name + ".bad"), data)

    def stage(self, changes: Changes) -> StagedFile:
        """Writes the next content beside the file, so that only a rename is left to do.

        Raises:
            ControlError: there is no file, or it cannot be written.
        """
        if self.path is None:
            problem = "there is nowhere to keep this over a restart; set [control] changes_file, or leave --persist out"
            raise ControlError(Refusal.CONFLICT, problem)
        body = {name: {"action": change.action, "values": change.values} for name, change in sorted(changes.items())}
        data = json.dumps({"version": _VERSION, "streams": body}, indent=2, ensure_ascii=False).encode() + b"\n"
        if len(data) > MAX_FILE_BYTES:
            raise ControlError(Refusal.TOO_MANY, "the changes kept over restarts would be larger than 1 MiB")
        try:
            # Values may hold passwords: only this user may read them.
            return stage(self.path, data, mode=0o600)
        except OSError as error:
            message = f"cannot be kept in {self.path}: {error.strerror or error}; nothing was changed"
            raise ControlError(Refusal.FAILED, message) from None


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
