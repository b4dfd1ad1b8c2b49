"""Puts another version in place of the one that runs, and goes back by itself if that one does not become ready.

    trial      beside each daemon that runs (`trial_start`): the engines, so that the start finds their result, and a
               start until it is ready. A failure ends the upgrade before anything has changed.
    switch     of the link /opt/streamdet/current, and of the units
    restart    the daemons first, until they report that they are ready
    way back   if one of them ends, or is not ready in time: kill it, switch to the old version, and restart that

A stream is blind from the stop of the old daemon until a daemon is ready. A version that cannot start is found by its
trial, while the old one goes on. The way back is for what only the real start shows: its time limit keeps a stream
from being blind for 30 s if the version takes 10 s or less to start.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from streamdet.config import load_config
from streamdet.detector.trial import needs_trial
from streamdet.errors import ConfigError, InstallError
from streamdet.service.install.environment import Environment
from streamdet.service.install.service import Service, perform
from streamdet.service.install.steps import line
from streamdet.service.install.systemctl import (
    active_units,
    last_line,
    last_words,
    seconds_of_start,
    systemctl,
    unit_property,
)
from streamdet.service.install.trial_start import TrialStart
from streamdet.service.install.versions import Versions, make_environment, this_release

# How long a stream may be blind, and how much of it is for a stop and the switch back to the old version.
_BLIND_SECONDS = 30.0
_SWITCH_SECONDS = 5.0
# TimeoutStopSec= of the unit.
_STOP_SECONDS = 15.0
# For the old version, to which there is no other choice.
_PATIENCE_SECONDS = 120.0
# Of the trial of the engines, which takes a minute on a GPU, and longer where an engine hangs.
_ENGINES_SECONDS = 300.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A change of the version that a system's services run; the first installation is one from no version.

    Attributes:
        service: the daemon, with what runs beside it.
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

    def switch(self, name: str) -> bool:
        """Makes a version the current one, with the units of the code that runs; restarts nothing.

        Returns:
            Whether a unit or another file was changed, or would be.
        """
        verb = "unchanged" if self.versions.current() == name else "would switch" if self.dry_run else "switch"
        self.report(line(verb, f"{self.versions.folder / 'current'} -> {name}"))
        if not self.dry_run:
            self.versions.switch(name)
        return perform(
            self.service.install_steps(self.environment, gpu=self.gpu, enable=self.enable),
            self.report, dry_run=self.dry_run,
        )  # fmt: skip

    def run(self, name: str, *, seconds: float | None, by_itself: bool) -> bool:
        """Switches to a version and restarts what runs; goes back if it is not ready in time.

        Args:
            name: of the version.
            seconds: that the daemons may take; None for what is left of 30 if the old version starts again as before.
            by_itself: whether the version's own program installs its units, because they are not those of this one.

        Returns:
            Whether what runs has to be restarted to use what was changed: its version is the same.

        Raises:
            InstallError: the version does not start here; the message says what runs now.
        """
        old, before = self.versions.current(), self.versions.previous()
        daemons = active_units("streamdet.service", "streamdet@*.service") if old != name else []
        # Its last start may have waited for the engines, the trial for the daemon that runs: the shorter one is true.
        starts = [min(self._try(unit, name, seconds), seconds_of_start(unit)) for unit in daemons]
        allowed = _seconds_allowed(starts) if seconds is None else seconds
        try:
            changed = self._switch_by_itself(name) if by_itself else self.switch(name)
        except InstallError:
            # The link may lead there already: the next start would be that of a version that is half installed.
            if old is not None and self.versions.current() != old:
                self.versions.switch(old)
                self.versions.lead_back_to(before)
            raise
        if not daemons:
            return changed and bool(active_units("streamdet.service", "streamdet@*.service"))
        problem = _restart(daemons, allowed)
        if problem is not None:
            self._go_back(old, before, daemons, f"{name} is not in use: {problem}")
        self.report(line("ready", ", ".join(daemons)))
        # They lose nothing by a restart.
        if units := active_units("streamdet-web.service", "streamdet-bridge@*.service", "streamdet-cluster-*.service"):
            systemctl("restart", "--no-block", *units)
        return False

    def prune(self, keep: int) -> None:
        """Deletes the oldest versions beyond a number of them."""
        for name in self.versions.prune(keep):
            self.report(line("delete", f"{self.versions.path_of(name)}/"))

    def _go_back(self, old: str | None, before: str | None, daemons: list[str], problem: str) -> None:
        self.report(line("not ready", problem))
        if old is None:
            raise InstallError(problem)
        # They were never ready, so they have nothing to bring to an end.
        systemctl("kill", "--signal=SIGKILL", *daemons, check=False)
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

    def _switch_by_itself(self, name: str) -> bool:
        options = ["--gpu" if self.gpu else "--no-gpu"]
        if self.service.instance:
            options += ["--instance", self.service.instance]
        options += ["--page"] if self.service.page else []
        options += [part for bridge in self.service.bridges for part in ("--bridge", bridge)]
        options += [part for role in self.service.cluster for part in ("--cluster", role)]
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
            message = f"{name} cannot install its units: {last_line(result.stderr)}"
            raise InstallError(message)
        return any(text.startswith(("create ", "replace ")) for text in result.stdout.splitlines())

    def _try(self, unit: str, name: str, limit: float | None) -> float:
        """Tries a version beside one of the daemons that run.

        Args:
            unit: of the daemon.
            name: of the version.
            limit: that it may take to be ready, in seconds; None for `_PATIENCE_SECONDS`.

        Returns:
            How long its daemon took to be ready, in seconds.

        Raises:
            InstallError: it refuses the configuration, no engine passes, or it does not become ready.
        """
        instance = unit.removesuffix(".service").partition("@")[2]
        config = replace(self.service, instance=instance, page=False, bridges=(), cluster=()).config
        trial = TrialStart(self.service.root, unit, config, self.versions.path_of(name), self.environment)
        try:
            if _needs_trial(config):
                trial.try_engines(_ENGINES_SECONDS)
                self.report(line("tried", f"{trial.program} engines --config {config}"))
            seconds = trial.start(_PATIENCE_SECONDS if limit is None else limit)
        except InstallError as error:
            message = f"{name} is not in use, and {unit} goes on: {error}"
            raise InstallError(message) from None
        self.report(line("tried", f"{trial.program} beside {unit}: ready after {seconds:.1f} s"))
        return seconds


def _needs_trial(config: Path) -> bool:
    """Whether the engine is chosen by a trial, as far as this version can read the configuration."""
    try:
        return needs_trial(load_config(config).detector)
    except ConfigError:  # such as a key of the new version, or a secret that only the service gets
        return True


def _seconds_allowed(starts: Iterable[float]) -> float:
    """How long daemons may take to be ready, so that the old ones can be ready again within 30 s.

    Where starts take long, half as long again as one is expected to take.
    """
    slowest = max(starts, default=0.0)
    return max(_BLIND_SECONDS - _SWITCH_SECONDS - slowest, 1.5 * slowest)


def _restart(units: list[str], seconds: float) -> str | None:
    """Restarts daemons, and waits until all are ready.

    Args:
        units: those that report when they are ready.
        seconds: for all of them together, from when the first one has stopped.

    Returns:
        What went wrong, in one line; None if all are ready.
    """
    before = {unit: unit_property(unit, "InvocationID") for unit in units}
    systemctl("restart", "--no-block", *units)
    deadline, waiting, has_begun = time.monotonic() + _STOP_SECONDS + seconds, list(units), False
    while waiting:
        unit = waiting[0]
        # Until its restart begins, all is as it was; and how long the old one takes to stop is not the new one's fault.
        if unit_property(unit, "InvocationID") != before[unit]:
            if not has_begun:
                deadline, has_begun = min(deadline, time.monotonic() + seconds), True
            state = unit_property(unit, "ActiveState")
            if state == "active":
                waiting.pop(0)
                continue
            if state == "failed" or unit_property(unit, "SubState") == "auto-restart":
                return f"{unit} ended with {unit_property(unit, 'ExecMainStatus')}: {last_words(unit)}"
        if time.monotonic() > deadline:
            return f"{unit} was not ready within {seconds:.0f} s"
        time.sleep(_POLL_SECONDS)
    return None
