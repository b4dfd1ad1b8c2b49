"""The operations of the control API, carried out in the daemon's main thread, which owns what they change."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from streamdet.config import StreamConfig
from streamdet.config.stream import StreamDefaults
from streamdet.detector.pool import Running
from streamdet.errors import ApplyError, ConfigError, ControlError, Refusal
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.rates import Fps, Rates
from streamdet.monitoring.unexpected import describe
from streamdet.security.plain_text import plain
from streamdet.security.redact import redact
from streamdet.service.live_config import LiveConfig
from streamdet.service.streams import Applied, Streams
from streamdet.types import StreamStatus

Json = dict[str, Any]
_READING = {"config", "streams.list", "streams.get"}
_MAX_LOGGED_VALUE = 100
_MAX_LOGGED_LINE = 1200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What a client asks for; it waits for the main thread.

    Attributes:
        name: such as "streams.add".
        who: the client, for the log.
        stream: its name; empty if the operation is not about one stream.
        values: keys of `[[streams]]` by name, with values as in the file.
        unset: keys that are again as the file says, or at their defaults.
        persist: whether all that was changed about the stream is to survive a restart.
        config: the file that the client believes the daemon to run; None for any.
        result: gets the answer, or one of the errors of `Operations.carry_out`.
    """

    name: str
    who: str
    stream: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    persist: bool = False
    config: str | None = None
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
            operation.result.set_result(result)
        if operation.name not in _READING:
            _log.info("%s", _audit_line(operation, outcome))

    def _result_of(self, operation: Operation) -> Json:
        operations: dict[str, Callable[[Operation], Json]] = {
            "config": self._config,
            "reload": self._reload,
            "streams.list": self._list,
            "streams.get": self._get,
            "streams.add": self._add,
            "streams.set": self._set,
            "streams.change": self._change,
            "streams.remove": self._remove,
            "streams.reset": self._reset,
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

    def _add(self, operation: Operation) -> Json:
        applied = self._in_force.add(operation.stream, operation.values, persist=operation.persist)
        return self._changed(operation, applied)

    def _set(self, operation: Operation) -> Json:
        applied = self._in_force.set(operation.stream, operation.values, persist=operation.persist)
        return self._changed(operation, applied)

    def _change(self, operation: Operation) -> Json:
        for key in operation.unset:
            if key not in StreamDefaults.model_fields:
                raise ControlError(Refusal.BAD_REQUEST, f'"{plain(key[:40])}" is not a key that can be unset')
        applied = self._in_force.change(operation.stream, operation.values, operation.unset, persist=operation.persist)
        return self._changed(operation, applied)

    def _remove(self, operation: Operation) -> Json:
        return self._changed(operation, self._in_force.remove(operation.stream, persist=operation.persist))

    def _reset(self, operation: Operation) -> Json:
        return self._changed(operation, self._in_force.reset(operation.stream, persist=operation.persist))

    def _changed(self, operation: Operation, applied: Applied) -> Json:
        name = operation.stream
        stream = next((stream for stream in self._in_force.config.streams if stream.name == name), None)
        status = self._streams.statuses().get(name)
        return {
            "stream": None if stream is None else self._described(stream, status, None),
            "streams": asdict(applied),
        }

    def _described(self, stream: StreamConfig, status: StreamStatus | None, fps: Fps | None) -> Json:
        change, same_after_restart = self._in_force.change_of(stream.name)
        recent, counts = self._metrics.recent(stream.name), self._metrics.ledger.snapshot().get(stream.name)
        p50, p95 = recent.latency_seconds() or (None, None)
        dropped = {} if counts is None else {reason.value: count for reason, count in counts.dropped.items() if count}
        return {
            "name": stream.name,
            "state": status.state.value if status else "connecting",
            "reason": status.reason.value if status and status.reason else None,
            "detail": status.detail if status else "",
            "since": status.since if status else None,
            "fps_in": round(fps.captured, 2) if fps else 0.0,
            "fps_out": round(fps.published, 2) if fps else 0.0,
            "fps_rate_limited": round(fps.rate_limited, 2) if fps else 0.0,
            "fps_overload": round(fps.overload, 2) if fps else 0.0,
            "latency_seconds": {"p50": p50, "p95": p95},
            "published": counts.published if counts else 0,
            "dropped": dropped,
            "alerts_last_hour": recent.alerts_last_hour(),
            "url": redact(stream.url),
            "origin": "run_time" if change is not None and change.action == "add" else "file",
            "changed": sorted(change.values) if change is not None and change.action == "change" else [],
            "persisted": same_after_restart,
            "detection": self._detection(stream),
        }

    def _detection(self, stream: StreamConfig) -> Json:
        """What counts as a detection in a stream, whether the stream or `[detector]` says so."""
        settings = self._in_force.config.detector.settings_for(stream)
        labels = settings.labels or self._streams.labels
        return {
            **asdict(settings), "labels": list(labels), "score_thresholds": dict(settings.score_thresholds),
        }  # fmt: skip


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


def _audit_line(operation: Operation, outcome: str) -> str:
    """Who asked for a change, and what became of it; in one line, without secrets."""
    # A URL that is refused may be one in which no login can be distinguished from the rest.
    values = [key if key == "url" else f"{key}={_short(value)}" for key, value in operation.values.items()]
    unset = [f"without {', '.join(map(_short, operation.unset))}"] if operation.unset else []
    kept = ["kept over restarts"] if operation.persist else []
    stream = [operation.stream[:100]] if operation.stream else []
    asked = " ".join([operation.name, *stream, *values, *unset, *kept])
    return plain(" ".join(f"{operation.who} asked for {asked[:500]}: {outcome[:500]}".split()), _MAX_LOGGED_LINE)


def _short(value: object) -> str:
    """A value as a line may show it."""
    text = redact(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= _MAX_LOGGED_VALUE else f"{text[:_MAX_LOGGED_VALUE]}..."
