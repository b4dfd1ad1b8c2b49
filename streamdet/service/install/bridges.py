"""The bridges as services: one template, and a unit of it for each bridge."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from streamdet.config.bridges import BRIDGES
from streamdet.errors import InstallError
from streamdet.extras import how_to_install
from streamdet.service.install.environment import Environment
from streamdet.service.install.steps import Command, File, Folder, Remove, Step

_UNITS = Path("etc/systemd/system")
_TEMPLATE = "streamdet-bridge@.service"
_ENVIRONMENT = f"{_TEMPLATE}.d/10-environment.conf"
# What a bridge needs besides the template: a drop-in, and a user that owns what others read.
_FILES = "streamdet-bridge@files.service.d/10-files.conf"
_USERS = Path("etc/sysusers.d/streamdet-bridge-files.conf")
# What is imported of the extra that has the bridge's name, and that the bridge always needs.
_NEEDS = {"mqtt": "paho"}


@dataclass(frozen=True, slots=True)
class Bridges:
    """Bridges of one system's daemon.

    Attributes:
        root: the system's root folder; other than / for a system that does not run (an image).
        names: the bridges.
    """

    root: Path
    names: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[str, ...]:
        """The names for systemctl."""
        return tuple(map(_unit, self.names))

    @property
    def secrets(self) -> Path:
        """The folder of their secrets, and of none of the daemon's."""
        return self.root / "etc/streamdet/bridges.secrets"

    @property
    def are_there(self) -> bool:
        """Whether any bridge is installed."""
        return (self.root / _UNITS / _TEMPLATE).exists()

    def enabled(self) -> tuple[str, ...]:
        """The names of those that start at boot, whether they are among `names` or not."""
        wants = self.root / _UNITS / "multi-user.target.wants"
        return tuple(name for name in BRIDGES if (wants / _unit(name)).is_symlink())

    def check(self) -> None:
        """Checks that this environment has what they need.

        Raises:
            InstallError: it lacks a package; the message says which.
        """
        for name, module in _NEEDS.items():
            if name in self.names and importlib.util.find_spec(module) is None:
                message = f"the bridge {name} needs a package that this environment lacks: {how_to_install(name)}"
                raise InstallError(message)

    def install_steps(self, environment: Environment) -> Iterator[Callable[[], Step]]:
        """The steps: for the bridges that are named, and to keep up to date what is there."""
        units, shipped = self.root / _UNITS, resources.files("streamdet.service.install").joinpath("systemd")

        def text(name: str) -> str:
            return shipped.joinpath(name).read_text(encoding="utf-8")

        if not self.names and not self.are_there:
            return
        yield lambda: Folder(self.secrets, 0o700)
        yield lambda: File(units / _TEMPLATE, text(_TEMPLATE))
        yield lambda: File(units / _ENVIRONMENT, environment.drop_in())
        if "files" in self.names or (units / _FILES).exists():
            yield lambda: File(self.root / _USERS, text("sysusers-files.conf"))
            if os.geteuid() == 0:
                yield lambda: Command(("systemd-sysusers", f"--root={self.root}", _USERS.name))
            yield lambda: File(units / _FILES, text(_FILES))

    def uninstall_steps(self) -> Iterator[Callable[[], Step]]:
        """The steps that remove them; what they have written stays."""
        units = self.root / _UNITS
        others = set(self.enabled()) - set(self.names)
        if self.root == Path("/") and self.are_there:
            yield lambda: Command(("systemctl", "disable", "--now", *self.units))
        if "files" in self.names:
            yield lambda: Remove(units / _FILES, with_folder=True)
        if not others:
            yield lambda: Remove(units / _TEMPLATE)
            yield lambda: Remove(units / _ENVIRONMENT, with_folder=True)
        if self.root == Path("/"):
            yield lambda: Command(("systemctl", "daemon-reload"))


def _unit(name: str) -> str:
    return f"streamdet-bridge@{name}.service"
