"""The tables of bridges: what is wrong with them is said in one line each, without secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdet.config import load_bridges, load_config
from streamdet.config.bridges import MAX_WEBHOOKS
from streamdet.errors import ConfigError
from streamdet.security.redact import forget_secrets

STREAM = '[[streams]]\nname = "a"\nurl = "rtsp://${NO_BRIDGE_KNOWS_IT}@192.0.2.5/x"\n'
HOOK = '[[webhooks]]\nname = "a"\nurl = "https://example.org/x"\n'


def problems(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "streamdet.toml"
    file.write_text(f"{text}\n{STREAM}")
    with pytest.raises(ConfigError) as caught:
        load_bridges(file, {"SHORT": "topsecr"})
    return [problem.removeprefix(f"{file}:") for problem in caught.value.problems]


@pytest.fixture(autouse=True)
def no_secret_is_known() -> None:
    """A login of another test, such as "secret", would be masked in the messages here."""
    forget_secrets()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[bridges]\nwebhook_metrics_endpoint = "0.0.0.0:9097"', "would be open to other machines"),
        ('[bridges]\nendpoint = "5555"', "bridges.endpoint"),
        ('[bridges]\nserver_key_file = "a"', "bridges.server_key_file: needs client_key_file as well"),
        ("[webhooks]", "must be written with two brackets, [[webhooks]]"),
        ("webhooks = [1]", "must be a table; write [[webhooks]], and name and url below it"),
        ('[[webhooks]]\nname = "a"', "webhooks[a].url: is missing"),
        (HOOK + 'shape = "ntfi"', 'must be one of "event", "ntfy", "slack", "alertmanager"'),
        (HOOK + 'events = ["raise"]', 'must be one of "raised", "cleared", "ended"'),
        (HOOK + "events = []", "webhooks[a].events: is empty"),
        (HOOK + "colour = 3", "webhooks[a].colour: is not a known key"),
        (HOOK + 'secret = "${SHORT}"', "webhooks[a].secret: is too short"),
        (HOOK + "secret = 4711081547110815", "webhooks[a].secret: must be a text in quotes"),
        (HOOK + 'headers = { Host = "topsecret" }', 'hold "Host", which is no header that can be set here'),
        (HOOK + 'headers = { A = "a\\r\\nb" }', "no printable ASCII"),
        (HOOK + "headers = { A = 4711081547110815 }", "must be a text in quotes"),
        (HOOK + 'fields = { a = "alert rule" }', "not a field of an alert or an object"),
        (HOOK + "picture = true", 'must be one of "none", "attached", "url"'),
        (HOOK + 'shape = "slack"\npicture = "attached"', 'webhooks[a].picture: cannot be "attached"'),
        (HOOK + 'picture = "url"', 'webhooks[a].picture: is "url"; set picture_url'),
        (HOOK + 'picture = "url"\npicture_url = "https://me:topsecret@a/p"', "picture_url: must be an address without"),
        (HOOK + 'shape = "alertmanager"\nevents = ["ended"]', "webhooks[a].events: hold"),
        (HOOK + 'shape = "ntfy"\nurl2 = 1', "is not a known key"),
        (HOOK + 'ca_file = "no.pem"', "there is no file"),
        (HOOK + HOOK, "has this name already"),
        (HOOK.replace("https", "http"), "webhooks[a].url: would send events without encryption"),
        (HOOK.replace("https://", "https://me:topsecret@"), "webhooks[a].url: must not hold a login"),
        (HOOK.replace("https://", "ftp://"), "webhooks[a].url: must be the address of a receiver"),
        (HOOK.replace("/x", "/" + "topsecret" * 300), "is too long"),
        (HOOK.replace("org/x", "org/${MISSING}"), "${MISSING} is not set"),
        ("".join(HOOK.replace('"a"', f'"a{number}"') for number in range(MAX_WEBHOOKS + 1)), "are more than 64"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_without_secrets(tmp_path: Path, text: str, expected: str) -> None:
    lines = problems(tmp_path, text)
    assert len(lines) == 1, lines
    assert expected in lines[0]
    for secret in ("topsecr", "4711081547110815"):
        assert secret not in lines[0]


def test_neither_side_needs_the_secrets_of_the_other(tmp_path: Path) -> None:
    file = tmp_path / "streamdet.toml"
    file.write_text(STREAM + HOOK + 'secret = "${NO_DAEMON_KNOWS_IT}"\n')
    assert load_config(file, {"NO_BRIDGE_KNOWS_IT": "x:y"}).webhooks == ()
    (webhook,) = load_bridges(file, {"NO_DAEMON_KNOWS_IT": "12345678"}).webhooks
    assert webhook.secret == "12345678"  # noqa: S105 - of this test
    assert "12345678" not in repr(webhook)
    assert "example.org" not in repr(webhook)
