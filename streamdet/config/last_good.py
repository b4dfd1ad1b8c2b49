"""Keeps the last configuration that worked, in case the file is wrong at a restart of the service."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streamdet.config.load import load_config
from streamdet.config.models import Config
from streamdet.config.toml import read_text
from streamdet.errors import ConfigError
from streamdet.security.files import write_atomically

_log = logging.getLogger(__name__)

_NAME = "last-good.toml"
_SERVICE = "streamdet"


@dataclass(frozen=True, slots=True)
class LastGood:
    """A copy of a configuration file in the state directory of the service.

    Attributes:
        path: of the configuration file.
        copy: of its last content that worked; the values of `${NAME}` are not in it.
    """

    path: Path
    copy: Path

    def keep(self, config: Config) -> bool:
        """Keeps the file if it still holds the configuration in force; called once that works.

        Returns:
            Whether the file is valid; a wrong one is never kept.
        """
        try:
            text = read_text(self.path)
            is_in_force = load_config(self.path, text=text) == config
        except ConfigError:
            return False
        if is_in_force:
            try:
                write_atomically(self.copy, text.encode(), mode=0o600)
            except OSError as error:
                _log.warning("%s: cannot be written: %s; it keeps what works", self.copy, error.strerror)
        return True

    def load(self) -> Config:
        """Reads the copy as if it were the file.

        Raises:
            ConfigError: there is no copy, or it is no longer valid.
        """
        return load_config(self.path, text=read_text(self.copy))

    def offer(self) -> list[str]:
        """How to go back to the copy, in lines; empty if that would not help."""
        try:
            self.load()
        except ConfigError:
            return []
        instance = "" if self.path.stem == _SERVICE else self.path.stem
        user, unit = (f"{_SERVICE}-{instance}", f"{_SERVICE}@{instance}") if instance else (_SERVICE, _SERVICE)
        # As the service's user: in that user's folder the file may be a link, which root must not follow.
        copied = f"sudo -u {user} cat {self.copy} >good.toml && sudo cp good.toml {self.path}"
        restarted = f"sudo systemctl restart {unit}"
        return ["the last configuration that worked is kept; this goes back to it:", f"  {copied} && {restarted}"]


def last_good(path: Path, environ: Mapping[str, str] = os.environ) -> LastGood | None:
    """The kept copy of a configuration file; None outside a service, which has no state directory."""
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    return LastGood(path, Path(state, _NAME)) if state else None
