"""Secrets are kept out of a configuration file, and found beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdet.config.load import read_stream
from streamdet.config.secrets import environ_for, secrets_folder, without_secrets


@pytest.mark.parametrize(
    ("url", "written", "secrets"),
    [
        ("rtsp://192.0.2.5/x", "rtsp://192.0.2.5/x", {}),
        ("clip.mp4", "clip.mp4", {}),
        ("rtsp://ann:s3cret@h/x", "rtsp://${DOOR_LOGIN}@h/x", {"DOOR_LOGIN": "ann:s3cret"}),
        ("rtsp://ann:s%40c@h:554/x?a=1", "rtsp://${DOOR_LOGIN}@h:554/x?a=1", {"DOOR_LOGIN": "ann:s%40c"}),
        ("rtsp://${MINE}@h/x", "rtsp://${MINE}@h/x", {}),
        (
            "http://h/x?channel=1&user=admin&password=1",
            "http://h/x?channel=1&user=${DOOR_USER}&password=${DOOR_PASSWORD}",
            {"DOOR_USER": "admin", "DOOR_PASSWORD": "1"},
        ),
    ],
)
def test_a_url_loses_its_secrets_and_means_the_same(url: str, written: str, secrets: dict[str, str]) -> None:
    assert without_secrets("door", url) == (written, secrets)
    environ = {**secrets, "MINE": "a:b"}
    assert read_stream({"name": "door", "url": written}, {}, Path("/"), environ).url.endswith(
        url.replace("${MINE}", "a:b")
    )


def test_a_secret_is_named_after_its_stream() -> None:
    assert without_secrets("192.0.2.5", "rtsp://a:b@h/")[0] == "rtsp://${STREAM_192_0_2_5_LOGIN}@h/"
    assert without_secrets("front-door.2", "rtsp://a:b@h/")[0] == "rtsp://${FRONT_DOOR_2_LOGIN}@h/"


def test_where_secrets_are() -> None:
    service = Path("/etc/streamdet")
    assert secrets_folder(service / "streamdet.toml") == service / "secrets"
    assert secrets_folder(service / "yard.toml") == service / "yard.secrets"
    assert secrets_folder(Path("/home/ann/streamdet.toml")) == Path("/home/ann/streamdet.secrets")
    assert environ_for(service / "yard.toml", {}, of_bridges=True) == {
        "CREDENTIALS_DIRECTORY": "/etc/streamdet/bridges.secrets"
    }
    given = {"CREDENTIALS_DIRECTORY": "/run/credentials/x"}
    assert environ_for(service / "yard.toml", given) == given
