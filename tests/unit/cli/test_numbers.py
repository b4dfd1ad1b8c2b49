from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from streamdet.cli import cli
from streamdet.cli.numbers import Number


def _options(command: click.Command, name: str) -> Iterator[tuple[str, click.Option]]:
    """All options of a command and of those below it, with the command's name."""
    yield from ((name, option) for option in command.params if isinstance(option, click.Option))
    if isinstance(command, click.Group):
        context = click.Context(command)
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from _options(found, f"{name} {below}")


_NUMBERS = [
    pytest.param(option, id=f"{name} {option.opts[0]}")
    for name, option in _options(cli, "streamdet")
    if isinstance(option.type, click.types.FloatParamType)
]


@pytest.mark.parametrize("option", _NUMBERS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "x"])
def test_no_option_takes_what_is_no_number(option: click.Option, text: str) -> None:
    assert isinstance(option.type, Number)
    with pytest.raises(click.BadParameter):
        option.type.convert(text, option, None)  # type: ignore[arg-type] # as it stands on the command line


def test_numbers_stay_in_their_range() -> None:
    assert len(_NUMBERS) > 8
    assert Number(0, 1).convert("0.5", None, None) == 0.5  # type: ignore[arg-type] # as above
    with pytest.raises(click.BadParameter, match="not in the range"):
        Number(0, 1).convert(2.0, None, None)
