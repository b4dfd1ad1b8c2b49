"""Reads a configuration file, or one stream: all problems at once, each with its line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from streamdet.config.addresses import URL_KEYS, UrlKind, doubt_of_url, kind_of_url
from streamdet.config.bridge_checks import (
    bridge_problems,
    bridge_warnings,
    closed_to_service,
    resolve_files,
    unusable_files,
)
from streamdet.config.bridges import BRIDGE_TABLES, of_bridges
from streamdet.config.checks import (
    detector_problems,
    labels_of_weights,
    missing_files,
    resolve_paths,
    rule_problems,
    shared_directories,
    unknown_labels,
    unknown_labels_of_stream,
)
from streamdet.config.explain import MAX_PROBLEMS, explain
from streamdet.config.listening import (
    HOW_TO_CLOSE_CONTROL,
    ListenAddress,
    parse_host_port,
    parse_publisher_endpoint,
    same_port,
)
from streamdet.config.models import Config
from streamdet.config.rules import RuleConfig, misfits, rules_of
from streamdet.config.stream import KEY_FITS, NAME_PATTERN, StreamConfig, StreamDefaults
from streamdet.config.substitute import Substitution
from streamdet.config.toml import KeyPath, Tables, lines_of_keys, parse, read_text
from streamdet.config.web import WEB_TABLES, WebConfig
from streamdet.errors import ConfigError
from streamdet.security.endpoints import is_loopback
from streamdet.security.redact import redact

_STREAM: KeyPath = ("streams", 0)
# A message shows names that are not longer, and do not look like the end of a key.
_NAMES = {"streams": NAME_PATTERN, "webhooks": NAME_PATTERN, "rules": r"^[^\[\]]{1,64}$"}

HOW_TO_ADD_A_STREAM = "streamdet streams add NAME URL --persist"
"""What a daemon without streams waits for."""

_LISTENING: dict[tuple[str, str], Callable[[str], ListenAddress | None]] = {
    ("publisher", "endpoint"): parse_publisher_endpoint,
    ("metrics", "endpoint"): parse_host_port,
    ("control", "listen"): parse_host_port,
}


def load_config(
    path: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    text: str | None = None,
    running_labels: Sequence[str] | None = None,
) -> Config:
    """Reads a configuration file.

    Args:
        path: the file, TOML in UTF-8.
        environ: where `${NAME}` is looked up, and CREDENTIALS_DIRECTORY with it.
        text: what to read instead, as if it were the file's content.
        running_labels: that the weights know which run; labels must be among these, too.

    Raises:
        ConfigError: with everything that is wrong, a line each, without secrets.
    """
    path = Path(path)
    text = read_text(path) if text is None else text
    written = parse(path, text)
    return _Reading(path, lines_of_keys(text)).read(written, environ, running_labels)


def load_all(
    path: Path,
    environ: Mapping[str, str] = os.environ,
    environ_of_bridges: Mapping[str, str] = os.environ,
    *,
    for_service: bool = False,
) -> tuple[Config, list[str]]:
    """Reads a configuration file as the daemon and as bridges read it, and checks that both fit together.

    Args:
        path: the file.
        environ: as for `load_config`.
        environ_of_bridges: the same for bridges.
        for_service: whether bridges are services, which cannot read every file.

    Returns:
        What the daemon reads, and what is allowed but unwise, a line each.

    Raises:
        ConfigError: with everything that is wrong for either, a line each, without secrets.
    """
    path = Path(path)
    text = read_text(path)
    written, lines = parse(path, text), lines_of_keys(text)
    of_daemon, of_bridge = _Reading(path, lines), _Reading(path, lines)
    problems: list[str] = []
    try:
        bridges = of_bridge.read_tables({**of_bridges(written), **_of_page(written)}, environ_of_bridges)
    except ConfigError as error:
        problems = error.problems
    try:
        config = of_daemon.read(written, environ)
    except ConfigError as error:
        raise ConfigError(list(dict.fromkeys([*error.problems, *problems]))) from None
    if problems:
        raise ConfigError(problems)
    reading, tables = _Reading(path, lines), {**of_daemon.tables, **of_bridge.tables}
    reading.tables = tables
    labels = labels_of_weights(config.detector.weights)
    shared = shared_directories(resolve_paths(tables, path.absolute().parent))
    reading.refuse([*bridge_problems(config, bridges, tables, labels), *shared])
    doubts = [*bridge_warnings(config, bridges, tables), *(closed_to_service(tables) if for_service else ())]
    return config, [*of_daemon.warnings(written), *(reading.line_of(*doubt) for doubt in doubts)]


def load_rules(
    path: Path, environ: Mapping[str, str] = os.environ
) -> tuple[tuple[RuleConfig, ...], tuple[StreamConfig, ...] | None]:
    """Reads the rules of a configuration file, or of a file that contains nothing but `[[rules]]`.

    Args:
        path: the file.
        environ: as for `load_config`.

    Returns:
        The rules, and the streams of the configuration; None for a file without.

    Raises:
        ConfigError: with everything that is wrong, a line each, without secrets; also where there is no rule.
    """
    text = read_text(path)
    written = parse(path, text)
    if not written.get("rules"):
        raise ConfigError([_one_line(f"{path}: has no [[rules]]; docs/objects.md shows what a rule looks like")])
    reading = _Reading(path, lines_of_keys(text))
    if written.keys() == {"rules"}:
        return reading.read_tables(written, environ).rules, None
    config = reading.read(written, environ)
    return config.rules, config.streams


def load_bridges(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Reads what bridges use of a configuration file, and nothing else: not its streams, nor their secrets.

    Args:
        path: the file.
        environ: as for `load_config`.

    Raises:
        ConfigError: with everything that is wrong, a line each, without secrets.
    """
    return _read_some(path, of_bridges, environ)


def load_web(path: Path, environ: Mapping[str, str] = os.environ) -> WebConfig:
    """Reads what the page uses of a configuration file, and nothing else.

    Args:
        path: the file.
        environ: as for `load_config`.

    Raises:
        ConfigError: with everything that is wrong, a line each, without secrets.
    """
    return _read_some(path, _of_page, environ).web


def _of_page(written: Tables) -> Tables:
    return {name: written[name] for name in WEB_TABLES if name in written}


def _read_some(path: Path, select: Callable[[Tables], Tables], environ: Mapping[str, str]) -> Config:
    text = read_text(path)
    return _Reading(path, lines_of_keys(text)).read_tables(select(parse(path, text)), environ)


def read_stream(
    values: Mapping[str, Any],
    base: Mapping[str, Any],
    folder: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    config: Config | None = None,
    weights_labels: Sequence[str] | None = None,
) -> StreamConfig:
    """Reads one stream that was not in the file, as the control API gets it.

    Args:
        values: by key, as they would be written in the file: with units and `${NAME}`.
        base: values for keys that `values` leaves out: those of the stream so far, or the defaults for all streams.
        folder: that relative paths refer to.
        environ: where `${NAME}` is looked up, and CREDENTIALS_DIRECTORY with it.
        config: that the stream belongs to: its rules and labels must fit the stream.
        weights_labels: that the weights know; None if only the detector itself knows them.

    Raises:
        ConfigError: with everything that is wrong, a line each, without secrets.
    """
    substitution = Substitution(environ)
    known = substitution.apply(dict(values))
    problems = {(*_STREAM, *path): problem for path, problem in substitution.problems.items()}
    tables = resolve_paths({"streams": [with_defaults(known, dict(base))]}, folder)
    stream: StreamConfig | None = None
    try:
        stream = StreamConfig.model_validate(tables["streams"][0])
    except ValidationError as error:
        for path, problem in explain(error, _STREAM):
            problems.setdefault(path, problem)
    for path, problem in missing_files(tables):
        problems.setdefault(path, problem)
    for where, problem in _unfit(stream, config, weights_labels) if stream is not None and config is not None else ():
        problems.setdefault((*_STREAM, *where), problem)
    if problems or stream is None:
        raise ConfigError([_line(values.get("name", base.get("name")), *item) for item in problems.items()])
    return stream


def _unfit(stream: StreamConfig, config: Config, weights_labels: Sequence[str] | None) -> Iterator[tuple[KeyPath, str]]:
    """Why a stream does not fit the labels and the rules of a configuration: its keys, and a sentence for each."""
    yield from unknown_labels_of_stream(stream, config.detector, weights_labels)
    for rule in rules_of(stream.name, config.rules):
        for key, where, problem in misfits(rule, stream):
            yield (where,), f'the rule "{rule.name}" applies to this stream: its {key} {problem}'


def read_rules(values: Sequence[Mapping[str, Any]], environ: Mapping[str, str] = os.environ) -> tuple[RuleConfig, ...]:
    """Reads rules that were not in the file, as the control API gets them.

    Args:
        values: a table for each rule, as in the file.
        environ: where `${NAME}` is looked up, and CREDENTIALS_DIRECTORY with it.

    Raises:
        ConfigError: with everything that is wrong, a line each, without secrets.
    """
    substitution = Substitution(environ)
    tables = substitution.apply({"rules": [dict(rule) for rule in values]})
    problems: dict[KeyPath, str] = dict(substitution.problems)
    config: Config | None = None
    try:
        config = Config.model_validate(tables)
    except ValidationError as error:
        for path, problem in explain(error):
            problems.setdefault(path, problem)
    names = [rule.get("name") for rule in values]
    for number, name in enumerate(names):
        if isinstance(name, str) and name in names[:number]:
            problem = "another rule has this name already; every rule needs a name of its own"
            problems.setdefault(("rules", number, "name"), problem)
    if problems or config is None:
        raise ConfigError([_line_of_rule(names, *item) for item in problems.items()])
    return config.rules


def check_rules(config: Config, weights_labels: Sequence[str] | None) -> None:
    """Refuses rules that do not fit the streams and the labels of their configuration.

    Raises:
        ConfigError: with all of them, a line each.
    """
    names = [rule.name for rule in config.rules]
    found = [*unknown_labels(config, weights_labels), *rule_problems(config)]
    problems = {path: problem for path, problem in found if path[0] == "rules"}
    if problems:
        raise ConfigError([_line_of_rule(names, *item) for item in problems.items()])


def check_labels(config: Config, weights_labels: Sequence[str]) -> None:
    """Refuses labels that the weights do not know, where these were not known before.

    Raises:
        ConfigError: with all of them, a line each.
    """
    problems = []
    for (table, number, *keys), problem in unknown_labels(config, weights_labels):
        where = f"{table}.{number}"
        if isinstance(number, int):
            where = f"{table}[{getattr(config, str(table))[number].name}]"
        problems.append(_one_line(f"{''.join([where, *(f'.{key}' for key in keys)])}: {problem}"))
    if problems:
        raise ConfigError(problems)


def read_once(source: str) -> StreamConfig:
    """A stream from which a command takes some frames: a file as fast as it can be read, anything else in real time.

    Args:
        source: path of a video, or the URL of a stream.

    Raises:
        ConfigError: it is neither.
    """
    try:
        config = StreamConfig(name="frames", url=source)
    except ValidationError as error:
        raise ConfigError([redact(problem) for _, problem in explain(error, _STREAM)[:1]]) from None
    return config.model_copy(update={"pace": "fastest"}) if kind_of_url(config.url) is UrlKind.FILE else config


def with_defaults(stream: object, defaults: Tables) -> object:
    """A stream as it was written, with the defaults that apply to its kind of url."""
    if not isinstance(stream, dict):
        return stream
    try:
        kind = kind_of_url(stream["url"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return {**defaults, **stream}
    fitting = {key: value for key, value in defaults.items() if kind in KEY_FITS.get(key, {kind})}
    return {**fitting, **stream}


class _Reading:
    """One reading of one file: collects problems by the paths of their values.

    Attributes:
        tables: as they were written, with the values of `${NAME}`; names of tables in problems come from them.
    """

    def __init__(self, path: Path, lines: dict[KeyPath, int]) -> None:
        self._path = path
        self._lines = lines
        self._problems: dict[KeyPath, str] = {}
        self.tables: Tables = {}

    def refuse(self, problems: Iterable[tuple[KeyPath, str]]) -> None:
        """Raises ConfigError with these problems, if there are any."""
        self._problems = dict(problems)
        if self._problems:
            raise ConfigError(self._report())

    def read(self, written: Tables, environ: Mapping[str, str], running_labels: Sequence[str] | None = None) -> Config:
        substitution = Substitution(environ)
        # Bridges and the page read theirs themselves: their secrets are none of the daemon's.
        written = {key: value for key, value in written.items() if key not in (*BRIDGE_TABLES, *WEB_TABLES)}
        if written.get("streams") == [{}]:
            written["streams"] = []  # a table without keys is a place for the first one
        self.tables = substitution.apply(written)  # type: ignore[assignment] # a dict in, a dict out
        self._problems = dict(substitution.problems)
        defaults = self._checked_defaults()
        streams = self.tables.get("streams")
        merged = {key: value for key, value in self.tables.items() if key != "stream_defaults"}
        if isinstance(streams, list):
            merged["streams"] = [with_defaults(stream, defaults) for stream in streams]
        merged["stream_defaults"] = defaults
        merged = resolve_paths(merged, self._path.absolute().parent)
        config = self._validate(merged)
        if not written:
            self._problems["streams",] = (
                'are missing; add [[streams]] and below it name = "front-door" and url = "rtsp://192.0.2.5/stream1"; '
                "or streams = [], to begin without"
            )
        self._check_names("streams", "stream")
        self._check_names("rules", "rule")
        self._check_ports()
        for path, problem in missing_files(merged):
            self._problems.setdefault(path, problem)
        for path, problem in shared_directories(merged):
            self._problems.setdefault(path, problem)
        for path, problem in detector_problems(merged.get("detector", {})):
            self._problems.setdefault(path, problem)
        for path, problem in self._misfits(config, running_labels) if config is not None else ():
            self._problems.setdefault(self._as_written(path), problem)
        if self._problems or config is None:
            raise ConfigError(self._report())
        return config

    def read_tables(self, written: Tables, environ: Mapping[str, str]) -> Config:
        """Some tables without the streams: the rules of a file that contains nothing else, or what bridges read."""
        substitution = Substitution(environ)
        self.tables = substitution.apply(written)  # type: ignore[assignment] # a dict in, a dict out
        self._problems = dict(substitution.problems)
        folder, credentials = self._path.absolute().parent, environ.get("CREDENTIALS_DIRECTORY")
        tables = resolve_files(self.tables, folder, Path(credentials) if credentials else None)
        self.tables = tables = resolve_paths(tables, folder)
        config = self._validate(tables)
        self._check_names("rules", "rule")
        self._check_names("webhooks", "webhook")
        for path, problem in unusable_files(tables):
            self._problems.setdefault(path, problem)
        if self._problems or config is None:
            raise ConfigError(self._report())
        return config

    def warnings(self, written: Tables) -> list[str]:
        """Addresses that are probably mistakes, passwords that are written into the file itself, and unused keys."""
        unused = "is no longer used: PyAV reads network streams and files, OpenCV reads devices; delete it"
        lines = []
        if "backend" in written.get("stream_defaults", {}):
            lines.append(self.line_of(("stream_defaults", "backend"), unused))
        streams = [*filter(None, written.get("streams", []))]
        if not streams:
            lines.append(self.line_of(("streams",), f"are none; the daemon waits for {HOW_TO_ADD_A_STREAM}"))
        for number, stream in enumerate(streams):
            if "backend" in stream:
                lines.append(self.line_of(("streams", number, "backend"), unused))
            for key in URL_KEYS:
                path, url = ("streams", number, key), stream.get(key)
                if url is None:
                    continue
                if doubt := doubt_of_url(url):
                    lines.append(self.line_of(path, doubt))
                if re.match(r"[^/]*://[^/?#@]*:(?!\$\{)[^/?#@]+@", re.sub(r"\$\{[^}]*\}", "${", url)):
                    problem = "contains a password; write ${NAME} instead, and keep the password elsewhere"
                    lines.append(self.line_of(path, problem))
        return lines

    @staticmethod
    def _misfits(config: Config, running_labels: Sequence[str] | None) -> Iterator[tuple[KeyPath, str]]:
        """What does not fit together in a configuration whose single tables are right."""
        yield from unknown_labels(config, labels_of_weights(config.detector.weights))
        for path, problem in unknown_labels(config, running_labels):
            yield path, f"{problem}; other weights take effect only at a restart"
        yield from rule_problems(config)

    def _as_written(self, path: KeyPath) -> KeyPath:
        """Where a value of a stream is written: in the stream, or in the defaults for all streams."""
        match path:
            case ("streams", int(number), str(key), *rest):
                stream = self.tables["streams"][number]
                return path if key in stream else ("stream_defaults", key, *rest)
        return path

    def _validate(self, tables: Tables) -> Config | None:
        try:
            return Config.model_validate(tables)
        except ValidationError as error:
            self._add(error)
            return None

    def _add(self, error: ValidationError, prefix: KeyPath = ()) -> None:
        for path, problem in explain(error, prefix):
            if not any(path[:end] in self._problems for end in range(1, len(path) + 1)):
                self._problems[path] = problem

    def _checked_defaults(self) -> Tables:
        """The defaults for all streams, without wrong ones, which are reported once and not for every stream."""
        defaults = self.tables.get("stream_defaults", {})
        try:
            StreamDefaults.model_validate(defaults)
        except ValidationError as error:
            self._add(error, ("stream_defaults",))
        if not isinstance(defaults, dict):
            return {}
        return {key: value for key, value in defaults.items() if ("stream_defaults", key) not in self._problems}

    def _check_names(self, table: str, noun: str) -> None:
        """Reports names that two tables of a list share."""
        first: dict[str, int] = {}
        tables = self.tables.get(table)
        for number, each in enumerate(tables if isinstance(tables, list) else []):
            name = each.get("name") if isinstance(each, dict) else None
            if not isinstance(name, str):
                continue
            if name in first:
                line = self._lines.get((table, first[name], "name"), 0)
                problem = f"the {noun} of line {line} has this name already; every {noun} needs a name of its own"
                self._problems.setdefault((table, number, "name"), problem)
            first.setdefault(name, number)

    def _check_ports(self) -> None:
        """Reports ports that are used twice, and a control API that others could reach without encryption."""
        known: dict[tuple[str, str], ListenAddress] = {}
        for path, socket_of in _LISTENING.items():
            keys = self.tables.get(path[0], {})
            default = getattr(Config.model_fields[path[0]].default, path[1])
            try:
                found = socket_of(keys.get(path[1], default) if isinstance(keys, dict) else default)
            except (ValueError, AttributeError, TypeError):
                continue  # reported already, or not set
            for other, socket in known.items():
                if found is not None and same_port(socket, found):
                    where = path if path in self._lines else other
                    names = f"[{other[0]}] and [{path[0]}]"
                    problem = f"port {found.port} is used by {names} both; give one of them another port"
                    self._problems.setdefault(where, problem)
            if found is not None:
                known[path] = found
        control, metrics = known.get(("control", "listen")), self.tables.get("metrics")
        closed = isinstance(metrics, dict) and "tls_key_file" in metrics and "password_file" in metrics
        if control is not None and not is_loopback(control.host) and not closed:
            self._problems.setdefault(("control", "listen"), f"would be open to other machines: {HOW_TO_CLOSE_CONTROL}")

    def _report(self) -> list[str]:
        ordered = sorted(self._problems.items(), key=lambda item: self._line(item[0]))
        lines = [self.line_of(path, problem) for path, problem in ordered[: 2 * MAX_PROBLEMS]]
        left = len(ordered) - len(lines)
        return [*lines, f"{self._path}: and {left} more problems"] if left else lines

    def _line(self, path: KeyPath) -> int:
        """The line of a value, or of the nearest table around it; 1 for a key that is missing from the file."""
        return next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), 1)

    def line_of(self, path: KeyPath, problem: str) -> str:
        """One line about a value, or a key that is missing."""
        return _one_line(f"{self._path}:{self._line(path)}: {self._key(path)}: {problem}")

    def _key(self, path: KeyPath) -> str:
        """The key as it is shown: streams[front-door].url, detector.score_thresholds.person."""
        words = ""
        for depth, part in enumerate(path):
            if isinstance(part, int):
                words += f"[{self._name_of(str(path[0]), part) if depth == 1 else f'#{part + 1}'}]"
            else:
                shown = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part[:40]}"'
                words += f".{shown}" if words else shown
        return words

    def _name_of(self, table: str, number: int) -> str:
        """The name of one table of a list, or its number."""
        tables = self.tables[table]
        each = tables[number] if isinstance(tables, list) else None
        name = each.get("name") if isinstance(each, dict) else None
        is_name = isinstance(name, str) and re.match(_NAMES.get(table, NAME_PATTERN), name)
        return str(name) if is_name else f"#{number + 1}"


def _line(name: object, path: KeyPath, problem: str) -> str:
    keys = "".join(f".{part}" if isinstance(part, str) else f"[#{part + 1}]" for part in path[len(_STREAM) :])
    return _one_line(f"streams[{str(name)[:64]}]{keys[:200]}: {problem}")


def _line_of_rule(names: Sequence[object], path: KeyPath, problem: str) -> str:
    words = "rules"
    for depth, part in enumerate(path[1:]):
        name = names[part] if depth == 0 and isinstance(part, int) and part < len(names) else None
        if isinstance(name, str) and re.match(_NAMES["rules"], name):
            words += f"[{name}]"
        else:
            words += f"[#{part + 1}]" if isinstance(part, int) else f".{part[:40]}"
    return _one_line(f"{words}: {problem}")


def _one_line(text: str) -> str:
    """The text without secrets and with control characters escaped, whatever a file or a client has sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in redact(text))
