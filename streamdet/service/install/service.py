"""The steps of an installation, in order, and those that remove it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from streamdet.config.bridges import BRIDGES
from streamdet.errors import InstallError
from streamdet.service.install import completion
from streamdet.service.install.bridges import Bridges
from streamdet.service.install.cluster import ClusterUnits
from streamdet.service.install.environment import Environment
from streamdet.service.install.page import PageChanges
from streamdet.service.install.steps import SETTLED, Command, File, Folder, Link, Remove, Step, line
from streamdet.service.install.versions import RemoveVersions, Versions

GROUP = "streamdet"
# The name of an instance becomes part of the names of units, files, folders and its user, which has 31 characters.
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}")
# What sd_booted(3) looks for.
BOOTED = Path("/run/systemd/system")
_UNITS = Path("etc/systemd/system")
_PAGE = "streamdet-web.service"
_CHANGES = "20-changes.conf"
_LINK = Path("usr/local/bin/streamdet")


@dataclass(frozen=True, slots=True)
class Service:
    """One service on one system.

    Attributes:
        root: the system's root folder; other than / for a system that does not run (an image).
        instance: the name of one of several services; empty for the only one.
        page: whether the page belongs to it, as a service of its own.
        bridges: names of the bridges that belong to it, each as a service of its own.
        cluster: what of a cluster runs beside it, as `ClusterUnits.roles`.
    """

    root: Path = Path("/")
    instance: str = ""
    page: bool = False
    bridges: tuple[str, ...] = ()
    cluster: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.instance and not _INSTANCE.fullmatch(self.instance):
            message = f'an instance cannot be named "{self.instance}": use up to 21 letters, digits, and - _ within'
            raise InstallError(message)
        if self.instance == GROUP:
            message = f'the instance "{GROUP}" would share everything with {GROUP}.service: use another name'
            raise InstallError(message)

    @property
    def unit(self) -> str:
        """The name for systemctl."""
        return f"streamdet@{self.instance}.service" if self.instance else "streamdet.service"

    @property
    def units(self) -> tuple[str, ...]:
        """The names of all its units."""
        others = (*Bridges(self.root, self.bridges).units, *ClusterUnits(self.root, self.cluster).units)
        return (self.unit, *([_PAGE] if self.page else []), *others)

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.root / f"etc/streamdet/{self.instance or 'streamdet'}.toml"

    @property
    def user(self) -> str:
        """Its user and its group, which no other instance shares."""
        return f"{GROUP}-{self.instance}" if self.instance else GROUP

    @property
    def secrets(self) -> Path:
        """The folder of its secrets."""
        return self.root / "etc/streamdet" / (f"{self.instance}.secrets" if self.instance else "secrets")

    @property
    def is_running_system(self) -> bool:
        """Whether systemctl acts on this system."""
        return self.root == Path("/")

    def check_system(self) -> None:
        """Checks that a service can be installed here.

        Raises:
            InstallError: not root, or no systemd.
        """
        if self.is_running_system and os.geteuid() != 0:
            message = "only root can install a service: use sudo (--dry-run shows what would be done)"
            raise InstallError(message)
        if self.is_running_system and not BOOTED.is_dir():
            message = "systemd does not run here; --root FOLDER installs into the folder of another system"
            raise InstallError(message)

    def install_steps(self, environment: Environment, *, gpu: bool, enable: bool) -> Iterator[Callable[[], Step]]:
        """The steps, each made when it is due: the group is known only once it has been created."""
        units, shipped = self.root / _UNITS, resources.files("streamdet.service.install")
        template = "streamdet@.service" if self.instance else "streamdet.service"
        users = self.root / f"etc/sysusers.d/{self.user}.conf"

        # Before anything is done: what is wrong here would otherwise be left half installed.
        changes = PageChanges.of(self.config, Path("/etc/streamdet"), self.user) if self.page else None

        def text(name: str) -> str:
            return shipped.joinpath(name).read_text(encoding="utf-8")

        yield lambda: File(users, text("systemd/sysusers.conf").replace(f" {GROUP} ", f" {self.user} "))
        if os.geteuid() == 0:
            options = () if self.is_running_system else (f"--root={self.root}",)
            yield lambda: Command(("systemd-sysusers", *options, users.name))
        # Users of instances only pass through: each file in it has the one group that may read it.
        yield lambda: Folder(self.root / "etc/streamdet", 0o751 if self.instance else 0o750, self._group(GROUP))
        yield lambda: Folder(self.secrets, 0o700)
        kept = "yours: never overwritten"
        yield lambda: File(self.config, text("streamdet.toml"), 0o640, self._group(self.user), kept)
        yield lambda: File(units / template, text(f"systemd/{template}"))
        yield lambda: File(units / f"{template}.d/10-environment.conf", environment.drop_in())
        if gpu:
            yield lambda: File(units / f"{template}.d/gpu.conf", text("systemd/streamdet.service.d/gpu.conf"))
        if self.page:
            yield from self._page_steps(text(f"systemd/{_PAGE}"), environment, changes)
        if not self.instance:
            yield from Bridges(self.root, self.bridges).install_steps(environment)
            yield from ClusterUnits(self.root, self.cluster).install_steps(environment)
        link = Link(self.root / _LINK, environment.scripts / "streamdet")
        yield lambda: link
        if link.verb() not in ("kept", "left out"):  # else the name is another program's, or the folder is read-only
            yield from completion.install_steps(self.root)
        if self.is_running_system:
            yield lambda: Command(("systemctl", "daemon-reload"))
            if enable:
                yield lambda: Command(("systemctl", "enable", "--now", *self.units))

    def _page_steps(
        self, unit: str, environment: Environment, changes: PageChanges | None
    ) -> Iterator[Callable[[], Step]]:
        page, folder = self.root / _UNITS / _PAGE, self.root / _UNITS / f"{_PAGE}.d"
        yield lambda: File(page, unit)
        yield lambda: File(folder / "10-environment.conf", environment.drop_in())
        if changes is not None:
            yield lambda: File(folder / _CHANGES, changes.drop_in())
        elif (folder / _CHANGES).exists():
            yield lambda: Remove(folder / _CHANGES)

    def has_page(self) -> bool:
        """Whether the page is installed."""
        return (self.root / _UNITS / _PAGE).exists()

    def has_link(self, environment: Environment) -> bool:
        """Whether the program's link in /usr/local/bin points to this one."""
        link = self.root / _LINK
        return link.is_symlink() and link.readlink() == environment.scripts / "streamdet"

    def uninstall_steps(self) -> Iterator[Callable[[], Step]]:
        """The steps that remove the service; configuration, secrets, state and user stay."""
        units = self.root / _UNITS
        template = "streamdet@.service" if self.instance else "streamdet.service"
        if self.is_running_system and (units / template).exists():
            yield lambda: Command(("systemctl", "disable", "--now", self.unit))
        if not self._others():
            yield lambda: Remove(units / template)
            yield lambda: Remove(units / f"{template}.d/10-environment.conf", with_folder=True)
            yield lambda: Remove(units / f"{template}.d/gpu.conf", with_folder=True)
        if not self.instance:
            yield from self._uninstall_beside()
        if not any((units / name).exists() for name in {"streamdet.service", "streamdet@.service"} - {template}):
            link = self.root / _LINK
            if link.is_symlink() and not self._others():
                yield lambda: Remove(link)
                yield from completion.uninstall_steps(self.root)
            if not self._others():
                yield lambda: RemoveVersions(Versions(self.root))
        if self.is_running_system:
            yield lambda: Command(("systemctl", "daemon-reload"))

    def _uninstall_beside(self) -> Iterator[Callable[[], Step]]:
        units = self.root / _UNITS
        if self.has_page():
            if self.is_running_system:
                yield lambda: Command(("systemctl", "disable", "--now", _PAGE))
            yield lambda: Remove(units / _PAGE)
            yield lambda: Remove(units / f"{_PAGE}.d/{_CHANGES}")
            yield lambda: Remove(units / f"{_PAGE}.d/10-environment.conf", with_folder=True)
        if Bridges(self.root).are_there:
            yield from Bridges(self.root, BRIDGES).uninstall_steps()
        if of_cluster := ClusterUnits(self.root).installed():
            yield from ClusterUnits(self.root, of_cluster).uninstall_steps()

    def _others(self) -> list[Path]:
        """Other enabled instances, which need the template."""
        wants = self.root / _UNITS / "multi-user.target.wants"
        return [p for p in wants.glob("streamdet@*.service") if p.name != self.unit] if self.instance else []

    def _group(self, name: str) -> int | None:
        """The number of a group; None while it does not exist (a dry run, or no right to make it)."""
        try:
            lines = (self.root / "etc/group").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return None
        numbers = {line.split(":")[0]: line.split(":")[2] for line in lines if line.count(":") >= 3}
        return int(numbers[name]) if name in numbers and os.geteuid() == 0 else None


def perform(steps: Iterator[Callable[[], Step]], report: Callable[[str], None], *, dry_run: bool) -> bool:
    """Does the steps one after the other, and reports each.

    Returns:
        Whether any file was changed, or would be.

    Raises:
        InstallError: a step is not possible; the ones before it stay done.
    """
    changed = False
    for make in steps:
        step = make()
        try:
            verb = step.verb()
            settled = verb in SETTLED
            report(line(verb if settled or not dry_run else f"would {verb}", step))
            if not settled and not dry_run:
                step.do()
        except OSError as error:
            message = f"{step}: {error.strerror or error}"
            raise InstallError(message) from error
        changed = changed or (not settled and not isinstance(step, Command))
    return changed
