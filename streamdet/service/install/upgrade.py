"""Puts another version in place of the one that runs, and goes back by itself if that one does not become ready.

    trial      as the service's user, beside the running service: the configuration, and the engines on this machine,
               so that the start finds their result. A failure ends the upgrade before anything has changed.
    switch     of the link /opt/streamdet/current, and of the units
    restart    the daemons first, until they report that they are ready
    way back   if one of them ends, or is not ready in time: kill it, switch to the old version, and restart that

A stream is blind from the stop of the old daemon until a daemon is ready. The time limit keeps that under 30 s also on
the way back, if the old version starts as quickly as before, in 10 s or less.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from streamdet.config import load_config
from streamdet.detector.trial import needs_trial
from streamdet.errors import ConfigError, InstallError
from streamdet.service.install.environment import Environment
from streamdet.service.install.service import Service, perform
from streamdet.service.install.steps import line
from streamdet.service.install.versions import Versions, make_environment, this_release

# How long a stream may be blind, and how much of it is for a stop and the switch back to the old version.
_BLIND_SECONDS = 30.0
_SWITCH_SECONDS = 5.0
# TimeoutStopSec= of the unit.
_STOP_SECONDS = 15.0
# For the old version, to which there is no other choice.
_PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A change of the version that a system's services run; the first installation is one from no version.

    Attributes:
        service: the daemon, with its page and bridges.
        environment: where the current version is, and what its units mount.
        report: gets a line for each step.
        gpu: whether the service may use GPUs.
        enable: whether to start it now and at every boot.
        dry_run: whether only to report.
    """

    service: Service
    environment: Environment
    report: Callable[[str], None]
    gpu: bool
    enable: bool
    dry_run: bool

    @property
    def versions(self) -> Versions:
        """The versions of the system."""
        return Versions(self.service.root)

    def before(self) -> str:
        """The version to go back to.

        Raises:
            InstallError: there is none.
        """
        name = self.versions.previous()
        if name is None:
            message = f"there is no version to go back to in {self.versions.folder}"
            raise InstallError(message)
        return name

    def make(self, wheel: Path | None) -> str:
        """The version of this environment, or of a wheel with the packages of this environment.

        Raises:
            InstallError: it cannot be made.
        """
        if wheel is None and (this := self.versions.this()) is not None:
            return this
        release = this_release(wheel)
        name, is_there = release.name_in(self.versions)
        verb = "unchanged" if is_there else "would create" if self.dry_run else "create"
        self.report(line(verb, f"{self.versions.path_of(name)}/"))
        if not is_there and not self.dry_run:
            make_environment(release, self.versions, name)
        return name

    def switch(self, name: str) -> None:
        """Makes a version the current one, with the units of the code that runs; restarts nothing."""
        verb = "unchanged" if self.versions.current() == name else "would switch" if self.dry_run else "switch"
        self.report(line(verb, f"{self.versions.folder / 'current'} -> {name}"))
        if not self.dry_run:
            self.versions.switch(name)
        perform(
            self.service.install_steps(self.environment, gpu=self.gpu, enable=self.enable),
            self.report, dry_run=self.dry_run,
        )  # fmt: skip

    def run(self, name: str, *, seconds: float | None, by_itself: bool) -> None:
        """Switches to a version and restarts what runs; goes back if it is not ready in time.

        Args:
            name: of the version.
            seconds: that the daemons may take; None for what is left of 30 if the old version starts again as before.
            by_itself: whether the version's own program installs its units, because they are not those of this one.

        Raises:
            InstallError: the version does not start here; the message says what runs now.
        """
        old, before = self.versions.current(), self.versions.previous()
        daemons = _active("streamdet.service", "streamdet@*.service") if old != name else []
        if daemons:
            self._try(self.versions.path_of(name) / "bin/streamdet")
            allowed = _seconds_allowed(daemons) if seconds is None else seconds
        try:
            if by_itself:
                self._switch_by_itself(name)
            else:
                self.switch(name)
        except InstallError:
            # The link may lead there already: the next start would be that of a version that is half installed.
            if old is not None and self.versions.current() != old:
                self.versions.switch(old)
                self.versions.lead_back_to(before)
            raise
        if not daemons:
            return
        problem = _restart(daemons, allowed)
        if problem is not None:
            self._go_back(old, before, daemons, f"{name} is not in use: {problem}")
        self.report(line("ready", ", ".join(daemons)))
        # They lose nothing by a restart.
        if units := _active("streamdet-web.service", "streamdet-bridge@*.service"):
            _systemctl("restart", "--no-block", *units)

    def prune(self, keep: int) -> None:
        """Deletes the oldest versions beyond a number of them."""
        for name in self.versions.prune(keep):
            self.report(line("delete", f"{self.versions.path_of(name)}/"))

    def _go_back(self, old: str | None, before: str | None, daemons: list[str], problem: str) -> None:
        self.report(line("not ready", problem))
        if old is None:
            raise InstallError(problem)
        # They were never ready, so they have nothing to bring to an end.
        _systemctl("kill", "--signal=SIGKILL", *daemons, check=False)
        try:
            self._switch_by_itself(old)
        except InstallError as error:
            # Such as an older program that does not know a bridge: it runs with the units that are there.
            self.report(line("failed", str(error)))
            self.versions.switch(old)
        self.versions.lead_back_to(before)
        again = _restart(daemons, _PATIENCE_SECONDS)
        message = f"{problem}; {old} {'runs again' if again is None else f'does not start either: {again}'}"
        raise InstallError(message)

    def _switch_by_itself(self, name: str) -> None:
        options = ["--gpu" if self.gpu else "--no-gpu"]
        if self.service.instance:
            options += ["--instance", self.service.instance]
        options += ["--page"] if self.service.page else []
        options += [part for bridge in self.service.bridges for part in ("--bridge", bridge)]
        options += ["--enable"] if self.enable else []
        program = str(self.versions.path_of(name) / "bin/streamdet")
        command = [program, "install-service", "--only-switch", *options]
        try:
            result = subprocess.run(  # noqa: S603 - our own program
                command, capture_output=True, text=True, check=False, timeout=_PATIENCE_SECONDS
            )
        except subprocess.TimeoutExpired:
            message = f"{name} cannot install its units: it took more than {_PATIENCE_SECONDS:.0f} s"
            raise InstallError(message) from None
        for text in result.stdout.splitlines():
            self.report(text)
        if result.returncode != 0:
            message = f"{name} cannot install its units: {_last_line(result.stderr)}"
            raise InstallError(message)

    def _try(self, program: Path) -> None:
        """Lets a version check the configuration and try the engines, as the service's user.

        The results of the engines are kept where the service looks for them.

        Raises:
            InstallError: the version does not start, or refuses the configuration.
        """
        name, config = self.service.instance or "streamdet", str(self.service.config)
        properties = [
            f"User={self.service.user}", f"Group={self.service.user}", f"StateDirectory=streamdet/{name}",
            "StateDirectoryMode=0750", f"CacheDirectory=streamdet/{name}", "CacheDirectoryMode=0750",
            f"LoadCredential=secret:{self.service.secrets}",
            f"Environment=HOME=/var/lib/streamdet/{name} XDG_CACHE_HOME=/var/cache/streamdet/{name}",
            "ProtectHome=tmpfs", "PrivateTmp=yes", "ProtectSystem=strict", "NoNewPrivileges=yes", "Nice=5",
            "RuntimeMaxSec=300", *(f"BindReadOnlyPaths={folder}" for folder in self.environment.hidden()),
        ]  # fmt: skip
        options = [part for text in properties for part in ("--property", text)]
        trials = [(["check"], True), *([(["engines", "--config"], False)] if _needs_trial(self.service.config) else [])]
        for arguments, must_pass in trials:
            command = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", *options, "--"]
            command += [str(program), *arguments, config]
            result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            verb = "tried" if result.returncode == 0 else "failed"
            self.report(line(verb, f"{program} {' '.join(arguments)} {config}"))
            if result.returncode != 0 and must_pass:
                message = f"{program.parent.parent.name} is not in use: {_last_line(result.stderr or result.stdout)}"
                raise InstallError(message)


def _needs_trial(config: Path) -> bool:
    """Whether the engine is chosen by a trial, as far as this version can read the configuration."""
    try:
        return needs_trial(load_config(config).detector)
    except ConfigError:  # such as a key of the new version, or a secret that only the service gets
        return True


def _active(*patterns: str) -> list[str]:
    """The units of these names that run or are being started."""
    output = _systemctl("list-units", "--plain", "--no-legend", "--state=active,activating,reloading", *patterns)
    return [text.split()[0] for text in output.splitlines() if text.strip()]


def _seconds_allowed(units: Iterable[str]) -> float:
    """How long daemons may take to be ready, so that the old ones can be ready again within 30 s.

    Where starts take long, half as long again as the last one.
    """
    slowest = max(map(_seconds_of_start, units), default=0.0)
    return max(_BLIND_SECONDS - _SWITCH_SECONDS - slowest, 1.5 * slowest)


def _seconds_of_start(unit: str) -> float:
    begin, ready = (
        int(_property(unit, name) or 0) for name in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    )
    return max(ready - begin, 0) / 1e6


def _restart(units: list[str], seconds: float) -> str | None:
    """Restarts daemons, and waits until all are ready.

    Args:
        units: those that report when they are ready.
        seconds: for all of them together, from when the first one has stopped.

    Returns:
        What went wrong, in one line; None if all are ready.
    """
    before = {unit: _property(unit, "InvocationID") for unit in units}
    _systemctl("restart", "--no-block", *units)
    deadline, waiting, has_begun = time.monotonic() + _STOP_SECONDS + seconds, list(units), False
    while waiting:
        unit = waiting[0]
        # Until its restart begins, all is as it was; and how long the old one takes to stop is not the new one's fault.
        if _property(unit, "InvocationID") != before[unit]:
            if not has_begun:
                deadline, has_begun = min(deadline, time.monotonic() + seconds), True
            state = _property(unit, "ActiveState")
            if state == "active":
                waiting.pop(0)
                continue
            if state == "failed" or _property(unit, "SubState") == "auto-restart":
                return f"{unit} ended with {_property(unit, 'ExecMainStatus')}: {_last_line(_journal(unit))}"
        if time.monotonic() > deadline:
            return f"{unit} was not ready within {seconds:.0f} s"
        time.sleep(_POLL_SECONDS)
    return None


def _property(unit: str, name: str) -> str:
    return _systemctl("show", "--value", "--property", name, unit).strip()


def _journal(unit: str) -> str:
    command = ["journalctl", "--no-pager", "--output=cat", "--lines=20", f"_SYSTEMD_UNIT={unit}"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout  # noqa: S603 - fixed


def _systemctl(*arguments: str, check: bool = True) -> str:
    command = ["systemctl", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
    if check and result.returncode != 0:
        message = f"{' '.join(command)} failed: {_last_line(result.stderr)}"
        raise InstallError(message)
    return result.stdout


def _last_line(text: str) -> str:
    lines = [part.strip() for part in text.splitlines() if part.strip()]
    return lines[-1][:300] if lines else "it wrote nothing"
