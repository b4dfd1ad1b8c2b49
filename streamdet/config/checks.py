"""Checks that need more than one value: files that are named, keys that contradict each other, unknown labels.

None of them loads torch; of weights only the header is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from streamdet.assets import embedded_weights
from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.config.models import ClipsConfig, Config, DetectorConfig
from streamdet.config.rules import MAX_RULES, RuleConfig, misfits
from streamdet.config.stream import SHAPES, StreamConfig
from streamdet.config.toml import KeyPath
from streamdet.config.values import nearest_or
from streamdet.security.curve import KeyFileError, public_files, read_pair
from streamdet.security.passwords import PasswordError, read_password

# The header of a safetensors file is JSON behind its length in eight bytes; ours has a few kilobytes.
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 20
# A message names this many streams.
_MAX_NAMES = 20
_UNUSED_LABEL = "N/A"  # COCO's ids have gaps
_PRECISIONS = {"torch": ("auto", "fp32", "bf16"), "graph": ("auto", "fp32", "bf16"), "reference": ("auto", "fp32")}

BUILT_IN_WEIGHTS = ("embedded", "coco")
_FILE_KEYS = (
    ("publisher", "curve_server_key_file"),
    ("publisher", "curve_allowed_clients_directory"),
    ("metrics", "tls_certificate_file"),
    ("metrics", "tls_key_file"),
    ("metrics", "password_file"),
)
# Tables with a directory that is for them alone.
_WITH_DIRECTORY = ("spool", "pictures", "clips", "files")
_WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")


def resolve_paths(tables: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the tables with every relative path made absolute; a value of a wrong type stays as it is."""
    resolved = dict(tables)
    if isinstance(tables.get("detector"), dict):
        resolved["detector"] = _absolute(tables["detector"], "weights", folder, _is_weights_file)
    if isinstance(tables.get("control"), dict):
        control = _absolute(tables["control"], "path", folder, lambda path: path not in ("auto", "off"))
        resolved["control"] = _absolute(control, "changes_file", folder, lambda path: path != "auto")
    for table, key in _FILE_KEYS:
        if isinstance(resolved.get(table), dict):
            resolved[table] = _absolute(resolved[table], key, folder, bool)
    for table in _WITH_DIRECTORY:
        if isinstance(tables.get(table), dict):
            resolved[table] = _absolute(tables[table], "directory", folder, bool)
    if isinstance(tables.get("bridges"), dict):
        resolved["bridges"] = _absolute(tables["bridges"], "state_directory", folder, lambda path: path != "auto")
    if isinstance(tables.get("streams"), list):
        resolved["streams"] = [_resolve_stream(stream, folder) for stream in tables["streams"]]
    return resolved


def missing_files(tables: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Finds files that are missing or unusable; videos that streams read may come and go."""
    detector = tables.get("detector")
    weights = detector.get("weights") if isinstance(detector, dict) else None
    if isinstance(weights, str) and _is_weights_file(weights) and (problem := _weights_problem(Path(weights))):
        yield ("detector", "weights"), problem
    yield from _unusable_keys(tables)
    streams = tables.get("streams")
    for number, stream in enumerate(streams if isinstance(streams, list) else []):
        ca_file = stream.get("tls_ca_file") if isinstance(stream, dict) else None
        if isinstance(ca_file, str) and ca_file and not _is_file(Path(ca_file)):
            yield ("streams", number, "tls_ca_file"), f"there is no file {ca_file}; give the path of a PEM file"


def detector_problems(table: object) -> Iterator[tuple[KeyPath, str]]:
    """Finds what is wrong with `[detector]` beyond its single values; nothing while one of these is wrong.

    Args:
        table: the table as it was written, its paths made absolute.
    """
    try:
        config = DetectorConfig.model_validate(table)
    except ValidationError:
        return
    yield from _contradictions(config)
    path = weights_path(config.weights)
    if path is None:
        return
    try:
        labels = labels_of(path)
    except ValueError as error:
        yield ("detector", "weights"), str(error)
        return
    if labels is not None:
        yield from _unknown_labels(config, labels)


def unknown_labels(config: Config, weights_labels: Sequence[str] | None) -> Iterator[tuple[KeyPath, str]]:
    """Finds labels that no detection will ever have: of streams, rules, zones, lines, masks, thresholds and `blur`.

    Args:
        config: the whole configuration.
        weights_labels: that the weights know; None if only the detector itself knows them.
    """
    if weights_labels is not None:
        yield from _unknown_labels(config.detector, weights_labels)
    published = config.detector.labels or weights_labels or ()
    for number, rule in enumerate(config.rules) if published else ():
        yield from _unpublished(("rules", number, "labels"), rule.labels, published)
    for number, stream in enumerate(config.streams):
        for path, problem in unknown_labels_of_stream(stream, config.detector, weights_labels):
            yield ("streams", number, *path), problem


def unknown_labels_of_stream(
    stream: StreamConfig, detector: DetectorConfig, weights_labels: Sequence[str] | None
) -> Iterator[tuple[KeyPath, str]]:
    """The same for one stream, with its defaults; paths begin with its key."""
    published = detector.labels or weights_labels or ()
    if published:
        yield from _unpublished(("labels",), stream.labels, published)
        yield from _unpublished(("blur",), stream.blur, published)
    if weights_labels is not None:
        for label in stream.score_thresholds:
            if label not in weights_labels:
                yield ("score_thresholds", label), _not_in_weights(label, weights_labels)
    of_stream = stream.labels or published
    for label in stream.blur if stream.labels else ():
        if label not in stream.labels:
            yield ("labels",), f'leave out "{label[:40]}", which `blur` names: what is not found cannot be blurred'
    for key in SHAPES:
        for index, shape in enumerate(getattr(stream, key)) if of_stream else ():
            yield from _unpublished((key, index, "labels"), shape.labels, of_stream)


def rule_problems(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """Finds rules that no stream can meet: unknown streams, zones and lines, and streams without track ids."""
    if len(config.rules) > MAX_RULES:
        yield ("rules", MAX_RULES), f"is one too many; at most {MAX_RULES} rules are allowed"
    names = [stream.name for stream in config.streams]
    for number, rule in enumerate(config.rules):
        for index, glob in enumerate(rule.streams):
            if not any(fnmatchcase(name, glob) for name in names):
                meant = nearest_or(glob, names, f"the streams are {_some(names)}")
                yield ("rules", number, "streams", index), f'is "{glob[:40]}", which matches no stream; {meant}'
        for key, problem in _misfits(rule, config):
            yield ("rules", number, key), problem
        if problem := _clip_problem(rule, config.clips):
            yield ("rules", number, "clip_seconds"), problem
        if rule.picture and config.pictures.directory is None:
            problem = "needs a directory for pictures; add [pictures] and below it a directory, or delete this"
            yield ("rules", number, "picture"), problem


def _clip_problem(rule: RuleConfig, clips: ClipsConfig) -> str:
    """Why there can be no clip such as a rule asks for; empty where there can, or it asks for none."""
    if rule.clip_seconds is None:
        return ""
    seconds = sum(rule.clip_seconds)
    if seconds > clips.ring_seconds:
        return f"is a clip of {seconds:g} s, longer than ring_seconds = {clips.ring_seconds:g} in [clips]; raise that"
    if clips.directory is None:
        return "needs a directory for clips; add [clips] and below it a directory, or delete this"
    return ""


def _misfits(rule: RuleConfig, config: Config) -> Iterator[tuple[str, str]]:
    """For each key of a rule the first stream that it does not fit, and how many others there are."""
    found: dict[str, dict[str, str]] = {}
    for stream in config.streams:
        for key, _, problem in misfits(rule, stream) if rule.applies_to(stream.name) else ():
            found.setdefault(key, {}).setdefault(stream.name, problem)
    for key, problems in found.items():
        first, *others = problems.values()
        more = f"; {len(others)} other streams have the same problem" if others else ""
        fitting = [stream.name for stream in config.streams if rule.applies_to(stream.name)]
        fitting = [name for name in fitting if name not in problems]
        if key != "labels" and fitting:
            more += f"; to apply the rule to the others only, write streams = {json.dumps(fitting[:_MAX_NAMES])}"
        yield key, first + more


def _unpublished(path: KeyPath, labels: Sequence[str], published: Sequence[str]) -> Iterator[tuple[KeyPath, str]]:
    for label in sorted({*labels} - {*published}):
        meant = nearest_or(label, published, f"published are {', '.join(published)}")
        yield path, f'hold "{label[:40]}", which is not a published label; {meant}'


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def shared_directories(tables: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Finds directories that two tables name, too, also by another path.

    Args:
        tables: as they were written, their paths made absolute.
    """
    known: dict[str, Path] = {}
    for table in _WITH_DIRECTORY:
        value = tables[table].get("directory") if isinstance(tables.get(table), dict) else None
        if not isinstance(value, str) or not value or "\0" in value:
            continue
        directory = Path(os.path.realpath(value))
        for other, other_directory in known.items():
            if directory == other_directory:
                yield (table, "directory"), f"is that of [{other}] as well; give each a directory of its own"
        known[table] = directory


def weights_path(weights: str) -> Path | None:
    """The file of the weights; None for those that torchvision publishes."""
    if weights == "embedded":
        return embedded_weights()
    return None if weights == "coco" else Path(weights)


def labels_of(path: Path) -> list[str] | None:
    """The labels that the weights of a file know; None for a file without labels, such as a .pth, or a missing one.

    Raises:
        ValueError: it cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES)
            size = int.from_bytes(start, "little")
            header = file.read(min(size, _MAX_HEADER_BYTES))
            file_bytes = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None  # `missing_files` reports it
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}; let this user read it"
        raise ValueError(message) from None
    if path.suffix != ".safetensors":
        return None
    try:
        tables: dict[str, Any] = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tables.items() if name != "__metadata__"]
        is_whole = _LENGTH_BYTES + size + max(ends, default=0) == file_bytes
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        is_whole = False
    if not is_whole:
        message = f"{path} is not a whole safetensors file; copy it again"
        raise ValueError(message)
    try:
        labels = json.loads(tables["__metadata__"]["labels"])
        return [str(label) for label in labels[1:] if label != _UNUSED_LABEL]
    except (ValueError, KeyError, TypeError):
        message = f"{path} has no description of its model; make it with `streamdet train`"
        raise ValueError(message) from None


def _contradictions(config: DetectorConfig) -> Iterator[tuple[KeyPath, str]]:
    precisions = _PRECISIONS.get(config.engine)
    if precisions and config.precision not in precisions:
        able = ", ".join(f'"{precision}"' for precision in precisions)
        yield (
            ("detector", "precision"),
            f'is "{config.precision}"; with engine = "{config.engine}" it must be one of {able}',
        )
    if config.device == "cuda:all" and config.engine != "graph":
        yield ("detector", "device"), 'is "cuda:all", which needs engine = "graph"; write "cuda" or "cuda:0"'
    if Path(config.weights).suffix in {".pth", ".pt"} and config.model is None:
        example = 'such as model = "fasterrcnn_resnet50_fpn"'
        yield ("detector", "model"), f"is missing; a .pth file does not say what it is of and needs a model, {example}"


def _unknown_labels(config: DetectorConfig, known: Sequence[str]) -> Iterator[tuple[KeyPath, str]]:
    named: list[tuple[KeyPath, str]] = [(("detector", "labels", n), label) for n, label in enumerate(config.labels)]
    named += [(("detector", "score_thresholds", label), label) for label in config.score_thresholds]
    for path, label in named:
        if label not in known:
            yield path, _not_in_weights(label, known)


def _not_in_weights(label: str, known: Sequence[str]) -> str:
    meant = nearest_or(label, known, f"they know {', '.join(known)}")
    return f'"{label[:40]}" is not a label of the weights; {meant}'


def labels_of_weights(weights: str) -> list[str] | None:
    """The labels that the weights of a configuration know; None if only the detector itself knows them."""
    path = weights_path(weights)
    try:
        return None if path is None else labels_of(path)
    except ValueError:
        return None  # `detector_problems` reports the file


def _unusable_keys(tables: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Finds key, certificate and password files of the daemon that cannot be used."""

    def file_of(table: str, key: str) -> Path | None:
        value = tables[table].get(key) if isinstance(tables.get(table), dict) else None
        return Path(value) if isinstance(value, str) and value else None

    checks: dict[tuple[str, str], Callable[[Path], object]] = {
        ("publisher", "curve_server_key_file"): lambda path: read_pair(path, "server"),
        ("publisher", "curve_allowed_clients_directory"): public_files,
        ("metrics", "password_file"): read_password,
    }
    for table, key in _FILE_KEYS:
        path = file_of(table, key)
        if path is None:
            continue
        if (table, key) in checks:
            try:
                checks[table, key](path)
            except (KeyFileError, PasswordError, ValueError) as error:
                yield (table, key), str(error)
        elif not _is_file(path):
            yield (table, key), f"there is no file {path}; give the path of a PEM file"


def _weights_problem(path: Path) -> str:
    if _is_file(path):
        return ""
    if path.suffix in _WEIGHTS_SUFFIXES:
        return f'there is no file {path}; give the path of one, or "embedded"'
    meant = nearest_or(path.name, BUILT_IN_WEIGHTS, 'must be "embedded", "coco", or a .safetensors or .pth file')
    return f'is "{path.name}", which is not a file; {meant}'


def _is_weights_file(weights: str) -> bool:
    return bool(weights) and weights not in BUILT_IN_WEIGHTS


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_path(url: str) -> bool:
    try:
        return kind_of_url(url) is UrlKind.FILE and "://" not in url
    except ValueError:
        return False


def _resolve_stream(stream: object, folder: Path) -> object:
    if not isinstance(stream, dict):
        return stream
    return _absolute(_absolute(stream, "url", folder, _is_path), "tls_ca_file", folder, bool)


def _absolute(table: dict[str, Any], key: str, folder: Path, is_path: Callable[[str], bool]) -> dict[str, Any]:
    value = table.get(key)
    return {**table, key: str(folder / value)} if isinstance(value, str) and is_path(value) else table
