"""`streamdet run`: the daemon, on the streams of a configuration file or on those that are typed."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamdet.cli.completion import offer_files
from streamdet.cli.plural import all_of
from streamdet.detector.memory import use_one_heap
from streamdet.errors import ConfigError
from streamdet.monitoring.log import configure_logging
from streamdet.security.files import is_there

if TYPE_CHECKING:
    from streamdet.config import Config
    from streamdet.service.daemon import Daemon

_log = logging.getLogger(__name__)

_DEFAULT_FILE = Path("/etc/streamdet/streamdet.toml")
_PAGE = "127.0.0.1:8095"


@click.command(
    epilog="""\b
Examples:
  streamdet run rtsp://192.0.2.5/stream1
  streamdet run 'door=rtsp://${DOOR_LOGIN}@192.0.2.5/stream1' /dev/video0
  streamdet run holiday.mp4
  streamdet run holiday.mp4 --set loop=true --set pace=realtime
  streamdet run streamdet.toml --page
  streamdet run --config /etc/streamdet/streamdet.toml

\b
Signals: SIGTERM and SIGINT publish what is in flight and stop (a second one stops at once);
SIGHUP reloads the file.
Exit codes: 0 stopped, 1 failed, 2 the configuration is wrong, 69 weights or a port not available,
70 GPU lost."""
)
@click.argument("sources", nargs=-1, metavar="[FILE.toml | SOURCE...]", shell_complete=offer_files)
@click.option(
    "--config", "-c", "config_path", type=click.Path(path_type=Path, readable=False),
    help=f"Read this configuration file (TOML).  [default: {_DEFAULT_FILE}]",
)  # fmt: skip
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Set a key of [[streams]] for every SOURCE; may be repeated.",
)  # fmt: skip
@click.option("--url-from-stdin", is_flag=True, help="Read each SOURCE from standard input, one a line.")
@click.option(
    "--page/--no-page", default=None,
    help=f"Serve the page in the browser, at {_PAGE} or a free port. Default: with a SOURCE.",
)  # fmt: skip
@click.option(
    "--or-last-good", is_flag=True,
    help="If the file is wrong, log it as an error and run the last configuration that worked (as a service only).",
)  # fmt: skip
@click.option("--until-ended", is_flag=True, help="Stop when every file has been played to its end.")
@click.option(
    "--trial", is_flag=True, hidden=True,
    help="Load the detector of the file and be ready, without its streams, sockets and folders.",
)  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, help="Log more, for finding faults.")
def command(
    *,
    sources: tuple[str, ...],
    config_path: Path | None,
    settings: tuple[str, ...],
    url_from_stdin: bool,
    page: bool | None,
    or_last_good: bool,
    until_ended: bool,
    trial: bool,
    verbose: bool,
) -> None:
    """Detect objects in streams until stopped by a signal.

    The streams are those of a configuration file; or each SOURCE is one: the URL of a camera, a video file, or
    /dev/videoN, with the embedded weights and the defaults of every key. NAME=SOURCE gives it a name. Video files are
    played to their end as fast as detection goes, nothing is left out, and what was found is printed.
    """
    path, words = _file_or_sources(sources, config_path)
    if trial:
        _run_trial(path, verbose=verbose)
        return
    if words or url_from_stdin:
        _run_sources(
            words, settings, url_from_stdin=url_from_stdin, page=page is not False, until_ended=until_ended,
            verbose=verbose,
        )  # fmt: skip
        return
    if config_path is None and not sources and not is_there(path):
        is_here = Path("streamdet.toml").is_file()
        meant = (
            "did you mean streamdet run streamdet.toml?" if is_here else "give a URL or a file, or run streamdet init"
        )
        raise ConfigError([f"there is nothing to run, and no {path} that this user may read; {meant}"])
    if settings:
        problem = "--set is for a SOURCE; a stream of a configuration file has its keys there"
        raise click.UsageError(problem)
    _run_file(path, page=bool(page), or_last_good=or_last_good, until_ended=until_ended, verbose=verbose)


def _file_or_sources(sources: tuple[str, ...], config_path: Path | None) -> tuple[Path, tuple[str, ...]]:
    """The configuration file, and the streams that are given instead of one."""
    files = [source for source in sources if source.lower().endswith(".toml")]
    if files and (config_path is not None or len(sources) > 1):
        problem = "a configuration file runs alone; write other streams into it, or run them without it"
        raise click.UsageError(problem)
    if config_path is not None and sources:
        problem = "--config and SOURCE do not go together; write the streams into the file, or leave --config out"
        raise click.UsageError(problem)
    if files:
        return Path(files[0]), ()
    return config_path or _DEFAULT_FILE, sources


def _run_file(path: Path, *, page: bool, or_last_good: bool, until_ended: bool, verbose: bool) -> None:
    from streamdet.config.secrets import use_secrets_of
    from streamdet.service.restart_delay import RestartDelay

    use_secrets_of(path)
    config, problems = _config(path, or_last_good=or_last_good)
    _check_page(config, path, page=page)
    _configure_logging(config, verbose=verbose)
    for problem in problems:
        _log.error("%s", problem)
    if problems:
        _log.error("%s is wrong: running the last configuration that worked instead", path)
    restart_delay = RestartDelay()
    restart_delay.wait()
    from streamdet.service.daemon import Daemon  # after the configuration: it takes torch seconds to load

    daemon = Daemon(config, path, stop_when_ended=until_ended)
    code = _run(daemon, page=page, config=path)
    if code == 0:
        restart_delay.forget()
    daemon.exit(code)


def _run_trial(path: Path, *, verbose: bool) -> None:
    """Runs the detector of a file, beside the daemon that has its streams, sockets and folders."""
    from streamdet.config import Config, ControlConfig, MetricsConfig, PublisherConfig, ReplayConfig, load_config
    from streamdet.config.control_paths import OFF
    from streamdet.config.secrets import use_secrets_of

    use_secrets_of(path)
    asked = load_config(path)
    config = Config(
        detector=asked.detector,
        publisher=PublisherConfig(endpoint="tcp://127.0.0.1:0"),
        replay=ReplayConfig(endpoint=OFF),
        metrics=MetricsConfig(endpoint="127.0.0.1:0"),
        control=ControlConfig(path=OFF),
        log=asked.log,
    )
    _configure_logging(config, verbose=verbose)
    from streamdet.service.daemon import Daemon  # after the configuration: it takes torch seconds to load

    daemon = Daemon(config)  # without a file it keeps nothing
    daemon.exit(_run(daemon, page=False))


def _run_sources(
    words: tuple[str, ...], settings: tuple[str, ...],
    *, url_from_stdin: bool, page: bool, until_ended: bool, verbose: bool,
) -> None:  # fmt: skip
    from streamdet.cli.sources import read_sources, urls_from_stdin, warn_of_passwords
    from streamdet.cli.streams import values_of

    warn_of_passwords(words)
    streams = read_sources([*words, *(urls_from_stdin() if url_from_stdin else ())])
    config, are_files = _config_of([{"name": name, "url": url} for name, url in streams], values_of(settings))
    _configure_logging(config, verbose=verbose)
    _check_files(config)
    click.echo("loading the detector ...", err=True)
    from streamdet.service.daemon import Daemon  # after the checks: it takes torch seconds to load

    daemon = Daemon(config, stop_when_ended=until_ended or are_files)
    code = _run(daemon, page=page, announce=True)
    if are_files:
        _print_found(daemon)
    daemon.exit(code)


def _config_of(streams: list[dict[str, Any]], settings: dict[str, Any]) -> tuple[Config, bool]:
    """The configuration of streams without a file, and whether all of them come to an end."""
    from streamdet.cli.beside import free_endpoint
    from streamdet.config import Config, ControlConfig, MetricsConfig, PublisherConfig
    from streamdet.config.addresses import UrlKind, kind_of_url
    from streamdet.config.control_paths import OFF, socket_without_file
    from streamdet.config.load import read_stream

    socket_path = socket_without_file()
    config = Config(
        publisher=PublisherConfig(endpoint=free_endpoint("tcp://127.0.0.1:5555", "tcp://")),
        metrics=MetricsConfig(endpoint=free_endpoint("127.0.0.1:9095")),
        control=ControlConfig(path=OFF if socket_path is None else str(socket_path)),
    )
    read, problems = [], []
    for stream in streams:
        try:
            of_file = {"pace": "fastest"} if _is_file(stream["url"]) and "loop" not in settings else {}
            values = {**of_file, **settings, **stream}
            read.append(read_stream(values, {}, Path.cwd(), config=config))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    ends = all(kind_of_url(stream.url) is UrlKind.FILE and not stream.loop for stream in read)
    return config.model_copy(update={"streams": tuple(read)}), ends


def _check_files(config: Config) -> None:
    """Opens each file once: one that cannot be read would be tried for ever.

    Raises:
        ConfigError: a file cannot be read; a line each.
    """
    from streamdet.capture.probe import probe_all

    probes = probe_all([stream for stream in config.streams if _is_file(stream.url)])
    problems = [f"{probe.stream}: cannot be read: {probe.detail}" for probe in probes if probe.reason]
    if problems:
        raise ConfigError(problems)


def _is_file(url: str) -> bool:
    """Whether a url is that of a file, and not of a device."""
    from streamdet.config.addresses import file_path

    path = Path(file_path(url))
    return is_there(path) and path.is_file()


def _check_page(config: Config, path: Path, *, page: bool) -> None:
    from streamdet.config.load import load_web
    from streamdet.web.settings import Settings, check_settings

    if not page:
        return
    web = load_web(path)
    file = None if web.password_file is None else Path(web.password_file)
    check_settings(Settings(config.publisher.endpoint, password_file=file, allow_changes=web.allow_changes))
    if config.publisher.curve_server_key_file is not None:
        problem = "--page: [publisher] asks for keys; start the page by itself, streamdet web --server-key --client-key"
        raise click.UsageError(problem)


def _configure_logging(config: Config, *, verbose: bool) -> None:
    use_one_heap()  # the log has the first thread
    configure_logging(config.log.model_copy(update={"level": "debug"}) if verbose else config.log)


def _run(daemon: Daemon, *, page: bool, announce: bool = False, config: Path | None = None) -> int:
    """Runs the daemon until it stops, with the page beside it if that is wanted; its exit code."""
    from streamdet.cli.beside import WebChild, free_endpoint

    with ExitStack() as beside:

        def on_ready() -> None:
            addresses = daemon.addresses
            if addresses is None:
                return
            if page:
                metrics = addresses.metrics.removeprefix("http://").removesuffix("/metrics")
                # The page reads metrics only where no login and no certificate stands before them.
                is_open = daemon.config.metrics.password_file is None and "://" not in metrics
                child = WebChild(addresses.events, metrics if is_open else "", free_endpoint(_PAGE), config)
                addresses.page = beside.enter_context(child).address
            if announce:
                _announce(daemon)
            elif addresses.page is not None:
                _log.info("the page is at %s", addresses.page)

        with daemon.signals():
            return daemon.run(on_ready)


def _announce(daemon: Daemon) -> None:
    """Prints what was started, and where it can be seen."""
    from streamdet.security.redact import redact

    addresses = daemon.addresses
    if addresses is None:
        return
    for stream in daemon.config.streams:
        click.echo(f"stream   {stream.name}  {redact(stream.url)}")
    if addresses.page is not None:
        click.echo(f"page     {addresses.page}")
    click.echo(f"events   streamdet watch {addresses.events}")
    click.echo(f"metrics  {addresses.metrics}")
    if addresses.control:
        click.echo("status   streamdet status")
    click.echo("to keep  streamdet init writes a configuration file")
    click.echo("end      Ctrl-C")
    sys.stdout.flush()


def _print_found(daemon: Daemon) -> None:
    """Prints what became of each file."""
    for name, counts in daemon.ledger.snapshot().items():
        objects = daemon.metrics.objects_of(name)
        found = all_of(objects) or "no objects"
        dropped = sum(counts.dropped.values())
        lost = f", {dropped} dropped" if dropped else ""
        click.echo(f"{name}: {counts.published} frames{lost}; found {found}")
    sys.stdout.flush()


def _config(path: Path, *, or_last_good: bool) -> tuple[Config, list[str]]:
    """The configuration to run, and what is wrong with the file if it is the last good one instead.

    Raises:
        ConfigError: the file is wrong; the message says how to go back to the last good one, if there is one.
    """
    from streamdet.config import load_config
    from streamdet.config.last_good import last_good

    try:
        return load_config(path), []
    except ConfigError as error:
        kept = last_good(path)
        if kept is None:
            raise
        if not or_last_good:
            raise ConfigError([*error.problems, *kept.offer()]) from None
        try:
            return kept.load(), error.problems
        except ConfigError:
            raise error from None
