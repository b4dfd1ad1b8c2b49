"""What every command has in common."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from streamdet import __version__, cli, errors
from streamdet.cli import completion, evaluate, train
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


@pytest.mark.parametrize("command", [*COMMANDS, *(name for name, _ in every_command() if " " in name)])
def test_every_command_explains_itself_with_examples_in_100_columns(command: str) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli.cli, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert [line for line in result.output.splitlines() if len(line) > 100] == []
    assert CliRunner(env={"COLUMNS": "200"}).invoke(cli.cli, ["help", *command.split()]).output == result.output


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
        (["zzzz"], "streamdet: no such command 'zzzz' (see streamdet --help)"),
        (["start"], "streamdet: no such command 'start'. Did you mean 'run'?"),
        (["lst"], "streamdet: no such command 'lst'. Did you mean 'streams list'?"),
        (["rtsp://ann:s3cret@h/x"], "streamdet: no such command 'rtsp://***@h/x'. Did you mean 'run SOURCE'?"),
        (["streamdet.toml"], "streamdet: no such command 'streamdet.toml'. Did you mean 'run SOURCE'?"),
        (["-c", "a.toml", "run"], "streamdet: no such option '-c'; options come after the command"),
        (["streams", "rm", "yard"], "streamdet streams: no such command 'rm'. Did you mean 'remove'?"),
        (["streams", "add", "rtsp://h/x", "yard"], "streamdet streams add: NAME comes first"),
        (["help", "stream5"], "streamdet: no such command 'stream5'. Did you mean 'streams'?"),
        (["help", "run", "foo"], "streamdet run: there is no 'foo' of this command"),
        (["completion", "tcsh"], "streamdet completion: invalid value for 'SHELL': 'tcsh' is not one of"),
        (["run", "-c", "a.toml", "b.mp4"], "streamdet run: --config and SOURCE do not go together"),
        (["run", "a.toml", "--set", "max_fps=5"], "streamdet run: --set is for a SOURCE"),
        (["run", "rtsp://h/x", "--set", "max_fps"], "streamdet run: --set max_fps: write KEY=VALUE, such as"),
        (["run", "192.0.2.5/x"], "192.0.2.5/x: there is no such file; for a camera, write rtsp://192.0.2.5/x"),
        (["run", "Door=rtsp://h/x"], "Door=: a name has small letters"),
        (
            ["run", "rtsp://h/x", "--set", "max_fsp=5"],
            'streams[h].max_fsp: is not a known key; did you mean "max_fps"?',
        ),
        (["run", "rtsp://ann:a@b/c@h/x", "--no-page"], "warning: a password on the command line"),
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
    line, *more = result.stderr.splitlines()
    assert line.startswith(expected)
    assert len(more) == line.startswith("warning:")
    assert "s3cret" not in result.stderr


def test_version_for_reports_of_faults() -> None:
    facts = json.loads(streamdet("version", "--json").stdout)
    assert facts["streamdet"] == __version__
    assert facts["libraries"]["torch"]
    assert streamdet("version").stdout.startswith(f"streamdet {__version__}\npython ")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_completion_script_is_one_of_the_shell(shell: str) -> None:
    script = streamdet("completion", shell).stdout
    assert "_STREAMDET_COMPLETE" in script
    if program := shutil.which(shell):
        checked = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_commands_are_completed_without_importing_them() -> None:
    code = (
        "import sys\n"
        "from streamdet.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    sys.exit(sorted({'torch', 'pydantic', 'rich', 'zmq'} & set(sys.modules)) or 0)\n"
    )
    environ = {**os.environ, "_STREAMDET_COMPLETE": "bash_complete", "COMP_WORDS": "streamdet str", "COMP_CWORD": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)
    assert (run.returncode, run.stdout, run.stderr) == (0, "plain,streams\n", "")


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


@pytest.mark.parametrize(
    ("said", "shown"), [("OpenVINO got no memory\nat 0x7f", " (OpenVINO got no memory)"), ("", "")], ids=["said", "not"]
)
def test_a_lack_of_memory_is_one_line(
    said: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(**_: object) -> None:
        raise MemoryError(said)

    monkeypatch.setattr(cli.cli, "main", run_out)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    expected = "free some, or raise the limit of this process, container or service\n"
    assert (ended.value.code, capsys.readouterr().err) == (69, f"streamdet: out of memory{shown}; {expected}")


@pytest.mark.parametrize(
    "words",
    [
        ["streams", "--socket", "/none", "show", "ros\udce9"],
        ["alerts", "--socket", "/none", "--rule", "ros\udce9"],
        ["watch", "--stream", "ros\udce9", "--seconds", "1"],
    ],
)
def test_a_name_that_is_not_utf_8_is_one_line(words: list[str]) -> None:
    result = streamdet(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "streamdet: ros\\udce9: is not UTF-8; use a terminal with UTF-8\n"


@pytest.mark.parametrize(
    "setting", ["labels=[2026-01-01]", "zones=[{ name = 10:00:00 }]", f"max_fps={'9' * 5000}", "max_fps=2026-01-01"]
)
def test_a_value_of_any_kind_can_be_sent_to_a_daemon(setting: str) -> None:
    result = streamdet("streams", "--socket", "/none", "change", "yard", "--set", setting)
    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr.startswith("streamdet: there is no socket /none;")


def test_rules_of_any_values_can_be_sent_to_a_daemon(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        '[[rules]]\nname = "late"\nbetween = [[22:00:00, 06:00:00]]\ndays = [2026-01-01]\nx = { at = 10:00:00 }\n'
    )
    result = streamdet("rules", "set", str(path), "--socket", "/none")
    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr.startswith("streamdet: there is no socket /none;")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_utf_8_gets_what_it_cannot_show_escaped(encoding: str, tmp_path: Path) -> None:
    rules, events = tmp_path / "rules.toml", tmp_path / "events.jsonl"
    rules.write_text('[[rules]]\nname = "Tür ž \U0001f6b2"\n', encoding="utf-8")
    events.write_text("")
    command = [sys.executable, "-m", "streamdet", "rules", "test", str(rules), "--events", str(events)]
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    shown, as_json = (
        subprocess.run([*command, *more], capture_output=True, check=True, env=environ, timeout=60).stdout
        for more in ([], ["--json"])
    )
    ends = {"ascii": "T\\u00fcr \\u017e", "latin-1": "Tür \\u017e", "utf-8": "Tür ž"}
    assert ends[encoding] in shown.decode(encoding)
    # Where it is "ascii", click writes UTF-8: most such terminals have only forgotten to say so.
    text = as_json.decode("latin-1" if encoding == "latin-1" else "utf-8")
    assert json.loads(text)["rules"][0]["rule"] == "Tür ž \U0001f6b2"


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
