"""The last configuration with which the service worked, kept in case that the next one is wrong at a restart."""

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
    """A copy of a configuration file in the service's state directory; there is none outside a service.

    Attributes:
        path: of the configuration file.
        copy: of its last content that worked; what it names by `${NAME}` is not in it.
    """

    path: Path
    copy: Path

    def keep(self, config: Config) -> bool:
        """Keeps the file, if it still says what is in force; called when that works.

        Returns:
            Whether the file is right; a wrong one, which cannot be what is in force, is never kept.
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
        """What was kept, read as if it were the file.

        Raises:
            ConfigError: there is none, or it does not work any more.
        """
        return load_config(self.path, text=read_text(self.copy))

    def offer(self) -> list[str]:
        """How to go back to what was kept, in lines; nothing where it would not help."""
        try:
            self.load()
        except ConfigError:
            return []
        instance = "" if self.path.stem == _SERVICE else self.path.stem
        user, unit = (f"{_SERVICE}-{instance}", f"{_SERVICE}@{instance}") if instance else (_SERVICE, _SERVICE)
        # As the service's user: what root reads in a folder of that user may be a link to something else.
        copied = f"sudo -u {user} cat {self.copy} >good.toml && sudo cp good.toml {self.path}"
        restarted = f"sudo systemctl restart {unit}"
        return ["the last configuration that worked is kept; this goes back to it:", f"  {copied} && {restarted}"]


def last_good(path: Path, environ: Mapping[str, str] = os.environ) -> LastGood | None:
    """What is kept of a configuration file; None outside a service, which has no state directory."""
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    return LastGood(path, Path(state, _NAME)) if state else None
