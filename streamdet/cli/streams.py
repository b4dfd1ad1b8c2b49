"""`streamdet streams`: the streams of a running daemon."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from streamdet.cli.completion import offer_streams
from streamdet.cli.group import Group
from streamdet.cli.refresh import console, print_until_interrupted, show_until_interrupted
from streamdet.cli.which_daemon import which_daemon
from streamdet.config.toml import as_json_value
from streamdet.errors import ConfigError, StreamdetError
from streamdet.security.plain_text import plain, plain_json

if TYPE_CHECKING:
    from rich.console import RenderableType

_NOTABLE_FPS = 0.05
_COLOURS = {"up": "green", "connecting": "yellow", "stalled": "yellow", "down": "red"}
_COLUMNS = (
    "stream",
    "state",
    "fps in",
    "out",
    "decode",
    "max_fps",
    "overload",
    "gated",
    "from",
    "kept",
    "url",
    "problem",
)
_WIDE_ONLY = ("decode", "max_fps", "overload", "gated", "from", "kept", "problem")
_WIDE_CHARACTERS = 120
_LEFT_OUT = {"fps_rate_limited": "max_fps", "fps_overload": "overload", "fps_gated": "the motion gate"}
_LONGEST_NAME = 30
_EPILOG = """\b
Examples:
  streamdet streams list --watch
  streamdet streams add yard 'rtsp://${YARD_LOGIN}@192.0.2.7/stream1' --set max_fps=5 --persist
  streamdet streams show yard
  streamdet streams pause yard
  streamdet streams change yard --set max_fps=10 --unset stall_seconds
  streamdet streams list --json | jq -r '.streams[] | select(.state != "up") | .name'
"""


@click.group("streams", cls=Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@which_daemon
@click.pass_context
def command(context: click.Context, config_path: Path | None, socket_path: Path | None) -> None:
    """List, add, change, pause and remove the streams of a running daemon.

    A change takes effect at once, survives a reload, and is lost at a restart unless --persist is given.
    """
    context.obj = (socket_path, config_path)


_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
_persist = click.option("--persist", is_flag=True, help="Keep the change over restarts, in a file of the daemon.")
_set = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a key of [[streams]]; may be repeated."
)
_name = click.argument("name", shell_complete=offer_streams)


@command.command(
    "list",
    epilog="""\b
Examples:
  streamdet streams list
  streamdet streams list --watch
  streamdet streams list --json | jq -r '.streams[] | select(.state != "up") | .name'""",
)
@click.option("--watch", "-w", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@_json
@click.pass_context
def list_(context: click.Context, *, watch: bool, as_json: bool) -> None:
    """Show every stream: its state, frames per second in and out, and its url."""
    if watch and as_json:
        print_until_interrupted(lambda: _listed_as_json(context))
    elif watch:
        show_until_interrupted(lambda: _listed(context))
    else:
        result = _ask(context, "GET", "/v1/streams", as_json=as_json)
        if not as_json:
            to = console()
            to.print(_drawn(result, to.width))


def _listed(context: click.Context) -> RenderableType:
    """The list as it is now, or why there is none: the daemon may come back."""
    from rich.text import Text

    try:
        return _drawn(_asked(context, "GET", "/v1/streams"), console().width)
    except StreamdetError as error:
        return Text(plain(str(error)), style="red")


def _listed_as_json(context: click.Context) -> str:
    try:
        result = {"ok": True, **_asked(context, "GET", "/v1/streams")}
    except StreamdetError as error:
        result = {"ok": False, "problems": [str(error)]}
    return plain_json(json.dumps(result, ensure_ascii=False))


@command.command(
    epilog="""\b
Examples:
  streamdet streams show yard
  streamdet streams show yard --json"""
)
@_name
@_json
@click.pass_context
def show(context: click.Context, name: str, *, as_json: bool) -> None:
    """Show one stream: its state, and what counts as a detection in its frames."""
    stream = _ask(context, "GET", _path(name), as_json=as_json)
    if not as_json:
        for title, text in _facts(stream):
            click.echo(f"{title:<18}{plain(text)}")


@command.command(
    epilog="""\b
Examples:
  streamdet streams add yard 'rtsp://${YARD_LOGIN}@192.0.2.7/stream1' --set max_fps=5 --persist
  streamdet streams add yard --url-from-stdin < url.txt
  streamdet streams add clip /srv/clip.mp4 --set loop=true"""
)
@click.argument("name")
@click.argument("url", required=False)
@click.option("--url-from-stdin", is_flag=True, help="Read the url from standard input, hidden from other users.")
@_set
@_persist
@_json
@click.pass_context
def add(
    context: click.Context, name: str, url: str | None, settings: tuple[str, ...],
    *, url_from_stdin: bool, persist: bool, as_json: bool,
) -> None:  # fmt: skip
    """Add a stream, with the keys of [[streams]] in the configuration.

    A password in URL can be seen by all users who may list processes, and is kept in the shell's history. Write
    ${NAME}, which the daemon replaces from its own environment or credentials, or use --url-from-stdin.
    """
    from streamdet.cli.sources import warn_of_passwords

    if url_from_stdin == (url is not None):
        problem = "give either URL or --url-from-stdin"
        raise click.UsageError(problem)
    if "://" in name:
        problem = "NAME comes first: streamdet streams add NAME URL"
        raise click.UsageError(problem)
    if url is not None:
        warn_of_passwords([url])
    given = sys.stdin.readline(8192).strip() if url is None else url
    values = values_of(settings)
    if "name" in values:
        problem = "NAME is the name of the stream; leave --set name out"
        raise click.UsageError(problem)
    stream = {**values, "name": name, "url": _absolute(given)}
    _change(context, "POST", "/v1/streams", name, "was added", stream, persist=persist, as_json=as_json)


@command.command(
    epilog="""\b
Examples:
  streamdet streams change yard --set max_fps=10 --unset stall_seconds
  streamdet streams change yard --set 'labels=["person"]' --persist"""
)
@_name
@_set
@click.option(
    "--unset",
    multiple=True,
    metavar="KEY",
    help="Reset this key to the file's value, or to the default; may be repeated.",
)
@_persist
@_json
@click.pass_context
def change(
    context: click.Context,
    name: str,
    settings: tuple[str, ...],
    unset: tuple[str, ...],
    *,
    persist: bool,
    as_json: bool,
) -> None:
    """Change keys of a stream; it reconnects only if they affect how it is read."""
    values = values_of(settings)
    if not values and not unset and not persist:
        problem = "there is nothing to change; give --set or --unset, or --persist to keep what was changed before"
        raise click.UsageError(problem)
    patch = {**values, **dict.fromkeys(unset)}
    _change(context, "PATCH", _path(name), name, "was changed", patch, persist=persist, as_json=as_json)


@command.command(
    epilog="""\b
Examples:
  streamdet streams remove yard
  streamdet streams remove yard --persist"""
)
@_name
@_persist
@_json
@click.pass_context
def remove(context: click.Context, name: str, *, persist: bool, as_json: bool) -> None:
    """Remove a stream; `reset` restores one of the configuration file."""
    _change(context, "DELETE", _path(name), name, "was removed", persist=persist, as_json=as_json)


@command.command(
    epilog="""\b
Examples:
  streamdet streams pause yard
  streamdet streams pause yard --persist"""
)
@_name
@_persist
@_json
@click.pass_context
def pause(context: click.Context, name: str, *, persist: bool, as_json: bool) -> None:
    """Close a stream's connection; the stream stays configured, and is `down` with the reason `paused`."""
    patch = {"paused": True}
    _change(context, "PATCH", _path(name), name, "is paused", patch, persist=persist, as_json=as_json)


@command.command(
    epilog="""\b
Examples:
  streamdet streams resume yard"""
)
@_name
@_persist
@_json
@click.pass_context
def resume(context: click.Context, name: str, *, persist: bool, as_json: bool) -> None:
    """Connect a paused stream again."""
    patch = {"paused": False}
    _change(context, "PATCH", _path(name), name, "is connected again", patch, persist=persist, as_json=as_json)


@command.command(
    epilog="""\b
Examples:
  streamdet streams reset yard --persist
  streamdet streams reset yard --rules    # its zones have other names now"""
)
@_name
@_persist
@click.option("--rules", is_flag=True, help="Undo changes made at run time to the rules as well.")
@_json
@click.pass_context
def reset(context: click.Context, name: str, *, persist: bool, rules: bool, as_json: bool) -> None:
    """Undo changes made at run time to a stream of the file, including its removal."""
    path = f"{_path(name)}/reset{'?rules=true' if rules else ''}"
    done = "is as the file says, and so are the rules" if rules else "is as the file says"
    _change(context, "POST", path, name, done, persist=persist, as_json=as_json)


def _path(name: str) -> str:
    return f"/v1/streams/{quote(name, safe='')}"


def _ask(
    context: click.Context, method: str, path: str, body: dict[str, Any] | None = None, *, as_json: bool
) -> dict[str, Any]:
    try:
        result = _asked(context, method, path, body)
    except StreamdetError as error:
        if not as_json:
            raise
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        click.echo(plain_json(json.dumps({"ok": False, "problems": problems}, ensure_ascii=False, indent=2)))
        sys.exit(error.exit_code)
    if as_json:
        click.echo(plain_json(json.dumps({"ok": True, **result}, ensure_ascii=False, indent=2)))
    return result


def _asked(context: click.Context, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    from streamdet.client.control import ask, find_socket

    return ask(find_socket(*context.obj), method, path, body)


def _change(
    context: click.Context, method: str, path: str, name: str, done: str, body: dict[str, Any] | None = None,
    *, persist: bool, as_json: bool,
) -> None:  # fmt: skip
    query = f"{'&' if '?' in path else '?'}persist=true" if persist else ""
    _ask(context, method, path + query, body, as_json=as_json)
    if not as_json:
        kept = "and stays so over restarts" if persist else "until the next restart"
        click.echo(f"{name} {done}, {kept}")


def values_of(settings: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a stream that `--set` gives.

    Raises:
        click.UsageError: one has no value.
    """
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            problem = f"--set {setting[:40]}: write KEY=VALUE, such as --set max_fps=5"
            raise click.UsageError(problem)
        values[key.strip()] = _value(text.strip())
    return values


def _value(text: str) -> object:
    """A value as it is written in the file; quotes around a string may be left out."""
    try:
        tables = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # also a number of thousands of digits
        return text
    value = tables.get("value")
    return text if len(tables) > 1 or isinstance(value, date | time) else as_json_value(value)


def _absolute(url: str) -> str:
    """A relative path of a file as seen from this folder, not from the daemon's."""
    from streamdet.config.addresses import UrlKind, kind_of_url

    try:
        is_path = kind_of_url(url) is UrlKind.FILE and "://" not in url and "${" not in url
    except ValueError:
        return url  # the daemon reports what is wrong
    return str(Path(url).absolute()) if is_path else url


def _left_out(stream: dict[str, Any], key: str) -> str:
    """Frames per second that were left out for a reason; empty where none were, or the daemon is older than that."""
    fps = stream.get(key, 0.0)
    return f"-{fps:.1f}" if fps >= _NOTABLE_FPS else ""


def _origin(stream: dict[str, Any]) -> str:
    """Who says that the stream is watched."""
    if stream["origin"] == "cluster":
        return f"claim {stream['claim']}"
    return "run time" if stream["origin"] == "run_time" else "file"


def engine_in_words(engine: dict[str, Any]) -> str:
    """What detects, in a line."""
    text = "{engine} in {precision} on {device}, up to {max_batch_size} frames a batch, {workers} batches at a time"
    return f"{text.format_map(engine)}, weights {engine['weights']}"


def _facts(stream: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of a stream: a title and a line each."""
    why = f" ({stream['reason']}: {stream['detail']})" if stream["reason"] else ""
    yield "state", f"{stream['state']}{why}"
    yield "frames per second", f"{stream['fps_in']:.1f} in, {stream['fps_out']:.1f} out"
    for key, why in _LEFT_OUT.items():
        if stream.get(key, 0.0) >= _NOTABLE_FPS:
            yield "left out", f"{stream[key]:.1f} frames per second by {why}"
    if stream.get("decoder"):
        yield "decoder", stream["decoder"]
    if gate := stream.get("gate"):
        yield "motion gate", f"{gate['missed']} objects missed in {gate['audited']} audited frames"
    yield "url", stream["url"]
    if stream.get("detect_url"):
        yield "detect_url", stream["detect_url"]
    yield "from", _origin(stream)
    if stream["changed"]:
        yield "changed", ", ".join(stream["changed"])
    detection = stream.get("detection")  # an older daemon reports none
    if detection is None:
        return
    single = [f"{label} {threshold:g}" for label, threshold in detection["score_thresholds"].items()]
    yield "labels", ", ".join(detection["labels"])
    yield "score threshold", ", ".join([f"{detection['score_threshold']:g}", *single])
    yield "height", f"{detection['min_size']:g} to {detection['max_size']:g} of the picture's height"
    yield "detections", f"{detection['max_detections']} per frame at most"
    if detection.get("tiles", "off") != "off":
        yield "tiles", detection["tiles"]


def _drawn(result: dict[str, Any], characters: int) -> RenderableType:
    """The list for a terminal of this width, in characters; in a narrow one the problems are lines below it."""
    from rich.console import Group as Lines
    from rich.table import Table
    from rich.text import Text

    is_narrow = characters < _WIDE_CHARACTERS
    table = Table(box=None, pad_edge=False)
    # Where it is too wide, the url is cut.
    longest = min(max((len(stream["name"]) for stream in result["streams"]), default=0), _LONGEST_NAME)
    widths = {"stream": longest, "state": len("connecting"), "fps in": len("fps in"), "out": len("100.0")}
    columns = [title for title in _COLUMNS if not (is_narrow and title in _WIDE_ONLY)]
    for title in columns:
        table.add_column(title, no_wrap=is_narrow or title in widths, min_width=widths.get(title))
    lines = []
    for stream in result["streams"]:
        origin = _origin(stream)
        changed = f" ({', '.join(stream['changed'])} changed)" if stream["changed"] else ""
        why = f"{stream['reason']}: {stream['detail']}" if stream["reason"] else ""
        cells: dict[str, str | Text] = {
            "stream": Text(plain(stream["name"])),
            "state": Text(plain(stream["state"]), style=_COLOURS.get(stream["state"], "")),
            "fps in": f"{stream['fps_in']:.1f}",
            "out": f"{stream['fps_out']:.1f}",
            "decode": _left_out(stream, "fps_not_decoded"),
            "max_fps": _left_out(stream, "fps_rate_limited"),
            "overload": _left_out(stream, "fps_overload"),
            "gated": _left_out(stream, "fps_gated"),
            "from": Text(origin + changed),
            "kept": "yes" if stream["persisted"] else "no",
            "url": Text(plain(stream["url"])),
            "problem": Text(plain(why)),
        }
        table.add_row(*(cells[title] for title in columns))
        if is_narrow and why:
            lines.append(f"{stream['name']}: {why}")
    restores = "is in the file and was removed; streamdet streams reset"
    lines += [f"{name} {restores} {name} restores it" for name in result["removed"]]
    if not result["streams"]:
        lines.append("there are no streams; streamdet streams add NAME URL --persist adds one")
    if result.get("engine"):
        lines += ["", f"detecting with {engine_in_words(result['engine'])}"]
    return Lines(*([table] if result["streams"] else []), *(Text(plain(line)) for line in lines))
