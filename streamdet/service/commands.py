"""Carries out, in the main thread, what programs ask at the control socket; `docs/control.md` is the reference."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamdet import __version__
from streamdet.config import StreamConfig
from streamdet.config.models import StreamDefaults
from streamdet.detector.pool import Running
from streamdet.errors import ApplyError, ConfigError, ControlError, Refusal
from streamdet.monitoring.metrics import Metrics
from streamdet.monitoring.rates import Fps, Rates
from streamdet.monitoring.unexpected import describe
from streamdet.security.redact import redact
from streamdet.service.control.protocol import Request, encode_error, encode_result, quoted
from streamdet.service.control.server import Pending
from streamdet.service.live_config import LiveConfig, Reloaded
from streamdet.service.streams import Applied, Streams
from streamdet.types import StreamStatus

Json = dict[str, Any]
# What is logged with who asked for it.
_CHANGING = {
    "reload", "streams.add", "streams.change", "streams.pause", "streams.resume", "streams.remove", "streams.reset"
}  # fmt: skip
_LONGEST_VALUE = 100

_log = logging.getLogger(__name__)

_KINDS = {str: "a text", bool: "true or false", dict: "an object", list: "a list of texts"}


class Commands:
    """What can be asked of a daemon; only the main thread uses it.

    Args:
        in_force: the configuration; changed by most commands.
        reload: reads the file again, and tells systemd of it.
        streams: what runs.
        rates: frames per second, for the list.
        metrics: counts requests.
        epoch: this start of the daemon.
        running: what detects.
    """

    def __init__(
        self,
        in_force: LiveConfig,
        reload: Callable[[], Reloaded],
        streams: Streams,
        rates: Rates,
        metrics: Metrics,
        epoch: str,
        running: Running | None = None,
    ) -> None:
        self._engine = None if running is None else running.to_dict()
        self._in_force = in_force
        self._reload_now = reload
        self._streams = streams
        self._rates = rates
        self._metrics = metrics
        self._epoch = epoch

    def carry_out(self, pending: Pending) -> None:
        """Does what is asked for and answers; whatever goes wrong is the answer."""
        number = pending.request.id
        try:
            reply, outcome = encode_result(number, self._result(pending.request)), "done"
        except (ConfigError, ControlError) as error:
            reply, outcome = encode_error(number, error), f"refused: {error}"
        except ApplyError as error:
            reply, outcome = encode_error(number, ControlError(Refusal.FAILED, str(error))), f"failed: {error}"
        except Exception as error:  # noqa: BLE001 - whatever it is: the streams run on, and others may ask
            self._metrics.unexpected.report("control", error, "a request is refused")
            failure = ControlError(Refusal.FAILED, f"unexpected error: {describe(error)}; see the daemon's log")
            reply, outcome = encode_error(number, failure), f"failed: {failure}"
        self._metrics.control_request(done=outcome == "done")
        if pending.request.command in _CHANGING:
            _log.info("%s", _audit_line(pending, outcome))
        pending.answer(reply)

    def _result(self, request: Request) -> Json:
        commands: dict[str, Callable[[Json], Json]] = {
            "about": self._about,
            "reload": self._reload,
            "streams.list": self._list,
            "streams.add": self._add,
            "streams.change": self._change,
            "streams.pause": self._pause,
            "streams.resume": self._resume,
            "streams.remove": self._remove,
            "streams.reset": self._reset,
        }
        command = commands.get(request.command)
        if command is None:
            message = f"the command {quoted(request.command)} is not known; known are {', '.join(commands)}"
            raise ControlError(Refusal.BAD_REQUEST, message)
        return command(request.arguments)

    def _about(self, arguments: Json) -> Json:
        _checked(arguments)
        return {
            "version": __version__,
            "epoch": self._epoch,
            "pid": os.getpid(),
            "config": None if self._in_force.path is None else str(self._in_force.path.resolve()),
            "changes_file": None if self._in_force.changes_path is None else str(self._in_force.changes_path),
            "engine": self._engine,
        }

    def _reload(self, arguments: Json) -> Json:
        config = _checked(arguments, config=str).get("config")
        ours = self._in_force.path
        if config is not None and (ours is None or not _is_same_file(config, ours)):
            raise ControlError(Refusal.FAILED, f"this daemon runs {ours}, not {redact(config)}")
        reloaded = self._reload_now()
        return {
            "config": str(ours),
            "streams": asdict(reloaded.streams),
            "needs_restart": reloaded.needs_restart,
            "notes": reloaded.notes,
        }

    def _list(self, arguments: Json) -> Json:
        _checked(arguments)
        statuses, fps = self._streams.statuses(), self._rates.fps()
        streams = self._in_force.config.streams
        return {
            "streams": [self._described(stream, statuses.get(stream.name), fps.get(stream.name)) for stream in streams],
            "removed": self._in_force.removed(),
            "engine": self._engine,
        }

    def _add(self, arguments: Json) -> Json:
        given = _checked(arguments, ("name", "url"), name=str, url=str, values=dict, persist=bool)
        values = {**given.get("values", {}), "url": given["url"]}
        _check_keys(values)
        return self._done(given, self._in_force.add(given["name"], values, persist=given.get("persist", False)))

    def _change(self, arguments: Json) -> Json:
        given = _checked(arguments, ("name",), name=str, values=dict, unset=list, persist=bool)
        values, unset = given.get("values", {}), given.get("unset", [])
        _check_keys(values)
        for key in unset:
            if key not in StreamDefaults.model_fields:
                raise ControlError(Refusal.BAD_REQUEST, f"{quoted(str(key))} is no key that can be unset")
        applied = self._in_force.change(given["name"], values, unset, persist=given.get("persist", False))
        return self._done(given, applied)

    def _pause(self, arguments: Json) -> Json:
        return self._set_paused(arguments, paused=True)

    def _resume(self, arguments: Json) -> Json:
        return self._set_paused(arguments, paused=False)

    def _set_paused(self, arguments: Json, *, paused: bool) -> Json:
        given = _checked(arguments, ("name",), name=str, persist=bool)
        applied = self._in_force.pause(given["name"], paused=paused, persist=given.get("persist", False))
        return self._done(given, applied)

    def _remove(self, arguments: Json) -> Json:
        given = _checked(arguments, ("name",), name=str, persist=bool)
        return self._done(given, self._in_force.remove(given["name"], persist=given.get("persist", False)))

    def _reset(self, arguments: Json) -> Json:
        given = _checked(arguments, ("name",), name=str, persist=bool)
        return self._done(given, self._in_force.reset(given["name"], persist=given.get("persist", False)))

    def _done(self, given: Json, applied: Applied) -> Json:
        stream = next((s for s in self._in_force.config.streams if s.name == given["name"]), None)
        status = self._streams.statuses().get(given["name"])
        return {
            "stream": None if stream is None else self._described(stream, status, None),
            "streams": asdict(applied),
        }

    def _described(self, stream: StreamConfig, status: StreamStatus | None, fps: Fps | None) -> Json:
        change, same_after_restart = self._in_force.change_of(stream.name)
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
            "url": redact(stream.url),
            "origin": "run_time" if change is not None and change.action == "add" else "file",
            "changed": sorted(change.values) if change is not None and change.action == "change" else [],
            "persisted": same_after_restart,
        }


def _is_same_file(given: str, ours: Path) -> bool:
    try:
        return Path(given).resolve() == ours.resolve()
    except (OSError, ValueError, RuntimeError):
        return False  # a loop of links, a zero in it, or a name that is too long: nothing that could be ours


def _audit_line(pending: Pending, outcome: str) -> str:
    """Who asked for a change, and what became of it; in one line, without secrets."""
    given = pending.request.arguments
    values = given.get("values")
    values = dict(values) if isinstance(values, dict) else {}
    what = [str(given["name"])[:100]] if "name" in given else []
    # A URL that is refused may be one in which no login can be told from the rest.
    what += [f"{key}={_short(value)}" if key != "url" else key for key, value in values.items()]
    if isinstance(unset := given.get("unset"), list) and unset:
        what.append(f"without {', '.join(map(_short, unset))}")
    if given.get("persist") is True:
        what.append("kept over restarts")
    peer = pending.peer
    who = "an unknown process" if peer is None else f"user {peer.uid} (process {peer.pid})"
    asked = f"{pending.request.command} {' '.join(what)}".rstrip()
    return " ".join(f"{who} asked for {asked[:500]}: {outcome[:500]}".split())


def _short(value: object) -> str:
    """A value as a line may show it."""
    text = redact(str(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _checked(arguments: Json, required: tuple[str, ...] = (), **kinds: type) -> Json:
    """The arguments, if each is known and of its kind, and none is missing.

    Raises:
        ControlError: otherwise.
    """
    for key, value in arguments.items():
        if key not in kinds:
            known = ", ".join(kinds) or "none"
            raise ControlError(Refusal.BAD_REQUEST, f"the argument {quoted(key)} is not known; known are {known}")
        texts = not isinstance(value, list) or all(isinstance(item, str) for item in value)
        if not isinstance(value, kinds[key]) or not texts:
            raise ControlError(Refusal.BAD_REQUEST, f'the argument "{key}" must be {_KINDS[kinds[key]]}')
    for key in required:
        if key not in arguments:
            raise ControlError(Refusal.BAD_REQUEST, f'the argument "{key}" is missing')
    return arguments


def _check_keys(values: Mapping[str, Any]) -> None:
    if "name" in values:
        raise ControlError(Refusal.BAD_REQUEST, "a stream keeps its name; remove it, and add another")
