"""`streamdet cluster`: many machines that share the streams."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamdet import __version__
from streamdet.cli.group import Group
from streamdet.cli.numbers import Number
from streamdet.cli.plural import counted
from streamdet.cli.refresh import console, print_until_interrupted, show_until_interrupted
from streamdet.cli.which_daemon import which_daemon
from streamdet.errors import ConfigError, ControlError, Refusal, StreamdetError
from streamdet.security.plain_text import plain, plain_json
from streamdet.worker import Stop

if TYPE_CHECKING:
    from rich.console import RenderableType

    from streamdet.cluster.ray_processes import RayProcesses
    from streamdet.cluster.requests import HeadClient

DEFAULT_TOKEN_FILE = Path("/etc/streamdet/cluster/cluster.key")
_LOOK_SECONDS = 0.5
# How often a node that waits asks for its head, and how much longer its start may take each time.
_HEAD_SECONDS = 2.0
_EXTEND_SECONDS = 600.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_COLOURS = {"up": "green", "draining": "yellow", "lost": "red"}
# Ray's sockets are in a folder below, and the path of a socket has at most 107 characters.
_MAX_FOLDER_CHARACTERS = 40
_FILE = click.Path(path_type=Path, dir_okay=False)
_EPILOG = """\b
Examples:
  streamdet cluster init
  streamdet cluster head --listen 192.0.2.1:9094
  streamdet cluster join 192.0.2.1 --token-file cluster.key --fps 40
  streamdet cluster apply cameras.toml --dry-run
  streamdet cluster status --watch
  streamdet cluster drain hall-2
"""


@click.group("cluster", cls=Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Spread the streams over many machines, and move them when one dies.

    One machine is the head, which places the streams with Ray; each node runs a daemon, which watches those that it is
    granted, and goes on when the head is gone. Anyone who has the token file can run programs on all machines.
    """


_head = click.option(
    "--head", "head_at", metavar="HOST[:PORT]", default="127.0.0.1", show_default=True, help="Ask this head."
)
_token_file = click.option(
    "--token-file", type=click.Path(path_type=Path), default=DEFAULT_TOKEN_FILE, show_default=True,
    help="Use the token and the certificates of this file, which `streamdet cluster init` made.",
)  # fmt: skip


@command.command(
    "init",
    epilog="""\b
Examples:
  streamdet cluster init
  streamdet cluster init --token-file ~/cluster/cluster.key

\b
Exit codes: 0 done, 2 there is such a file, it cannot be written, or the extra is missing.""",
)
@click.option(
    "--token-file", type=click.Path(path_type=Path), default=DEFAULT_TOKEN_FILE, show_default=True,
    help="Write the token and the certificates here.",
)  # fmt: skip
def init(token_file: Path) -> None:
    """Make the token and the certificates of a new cluster.

    Copy the file to each node, over a safe way. Beside it come ca.pem and reader.token, for those who only read, such
    as Prometheus.
    """
    from streamdet.cluster.keys import ClusterKeys

    ClusterKeys.make().write(token_file)
    click.echo(f"wrote {token_file}; copy it to each node, and start the head: streamdet cluster head")


@command.command(
    "head",
    epilog="""\b
Examples:
  streamdet cluster head
  streamdet cluster head --listen 192.0.2.1:9094 --directory /var/lib/streamdet-cluster

\b
Exit codes: 0 stopped by a signal, 2 wrong options, token file or streams, 69 Ray has ended, or
an address is taken.""",
)
@_token_file
@click.option(
    "--listen", "listen_at", default="127.0.0.1:9094", show_default=True, metavar="HOST:PORT",
    help="Answer nodes and commands here; off loopback over HTTPS, and only with a token.",
)  # fmt: skip
@click.option(
    "--ray-port",
    type=click.IntRange(1, 65535),
    default=6379,
    show_default=True,
    help="Have Ray listen here, outside of 10002 to 19999.",
)
@click.option("--address", metavar="IP", help="The address of this machine for the nodes. [default: found]")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Keep the streams here. [default: as for other state]"
)
def head(*, token_file: Path, listen_at: str, ray_port: int, address: str | None, directory: Path | None) -> None:
    """Run the head of a cluster until stopped by a signal.

    Ray listens on all addresses of this machine, whatever --listen says; it accepts only those who have the token file.
    """
    from streamdet.cluster.actor_log import LOG_VARIABLE, ActorLog
    from streamdet.cluster.cameras import read_cameras
    from streamdet.cluster.keys import read_keys, require_extra
    from streamdet.cluster.ray_processes import HEAD_RESOURCE, RayError, RayProcesses, RaySettings, own_address
    from streamdet.config import LogConfig
    from streamdet.monitoring.log import configure_logging
    from streamdet.security.files import state_folder

    require_extra()
    keys = read_keys(token_file)
    host, port = _host_and_port(listen_at, "--listen")
    directory = directory or (state_folder() or Path()) / "cluster"
    _make(directory)
    if (directory / "cameras.toml").exists():
        read_cameras(directory / "cameras.toml")
    address = address or own_address(host)
    with _folder() as folder, _stopping() as stop:
        environ = {**keys.prepare(folder, _names(address, host)), LOG_VARIABLE: str(folder / "log")}
        settings = RaySettings(address, folder, environ, f"{address}:{ray_port}", {HEAD_RESOURCE: 1}, is_head=True)
        configure_logging(LogConfig())
        with ActorLog(folder / "log"), RayProcesses(settings) as processes:
            if not _started(processes, stop):
                return
            os.environ.update(environ)
            from streamdet.cluster.on_ray import HeadSettings, disconnect, start_head

            try:
                url = start_head(settings.head, HeadSettings(directory.resolve(), token_file.resolve(), host, port))
            except Exception as error:  # Ray's own, whose text is a traceback
                message = f"the head cannot start: {_last_line(error)}"
                raise RayError(message) from error
            _stop_at_signals(stop)  # Ray has put its own handlers in place
            _ready(f"the head answers at {url}")
            while not stop.wait(_LOOK_SECONDS):
                processes.check()
            disconnect()


@command.command(
    "join",
    epilog="""\b
Examples:
  streamdet cluster join 192.0.2.1 --token-file cluster.key --fps 40
  streamdet cluster join 192.0.2.1:9094 --config /etc/streamdet/streamdet.toml --fps 40 --wait

\b
Exit codes: 0 stopped by a signal, 1 wrong token or versions, 2 wrong options or token file, 69 no
head or daemon answers, Ray's port of the head is closed or silent, or Ray has ended.""",
)
@click.argument("head_at", metavar="HEAD")
@_token_file
@which_daemon
@click.option(
    "--fps", type=Number(0.1, 1e6), metavar="N",
    help="Grant this node streams of N frames per second together. [default: as `streamdet bench --capacity` measures]",
)  # fmt: skip
@click.option("--address", metavar="IP", help="The address of this machine for the head. [default: found]")
@click.option("--wait", "waits", is_flag=True, help="Wait for a head that does not answer yet, instead of ending.")
def join(
    *, head_at: str, token_file: Path, config_path: Path | None, socket_path: Path | None,
    fps: float | None, address: str | None, waits: bool,
) -> None:  # fmt: skip
    """Make this machine a node of the cluster of HEAD, until stopped by a signal.

    The daemon of this machine then watches what it is granted. It is no child of this command, and goes on without it.
    """
    from streamdet.client.control import find_socket
    from streamdet.cluster.actor_log import LOG_VARIABLE, ActorLog
    from streamdet.cluster.keys import read_keys, require_extra
    from streamdet.cluster.ray_processes import (
        NODE_RESOURCE,
        SOCKET_VARIABLE,
        RayProcesses,
        RaySettings,
        check_reachable,
        own_address,
    )
    from streamdet.config import LogConfig
    from streamdet.monitoring.log import configure_logging

    require_extra()
    client = _client(head_at, token_file)
    keys = read_keys(token_file)
    socket = find_socket(socket_path, config_path)
    with _stopping() as stop:
        about = _about(client, stop, waits=waits)
    if about is None:
        return
    if about["version"] != __version__:
        message = f"the head runs streamdet {about['version']}, and this node {__version__}; upgrade one of them"
        raise ControlError(Refusal.CONFLICT, message)
    fps = _measured_fps() if fps is None else fps
    address = address or own_address(client.host)
    with _folder() as folder, _stopping() as stop:
        environ = {
            **keys.prepare(folder, _names(address)),
            SOCKET_VARIABLE: str(socket.resolve()), LOG_VARIABLE: str(folder / "log"),
        }  # fmt: skip
        settings = RaySettings(address, folder, environ, about["ray"], {NODE_RESOURCE: fps})
        check_reachable(settings)
        configure_logging(LogConfig())
        with ActorLog(folder / "log"), RayProcesses(settings) as processes:
            if not _started(processes, stop):
                return
            _ready(f"joined the cluster of {client.host} with {fps:g} frames per second")
            while not stop.wait(_LOOK_SECONDS):
                processes.check()


@command.command(
    "apply",
    epilog="""\b
Examples:
  streamdet cluster apply cameras.toml --dry-run
  streamdet cluster apply cameras.toml --head 192.0.2.1

\b
Exit codes: 0 done, 1 wrong token, 2 the file is wrong, or a stream is too large for any node;
nothing has changed then, 69 no head answers.""",
)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@_head
@_token_file
@click.option("--dry-run", is_flag=True, help="Print the plan, and change nothing.")
def apply(path: Path, head_at: str, token_file: Path, *, dry_run: bool) -> None:
    """Make the streams of FILE those of the cluster: all of them, or none; prints the plan first.

    FILE has [[streams]] and [stream_defaults], as the configuration of a daemon. Streams that stay as they are keep
    their connections.
    """
    from streamdet.cluster.cameras import read_cameras
    from streamdet.config.toml import read_text

    client = _client(head_at, token_file)
    text = read_text(path)
    read_cameras(path, text)
    try:
        plan = client.ask("PUT", "/v1/cluster/cameras?dry_run=true", text)
        for line in _lines_of(plan):
            click.echo(plain(line))
        if not dry_run:
            client.ask("PUT", "/v1/cluster/cameras", text)
    except ConfigError as error:
        raise ConfigError([problem.replace("cameras.toml", str(path), 1) for problem in error.problems]) from None
    click.echo("nothing is changed: --dry-run" if dry_run else f"applied: {counted(_count(plan), 'stream')}")


@command.command(
    "status",
    epilog="""\b
Examples:
  streamdet cluster status
  streamdet cluster status --watch --head 192.0.2.1
  streamdet cluster status --json | jq -r '.streams[] | select(.state != "up") | .name'

\b
Exit codes: 0 done, 1 wrong token, 2 wrong options or token file, 69 no head answers.""",
)
@_head
@_token_file
@click.option("--watch", "-w", is_flag=True, help="Show it again every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def status(head_at: str, token_file: Path, *, watch: bool, as_json: bool) -> None:
    """Show the nodes and their load, and the streams that are not up, with the reason."""
    client = _client(head_at, token_file)
    if watch and as_json:
        print_until_interrupted(lambda: _as_json(_asked(client)))
    elif watch:
        show_until_interrupted(lambda: _drawn(_asked(client)))
    else:
        found = client.ask("GET", "/v1/cluster")
        if as_json:
            click.echo(_as_json(found))
        else:
            console().print(_drawn(found))


@command.command(
    "drain",
    epilog="""\b
Examples:
  streamdet cluster drain hall-2
  streamdet cluster drain hall-2 --undo

\b
Exit codes: 0 done, 1 no such node, or wrong token, 2 wrong options or token file, 69 no head
answers.""",
)
@click.argument("node")
@_head
@_token_file
@click.option("--undo", is_flag=True, help="Let the node take streams again.")
def drain(node: str, head_at: str, token_file: Path, *, undo: bool) -> None:
    """Move all streams of NODE to other nodes, and give it no more, also after a restart of the head."""
    from urllib.parse import quote

    _client(head_at, token_file).ask("DELETE" if undo else "POST", f"/v1/cluster/nodes/{quote(node, safe='')}/drain")
    click.echo(plain(f"{node} takes streams again" if undo else f"{node} is being emptied; streamdet cluster status"))


@command.command(
    "gateway",
    epilog="""\b
Examples:
  streamdet cluster gateway 192.0.2.1 --head-ca ca.pem --head-token reader.token
  streamdet cluster gateway 192.0.2.1 --head-ca ca.pem --head-token reader.token \\
    --server-key node.key --client-key gateway.key_secret \\
    --listen tcp://0.0.0.0:5565 --own-key gateway-server.key_secret --clients clients

\b
Exit codes: 0 stopped by a signal, 2 wrong options or keys, 69 the address is taken.""",
)
@click.argument("head_at", metavar="HEAD")
@click.option(
    "--listen", "endpoint", default="tcp://127.0.0.1:5565", show_default=True, metavar="ENDPOINT",
    help="Publish here; off loopback only with --own-key and --clients.",
)  # fmt: skip
@click.option("--head-ca", type=_FILE, help="Expect a certificate that the cluster's ca.pem has signed.")
@click.option("--head-token", type=_FILE, help="Show the head this token, the cluster's reader.token.")
@click.option(
    "--server-key",
    type=click.Path(path_type=Path),
    help="Expect this public key of the nodes, or of a folder NODE.key.",
)
@click.option("--client-key", type=_FILE, help="Log in to the nodes with this key file, NAME.key_secret.")
@click.option("--own-key", type=_FILE, help="Encrypt for subscribers, with this secret key of a server.")
@click.option(
    "--clients", type=click.Path(path_type=Path, file_okay=False), help="Let in those whose keys are in this folder."
)
def gateway(
    *, head_at: str, endpoint: str, head_ca: Path | None, head_token: Path | None, server_key: Path | None,
    client_key: Path | None, own_key: Path | None, clients: Path | None,
) -> None:  # fmt: skip
    """Publish the events of all nodes at one endpoint, each stream from its owner, until stopped by a signal.

    For subscribers in languages without a client of streamdet: they connect here as to a daemon.
    """
    from streamdet.client.head import HeadAddress
    from streamdet.cluster.gateway import Gateway
    from streamdet.config import LogConfig, PublisherConfig
    from streamdet.monitoring.log import configure_logging
    from streamdet.security.endpoints import parse_endpoint

    if (own_key is None) != (clients is None):
        message = "--own-key and --clients go together; give both or neither"
        raise click.UsageError(message)
    if own_key is None and not parse_endpoint(endpoint).is_local:
        message = f"--listen {endpoint[:200]}: other machines could connect there; give --own-key and --clients"
        raise click.UsageError(message)
    config = PublisherConfig(
        endpoint=endpoint, curve_server_key_file=own_key and str(own_key),
        curve_allowed_clients_directory=clients and str(clients),
    )  # fmt: skip
    with _stopping() as stop:
        address = HeadAddress.parse(head_at, head_ca, head_token)
        configure_logging(LogConfig())
        running = Gateway(address, config, server_key, client_key, lambda _worker: stop.set())
        try:
            with running:
                _ready(f"events of the cluster of {address} are at {running.endpoint}")
                while not stop.wait(_LOOK_SECONDS):
                    pass
        finally:
            running.close()
        if running.error is not None:
            raise running.error


def _about(client: HeadClient, stop: Stop, *, waits: bool) -> dict[str, Any] | None:
    """What the head says about itself; None where a stop came before it answered."""
    from streamdet.monitoring import systemd

    is_reported = False
    while True:
        try:
            about: dict[str, Any] = client.ask("GET", "/v1/about")
        except ControlError as error:
            if not waits or error.code != Refusal.UNAVAILABLE:
                raise
            if not is_reported:
                click.echo(f"waiting for the head: {error}", err=True)
                systemd.status(f"waiting for the head: {error}")
                is_reported = True
        else:
            return about
        systemd.extend_start(_EXTEND_SECONDS)
        if stop.wait(_HEAD_SECONDS):
            return None


def _measured_fps() -> float:
    """What the daemon of this machine can detect with the embedded weights; measured where it is not known yet."""
    from streamdet.bench.capacity import SECONDS, known_capacity, measure_capacity, remember_capacity
    from streamdet.bench.run import Options
    from streamdet.cli.bench import progress, sigterm_as_ctrl_c
    from streamdet.security.files import state_folder

    fps = known_capacity(state_folder())
    if fps is None:
        click.echo("measuring how many frames per second this node can detect; --fps N leaves that out", err=True)
        with sigterm_as_ctrl_c(), progress() as (on_plan, on_step):
            found = measure_capacity(Options(models=("embedded",), seconds=SECONDS), on_plan, on_step)
        fps = float(found["fps_of_all_streams"])
        remember_capacity(state_folder(), fps)
    return fps


def _asked(client: HeadClient) -> dict[str, Any]:
    """The status as it is now, or why there is none: the head may come back."""
    try:
        return client.ask("GET", "/v1/cluster")
    except StreamdetError as error:
        return {"nodes": [], "streams": [], "moves": {}, "problems": [str(error)]}


def _as_json(found: dict[str, Any]) -> str:
    return plain_json(json.dumps(found, ensure_ascii=False))


def _drawn(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group as Lines
    from rich.table import Table
    from rich.text import Text

    nodes = Table("node", "state", "streams", "load", "of", "version", "problem", box=None, pad_edge=False)
    for node in found["nodes"]:
        problems = [f"{claim}: {why}" for claim, why in sorted(node["refused"].items())]
        if node["slow_seconds"]:
            problems.insert(0, f"its daemon has not finished a request for {node['slow_seconds']:.0f} s")
        numbers = (str(node["streams"]), f"{node['load_fps']:g}", f"{node['capacity_fps']:g}")
        cells = (*numbers, node["version"], "; ".join(problems))
        state = Text(node["state"], style=_COLOURS.get(node["state"], ""))
        nodes.add_row(Text(plain(node["name"])), state, *(Text(plain(cell)) for cell in cells))
    streams = found["streams"]
    others = [stream for stream in streams if stream["state"] != "up" or stream["reason"]]
    parts: list[RenderableType] = [nodes] if found["nodes"] else []
    moves = ", ".join(f"{count} {reason}" for reason, count in sorted(found["moves"].items())) or "none"
    parts.append(Text(f"{counted(len(streams), 'stream')}, {len(streams) - len(others)} up; moves: {moves}"))
    if others:
        table = Table("stream", "state", "node", "reason", box=None, pad_edge=False)
        for stream in others:
            values = (stream["name"], stream["state"], stream["node"] or "", stream["reason"])
            table.add_row(*(Text(plain(value)) for value in values))
        parts.append(table)
    parts += [Text(plain(problem), style="red") for problem in found["problems"]]
    return Lines(*parts)


def _lines_of(plan: dict[str, Any]) -> Iterator[str]:
    for word in ("added", "changed", "removed"):
        if plan[word]:
            yield f"{word}: {', '.join(plan[word])}"
    if plan["same"]:
        yield f"as before: {counted(plan['same'], 'stream')}"
    for move in plan["moves"]:
        yield f"moves from {move['from']} to {move['to']}, {move['reason']}: {', '.join(move['streams'])}"
    for name, why in sorted(plan["unplaced"].items()):
        yield f"waits: {name}: {why}"


def _count(plan: dict[str, Any]) -> int:
    return len(plan["added"]) + len(plan["changed"]) + int(plan["same"])


def _client(head_at: str, token_file: Path) -> HeadClient:
    from streamdet.cluster.keys import read_keys
    from streamdet.cluster.requests import DEFAULT_PORT, HeadClient

    bare = head_at.count(":") != 1 and not head_at.startswith("[")
    host, port = _host_and_port(f"[{head_at}]" if bare and ":" in head_at else head_at, "HEAD", DEFAULT_PORT)
    return HeadClient(host, port, read_keys(token_file))


def _host_and_port(text: str, option: str, default_port: int | None = None) -> tuple[str, int]:
    from streamdet.config.listening import parse_host_port

    has_port = ":" in text.rpartition("]")[2]
    try:
        address = parse_host_port(text if has_port or default_port is None else f"{text}:{default_port}")
    except ValueError as error:
        message = f"{option}: {text[:200]!r} {error}"
        raise click.UsageError(message) from None
    return address.host, address.port


def _names(*hosts: str) -> list[str]:
    """Names and addresses of this machine."""
    import socket

    unspecified = ("0.0.0.0", "::")  # noqa: S104 - is left out
    return [host for host in (*hosts, socket.gethostname(), socket.getfqdn()) if host not in unspecified]


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for the files of Ray that goes when this command ends; only this user may enter it."""
    above = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir()
    if len(above) > _MAX_FOLDER_CHARACTERS:
        above = "/tmp"  # noqa: S108 - the folder in it is made for this user alone
    with tempfile.TemporaryDirectory(prefix="ray-", dir=above, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _stopping() -> Iterator[Stop]:
    """Set by SIGINT and SIGTERM, so that what was started is ended."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _stop_at_signals(stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()


def _stop_at_signals(stop: Stop) -> None:
    for number in _SIGNALS:
        signal.signal(number, lambda *_: stop.set())


def _started(processes: RayProcesses, stop: Stop) -> bool:
    """Waits until Ray has started; false if it is to stop before."""
    while not processes.is_started:
        processes.check()
        if stop.wait(_LOOK_SECONDS):
            return False
    return True


def _ready(text: str) -> None:
    from streamdet.monitoring import systemd

    click.echo(text)
    sys.stdout.flush()
    systemd.ready()


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"--directory {directory}: cannot be made: {error.strerror}"]) from None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^[\w.]+Error: ", "", lines[-1]) if lines else type(error).__name__
