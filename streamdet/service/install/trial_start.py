"""Starts a version beside the daemon that runs, before anything is switched: what cannot start here never gets to run.

The unit of the trial is the version's own, with the drop-ins that the running unit has and a few lines after them. So
the trial has the user, the folders, the secrets, the environment and the restrictions of the service, and what it finds
out about the engines is what the service will look for. The daemon of the trial has no streams and sockets of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamdet.errors import InstallError
from streamdet.service.install.environment import Environment
from streamdet.service.install.systemctl import last_words, seconds_of_start, systemctl, unit_property

# systemd forgets these at a boot.
UNITS = Path("run/systemd/system")
_SHIPPED = "lib/python*/site-packages/streamdet/service/install/systemd"
# It runs beside a daemon whose frames are due, and is the first to go where memory is short.
_OVERRIDES = """
# ---- the trial ----
[Unit]
OnFailure=
OnSuccess=
[Service]
Type={type}
ExecStartPre=
ExecStart=
ExecStart={command}
ExecStartPost=
ExecReload=
ExecStop=
ExecStopPost=
Restart=no
RuntimeDirectory=
RuntimeDirectory=streamdet-trial
RuntimeDirectoryPreserve=no
SyslogIdentifier=streamdet-trial
TimeoutStartSec={seconds:.0f}
TimeoutStopSec=5
CPUWeight=50
OOMScoreAdjust=500
"""


@dataclass(frozen=True, slots=True)
class TrialStart:
    """The trial of one version for one daemon.

    Attributes:
        root: the system's root folder.
        unit: of the daemon that runs, such as `streamdet.service` or `streamdet@yard.service`.
        config: its configuration file.
        version: the version's folder.
        environment: what its unit must mount.
    """

    root: Path
    unit: str
    config: Path
    version: Path
    environment: Environment

    @property
    def name(self) -> str:
        """Of the trial's own unit."""
        return self.unit.replace("streamdet", "streamdet-trial", 1)

    @property
    def program(self) -> Path:
        """The version's program."""
        return self.version / "bin/streamdet"

    def try_engines(self, seconds: float) -> None:
        """Lets the version find its fastest engine, and keep the result for the service.

        Raises:
            InstallError: no engine passed, or it crashed, or took longer than `seconds`.
        """
        self._run("oneshot", f"{self.program} engines --config {self.config}", seconds)

    def start(self, seconds: float) -> float:
        """Starts the version's daemon until it is ready, and stops it.

        Returns:
            How long it took, in seconds.

        Raises:
            InstallError: it ended, or was not ready within `seconds`.
        """
        return self._run("notify", f"{self.program} run --trial --config {self.config}", seconds)

    def text(self, kind: str, command: str, seconds: float) -> str:
        """The unit file: the version's own unit, the drop-ins of this system, and what is different in a trial."""
        template = "streamdet@.service" if "@" in self.unit else "streamdet.service"
        own = next(self.version.glob(f"{_SHIPPED}/{template}"), None)
        # A version that keeps its unit elsewhere starts under the one of now.
        unit = own or self.root / "etc/systemd/system" / template
        drop_ins = unit_property(self.unit, "DropInPaths").split()
        texts = [path.read_text("utf-8") for path in (unit, *map(Path, drop_ins))]
        texts.append(self.environment.drop_in())
        return "\n".join(texts) + _OVERRIDES.format(type=kind, command=command, seconds=seconds)

    def _run(self, kind: str, command: str, seconds: float) -> float:
        before, at, _ = self.name.partition("@")
        file = self.root / UNITS / (f"{before}@.service" if at else self.name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.text(kind, command, seconds), "utf-8")
            systemctl("daemon-reload")
            try:
                systemctl("start", self.name)  # returns when it is ready, has ended, or its time is over
            except InstallError as error:
                result = unit_property(self.name, "Result")
                raise InstallError(str(error) if result == "success" else self._problem(result, seconds)) from None
            return seconds_of_start(self.name)
        except OSError as error:
            message = f"{file}: {error.strerror or error}"
            raise InstallError(message) from error
        finally:
            systemctl("stop", self.name, check=False)
            file.unlink(missing_ok=True)
            systemctl("reset-failed", self.name, check=False)
            systemctl("daemon-reload", check=False)

    def _problem(self, result: str, seconds: float) -> str:
        if result == "timeout":
            return f"it was not ready within {seconds:.0f} s"
        if result == "oom-kill":
            return f"there is not enough memory for a trial beside {self.unit}: stop that first, and try again"
        return f"it ended with {unit_property(self.name, 'ExecMainStatus')} ({result}): {last_words(self.name)}"
