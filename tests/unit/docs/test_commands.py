"""Every command that the documentation asks a person to type exists, with the options that it is given."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from streamdet.cli import cli
from support.paths import ROOT

PAGES = (
    "README.md",
    "docs/*.md",
    "configs/**/*.toml",
    "configs/**/*.yml",
    "streamdet/assets/*.md",
    "systemd/*.service",
)
# In a line of a block, or between backticks; what a shell would do with the rest of a line is not ours.
COMMAND = re.compile(r"(?:^|[`\s/])streamdet ([a-z][a-z-]*(?:[^`\n|#;&>]|\\\n)*)", re.MULTILINE)
NAMES = set(cli.list_commands(click.Context(cli)))


def commands() -> Iterator[tuple[str, str]]:
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            for found in COMMAND.finditer(path.read_text(encoding="utf-8")):
                # A comment of a configuration goes on behind its sign; prose about the daemon is no command.
                text = re.sub(r"\\?\n#?", " ", found[1]).strip()
                if text.split()[0].split("|")[0] in NAMES:
                    yield str(path.relative_to(ROOT)), text


def unknown_to(command: click.Command, words: list[str]) -> str:
    """The first word that the command line does not have; empty if there is none."""
    context = click.Context(cli, info_name="streamdet", resilient_parsing=True)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        inner = command.get_command(context, words[0])
        if inner is None:
            return words[0]
        command, words = inner, words[1:]
    if words[:1] == ["..."]:  # all that there are, and what they have in common
        return ""
    known = {name for option in command.get_params(context) for name in option.opts + option.secondary_opts}
    options = [re.match(r"--[a-z][a-z0-9-]*", word) for word in words]
    return next((option[0] for option in options if option and option[0] not in known), "")


def test_commands_and_options_of_the_documentation_exist() -> None:
    found = set(commands())
    assert len(found) > 60
    wrong = {f"{page}: streamdet {text}: {word}" for page, text in found if (word := unknown_to(cli, text.split()))}
    assert not wrong


def test_a_command_or_option_that_is_not_there_is_seen() -> None:
    assert unknown_to(cli, ["check", "--configuration", "x"]) == "--configuration"
    assert unknown_to(cli, ["streams", "delete", "x"]) == "delete"
    assert unknown_to(cli, ["streams", "add", "x", "--set", "max_fps=5"]) == ""
