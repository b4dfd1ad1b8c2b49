"""`streamdet init`: a configuration file for cameras, each of which is tried first."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamdet.cli.completion import offer_files
from streamdet.cli.numbers import Number
from streamdet.cli.plural import counted
from streamdet.errors import EXIT_FAILURE, ConfigError, StreamdetError
from streamdet.security.files import is_there
from streamdet.security.plain_text import plain, plain_json

if TYPE_CHECKING:
    from streamdet.capture.probe import Probe
    from streamdet.config import StreamConfig

# How often a person is asked for the login of one camera.
_MOST_LOGINS = 3


@click.command(
    epilog="""\b
Examples:
  streamdet init rtsp://192.0.2.5/stream1
  streamdet init door=rtsp://192.0.2.5/stream1 yard=rtsp://192.0.2.7/stream1 --max-fps 10
  streamdet init --url-from-stdin < cameras.txt
  streamdet init --no-probe --force -o cameras.toml
  sudo streamdet init rtsp://192.0.2.5/stream1 --force -o /etc/streamdet/streamdet.toml

\b
Exit codes: 0 written, and all streams can be read; 1 written, but a stream cannot be read, or not
written; 2 a URL or an option is wrong."""
)
@click.argument("sources", nargs=-1, metavar="[SOURCE]...", shell_complete=offer_files)
@click.option(
    "--output", "-o", "path", type=click.Path(path_type=Path), default=Path("streamdet.toml"), show_default=True,
    help="Write this file.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the file, and secrets of the same names, if they exist.")
@click.option("--url-from-stdin", is_flag=True, help="Read each SOURCE from standard input, one a line.")
@click.option("--max-fps", type=Number(min=0, min_open=True, max=1000), help="Set max_fps for all streams.")
@click.option("--no-probe", is_flag=True, help="Do not connect to the streams.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and ask nothing.")
def command(
    *,
    sources: tuple[str, ...],
    path: Path,
    force: bool,
    url_from_stdin: bool,
    max_fps: float | None,
    no_probe: bool,
    as_json: bool,
) -> None:
    """Write a configuration file for cameras, after trying each of them.

    Each SOURCE is the URL of a camera, a video file or /dev/videoN; NAME=SOURCE gives it a name. Without any, the file
    has no streams yet. Logins go into a folder of secrets beside the file, a file each, and never into the
    configuration. Events, pictures and clips will be kept in a folder NAME.state beside it. In a terminal, what is
    missing is asked for.
    """
    from streamdet.cli.sources import read_sources, urls_from_stdin, warn_of_passwords

    _check_output(path, force=force)
    warn_of_passwords(sources)
    asks = not as_json and sys.stdin.isatty() and sys.stdout.isatty() and not url_from_stdin
    words = [*sources, *(urls_from_stdin() if url_from_stdin else ())]
    if not words and asks:
        words = _ask_for_urls()
    streams = [_Stream(name, url) for name, url in read_sources(words)]
    configs = _configs(streams, path)
    if not no_probe and streams:
        if not as_json:
            click.echo(f"trying {counted(len(streams), 'stream')} ...", err=True)
        _try(streams, configs, path, asks=asks)
    written = _write(path, streams, max_fps, force=force)
    good = all(stream.probe is None or stream.probe.reason is None for stream in streams)
    if as_json:
        _print_json(path, streams, written, good=good)
    else:
        _print(path, streams, written)
    sys.exit(0 if good else EXIT_FAILURE)


@dataclass(slots=True)
class _Stream:
    """A stream of the file to be.

    Attributes:
        name: given or made.
        url: as it was typed, or with the login that was asked for.
        probe: what trying it has shown; None if it was not tried.
    """

    name: str
    url: str
    probe: Probe | None = None


def _check_output(path: Path, *, force: bool) -> None:
    """Reports at once what would stop the writing at the end."""
    if path.suffix.lower() != ".toml":
        message = f"{path}: a configuration is TOML; give it a name such as {path.with_suffix('.toml')}"
        raise click.UsageError(message)
    if is_there(path) and not force:
        message = f"{path} exists; --force replaces it, -o NAME.toml writes another file"
        raise StreamdetError(message)
    if not is_there(path.absolute().parent):
        message = f"there is no folder {path.parent} to write {path.name} into"
        raise StreamdetError(message)


def _ask_for_urls() -> list[str]:
    click.echo("Type the URL of each camera, such as rtsp://192.0.2.5/stream1; an empty line ends the list.")
    click.echo("(`streamdet discover` finds the cameras of the local network.)")
    words: list[str] = []
    while word := click.prompt("URL", default="", show_default=False).strip():
        words.append(word)
    return words


def _configs(streams: Sequence[_Stream], path: Path) -> list[StreamConfig]:
    """The streams as the daemon would read them.

    Raises:
        ConfigError: some are wrong; a line each.
    """
    from streamdet.config.load import read_stream
    from streamdet.config.secrets import environ_for

    configs, problems = [], []
    for stream in streams:
        try:
            values = {"name": stream.name, "url": stream.url}
            configs.append(read_stream(values, {}, Path.cwd(), environ_for(path)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return configs


def _try(streams: Sequence[_Stream], configs: Sequence[StreamConfig], path: Path, *, asks: bool) -> None:
    """Tries all streams at once; in a terminal, those that want a login again, with the one that is typed."""
    from streamdet.capture.probe import probe_all
    from streamdet.types import Reason

    for stream, probe in zip(streams, probe_all(configs), strict=True):
        stream.probe = probe
    for stream in streams if asks else ():
        for _ in range(_MOST_LOGINS):
            if stream.probe is None or stream.probe.reason is not Reason.UNAUTHORIZED:
                break
            login = _ask_for_login(stream.name)
            if login is None:
                break
            stream.url = _with_login(stream.url, login)
            (stream.probe,) = probe_all(_configs([stream], path))


def _ask_for_login(name: str) -> str | None:
    from urllib.parse import quote

    user = click.prompt(f"{name} asks for a login. User (empty to leave it out)", default="", show_default=False)
    if not user:
        return None
    password = click.prompt("Password (not shown)", hide_input=True, default="", show_default=False)
    return f"{quote(user, safe='')}:{quote(password, safe='')}"


def _with_login(url: str, login: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{login}@{authority.rpartition('@')[2]}{slash}{path}"


def _write(path: Path, streams: Sequence[_Stream], max_fps: float | None, *, force: bool) -> list[Path]:
    """Writes the secrets, then the file.

    Returns:
        The files of the secrets.

    Raises:
        StreamdetError: they cannot be written.
    """
    from streamdet.config.new_file import NewStream, new_file_text
    from streamdet.config.secrets import secrets_folder, without_secrets
    from streamdet.security.files import write_atomically

    secrets: dict[str, str] = {}
    new: list[NewStream] = []
    for stream in streams:
        url, found = without_secrets(stream.name, stream.url)
        secrets |= found
        new.append(NewStream(stream.name, url, _remarks(stream.probe)))
    folder = secrets_folder(path)
    try:
        written = _write_secrets(folder, secrets, force=force)
        text = new_file_text(path, new, max_fps)
        write_atomically(path, text.encode(), mode=0o640, group=_group(path), replace=force)
    except OSError as error:
        sudo = "; use sudo" if isinstance(error, PermissionError) else ""
        message = f"{path} or its secrets cannot be written: {error.strerror}{sudo}"
        raise StreamdetError(message) from None
    return written


def _group(path: Path) -> int | None:
    """The group that may read the file: that of the file before, as each instance of the service has its own."""
    from streamdet.config.secrets import SERVICE_FOLDER

    if is_there(path):
        return path.stat().st_gid
    folder = path.absolute().parent
    return folder.stat().st_gid if folder == SERVICE_FOLDER else None


def _write_secrets(folder: Path, secrets: Mapping[str, str], *, force: bool) -> list[Path]:
    from streamdet.security.files import write_atomically

    if not secrets:
        return []
    folder.mkdir(mode=0o700, exist_ok=True)
    written = []
    for name, value in secrets.items():
        file = folder / name
        if file.exists() and not force and file.read_text(encoding="utf-8", errors="replace").strip() != value:
            message = f"{file} holds another secret; --force replaces it, NAME=URL gives the stream another name"
            raise StreamdetError(message)
        write_atomically(file, value.encode(), mode=0o600)
        written.append(file)
    return written


def _remarks(probe: Probe | None) -> tuple[str, ...]:
    """What is known of a stream, for its table in the file."""
    if probe is None:
        return ()
    if probe.info is None:
        return (f"It could not be read when this file was written: {plain(probe.detail)}",)
    fps = f", {probe.fps:.4g} frames per second" if probe.fps else ""
    return (f"{probe.info.codec}, {probe.info.width}x{probe.info.height}{fps}",)


def _state(path: Path) -> Path:
    from streamdet.config.new_file import state_folder

    return path.parent / state_folder(path)


def _next(path: Path) -> list[str]:
    """The commands that follow."""
    from streamdet.config.secrets import SERVICE_FOLDER

    if path.absolute().parent == SERVICE_FOLDER:
        unit = "streamdet" if path.name == "streamdet.toml" else f"streamdet@{path.stem}"
        return [f"sudo systemctl restart {unit}", f"streamdet status --config {path}"]
    return [f"streamdet run {path} --page", "streamdet status"]


def _print(path: Path, streams: Sequence[_Stream], secrets: Sequence[Path]) -> None:
    from streamdet.cli.probes import print_probes

    probes = [stream.probe for stream in streams if stream.probe is not None]
    if probes:
        print_probes(probes)
    count = counted(len(streams), "stream") if streams else "no streams yet"
    click.echo(f"wrote {path}: {count}")
    if secrets:
        names = ", ".join(file.name for file in secrets)
        click.echo(f"wrote {secrets[0].parent}/: {names}, readable by you only")
    click.echo(f"what happens will be kept in {_state(path)}/: events for a day, pictures and clips for a week")
    if any(probe.reason for probe in probes):
        click.echo(f"some streams cannot be read; edit {path}, then: streamdet check {path} --probe")
    click.echo("next:")
    for line in _next(path):
        click.echo(f"  {line}")
    if not streams:
        click.echo("  streamdet streams add front-door rtsp://192.0.2.5/stream1 --persist")


def _print_json(path: Path, streams: Sequence[_Stream], secrets: Sequence[Path], *, good: bool) -> None:
    found: list[dict[str, Any]] = [
        {"name": stream.name} if stream.probe is None else stream.probe.to_dict() for stream in streams
    ]
    facts = {
        "ok": good,
        "config": str(path.absolute()),
        "secrets": [str(file.absolute()) for file in secrets],
        "state": str(_state(path).absolute()),
        "streams": found,
        "next": _next(path),
    }
    click.echo(plain_json(json.dumps(facts, ensure_ascii=False, indent=2)))
