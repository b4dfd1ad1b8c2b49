"""What must fit together in the tables of bridges, and between them and those of the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdet.config import load_all, load_bridges
from streamdet.config.bridge_checks import closed_to_service
from streamdet.errors import ConfigError
from streamdet.security.curve import allow, generate
from support.certificates import make_certificate

BASE = """[spool]
directory = "spool"
[[streams]]
name = "yard"
url = "rtsp://192.0.2.5/x"
[[rules]]
name = "person in the bay"
"""
HOOK = '[[webhooks]]\nname = "pager"\nurl = "https://example.org/x"\n'
MQTT = '[mqtt]\nbroker = "mqtt://127.0.0.1"\n'
FILES = '[files]\ndirectory = "files"\n'


def write(folder: Path, text: str) -> Path:
    file = folder / "streamdet.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HOOK + 'rules = ["person in bay"]', '11: webhooks[pager].rules[#1]: is "person in bay", which is none of the'),
        (HOOK + 'labels = ["persn"]', 'did you mean "person"?'),
        (HOOK + 'fields = { what = "alert.rul" }', 'did you mean "alert.rule"?'),
        (MQTT + 'labels = ["person", "dog"]', 'mqtt.labels[#2]: is "dog", which is none of the labels of this file'),
        (MQTT + "forget_after_seconds = 29", "mqtt.forget_after_seconds: is 29 s; must be at least three times"),
        ('[mqtt]\nprefix = "home"', 'mqtt.broker: is missing; add a line such as broker = "mqtt://127.0.0.1"'),
        (MQTT + 'metrics_endpoint = "127.0.0.1:9095"', "10: mqtt.metrics_endpoint: port 9095 is used by endpoint of"),
        (MQTT + 'metrics_endpoint = "127.0.0.1:5555"', "endpoint of [publisher]"),
        (MQTT + 'metrics_endpoint = "127.0.0.1:5556"', "endpoint of [replay]"),
        (MQTT + 'metrics_endpoint = "127.0.0.1:9096"\n[control]\nlisten = "127.0.0.1:9096"', "listen of [control]"),
        (
            MQTT + '[metrics]\nendpoint = "localhost:9098"',
            "11: metrics.endpoint: port 9098 is used by metrics_endpoint",
        ),
        (
            MQTT + HOOK + '[bridges]\nwebhook_metrics_endpoint = "127.0.0.1:9098"',
            "14: bridges.webhook_metrics_endpoint: port 9098 is used by metrics_endpoint of [mqtt]",
        ),
        (FILES.replace('files"', 'spool"'), "files.directory: is that of [spool] as well"),
        (FILES + 'metrics_endpoint = "127.0.0.1:9095"', "files.metrics_endpoint: port 9095 is used by endpoint of"),
        (FILES + 'metrics_endpoint = "0.0.0.0:9099"', "would be open to other machines"),
        (FILES + 'formats = ["csv"]', 'files.formats[#1]: is "csv"; must be one of "parquet", "jsonl"'),
        (FILES + "formats = []", "files.formats: must name at least one, and each once"),
        (FILES + 'kinds = ["alerts", "alerts"]', "files.kinds: must name at least one, and each once"),
        (FILES + 'kinds = "alerts"', 'must be a list of words, such as kinds = ["objects", "alerts"]'),
        (
            FILES + 'rotate_seconds = "2 days"',
            'rotate_seconds: is "2 days"; must be a number, or one with a unit',
        ),
        (FILES + 'max_bytes = "256 MiB"', "max_bytes must be at least four times rotate_bytes = 134217728"),
        (MQTT + '[replay]\nendpoint = "off"', "11: replay.endpoint: is"),
        (MQTT + '[bridges]\nstate_directory = "streamdet.toml"', "bridges.state_directory:"),
        (HOOK + 'ca_file = "streamdet.toml"', "webhooks[pager].ca_file: "),
        (HOOK + 'headers = ["Priority: high"]', 'must be a table, such as headers = { Priority = "high" }'),
        (HOOK + 'events = "raised"', 'must be a list of words, such as events = ["raised", "cleared"]'),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    file = write(tmp_path, BASE + text)
    with pytest.raises(ConfigError) as caught:
        load_all(file, {}, {})
    (line,) = caught.value.problems
    assert line.startswith(f"{file}:")
    assert expected in line


@pytest.mark.parametrize(
    "text",
    [
        MQTT + HOOK + FILES,
        "[metrics]\nendpoint = '127.0.0.1:9098'\n" + HOOK,  # a bridge that is not used takes no port
        "[bridges]\nendpoint = 'tcp://192.0.2.7:5555'\n" + HOOK + 'streams = ["of another daemon"]\nrules = ["its"]',
        "[bridges]\nendpoint = 'tcp://192.0.2.7:5555'\n" + MQTT + 'metrics_endpoint = "127.0.0.1:9095"',
    ],
)
def test_what_fits_is_neither_refused_nor_doubted(tmp_path: Path, text: str) -> None:
    assert load_all(write(tmp_path, BASE + text), {}, {})[1] == []


def test_what_is_hardly_meant_is_a_warning(tmp_path: Path) -> None:
    stream = BASE[BASE.index("[[streams]]") : BASE.index("[[rules]]")]
    file = write(tmp_path, stream + HOOK + 'picture = "attached"\npicture_url = "https://a.example/p"\n')
    of_spool, of_events, of_url, of_picture = load_all(file, {}, {})[1]
    assert "spool.directory: is missing: what a bridge misses" in of_spool
    assert of_events.startswith(f"{file}:4: webhooks[pager].events: are alerts, but there are no [[rules]]")
    assert of_picture.startswith(f'{file}:7: webhooks[pager].picture: is "attached", but no event has a picture')
    assert of_url == f'{file}:8: webhooks[pager].picture_url: is not used; set picture = "url" as well'


def test_a_spool_that_keeps_less_than_a_file_is_long_is_a_warning(tmp_path: Path) -> None:
    spool = BASE.replace('"spool"', '"spool"\nmax_age_seconds = "15 min"')
    (doubt,) = load_all(write(tmp_path, spool + FILES), {}, {})[1]
    assert "files.rotate_seconds: is 600 s, and the spool keeps events for 900 s" in doubt


def test_a_missing_package_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (doubt,) = load_all(write(tmp_path, BASE + FILES), {}, {})[1]
    assert "files.formats: needs pyarrow, which is not installed here: " in doubt
    jsonl = FILES + 'formats = ["jsonl"]\n'
    assert load_all(write(tmp_path, BASE + jsonl), {}, {})[1] == []
    (doubt,) = load_all(write(tmp_path, BASE + jsonl + 'compression = "zstd"\n'), {}, {})[1]
    assert "files.compression: needs pyarrow" in doubt


@pytest.mark.parametrize(("name", "hint"), [("yrad", 'did you mean "yard"?'), ("elsewhere", "the streams are yard")])
def test_a_stream_that_is_not_in_the_file_may_be_added_later(tmp_path: Path, name: str, hint: str) -> None:
    file = write(tmp_path, BASE + HOOK + f'streams = ["yard", "{name}"]\n')
    (doubt,) = load_all(file, {}, {})[1]
    assert doubt.startswith(f'{file}:11: webhooks[pager].streams[#2]: is "{name}", which is none of the streams')
    assert doubt.endswith(hint)


def test_a_daemon_with_keys_needs_bridges_with_keys(tmp_path: Path) -> None:
    generate(tmp_path, "server", "server")
    public, _ = generate(tmp_path, "bridge", "client")
    allow(public, tmp_path / "clients")
    curve = '[publisher]\ncurve_server_key_file = "server.key_secret"\ncurve_allowed_clients_directory = "clients"\n'
    with pytest.raises(ConfigError, match=r"bridges\.client_key_file: is missing: the daemon asks for keys"):
        load_all(write(tmp_path, BASE + curve + MQTT), {}, {})
    keys = '[bridges]\nserver_key_file = "server.key"\nclient_key_file = "bridge.key_secret"\n'
    assert load_all(write(tmp_path, BASE + curve + MQTT + keys), {}, {})[1] == []
    wrong = keys.replace("bridge.key_secret", "server.key_secret")
    with pytest.raises(ConfigError, match=r"bridges\.client_key_file: .* is the key of a server"):
        load_all(write(tmp_path, BASE + curve + MQTT + wrong), {}, {})


def test_files_of_bridges_may_be_credentials(tmp_path: Path) -> None:
    """systemd hands over the files in /etc/streamdet/bridges.secrets with a word before their names."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    certificate, _ = make_certificate(tmp_path)
    file = write(tmp_path, MQTT.replace("mqtt:", "mqtts:") + 'ca_file = "broker-ca.pem"\n')
    with pytest.raises(ConfigError, match=f"there is no file {credentials}/broker-ca.pem"):
        load_bridges(file, {"CREDENTIALS_DIRECTORY": str(credentials)})
    certificate.rename(credentials / "secret_broker-ca.pem")
    found = load_bridges(file, {"CREDENTIALS_DIRECTORY": str(credentials)}).mqtt.ca_file
    assert found == str(credentials / "secret_broker-ca.pem")


def test_what_the_service_cannot_use_is_reported(tmp_path: Path) -> None:
    closed, opened = tmp_path / "closed.pem", Path("/etc/os-release")
    closed.touch(mode=0o600)
    tables = {"mqtt": {"ca_file": str(closed)}, "webhooks": [{"ca_file": str(opened)}]}
    ((key, problem),) = closed_to_service(tables)
    assert key == ("mqtt", "ca_file")
    assert problem.endswith("put the file into /etc/streamdet/bridges.secrets and write its name alone")
    ((key, _),) = closed_to_service({"bridges": {"state_directory": "/srv/state"}})
    assert key == ("bridges", "state_directory")


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("streamdet.service", "secrets"),
        ("streamdet@yard.service", "yard.secrets"),
        ("streamdet-bridge@mqtt.service", "bridges.secrets"),
    ],
)
def test_a_missing_secret_is_named_where_the_user_keeps_it(tmp_path: Path, unit: str, source: str) -> None:
    file = write(tmp_path, MQTT + 'username = "u"\npassword = "${MQTT_PASSWORD}"\n')
    with pytest.raises(ConfigError, match=f"there is no file /etc/streamdet/{source}/MQTT_PASSWORD; provide"):
        load_bridges(file, {"CREDENTIALS_DIRECTORY": f"/run/credentials/{unit}"})
