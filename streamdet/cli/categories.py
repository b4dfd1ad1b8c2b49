"""The option `--categories` of `train` and `evaluate`."""

from __future__ import annotations

from streamdet.errors import ConfigError


def category_names(text: str | None) -> list[str] | None:
    """The names of a list with commas; None if there is no list.

    Raises:
        ConfigError: it names none.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(["--categories names no category; for example --categories person,car"])
    return names
