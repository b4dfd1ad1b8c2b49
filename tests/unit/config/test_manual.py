"""The file in configs/ is the manual, and docs/configuration.md the reference: both must say what the model says."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from streamdet.config import load_bridges, load_config
from streamdet.config.bridges import BridgesConfig, WebhookConfig
from streamdet.config.files import FilesConfig
from streamdet.config.models import (
    ClipsConfig,
    Config,
    ControlConfig,
    DetectorConfig,
    LogConfig,
    MetricsConfig,
    NodeConfig,
    PicturesConfig,
    PublisherConfig,
    ReplayConfig,
    SpoolConfig,
    TracingConfig,
)
from streamdet.config.mqtt import MqttConfig
from streamdet.config.rules import RuleConfig
from streamdet.config.schema import accepts, markdown_tables, range_in_words, toml_value
from streamdet.config.stream import KEEPS_CONNECTION, SHAPES, StreamConfig, StreamDefaults
from streamdet.config.values import takes_effect
from streamdet.config.web import WebConfig
from streamdet.errors import ConfigError
from streamdet.security.curve import generate
from streamdet.security.passwords import Password, write_password
from support.certificates import make_certificate
from support.paths import ROOT

MANUAL = ROOT / "configs" / "streamdet.toml"
REFERENCE = ROOT / "docs" / "configuration.md"
TABLES: dict[str, type[BaseModel]] = {
    "[detector]": DetectorConfig,
    "[publisher]": PublisherConfig,
    "[replay]": ReplayConfig,
    "[spool]": SpoolConfig,
    "[pictures]": PicturesConfig,
    "[clips]": ClipsConfig,
    "[metrics]": MetricsConfig,
    "[log]": LogConfig,
    "[control]": ControlConfig,
    "[node]": NodeConfig,
    "[tracing]": TracingConfig,
    "[stream_defaults]": StreamDefaults,
    "[[streams]]": StreamConfig,
    "[[rules]]": RuleConfig,
    "[bridges]": BridgesConfig,
    "[[webhooks]]": WebhookConfig,
    "[mqtt]": MqttConfig,
    "[files]": FilesConfig,
    "[web]": WebConfig,
}
# A commented key has no blank behind the "#"; prose has one.
KEY = re.compile(r"#?([a-z_]+) = (.+)")
ALL_KEYS = [
    (header, key)
    for header, table in TABLES.items()
    for key in table.model_fields
    if header != "[[streams]]" or key not in StreamDefaults.model_fields
]


def sections() -> dict[str, list[str]]:
    """The lines of the manual below each table; of [[streams]], only the first."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in MANUAL.read_text(encoding="utf-8").splitlines():
        header = re.fullmatch(r"#?(\[.+\])", line)
        if header:
            current = []
            found.setdefault(header[1], current)
        current.append(line)
    return found


def explained() -> Iterator[tuple[str, str, str, str]]:
    """Table, key, value and the comment above it, of each key in the manual."""
    for header, lines in sections().items():
        comment = ""
        for line in lines:
            match = KEY.fullmatch(line)
            if match:
                yield header, match[1], match[2], comment
                comment = ""
            elif line.startswith("# "):
                comment += line.removeprefix("#")
            elif not line:
                comment = ""


def uncommented() -> str:
    # The conditions of a rule exclude each other.
    text = MANUAL.read_text(encoding="utf-8").partition("#[[rules]]")[0]
    return re.sub(r"(?m)^#(?=[a-z_]+ = |\[)", "", text)


def test_every_key_of_the_model_stands_in_the_manual_and_no_other() -> None:
    assert sorted((header, key) for header, key, _, _ in explained()) == sorted(ALL_KEYS)
    assert set(sections()) == set(TABLES)


@pytest.mark.parametrize(
    ("header", "key", "value", "comment"), list(explained()), ids=[f"{row[0]} {row[1]}" for row in explained()]
)
def test_a_key_stands_with_its_true_default_its_range_and_its_choices(
    header: str, key: str, value: str, comment: str
) -> None:
    field = TABLES[header].model_fields[key]
    assert len(comment) > 20
    if field.is_required():
        assert "ust be given" in comment
    elif field.default is None:
        assert "o default" in comment
    else:
        assert value == toml_value(field.default)
    # "from 1 to 64" may be broken over two lines.
    assert range_in_words(TABLES[header], key) in " ".join(comment.lower().split())
    for choice in re.findall(r'`"(\w+)"`', accepts(TABLES[header], key)):
        assert f'"{choice}"' in comment


@pytest.mark.parametrize("header", TABLES)
def test_each_table_says_when_a_change_takes_effect(header: str) -> None:
    extra = TABLES[header].model_config["json_schema_extra"]
    assert isinstance(extra, dict)
    text = MANUAL.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^#(?=\[\[)", "", text)
    above = text[: text.index(f"\n{header}\n")]
    heading = re.findall(r"^# -{10,} .*\((.+)\)$", above, re.MULTILINE)[-1]
    assert heading == extra["x-takes-effect"]
    for _, key, _, comment in (row for row in explained() if row[0] == header):
        assert ("akes effect on reload" in comment) == (takes_effect(TABLES[header], key) != heading)


@pytest.mark.parametrize(
    ("header", "key", "comment"), [(h, k, comment) for h, k, _, comment in explained() if h == "[stream_defaults]"]
)
def test_a_key_of_a_stream_says_whether_its_change_keeps_the_connection(header: str, key: str, comment: str) -> None:
    extra = StreamConfig.model_fields[key].json_schema_extra
    keeps = isinstance(extra, dict) and KEEPS_CONNECTION in extra
    assert ("keeps the connection" in " ".join(comment.lower().split())) == keeps
    streams = REFERENCE.read_text(encoding="utf-8").partition("## `[[streams]]`")[2]
    row = next(line for line in streams.splitlines() if line.startswith(f"| `{key}` |"))
    assert f"| on reload, {'keeps the connection' if keeps else 'reconnects'} |" in row


def test_the_manual_loads_as_it_is_and_means_the_defaults() -> None:
    config = load_config(MANUAL, {})
    assert config == Config(streams=(StreamConfig(name="front-door", url="rtsp://192.0.2.5/stream1"),))


def test_the_manual_loads_with_all_comments_removed(tmp_path: Path) -> None:
    file = tmp_path / "all.toml"
    generate(tmp_path / "keys", "server", "server")
    (tmp_path / "clients").mkdir()
    write_password(tmp_path / "metrics.password", Password.of("correct horse", cost=(1, 1, 1)))
    for name in ("metrics.pem", "metrics.key"):
        (tmp_path / name).touch()
    file.write_text(uncommented().replace('weights = "embedded"', 'weights = "coco"'), encoding="utf-8")
    config = load_config(file, {})
    assert [stream.name for stream in config.streams] == ["front-door", "yard"]
    assert (config.streams[0].max_fps, config.streams[1].max_fps) == (10, 5)
    assert config.streams[1].stall_seconds == 30
    written = tomllib.loads(file.read_text(encoding="utf-8"))
    assert set(written["detector"]) == set(DetectorConfig.model_fields)


def test_the_bridges_of_the_manual_load_with_all_comments_removed(tmp_path: Path) -> None:
    text = MANUAL.read_text(encoding="utf-8")
    file = tmp_path / "all.toml"
    certificate, _ = make_certificate(tmp_path)
    for name in ("receiver-ca.pem", "broker-ca.pem", "bridge.pem"):
        shutil.copy(certificate, tmp_path / name)
    generate(tmp_path, "server", "server")
    generate(tmp_path, "bridge", "client")
    file.write_text(re.sub(r"(?m)^#(?=[a-z_]+ = |\[)", "", text[text.index("\n[bridges]\n") :]), encoding="utf-8")
    config = load_bridges(file, {"WEBHOOK_SECRET": "a-long-secret", "MQTT_PASSWORD": "a-long-word"})
    assert [(webhook.name, webhook.secret) for webhook in config.webhooks] == [("pager", "a-long-secret")]
    assert (config.mqtt.password, config.mqtt.key_file) == ("a-long-word", str(tmp_path / "bridge.key"))
    assert config.bridges.client_key_file == str(tmp_path / "bridge.key_secret")


def test_the_manual_points_at_the_line_of_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    text = MANUAL.read_text(encoding="utf-8").replace("#score_threshold = 0.5", "score_threshold = 5")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    line = text.splitlines().index("score_threshold = 5") + 1
    assert str(caught.value) == f"{file}:{line}: detector.score_threshold: is 5; must be a number from 0 to 1"


def test_the_reference_holds_the_tables_of_the_model() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert text.endswith(markdown_tables()), "print them again: streamdet schema config --markdown"


@pytest.mark.parametrize(
    ("header", "key"), [*ALL_KEYS, *((shape, key) for shape, table in SHAPES.items() for key in table.model_fields)]
)
def test_every_key_stands_in_the_reference(header: str, key: str) -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    part = text[text.index(f"## `{header.replace('[stream_defaults]', '[[streams]]')}`") :]
    assert f"\n| `{key}` | " in part


def test_examples_of_what_the_service_writes_lie_where_it_may_write() -> None:
    unit = (ROOT / "systemd" / "streamdet.service").read_text()
    state = re.search(r"^StateDirectory=(\S+)$", unit, re.MULTILINE)
    assert state is not None
    written = [
        example
        for table in (SpoolConfig, PicturesConfig, ClipsConfig)
        for example in table.model_fields["directory"].examples or []
    ]
    of_daemon, _, of_files = MANUAL.read_text().partition("\n[files]\n")
    written += re.findall(r'(?<=^#directory = ")[^"]*', of_daemon, re.MULTILINE)
    assert len(written) >= 6
    assert [path for path in written if not path.startswith(f"/var/lib/{state[1]}/")] == []
    of_bridge = (ROOT / "systemd" / "streamdet-bridge@files.service.d" / "10-files.conf").read_text()
    (directory,) = re.findall(r'(?<=^#directory = "/var/lib/)[^"]*', of_files, re.MULTILINE)
    assert directory in re.findall(r"^StateDirectory=(.+)$", of_bridge, re.MULTILINE)[0].split()
