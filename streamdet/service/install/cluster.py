"""The head and the node of a cluster as services, each with a unit of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from streamdet.errors import InstallError
from streamdet.extras import how_to_install
from streamdet.service.install.environment import Environment
from streamdet.service.install.steps import Command, File, Folder, Remove, Step

ROLES = ("head", "node")
_UNITS = Path("etc/systemd/system")
_ENVIRONMENT = "10-environment.conf"
_FOLDER = Path("etc/streamdet/cluster")
_TOKEN = "cluster.key"  # noqa: S105 - the name of a file
_JOIN_OPTIONS = "STREAMDET_JOIN_OPTIONS="


@dataclass(frozen=True, slots=True)
class ClusterUnits:
    """What of a cluster runs on one system.

    Attributes:
        root: the system's root folder; other than / for a system that does not run (an image).
        roles: of `ROLES`.
    """

    root: Path
    roles: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[str, ...]:
        """The names for systemctl."""
        return tuple(map(_unit, self.roles))

    @property
    def token(self) -> Path:
        """The file that `streamdet cluster init` makes on the head, and that every node has a copy of."""
        return self.root / _FOLDER / _TOKEN

    def installed(self) -> tuple[str, ...]:
        """The roles whose units are there, whether they are among `roles` or not."""
        return tuple(role for role in ROLES if (self.root / _UNITS / _unit(role)).exists())

    def check(self, *, enable: bool) -> None:
        """Checks that this system has what they need.

        Args:
            enable: whether they are to be started at once.

        Raises:
            InstallError: something is missing; the message says what to do.
        """
        if not self.roles:
            return
        if importlib.util.find_spec("ray") is None:
            message = f"a cluster needs a package that this environment lacks: {how_to_install('cluster')}"
            raise InstallError(message)
        if enable and not self.token.exists():
            way = "streamdet cluster init makes it on the head" if "head" in self.roles else "copy it from the head"
            message = f"--enable with --cluster needs {self.token}: {way}"
            raise InstallError(message)
        if enable and "node" in self.roles and not self._knows_head():
            example = f'Environment="{_JOIN_OPTIONS}192.0.2.1 --fps 40"'
            message = f"--enable with --cluster node needs the head: {example}, in systemctl edit {_unit('node')}"
            raise InstallError(message)

    def install_steps(self, environment: Environment) -> Iterator[Callable[[], Step]]:
        """The steps that install them."""
        if self.roles:
            yield lambda: Folder(self.root / _FOLDER, 0o700)
        for unit in self.units:
            yield partial(self._unit_file, unit)
            yield partial(self._environment_file, unit, environment)

    def uninstall_steps(self) -> Iterator[Callable[[], Step]]:
        """The steps that remove them; the token, and what `systemctl edit` has written, stay."""
        there = [_unit(role) for role in self.installed() if role in self.roles]
        if self.root == Path("/") and there:
            yield lambda: Command(("systemctl", "disable", "--now", *there))
        for unit in self.units:
            yield partial(Remove, self.root / _UNITS / unit)
            yield partial(Remove, self._environment_path(unit), with_folder=True)
        if self.root == Path("/"):
            yield lambda: Command(("systemctl", "daemon-reload"))

    def _unit_file(self, unit: str) -> File:
        shipped = resources.files("streamdet.service.install").joinpath("systemd", unit)
        return File(self.root / _UNITS / unit, shipped.read_text(encoding="utf-8"))

    def _environment_file(self, unit: str, environment: Environment) -> File:
        return File(self._environment_path(unit), environment.drop_in())

    def _environment_path(self, unit: str) -> Path:
        return self.root / _UNITS / f"{unit}.d" / _ENVIRONMENT

    def _knows_head(self) -> bool:
        folder = self.root / _UNITS / f"{_unit('node')}.d"
        return any(_JOIN_OPTIONS in path.read_text(errors="replace") for path in folder.glob("*.conf"))


def _unit(role: str) -> str:
    return f"streamdet-cluster-{role}.service"
