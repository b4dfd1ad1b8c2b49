"""What may stand in [mqtt]."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdet.config import load_bridges
from streamdet.config.mqtt import MqttConfig
from streamdet.errors import ConfigError
from support.certificates import make_certificate


def load(folder: Path, *lines: str) -> MqttConfig:
    path = folder / "streamdet.toml"
    path.write_text("\n".join(["[mqtt]", *lines, ""]))
    return load_bridges(path, {"MQTT_PASSWORD": "right-word-4711"}).mqtt


@pytest.mark.parametrize(
    ("broker", "address", "is_tls"),
    [
        ("mqtt://127.0.0.1", ("127.0.0.1", 1883), False),
        ("mqtts://broker.example.org/", ("broker.example.org", 8883), True),
        ("mqtt://[::1]:1884", ("::1", 1884), False),
    ],
)
def test_the_address_of_the_broker(tmp_path: Path, broker: str, address: tuple[str, int], *, is_tls: bool) -> None:
    found = load(tmp_path, f'broker = "{broker}"')
    assert (found.address, found.is_tls) == (address, is_tls)


def test_files_are_relative_to_the_configuration_and_secrets_stay_secret(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    found = load(
        tmp_path,
        'broker = "mqtts://b"',
        'username = "u"',
        'password = "${MQTT_PASSWORD}"',
        'ca_file = "certificate.pem"',
    )
    assert (found.ca_file, found.password) == (str(tmp_path / "certificate.pem"), "right-word-4711")
    assert "right-word-4711" not in repr(found)


LOGIN = 'username = "u"\npassword = "${MQTT_PASSWORD}"'


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('broker = "http://b"', "mqtt.broker: must be mqtt://HOST:PORT or mqtts://HOST:PORT"),
        ('broker = "mqtt://b:99999"', "mqtt.broker: must be mqtt://HOST:PORT or mqtts://HOST:PORT"),
        ('broker = "mqtt://b/path"', "mqtt.broker: must be mqtt://HOST:PORT or mqtts://HOST:PORT"),
        ('broker = "mqtt://u:p@b"', "mqtt.broker: must not hold a login"),
        (f'broker = "mqtt://192.0.2.5"\n{LOGIN}', "mqtt.password: would travel in the clear"),
        ('broker = "mqtt://b"\npassword = "${MQTT_PASSWORD}"', "mqtt.password: needs a username"),
        ('broker = "mqtts://b"\ncertificate_file = "streamdet.toml"', "mqtt.certificate_file: needs key_file as well"),
        ('broker = "mqtt://b"\nca_file = "streamdet.toml"', "mqtt.ca_file: goes with a broker of mqtts:// alone"),
        ('broker = "mqtts://b"\nca_file = "none.pem"', "none.pem; give the path of a PEM file"),
        ('prefix = "a//b"', "must be levels of a topic"),
        ('prefix = "a/+"', "must be levels of a topic"),
        ('discovery_prefix = "/a"', "must be levels of a topic"),
        ('prefix = "$SYS"', "must not begin with $"),
        ('metrics_endpoint = "0.0.0.0:9098"', "would be open to other machines"),
        ("late_after_seconds = 0", "late_after_seconds"),
    ],
)
def test_mistakes_are_reported(tmp_path: Path, lines: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, lines)
    (found,) = caught.value.problems
    assert problem in found
    assert "right-word-4711" not in found


def test_a_password_may_travel_in_the_clear_where_that_is_said_or_stays_on_this_machine(tmp_path: Path) -> None:
    assert load(tmp_path, 'broker = "mqtt://192.0.2.5"', LOGIN, "insecure = true").password
    assert load(tmp_path, 'broker = "mqtt://127.0.0.1"', LOGIN).password
