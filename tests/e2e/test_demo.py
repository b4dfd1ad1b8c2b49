"""The demonstration, as a stranger runs it: the real daemon with the embedded weights on real video."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from streamdet.cli.beside import free_endpoint
from streamdet.cli.demo import summary_table
from streamdet.errors import EndpointError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_other_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its control socket is in a folder of its own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamdet", "demo", "--seconds", "12", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


@pytest.mark.usefixtures("_engines_known")
def test_the_summary_shows_persons_in_both_streams_and_the_ledger_balances() -> None:
    result = demo("--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["detections"]["person"] > 20
    assert 0 < summary["objects"]["person"] < summary["detections"]["person"]
    assert len(summary["streams"]) == 2
    for stream in summary["streams"].values():
        assert stream["published"] > 0
        assert stream["in_flight"] == 0
        assert stream["captured"] == stream["published"] + sum(stream["dropped"].values())
        assert 0 < stream["latency_seconds"]["p50"] <= stream["latency_seconds"]["p99"]
    assert len(summary["epoch"]) >= 8


@pytest.mark.usefixtures("_engines_known")
def test_people_see_a_table() -> None:
    result = demo()
    assert result.returncode == 0, result.stderr
    assert "campus-east" in result.stdout
    assert "people" in result.stdout
    assert "streamdet watch tcp://127.0.0.1:" in result.stdout
    assert "page     http://127.0.0.1:" in result.stdout
    assert result.stdout.splitlines()[-1].strip().startswith("streamdet init rtsp://")
    assert "Traceback" not in result.stderr


def summary() -> dict[str, object]:
    stream = {
        "captured": 301, "published": 299, "dropped": {"superseded": 2, "stale": 0}, "in_flight": 0, "fps": 9.97,
        "latency_seconds": {"p50": 0.041, "p99": 0.244},
    }  # fmt: skip
    return {
        "streams": {"campus-east": stream},
        "detections": {"person": 6206, "bus": 0},
        "objects": {"person": 41},
        "seconds": 30.1,
    }


@pytest.mark.parametrize(("characters", "expected"), [(100, "2 by overload"), (50, "      2")])
def test_a_narrow_terminal_gets_fewer_columns_and_cuts_nothing_off(characters: int, expected: str) -> None:
    console = Console(width=characters, file=io.StringIO())
    console.print(summary_table(summary(), characters))
    text = console.file.getvalue()  # type: ignore[attr-defined] # the StringIO
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "campus-east" in text
    assert expected in text
    assert ("41 ms" in text) == (characters > 75)


@pytest.mark.parametrize(
    "endpoint", ["foo", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://0.0.0.0:5555", "127.0.0.1:5555", "ipc:///x"]
)
def test_an_endpoint_that_is_none_or_open_to_others_is_refused_in_one_line(endpoint: str) -> None:
    with pytest.raises(EndpointError, match="stays on this machine") as caught:
        free_endpoint(endpoint, "tcp://")
    assert len(str(caught.value).splitlines()) == 1


def test_ipv6_loopback_will_do() -> None:
    assert free_endpoint("tcp://[::1]:0", "tcp://").startswith("tcp://[::1]:")
