"""The configuration in force: what the file says, what was changed at run time, and how a reload replaces it.

`LiveConfig` owns it: the streams of the file, each with its `Change` if there is one, those of the `Claims`, and
the rules. `ChangesFile` keeps what was changed over restarts.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from streamdet.config import Config, StreamConfig, load_config
from streamdet.config.checks import labels_of_weights
from streamdet.config.last_good import last_good
from streamdet.config.load import check_labels, check_rules, read_rules, read_stream
from streamdet.config.models import MAX_NODE_CHARACTERS
from streamdet.config.toml import MAX_FILE_BYTES
from streamdet.config.values import takes_effect
from streamdet.errors import ApplyError, ConfigError, ControlError, Refusal
from streamdet.monitoring import systemd
from streamdet.monitoring.log import configure_logging
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.unexpected import describe
from streamdet.security.files import StagedFile, stage, write_atomically
from streamdet.security.redact import redact
from streamdet.service.claims import Claim, Claims, Grant, Held, owners_of
from streamdet.service.streams import Applied, Streams

MAX_ADDED_STREAMS = 1000

Action = Literal["add", "change", "remove"]
_ACTIONS: tuple[Action, ...] = get_args(Action)
_VERSION = 1
# No name of a stream.
_RULES = "[[rules]]"
_RESET_RULES = "streamdet rules reset"
_OF_FILE: Literal["of the file"] = "of the file"
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
Rules = tuple[Mapping[str, Any], ...]
"""Tables `[[rules]]`, with keys and values as in the file."""
Renamed = Mapping[tuple[str, str], str]
"""New names of zones and lines of a stream, by `zone` or `line` and the name before."""


@dataclass(frozen=True, slots=True)
class AtRunTime:
    """How the configuration in force differs from the file.

    Attributes:
        streams: what was changed of each stream, by its name.
        rules: all rules, in place of those of the file; None for those of the file.
    """

    streams: Changes = field(default_factory=dict)
    rules: Rules | None = None

    def with_stream(self, name: str, change: Change | None) -> AtRunTime:
        """The same with another change of one stream; None for none."""
        others = {other: value for other, value in self.streams.items() if other != name}
        return AtRunTime(others if change is None else {**others, name: change}, self.rules)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change led to, or would lead to if it was only tried.

    Attributes:
        config: in force after it.
        applied: what became of the streams.
    """

    config: Config
    applied: Applied


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
        node: the name of this node in a cluster.
        claims: what a cluster has granted to it.

    What was kept and cannot be used is left out and logged; everything else starts.
    """

    def __init__(self, config: Config, path: Path | None, changes_path: Path | None, metrics: Metrics) -> None:
        self.path = path
        self.is_file_in_force = path is not None
        self._last_good = None if path is None else last_good(path)
        self._metrics = metrics
        self.node = config.node.name or _host_name()
        self.claims = Claims()
        self._started = config
        self._file = config
        self._changes_file = ChangesFile(changes_path)
        self._kept, problems = self._changes_file.read()
        self._at_run_time = AtRunTime()
        # None where only the detector itself knows them.
        self._weights_labels: Sequence[str] | None = labels_of_weights(config.detector.weights)
        self._streams: Streams | None = None
        self._adopt_kept()
        for problem in [*problems, *(line for lines in self._left_out.values() for line in lines)]:
            _log.error("change of an earlier run not applied: %s", problem)

    def _adopt_kept(self) -> None:
        """Adopts what was kept of earlier runs, without what does not fit."""
        useful = self._useful(self._file, self._kept)
        config, self._left_out = _merge(self._file, useful, self._folder, self._where, self._weights_labels)
        changes = {name: change for name, change in useful.streams.items() if name not in self._left_out}
        self._at_run_time = AtRunTime(changes, None if _RULES in self._left_out else useful.rules)
        self._config = config

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
            changed = self._useful(config, self._at_run_time)
            applied = self._adopt(config, changed, self._useful(config, self._kept)).applied
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

    def add(self, name: str, values: Mapping[str, Any], *, persist: bool, try_only: bool = False) -> Outcome:
        """Adds a stream.

        Args:
            name: of the stream.
            values: by key, as in the file.
            persist: whether it is to survive a restart.
            try_only: whether nothing is to change: all that may be wrong is checked.

        Raises:
            ConfigError: the values are wrong.
            ControlError: there is a stream of this name, or no room; or it cannot be kept.
            ApplyError: there is no thread or memory left.
        """
        if self.is_removed(name):
            message = f"{name} is in the file and was removed at run time; to restore it: streamdet streams reset"
            raise ControlError(Refusal.EXISTS, f"{message} {name}")
        self._check_not_claimed(name)
        if self._is_there(name):
            raise ControlError(Refusal.EXISTS, f"a stream {name} exists already; choose another name, or change it")
        return self.set(name, values, persist=persist, try_only=try_only)

    def set(self, name: str, values: Mapping[str, Any], *, persist: bool, try_only: bool = False) -> Outcome:
        """Makes these values all that differs from the file; adds a stream that the file does not have.

        Args:
            name: of the stream.
            values: by key, as in the file.
            persist: whether it is to survive a restart.
            try_only: whether nothing is to change.

        Raises:
            As `add`, except that there may be a stream of this name.
        """
        if self._is_in_file(name):
            change = Change("change", dict(values)) if values else None
            return self._change(name, change, persist=persist, try_only=try_only)
        added = sum(change.action == "add" for change in self._at_run_time.streams.values())
        if not self._is_there(name) and added >= MAX_ADDED_STREAMS:
            raise ControlError(Refusal.TOO_MANY, f"{MAX_ADDED_STREAMS} streams were added at run time already")
        return self._change(name, Change("add", dict(values)), persist=persist, try_only=try_only)

    def change(
        self,
        name: str,
        values: Mapping[str, Any],
        unset: Iterable[str] = (),
        *,
        persist: bool,
        try_only: bool = False,
        renamed: Renamed | None = None,
    ) -> Outcome:
        """Changes keys of a stream.

        Args:
            name: of the stream.
            values: by key, as in the file.
            unset: keys that are again as the file says, or at their defaults.
            persist: whether all that was changed about this stream is to survive a restart; the rules as well where
                they are changed with it.
            try_only: whether nothing is to change.
            renamed: zones and lines that rules for this stream are to need by other names.

        Raises:
            As `add`; also ControlError when there is no such stream.
        """
        self.find(name)
        before = self._at_run_time.streams.get(name, Change("change"))
        merged = {key: value for key, value in {**before.values, **values}.items() if key not in set(unset)}
        if merged.get("paused") == self._is_paused_without_changes(name):
            del merged["paused"]
        after = Change(before.action, merged)
        change = after if merged or after.action == "add" else None
        rules = self._carried_rules(name, renamed) if renamed else None
        return self._change(name, change, persist=persist, try_only=try_only, rules=rules)

    def remove(self, name: str, *, persist: bool, try_only: bool = False) -> Outcome:
        """Removes a stream; raises as `change`."""
        if persist and self._is_left_out(name):
            # What was kept of it goes; a stream of the file that has the same name stays.
            return self._change(name, None, persist=True, try_only=try_only)
        self.find(name)
        change = Change("remove") if self._is_in_file(name) else None
        return self._change(name, change, persist=persist, try_only=try_only)

    def reset(self, name: str, *, persist: bool, try_only: bool = False, rules: bool = False) -> Outcome:
        """Makes a stream of the file what the file says.

        Args:
            name: of the stream.
            persist: whether what was kept of it is to be forgotten.
            try_only: whether nothing is to change.
            rules: whether the rules are those of the file as well: where zones have other names at run time, neither
                the stream nor the rules may fit without the other.

        Raises:
            As `change`.
        """
        if not self._is_in_file(name):
            raise ControlError(Refusal.NOT_FOUND, f"the file has no stream {name}; one of run time can be removed")
        try:
            return self._change(name, None, persist=persist, try_only=try_only, rules=_OF_FILE if rules else None)
        except ConfigError as error:
            if rules or self._at_run_time.rules is None:
                raise
            way_out = f"with the rules of the file it may fit: streamdet streams reset {name} --rules"
            raise ConfigError([*error.problems, f"the rules were changed at run time; {way_out}"]) from None

    def set_rules(self, rules: Rules | None, *, persist: bool, try_only: bool = False) -> Outcome:
        """Puts rules in force, all of them or none.

        Args:
            rules: all of them, as in the file; None for those of the file.
            persist: whether they are to survive a restart.
            try_only: whether nothing is to change.

        Raises:
            As `add`.
        """
        if rules is not None:
            # Here the rules are what is wrong; in `_merge` it may be a change of a stream that does not fit them.
            check_rules(self._config.model_copy(update={"rules": read_rules(rules)}), self._weights_labels)
        kept = AtRunTime(self._kept.streams, rules) if persist else self._kept
        changed = AtRunTime(self._at_run_time.streams, rules)
        try:
            self._check_kept(kept, changed)
            return self._adopt(self._file, changed, kept, try_only=try_only)
        except ConfigError as error:
            if rules is not None or self._at_run_time.rules is None:
                raise
            way_out = "to undo the changes of one and the rules together: streamdet streams reset NAME --rules"
            raise ConfigError([*error.problems, f"streams were changed at run time; {way_out}"]) from None

    def claim(self, grant: Grant) -> Applied:
        """Follows a grant of a cluster: all of it or nothing. A renewal only makes its lease longer.

        Raises:
            ConfigError: its streams are wrong, or one of them is in the file or was added at run time.
            ControlError: a newer grant is known, or there are too many claims.
            ApplyError: there is no thread or memory left.
        """
        if self.claims.is_renewal(grant):
            was_over = self.claims.is_over(self.claims.held[grant.claim_id])
            self.claims.renew(grant)
            if was_over:
                self._count_claims()
            return Applied()
        claims = self.claims.after_grant(grant)
        return self._adopt(self._file, self._at_run_time, self._kept, claims=claims).applied

    def renew(self, grants: Iterable[Grant]) -> list[str]:
        """Makes leases longer, and changes nothing else; as `Claims.renew_known`."""
        renewed = self.claims.renew_known(grants)
        self._count_claims()
        return renewed

    def release(self, claim_id: str, generation: int | None = None) -> Applied:
        """Ends a claim, and its streams.

        Args:
            claim_id: of the claim.
            generation: the newest that the sender knows; None for any.

        Raises:
            ControlError: there is no such claim, or it was granted again since.
            ApplyError: there is no memory left.
        """
        claims = self.claims.after_release(claim_id, generation)
        return self._adopt(self._file, self._at_run_time, self._kept, claims=claims).applied

    def end_leases(self) -> None:
        """Does what the file says about claims whose leases have ended: goes on, or stops their streams."""
        self.claims.leave_out_standstill()
        over = self.claims.newly_over()
        stops = self._file.node.on_lost_head == "stop"
        for claim in over:
            grant = claim.grant
            text = "claim %s was not renewed for %g s: its %d streams %s"
            what = "stop" if stops else "run on until the cluster renews or releases them"
            _log.warning(text, grant.claim_id, grant.lease_seconds, len(grant.streams), what)
        left = self.claims.after_leases()
        if stops and len(left) < len(self.claims.held):
            self._adopt(self._file, self._at_run_time, self._kept, claims=left)
        elif over:
            self._count_claims()

    def find(self, name: str) -> StreamConfig:
        """A stream that is configured.

        Raises:
            ControlError: there is no stream of this name.
        """
        for stream in self._config.streams:
            if stream.name == name:
                return stream
        raise ControlError(Refusal.NOT_FOUND, f"there is no stream {name}; streamdet streams list names them")

    def read(self, name: str, values: Mapping[str, Any]) -> StreamConfig:
        """A stream as `add` would read it, whether or not there is one of its name; nothing is changed.

        Raises:
            ConfigError: the values are wrong.
        """
        return read_stream({**values, "name": name}, self.config.stream_defaults, self._folder)

    def removed(self) -> list[str]:
        """Streams of the file that were removed at run time."""
        return [name for name, change in self._at_run_time.streams.items() if change.action == "remove"]

    def is_removed(self, name: str) -> bool:
        """Whether a stream of the file was removed at run time."""
        return name in self.removed()

    def change_of(self, name: str) -> tuple[Change | None, bool]:
        """What was done to a stream at run time, and whether it would be the same after a restart."""
        change = self._at_run_time.streams.get(name)
        return change, change == self._kept.streams.get(name)

    def change_of_rules(self) -> tuple[Rules | None, bool]:
        """The rules of run time, if they replace those of the file, and whether that would be so after a restart."""
        rules = self._at_run_time.rules
        return rules, rules == self._kept.rules

    def _check_not_claimed(self, name: str) -> None:
        claim = self.claims.claim_of(name)
        if claim is not None:
            problem = f"{name} belongs to claim {claim.grant.claim_id} of the cluster; change it there"
            raise ControlError(Refusal.CONFLICT, problem)

    def _change(
        self,
        name: str,
        change: Change | None,
        *,
        persist: bool,
        try_only: bool,
        rules: Rules | Literal["of the file"] | None = None,
    ) -> Outcome:
        self._check_not_claimed(name)
        changed = self._at_run_time.with_stream(name, change)
        kept = self._kept.with_stream(name, change) if persist else self._kept
        if rules is not None:
            of_run_time = None if rules == _OF_FILE else rules
            changed = replace(changed, rules=of_run_time)
            kept = replace(kept, rules=of_run_time) if persist else kept
        self._check_kept(kept, changed)
        return self._adopt(self._file, changed, kept, try_only=try_only)

    def _check_kept(self, kept: AtRunTime, changed: AtRunTime) -> None:
        """Checks that what is to be kept will fit after a restart, when what was not kept is gone.

        Args:
            kept: over restarts.
            changed: at run time, which is checked anyway.

        Raises:
            ConfigError: some of it would be left out then, and was not before.
        """
        if kept in (self._kept, changed):
            return
        before, after = (self._left_out_of(each) for each in (self._kept, kept))
        lines = [line for name, problems in after.items() if name not in before for line in problems]
        if lines:
            when = "this would be so after a restart, when changes that are not kept are gone"
            raise ConfigError([*lines, f"{when}; keep what it needs with --persist first, or leave --persist out"])

    def _left_out_of(self, kept: AtRunTime) -> Mapping[str, Sequence[str]]:
        """What would be left out after a restart, with the reasons."""
        return _merge(self._file, kept, self._folder, self._where, self._weights_labels)[1]

    def _carried_rules(self, stream: str, renamed: Renamed) -> Rules | None:
        """All rules, with the new names of what was renamed in a stream; None where no rule needs it."""
        rules, tables = self._config.rules, self._at_run_time.rules
        if tables is None:
            # As they would stand in the file, where `${` begins a reference.
            tables = tuple(_as_in_file(rule.model_dump(mode="json", exclude_defaults=True)) for rule in rules)
        carried = tuple(
            {**table, **{key: renamed[key, name] for key in ("zone", "line")
                         if (name := getattr(rule, key)) and (key, name) in renamed and rule.applies_to(stream)}}
            for rule, table in zip(rules, tables, strict=True)
        )  # fmt: skip
        return None if carried == tables else carried

    def _adopt(
        self, file: Config, changed: AtRunTime, kept: AtRunTime, *, try_only: bool = False, claims: Held | None = None
    ) -> Outcome:
        """Puts a configuration in force: whatever may fail comes before anything changes.

        Args:
            file: what the file says.
            changed: at run time.
            kept: of that over restarts.
            try_only: whether nothing is to change.
            claims: of the cluster; None for those that are in force.
        """
        if self._streams is None:
            raise ControlError(Refusal.FAILED, "the daemon has not started its streams yet")
        claims = self.claims.held if claims is None else claims
        config, owners = self._merged(file, changed, claims), owners_of(claims.values(), self.node)
        staged = self._changes_file.stage(kept) if kept != self._kept else None
        if try_only:
            if staged is not None:
                staged.discard()
            return Outcome(config, self._streams.plan(config.streams, config.detector, owners))
        try:
            applied = self._streams.apply(config.streams, config.rules, config.detector, owners)
        except BaseException:
            # Raised again, whatever it is: nothing of a change that did not take effect may be kept.
            if staged is not None:
                staged.discard()
            raise
        if config.log != self._config.log:
            configure_logging(config.log)
        self._file, self._at_run_time, self._config = file, changed, config
        self._hold(claims)
        if staged is not None:
            try:
                staged.commit()
            except OSError as error:
                message = f"was changed, but will be lost at a restart: {staged.path}: {error.strerror or error}"
                raise ControlError(Refusal.FAILED, message) from None
            self._kept = kept
        return Outcome(config, applied)

    def _hold(self, claims: Held) -> None:
        self.claims.hold(claims)
        self._count_claims()

    def _count_claims(self) -> None:
        held = self.claims.held.values()
        over = sum(self.claims.is_over(claim) for claim in held)
        self._metrics.claims(len(held) - over, over)

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
        return name in self._left_out and name in self._kept.streams and name not in self._at_run_time.streams

    def _is_paused_without_changes(self, name: str) -> bool:
        default = bool(self._file.stream_defaults.get("paused", False))
        return next((stream.paused for stream in self._file.streams if stream.name == name), default)

    def _merged(self, file: Config, changed: AtRunTime, claims: Held) -> Config:
        """The file with the changes and the claims.

        Raises:
            ConfigError: some changes or claims do not fit; a line for each problem.
        """
        config, problems = _merge(file, changed, self._folder, self._where, self._weights_labels)
        lines = list(dict.fromkeys(line for lines in problems.values() for line in lines))
        taken = {stream.name for stream in config.streams} | changed.streams.keys()
        read = partial(read_stream, folder=self._folder, config=config, weights_labels=self._weights_labels)
        # Where nothing else has changed, streams of claims that stay as they are need not be read again.
        is_same = file is self._file and changed is self._at_run_time
        in_force = {stream.name: stream for stream in self._config.streams} if is_same else {}
        claimed: list[StreamConfig] = []
        for claim in claims.values():
            for name, values in claim.grant.streams.items():
                if name in taken:
                    lines.append(_taken_by_claim(name, claim, in_file=any(name == one.name for one in file.streams)))
                    continue
                before = self.claims.claim_of(name)
                if name in in_force and before is not None and before.grant.streams[name] == values:
                    claimed.append(in_force[name])
                    continue
                try:
                    claimed.append(read({**values, "name": name}, config.stream_defaults))
                except ConfigError as error:
                    lines += error.problems
        if lines:
            raise ConfigError(lines)
        return config.model_copy(update={"streams": (*config.streams, *claimed)})

    @property
    def _folder(self) -> Path:
        return Path.cwd() if self.path is None else self.path.absolute().parent

    @property
    def _where(self) -> str:
        return f"at run time (kept in {self.changes_path})" if self._kept != AtRunTime() else "at run time"

    @staticmethod
    def _useful(config: Config, changed: AtRunTime) -> AtRunTime:
        """The changes without those of streams that are not in the file any more."""
        in_file = {stream.name for stream in config.streams}
        useless = [name for name, change in changed.streams.items() if change.action != "add" and name not in in_file]
        if useless:
            _log.info("no longer in the file, so their changes made at run time are discarded: %s", ", ".join(useless))
        streams = {name: change for name, change in changed.streams.items() if name not in useless}
        return AtRunTime(streams, changed.rules)

    def _notes(self) -> list[str]:
        changed = [name for name, change in self._at_run_time.streams.items() if change.action == "change"]
        words = [(name, "removed") for name in self.removed()] + [(name, "changed") for name in changed]
        notes = [f"{name} was {word} at run time; to undo it: streamdet streams reset {name}" for name, word in words]
        if self._at_run_time.rules is not None:
            notes.append(f"the rules were changed at run time, those of the file wait; to undo it: {_RESET_RULES}")
        for name, problems in self._left_out.items():
            forget = f"to forget it: streamdet streams remove {name} --persist"
            if name == _RULES and self._kept.rules is not None and self._at_run_time.rules is None:
                notes.append(f"the rules that were kept are left out: {problems[0]}; to forget them: {_RESET_RULES}")
            elif self._is_left_out(name):
                notes.append(f"what was kept of {name} is left out: {problems[0]}; {forget}")
        return notes


def _taken_by_claim(name: str, claim: Claim, *, in_file: bool) -> str:
    other = "the file has a stream of this name" if in_file else "a stream of this name was added at run time"
    way_out = "give one of the two another name"
    return f"streams[{name}].name: {other}, and claim {claim.grant.claim_id} of the cluster, too; {way_out}"


def _as_in_file(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A value that was read, so that it is read as the same again."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _as_in_file(item) for key, item in value.items()}
    return [_as_in_file(item) for item in value] if isinstance(value, list) else value


def _host_name() -> str:
    """The name of this machine, as a name of a node may be."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:MAX_NODE_CHARACTERS].strip(".-_") or "node"


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
    file: Config, changed: AtRunTime, folder: Path, where: str, weights_labels: Sequence[str] | None
) -> tuple[Config, dict[str, list[str]]]:
    """A file with what was changed at run time, without the changes that do not fit.

    Args:
        file: what the file says.
        changed: at run time; a change of a stream that is not in the file any more has no effect.
        folder: that relative paths are relative to.
        where: where the changes were made, for messages.
        weights_labels: that the weights know; None where only the detector itself knows them.

    Returns:
        The configuration, and for each stream whose change is left out the reasons, a line each; those of rules that
        are left out under the name of their table.
    """
    if changed.rules is None:
        streams, left_out = _merge_streams(file, changed.streams, folder, where, weights_labels)
        return file.model_copy(update={"streams": streams}), left_out
    # Rules must fit the streams that they come to, and streams their rules: first the rules of run time are read for
    # themselves, then streams with them, then whether those rules fit these streams.
    problems: dict[str, list[str]] = {}
    try:
        with_rules = file.model_copy(update={"rules": read_rules(changed.rules)})
        streams, problems = _merge_streams(with_rules, changed.streams, folder, where, weights_labels)
        check_rules(merged := with_rules.model_copy(update={"streams": streams}), weights_labels)
    except ConfigError as error:
        streams, without_rules = _merge_streams(file, changed.streams, folder, where, weights_labels)
        # That rules do not fit what is left of a stream whose change is wrong is no problem of theirs.
        lines = [line for of_stream in problems.values() for line in of_stream] or error.problems
        return file.model_copy(update={"streams": streams}), {**without_rules, _RULES: lines}
    return merged, problems


def _merge_streams(
    config: Config, changes: Changes, folder: Path, where: str, weights_labels: Sequence[str] | None
) -> tuple[tuple[StreamConfig, ...], dict[str, list[str]]]:
    """The streams of a configuration with what was changed, and for each that is left out the reasons."""
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

    def read(self) -> tuple[AtRunTime, list[str]]:
        """What was kept, and what is wrong with the rest of the file, a line each.

        What can be read is used, whatever the rest is. A file that is wrong is copied, with `.bad` behind its name,
        before the next one overwrites it.
        """
        if self.path is None:
            return AtRunTime(), []
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return AtRunTime(), []
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return AtRunTime(), [f"{self.path}: cannot be read: {reason}; it keeps what was changed at run time"]
        try:
            if len(data) > MAX_FILE_BYTES:
                problem = "it is larger than 1 MiB"
                raise ValueError(problem)  # noqa: TRY301 - handled with what is wrong in the file
            changes, problems = _decode(data)
        except (ValueError, RecursionError) as error:
            changes, problems = AtRunTime(), [f"is not what streamdet wrote there: {redact(str(error))}"]
        if problems:
            self._save_bad(data)
        return changes, [f"{self.path}: {problem}" for problem in problems]

    def _save_bad(self, data: bytes) -> None:
        """Copies a file that cannot be used, if that is possible: the next change that is kept overwrites it."""
        if self.path is None:
            return
        with suppress(OSError):
            write_atomically(self.path.with_name(self.path.name + ".bad"), data)

    def stage(self, changes: AtRunTime) -> StagedFile:
        """Writes the next content beside the file, so that only a rename is left to do.

        Raises:
            ControlError: there is no file, or it cannot be written.
        """
        if self.path is None:
            problem = "there is nowhere to keep this over a restart; set [control] changes_file, or leave --persist out"
            raise ControlError(Refusal.CONFLICT, problem)
        streams = sorted(changes.streams.items())
        body: dict[str, Any] = {
            "version": _VERSION,
            "streams": {name: {"action": change.action, "values": change.values} for name, change in streams},
        }
        if changes.rules is not None:
            body["rules"] = changes.rules
        # In ASCII: what someone has written there may hold half of a surrogate pair, which is no character.
        data = json.dumps(body, indent=2).encode() + b"\n"
        if len(data) > MAX_FILE_BYTES:
            raise ControlError(Refusal.TOO_MANY, "the changes kept over restarts would be larger than 1 MiB")
        try:
            # Values may hold passwords: only this user may read them.
            return stage(self.path, data, mode=0o600)
        except OSError as error:
            message = f"cannot be kept in {self.path}: {error.strerror or error}; nothing was changed"
            raise ControlError(Refusal.FAILED, message) from None


def _decode(data: bytes) -> tuple[AtRunTime, list[str]]:
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
    rules = file.get("rules")
    if rules is not None and not (isinstance(rules, list) and all(isinstance(rule, dict) for rule in rules)):
        problems.append('is not what streamdet wrote there: "rules" must be a list of tables')
        rules = None
    return AtRunTime(changes, None if rules is None else tuple(rules)), problems


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
