"""What every command has in common."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from streamdet import __version__, cli, errors
from streamdet.cli import evaluate, train
from streamdet.training.evaluate import SCORE_THRESHOLD
from streamdet.training.run import TrainConfig

COMMANDS = tuple(cli._COMMANDS)


def every_command() -> Iterator[tuple[str, click.Command]]:
    """All commands and commands of commands, by what is typed."""
    for name in COMMANDS:
        command = importlib.import_module(f"streamdet.cli.{name.replace('-', '_')}").command
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in command.commands.items())


def streamdet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamdet", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_version() -> None:
    assert streamdet("--version").stdout.strip() == f"streamdet, version {__version__}"


def test_help_names_every_command() -> None:
    text = streamdet("--help").stdout
    assert all(f"  {command} " in text for command in COMMANDS)


def test_help_lists_every_exit_code() -> None:
    text = CliRunner().invoke(cli.cli, ["--help"]).output
    codes = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    assert len(codes) == 6
    assert all(f"  {code} " in text for code in codes)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    result = CliRunner().invoke(cli.cli, [command, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output


def test_every_option_explains_itself() -> None:
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in every_command()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


def test_options_begin_at_the_defaults_of_what_they_set() -> None:
    # They are written twice because the help must not wait for torch.
    config = TrainConfig()
    given = {option.name: option.default for option in train.command.params}
    names = ("epochs", "batch_size", "learning_rate", "seed", "checkpoint_steps", "evaluate_every")
    assert {name: given[name] for name in names} == {name: getattr(config, name) for name in names}
    assert config.model in train._ARCHITECTURES
    (threshold,) = (option for option in evaluate.command.params if option.name == "score_threshold")
    assert threshold.default == SCORE_THRESHOLD


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["walk"], "streamdet: no such command 'walk' (see streamdet --help)"),
        (["rn"], "streamdet: no such command 'rn'. Did you mean 'run'? (see streamdet --help)"),
        (["run", "a.toml", "b.toml"], "streamdet run: a configuration file runs alone"),
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


def test_no_command_loads_torch_before_it_runs() -> None:
    code = (
        "import sys, importlib, streamdet; streamdet.subscribe\n"
        f"for name in {COMMANDS!r}:\n"
        "    importlib.import_module('streamdet.cli.' + name.replace('-', '_'))\n"
        "    if 'torch' in sys.modules: sys.exit(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
