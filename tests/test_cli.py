"""What every command has in common."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streamdet import __version__

COMMANDS = (
    "run", "demo", "check", "reload", "streams", "watch",
    "train", "evaluate", "bench", "trace", "schema", "install-service",
)  # fmt: skip


def streamdet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamdet", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_version() -> None:
    assert streamdet("--version").stdout.strip() == f"streamdet, version {__version__}"


def test_help_names_every_command() -> None:
    text = streamdet("--help").stdout
    assert all(f"  {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    result = streamdet(command, "--help")
    assert result.returncode == 0
    assert "Examples:" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["walk"], "streamdet: no such command 'walk' (streamdet --help tells more)"),
        (["rn"], "streamdet: no such command 'rn'. Did you mean 'run'? (streamdet --help tells more)"),
        (["run", "a.toml"], "streamdet run: got unexpected extra argument (a.toml)"),
        (["schema"], "streamdet schema: missing argument"),
        (["streams", "ad"], "streamdet streams: no such command 'ad'"),
        (["check", "--cnfig", "a.toml"], "streamdet check: no such option '--cnfig'"),
        (["check", "a.toml", "--config", "b.toml"], "streamdet check: FILE and --config name the same thing"),
        (["bench", "--batch", "many"], "streamdet bench: invalid value for '--batch'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_a_usage_error(arguments: list[str], expected: str) -> None:
    result = streamdet(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(expected)


def test_without_a_command_the_help_is_shown() -> None:
    result = streamdet()
    assert result.returncode == 2
    assert "Commands:" in result.stderr


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 - a device, opened as a shell does
        command = [sys.executable, "-m", "streamdet", "schema", "config"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr == "streamdet: cannot write: No space left on device\n"


def test_a_reader_that_goes_away_is_no_trouble() -> None:
    command = [sys.executable, "-m", "streamdet", "schema", "config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("command", ["check", "reload", "streams", "watch", "schema"])
def test_light_commands_start_without_torch(command: str) -> None:
    code = (
        "import sys; import importlib;"
        f"importlib.import_module('streamdet.cli.{command}');"
        "import streamdet; streamdet.subscribe;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
