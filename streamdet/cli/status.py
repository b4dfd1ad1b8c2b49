"""`streamdet status`: whether a running daemon and its streams are well."""

from __future__ import annotations

import http.client
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamdet.cli.refresh import print_until_interrupted, show_until_interrupted
from streamdet.cli.streams import engine_in_words
from streamdet.cli.which_daemon import which_daemon
from streamdet.config.values import in_words
from streamdet.errors import EXIT_FAILURE, EXIT_UNAVAILABLE, ControlError, Refusal, StreamdetError
from streamdet.security.plain_text import plain, plain_json

if TYPE_CHECKING:
    from rich.console import RenderableType

# What is as someone asked for: a stream that is down for one of these reasons is well.
_AS_ASKED = ("paused", "ended")
_COLOURS = {"up": "green", "connecting": "yellow", "stalled": "yellow", "down": "red"}
_DEFAULT_PAGE = ("127.0.0.1", 8095)
_PAGE_SECONDS = 0.3
# The daemon answers at once, unless it is in trouble, which is what is asked.
_ANSWER_SECONDS = 5.0
_NOTABLE_FPS = 0.1
_MOST_PROBLEMS = 20


@click.command(
    epilog="""\b
Examples:
  streamdet status
  streamdet status --watch
  streamdet status --config /etc/streamdet/yard.toml
  streamdet status --json | jq -r '.streams[] | select(.state == "down") | .name'
  streamdet status > /dev/null || echo 'look at the cameras'

\b
Exit codes: 0 all is well: the daemon detects, and each stream is up, paused or played to its end;
1 something is not, and the last lines say what; 69 no daemon answers."""
)
@which_daemon
@click.option("--watch", "-w", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --watch, one on each line.")
def command(*, config_path: Path | None, socket_path: Path | None, watch: bool, as_json: bool) -> None:
    """Show whether a running daemon and its streams are well.

    Without options, the only daemon of this user or of the system is asked.
    """
    if watch and as_json:
        print_until_interrupted(lambda: _as_json(read_status(socket_path, config_path), indent=None))
        return
    if watch:
        show_until_interrupted(lambda: _drawn(read_status(socket_path, config_path)))
        return
    status = read_status(socket_path, config_path)
    if as_json:
        click.echo(_as_json(status, indent=2))
    elif status.about is None:
        raise status.error or ControlError(Refusal.UNAVAILABLE, "no daemon answers")
    else:
        from streamdet.cli.refresh import console

        console().print(_drawn(status))
        sys.stdout.flush()
    sys.exit(status.exit_code)


@dataclass(slots=True)
class Status:
    """What a daemon says of itself.

    Attributes:
        about: what runs; None where no daemon answers.
        streams: as the control API describes them; empty before the detector is loaded.
        page: the address of the page; None where none is known.
        problems: what is not well, a line each.
        notes: what else a person should know, a line each.
        error: why the daemon did not answer, or not all of it.
    """

    about: dict[str, Any] | None = None
    streams: list[dict[str, Any]] = field(default_factory=list)
    page: str | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: StreamdetError | None = None

    @property
    def exit_code(self) -> int:
        """0 where all is well."""
        if self.about is None:
            return EXIT_UNAVAILABLE if self.error is None else self.error.exit_code
        return EXIT_FAILURE if self.problems else 0


def read_status(socket_path: Path | None, config_path: Path | None) -> Status:
    """Asks the daemon; what cannot be asked is a problem of the status."""
    from streamdet.client.control import ask, find_socket

    status = Status()
    try:
        found = find_socket(socket_path, config_path)
        about = ask(found, "GET", "/v1/about", timeout_seconds=_ANSWER_SECONDS)
        health = ask(found, "GET", "/v1/health", timeout_seconds=_ANSWER_SECONDS, refused=False)
        status.about = about
        if not health.get("healthy", False):
            status.problems.append(f"the daemon is not healthy: {health.get('problem') or 'its log says more'}")
        elif not health.get("ready", False):
            status.problems.append("the daemon does not detect yet: it loads the detector, or it is stopping")
        else:
            answer = ask(found, "GET", "/v1/streams", timeout_seconds=_ANSWER_SECONDS)
            status.streams = answer["streams"]
    except StreamdetError as error:
        status.error = error
        status.problems.append(str(error))
        return status
    if about.get("config_in_force") is False:
        what = "could not be used when it was read last, and what was before is in force"
        status.problems.append(f"{about['config']} {what}; streamdet check {about['config']} lists what is wrong")
    status.problems += [_problem_of(stream) for stream in status.streams if not _is_well(stream)]
    status.notes += _overload(status.streams)
    if not status.problems and not status.streams:
        status.notes.append("there are no streams yet: streamdet streams add NAME URL --persist")
    status.page = (about.get("addresses") or {}).get("page") or _page()
    return status


def _is_well(stream: dict[str, Any]) -> bool:
    return stream["state"] == "up" or (stream["state"] == "down" and stream["reason"] in _AS_ASKED)


def _problem_of(stream: dict[str, Any]) -> str:
    why = f": {stream['reason']}: {stream['detail']}" if stream["reason"] else ""
    return f"{stream['name']} is {stream['state']}{why}"


def _overload(streams: list[dict[str, Any]]) -> list[str]:
    """One line if the detector is too slow for what comes in; that is no fault."""
    lost, came = (sum(stream[key] for stream in streams) for key in ("fps_overload", "fps_in"))
    if lost < _NOTABLE_FPS:
        return []
    fps = f"{lost:.1f} of {came:.1f} frames per second"
    return [f"{fps} are left out, because the detector is busy; max_fps leaves them out evenly"]


def _page() -> str | None:
    """The page at its usual address, if one answers there."""
    host, port = _DEFAULT_PAGE
    connection = http.client.HTTPConnection(host, port, timeout=_PAGE_SECONDS)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        return f"http://{host}:{port}/" if answer.status == http.HTTPStatus.OK and answer.read(16) == b"ok\n" else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _as_json(status: Status, indent: int | None) -> str:
    facts = {
        "ok": status.exit_code == 0,
        "running": status.about is not None,
        "problems": status.problems,
        "notes": status.notes,
        **(status.about or {}),
        "page": status.page,
        "alerts_last_hour": sum(stream["alerts_last_hour"] for stream in status.streams),
        "streams": status.streams,
    }
    return plain_json(json.dumps(facts, ensure_ascii=False, indent=indent))


def _drawn(status: Status) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"{title:<9}{plain(text)}") for title, text in _facts(status)]
    if status.streams:
        parts += [Text(), _table(status.streams)]
    if status.notes or status.problems:
        parts.append(Text())
    parts += [Text(plain(note), style="yellow") for note in status.notes]
    parts += [Text(plain(problem), style="red") for problem in status.problems[:_MOST_PROBLEMS]]
    if len(status.problems) > _MOST_PROBLEMS:
        parts.append(Text(f"and {len(status.problems) - _MOST_PROBLEMS} more", style="red"))
    if not status.problems:
        parts.append(Text("all is well", style="green"))
    return Group(*parts)


def _facts(status: Status) -> list[tuple[str, str]]:
    about = status.about
    if about is None:
        return []
    since = f", up for {in_words(time.time() - about['started_at'])}" if about.get("started_at") else ""
    what = about["config"] or "streams of its command line"
    facts = [("daemon", f"streamdet {about['version']}{since}, process {about['pid']}: {what}")]
    engine = about.get("engine")
    if engine:
        facts.append(("engine", engine_in_words(engine)))
    if status.streams:
        up = sum(stream["state"] == "up" for stream in status.streams)
        came, went = (sum(stream[key] for stream in status.streams) for key in ("fps_in", "fps_out"))
        counts = f"{up} of {len(status.streams)} up, {came:.1f} frames per second in, {went:.1f} out"
        gated = sum(stream.get("fps_gated", 0.0) for stream in status.streams)
        if gated >= _NOTABLE_FPS:
            counts += f", {gated:.1f} left out by the motion gate"
        facts.append(("streams", counts))
        claimed = [stream["claim"] for stream in status.streams if stream.get("claim") is not None]
        if claimed:
            claims = len(set(claimed))
            facts.append(("cluster", f"{len(claimed)} of the streams, by {claims} claim{'s' * (claims != 1)}"))
        facts.append(("alerts", f"{sum(stream['alerts_last_hour'] for stream in status.streams)} in the last hour"))
    addresses = about.get("addresses")
    if addresses:
        facts += [
            ("page", status.page or f"streamdet web {addresses['events']} serves it"),
            ("events", addresses["events"]),
            ("metrics", addresses["metrics"]),
            ("control", ", ".join(addresses["control"])),
        ]
    return facts


def _table(streams: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("stream", "state"):
        table.add_column(title, no_wrap=True)
    for title in ("for", "fps in", "out", "latency", "dropped", "alerts"):
        table.add_column(title, justify="right", no_wrap=True)
    now = time.time()
    for stream in streams:
        p50 = stream["latency_seconds"]["p50"]
        state = stream["reason"] if stream["reason"] in _AS_ASKED else stream["state"]
        table.add_row(
            Text(plain(stream["name"])), Text(plain(state), style=_COLOURS.get(state, "")),
            "" if stream["since"] is None else in_words(now - stream["since"]),
            f"{stream['fps_in']:.1f}", f"{stream['fps_out']:.1f}",
            "" if p50 is None else f"{p50 * 1000:.0f} ms",
            str(sum(count for reason, count in stream["dropped"].items() if reason != "gated")),
            str(stream["alerts_last_hour"]),
        )  # fmt: skip
    return table
