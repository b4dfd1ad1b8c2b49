"""The operations of the control API, carried out in the daemon's main thread, which owns what they change."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from streamdet.config import Config, StreamConfig
from streamdet.detector.pool import Running
from streamdet.errors import ApplyError, ConfigError, ControlError, Refusal
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.rates import Fps, Rates
from streamdet.monitoring.unexpected import describe
from streamdet.security.plain_text import plain
from streamdet.security.redact import redact
from streamdet.service.claims import Claim, Grant
from streamdet.service.live_config import LiveConfig, Outcome, Renamed, Rules
from streamdet.service.streams import Streams
from streamdet.types import StreamStatus

Json = dict[str, Any]
Via = Literal["api", "page"]
_READING = {
    "config", "streams.list", "streams.get", "streams.settings", "streams.read", "rules.get", "claims.list",
}  # fmt: skip
# Of what changes something, only this comes all the time; a change of streams is never part of it.
_NOT_LOGGED = _READING | {"claims.renew"}
# Hexadecimal digits of one setting in a version.
_DIGITS = 6
_MAX_LOGGED_VALUE = 100
_MAX_LOGGED_LINE = 1200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What a client asks for; it waits for the main thread.

    Attributes:
        name: such as "streams.add".
        who: the client, for the log.
        via: "page" where the page asks for one of its users, else "api".
        stream: its name; empty if the operation is not about one stream.
        values: keys of `[[streams]]` by name, with values as in the file.
        unset: keys that are again as the file says, or at their defaults.
        persist: whether all that was changed about the stream is to survive a restart.
        config: the file that the client believes the daemon to run; None for any.
        rules: all rules, for "rules.set"; as in the file.
        renamed: zones and lines that "streams.change" renames, whose names rules are to take over.
        resets_rules: whether "streams.reset" makes the rules those of the file as well.
        grant: of a cluster; of one that is released, its id and the newest generation that the client knows, or 0.
        renewals: grants without their streams, for "claims.renew".
        version: of what the client has seen; the operation is refused if it has changed. None for any.
        try_only: whether all is checked and nothing is changed.
        result: gets the answer, or one of the errors of `Operations.carry_out`.
    """

    name: str
    who: str
    stream: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    persist: bool = False
    config: str | None = None
    rules: Rules = ()
    renamed: Renamed = field(default_factory=dict)
    resets_rules: bool = False
    grant: Grant | None = None
    renewals: tuple[Grant, ...] = ()
    version: str | None = None
    try_only: bool = False
    via: Via = "api"
    result: Future[Json] = field(default_factory=Future)


class Operations:
    """Carries out operations; only the main thread uses it.

    Args:
        in_force: the configuration; changed by most operations.
        streams: what runs.
        rates: frames per second, for the list.
        metrics: have what else the list shows, and count and log errors that no code foresaw.
        running: what detects; None for a stand-in.
    """

    def __init__(
        self,
        in_force: LiveConfig,
        streams: Streams,
        rates: Rates,
        metrics: Metrics,
        running: Running | None = None,
    ) -> None:
        self._in_force = in_force
        self._streams = streams
        self._rates = rates
        self._metrics = metrics
        self._engine = None if running is None else running.to_dict()

    def carry_out(self, operation: Operation) -> None:
        """Does what is asked for and sets the result; whatever goes wrong is the result.

        A result is JSON, or a ConfigError (a configuration or a stream is wrong), a ControlError, or an ApplyError (no
        thread or memory for it). What changes something is logged, with who asked for it.
        """
        is_renewal = operation.grant is not None and self._in_force.claims.is_renewal(operation.grant)
        is_quiet = operation.name in _NOT_LOGGED or operation.try_only or is_renewal
        asked = "" if is_quiet else self._asked(operation)
        try:
            result, outcome = self._result_of(operation), "done"
        except (ConfigError, ControlError, ApplyError) as error:
            outcome = f"{'failed' if isinstance(error, ApplyError) else 'refused'}: {error}"
            operation.result.set_exception(error)
        except Exception as error:  # noqa: BLE001 - whatever it is: the streams run on, and others may ask
            self._metrics.unexpected.report("control", error, "a request is refused")
            failure = ControlError(Refusal.FAILED, f"unexpected error: {describe(error)}; see the daemon's log")
            outcome = f"failed: {failure}"
            operation.result.set_exception(failure)
        else:
            operation.result.set_result(result if not asked else {**result, "summary": plain(asked, _MAX_LOGGED_LINE)})
        if asked:
            self._metrics.control_change(operation.via, outcome.partition(":")[0])
            _log.info("%s", _audit_line(operation.who, asked, outcome))

    def _result_of(self, operation: Operation) -> Json:
        operations: dict[str, Callable[[Operation], Json]] = {
            "config": self._config,
            "reload": self._reload,
            "streams.list": self._list,
            "streams.get": self._get,
            "streams.settings": self._settings,
            "streams.read": self._read,
            "streams.add": self._add,
            "streams.set": self._set,
            "streams.change": self._change,
            "streams.remove": self._remove,
            "streams.reset": self._reset,
            "rules.get": self._get_rules,
            "rules.set": self._set_rules,
            "rules.reset": self._reset_rules,
            "claims.list": self._list_claims,
            "claims.set": self._claim,
            "claims.renew": self._renew,
            "claims.release": self._release,
        }
        return operations[operation.name](operation)

    def _config(self, _operation: Operation) -> Json:
        config: Json = _redacted(self._in_force.config.model_dump(mode="json"))
        return config

    def _reload(self, operation: Operation) -> Json:
        ours = self._in_force.path
        if operation.config is not None and (ours is None or not _is_same_file(operation.config, ours)):
            raise ControlError(Refusal.CONFLICT, f"this daemon runs {ours}, not {plain(redact(operation.config))}")
        reloaded = self._in_force.reload()
        return {
            "config": str(ours),
            "streams": asdict(reloaded.streams),
            "needs_restart": reloaded.needs_restart,
            "notes": reloaded.notes,
        }

    def _list(self, _operation: Operation) -> Json:
        statuses, fps = self._streams.statuses(), self._rates.fps()
        streams = self._in_force.config.streams
        return {
            "streams": [self._described(stream, statuses.get(stream.name), fps.get(stream.name)) for stream in streams],
            "removed": self._in_force.removed(),
            "engine": self._engine,
        }

    def _get(self, operation: Operation) -> Json:
        stream = self._in_force.find(operation.stream)
        return self._described(stream, self._streams.statuses().get(stream.name), self._rates.fps().get(stream.name))

    def _settings(self, operation: Operation) -> Json:
        return self._settings_of(self._in_force.find(operation.stream))

    def _settings_of(self, stream: StreamConfig) -> Json:
        """All that is configured for a stream, with defaults and without secrets."""
        change, same_after_restart = self._in_force.change_of(stream.name)
        settings: Json = _redacted(stream.model_dump(mode="json", exclude={"name"}))
        return {
            "name": stream.name,
            "settings": settings,
            "version": _version_of(settings),
            "origin": self._origin_of(stream.name),
            "changed": sorted(change.values) if change is not None and change.action == "change" else [],
            "persisted": same_after_restart and self._in_force.claims.claim_of(stream.name) is None,
        }

    def _read(self, operation: Operation) -> Json:
        """A stream that is to be tried; the API logs what became of it."""
        return {"stream": self._in_force.read(operation.stream, operation.values)}

    def _add(self, operation: Operation) -> Json:
        how = {"persist": operation.persist, "try_only": operation.try_only}
        return self._changed(operation, self._in_force.add(operation.stream, operation.values, **how))

    def _set(self, operation: Operation) -> Json:
        self._check_version(operation)
        how = {"persist": operation.persist, "try_only": operation.try_only}
        return self._changed(operation, self._in_force.set(operation.stream, operation.values, **how))

    def _change(self, operation: Operation) -> Json:
        for key in operation.unset:
            if key not in StreamConfig.model_fields.keys() - {"name", "url"}:
                raise ControlError(Refusal.BAD_REQUEST, f'"{plain(key[:40])}" is not a key that can be unset')
        self._check_version(operation)
        how = {"persist": operation.persist, "try_only": operation.try_only}
        outcome = self._in_force.change(
            operation.stream, operation.values, operation.unset, **how, renamed=operation.renamed
        )
        return self._changed(operation, outcome)

    def _remove(self, operation: Operation) -> Json:
        self._check_version(operation)
        how = {"persist": operation.persist, "try_only": operation.try_only}
        return self._changed(operation, self._in_force.remove(operation.stream, **how))

    def _reset(self, operation: Operation) -> Json:
        self._check_version(operation)
        how = {"persist": operation.persist, "try_only": operation.try_only}
        outcome = self._in_force.reset(operation.stream, **how, rules=operation.resets_rules)
        return self._changed(operation, outcome)

    def _check_version(self, operation: Operation) -> None:
        """Refuses to change a stream that is not as the client has seen it."""
        if operation.version is None:
            return
        name = operation.stream
        now = self._settings_of(self._in_force.find(name))
        if now["version"] != operation.version:
            keys = _differing(list(now["settings"]), now["version"], operation.version)
            message = f"{name} was changed meanwhile: {', '.join(keys)}; read its settings again"
            raise ControlError(Refusal.CHANGED, message, keys)

    def _changed(self, operation: Operation, outcome: Outcome) -> Json:
        name = operation.stream
        stream = next((stream for stream in outcome.config.streams if stream.name == name), None)
        status = self._streams.statuses().get(name)
        described = None if stream is None else self._described(stream, status, None)
        answer: Json = {"stream": described, "streams": asdict(outcome.applied)}
        if operation.try_only:
            answer["tried"] = True
        if stream is not None:
            answer["settings"] = _redacted(stream.model_dump(mode="json", exclude={"name"}))
            answer["version"] = _version_of(answer["settings"])
        return answer

    def _get_rules(self, _operation: Operation) -> Json:
        rules, same_after_restart = self._in_force.change_of_rules()
        return {
            **self._rules_of(self._in_force.config),
            "origin": "file" if rules is None else "run_time",
            "persisted": same_after_restart,
        }

    @staticmethod
    def _rules_of(config: Config) -> Json:
        rules: list[Json] = _redacted([rule.model_dump(mode="json", exclude_defaults=True) for rule in config.rules])
        return {"rules": rules, "version": _version_of({"rules": rules})}

    def _set_rules(self, operation: Operation) -> Json:
        return self._changed_rules(operation, operation.rules)

    def _reset_rules(self, operation: Operation) -> Json:
        return self._changed_rules(operation, None)

    def _changed_rules(self, operation: Operation, rules: Rules | None) -> Json:
        if operation.version not in (None, self._rules_of(self._in_force.config)["version"]):
            raise ControlError(Refusal.CHANGED, "the rules were changed meanwhile; read them again")
        outcome = self._in_force.set_rules(rules, persist=operation.persist, try_only=operation.try_only)
        return {**self._rules_of(outcome.config), **({"tried": True} if operation.try_only else {})}

    def _list_claims(self, _operation: Operation) -> Json:
        held, statuses = self._in_force.claims.held.values(), self._streams.statuses()
        return {
            "node": self._in_force.node,
            "newest_generation": self._in_force.claims.newest_generation,
            "claims": [self._described_claim(claim, statuses) for claim in held],
        }

    def _claim(self, operation: Operation) -> Json:
        grant = operation.grant or Grant("", 0)
        applied = self._in_force.claim(grant)
        claim = self._in_force.claims.held[grant.claim_id]
        return {"claim": self._described_claim(claim, self._streams.statuses()), "streams": asdict(applied)}

    def _renew(self, operation: Operation) -> Json:
        renewed = self._in_force.renew(operation.renewals)
        return {**self._list_claims(operation), "renewed": renewed}

    def _release(self, operation: Operation) -> Json:
        grant = operation.grant or Grant("", 0)
        return {"claim": None, "streams": asdict(self._in_force.release(grant.claim_id, grant.generation or None))}

    def _described_claim(self, claim: Claim, statuses: Mapping[str, StreamStatus]) -> Json:
        grant, left = claim.grant, self._in_force.claims.lease_seconds_left(claim)
        return {
            "id": grant.claim_id,
            "generation": grant.generation,
            "streams": list(grant.streams),
            "states": {name: _state_of(statuses.get(name)) for name in grant.streams},
            "lease_seconds": grant.lease_seconds,
            "lease_seconds_left": round(left, 3),
        }

    def _origin_of(self, stream: str) -> str:
        if self._in_force.claims.claim_of(stream) is not None:
            return "cluster"
        change, _ = self._in_force.change_of(stream)
        return "run_time" if change is not None and change.action == "add" else "file"

    def _asked(self, operation: Operation) -> str:
        """What a client asks for, with what was before, for the log."""
        config = self._in_force.config
        if operation.name.startswith("rules."):
            before = [rule.model_dump(mode="json", exclude_defaults=True) for rule in config.rules]
            parts = [_change_of("rules", before, list(operation.rules))] if operation.name == "rules.set" else []
        elif operation.grant is not None:
            grant = operation.grant
            parts = [grant.claim_id, f"generation {grant.generation}"]
            parts += [f"for {', '.join(grant.streams)}"] if grant.streams else []
        else:
            stream = next((stream for stream in config.streams if stream.name == operation.stream), None)
            old = {} if stream is None else stream.model_dump(mode="json")
            parts = [operation.stream[:100]] if operation.stream else []
            # A URL that is refused may be one in which no login can be distinguished from the rest.
            parts += [
                key
                if key in ("url", "detect_url")
                else _change_of(key, old.get(key), value)
                if key in old
                else f"{key}={_short(value)}"
                for key, value in operation.values.items()
            ]
            parts += [f"without {', '.join(map(_short, operation.unset))}"] if operation.unset else []
            parts += ["with the rules of the file"] if operation.resets_rules else []
            parts += [
                f"with rules of {kind} {before} for {after}" for (kind, before), after in operation.renamed.items()
            ]
        return " ".join([operation.name, *parts, *(["kept over restarts"] if operation.persist else [])])

    def _described(self, stream: StreamConfig, status: StreamStatus | None, fps: Fps | None) -> Json:
        change, same_after_restart = self._in_force.change_of(stream.name)
        claim = self._in_force.claims.claim_of(stream.name)
        recent, counts = self._metrics.recent(stream.name), self._metrics.ledger.counts_of(stream.name)
        p50, p95 = recent.latency_seconds() or (None, None)
        gate = self._metrics.gate_counts(stream.name) if stream.gate != "off" else None
        dropped = {} if counts is None else {reason.value: count for reason, count in counts.dropped.items() if count}
        return {
            "name": stream.name,
            "state": _state_of(status),
            "reason": status.reason.value if status and status.reason else None,
            "detail": status.detail if status else "",
            "since": status.since if status else None,
            "fps_in": round(fps.captured, 2) if fps else 0.0,
            "fps_out": round(fps.published, 2) if fps else 0.0,
            "fps_rate_limited": round(fps.rate_limited, 2) if fps else 0.0,
            "fps_overload": round(fps.overload, 2) if fps else 0.0,
            "fps_not_decoded": round(fps.not_decoded, 2) if fps else 0.0,
            "fps_gated": round(fps.gated, 2) if fps else 0.0,
            "gate": None if gate is None else gate._asdict(),
            "latency_seconds": {"p50": p50, "p95": p95},
            "published": counts.published if counts else 0,
            "dropped": dropped,
            "alerts_last_hour": recent.alerts_last_hour(),
            "url": redact(stream.url),
            "detect_url": None if stream.detect_url is None else redact(stream.detect_url),
            "origin": self._origin_of(stream.name),
            "claim": None if claim is None else claim.grant.claim_id,
            "changed": sorted(change.values) if change is not None and change.action == "change" else [],
            "persisted": claim is None and same_after_restart,
            "decoder": self._metrics.decoder_of(stream.name),
            "clip_missing": self._streams.clip_missing(stream.name),
            "detection": self._detection(stream),
        }

    def _detection(self, stream: StreamConfig) -> Json:
        """What counts as a detection in a stream, whether the stream or `[detector]` says so."""
        settings = self._in_force.config.detector.settings_for(stream)
        labels = settings.labels or self._streams.labels
        return {
            **asdict(settings), "labels": list(labels), "score_thresholds": dict(settings.score_thresholds),
            "tiles": stream.tiles,
        }  # fmt: skip


def _state_of(status: StreamStatus | None) -> str:
    return "connecting" if status is None else status.state.value


def _redacted(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list) else value


def _is_same_file(given: str, ours: Path) -> bool:
    try:
        return Path(given).resolve() == ours.resolve()
    except (OSError, ValueError, RuntimeError):
        return False  # a loop of links, a NUL in it, or a name that is too long


def _version_of(settings: Mapping[str, Any]) -> str:
    """A text that differs wherever settings differ, and is the same after a restart: some digits for each of them."""
    return "".join(
        hashlib.sha256(json.dumps([key, value], sort_keys=True).encode()).hexdigest()[:_DIGITS]
        for key, value in settings.items()
    )


def _differing(keys: Sequence[str], now: str, seen: str) -> list[str]:
    """The keys of the settings in which two versions differ; all of them for a version of another daemon."""
    if len(seen) != len(now):
        return list(keys)
    parts = (slice(at, at + _DIGITS) for at in range(0, len(now), _DIGITS))
    return [key for key, part in zip(keys, parts, strict=True) if now[part] != seen[part]]


def _audit_line(who: str, asked: str, outcome: str) -> str:
    """Who asked for a change, and what became of it; in one line, without secrets."""
    return plain(" ".join(f"{who} asked for {asked[:500]}: {outcome[:500]}".split()), _MAX_LOGGED_LINE)


def _change_of(key: str, old: object, new: object) -> str:
    """A setting and what it was before; of a list of tables, which of them changed."""
    before, after = _by_name(old), _by_name(new)
    if before is None or after is None:
        return f"{key}={_short(new)}" + ("" if old == new else f" (was {_short(old)})")
    words = [f"+{name}" for name in after if name not in before] + [f"-{name}" for name in before if name not in after]
    words += [f"~{name}" for name in after if name in before and not _is_same(before[name], after[name])]
    return f"{key}: {_short(' '.join(words) or 'the same')}"


def _by_name(value: object) -> dict[str, Json] | None:
    """Tables by their names; None for anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, dict) for each in value):
        return None
    return {str(each.get("name", number)): each for number, each in enumerate(value, 1)}


def _is_same(before: Json, after: Json) -> bool:
    """Whether a table that a client sends is the one that is in force, in which keys with defaults may be added."""
    return all(json.dumps(before.get(key), sort_keys=True) == json.dumps(value, sort_keys=True)
               for key, value in after.items())  # fmt: skip


def _short(value: object) -> str:
    """A value as a line may show it."""
    text = redact(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= _MAX_LOGGED_VALUE else f"{text[:_MAX_LOGGED_VALUE]}..."
