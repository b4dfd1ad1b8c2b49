"""What systemd says about units and is asked to do with them; all of it by `systemctl` and `journalctl`."""

from __future__ import annotations

import subprocess

from streamdet.errors import InstallError


def systemctl(*arguments: str, check: bool = True) -> str:
    """Runs systemctl.

    Returns:
        What it printed.

    Raises:
        InstallError: it failed; not without `check`.
    """
    command = ["systemctl", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
    if check and result.returncode != 0:
        message = f"{' '.join(command)} failed: {last_line(result.stderr)}"
        raise InstallError(message)
    return result.stdout


def active_units(*patterns: str) -> list[str]:
    """The units of these names that run or are being started."""
    output = systemctl("list-units", "--plain", "--no-legend", "--state=active,activating,reloading", *patterns)
    return [text.split()[0] for text in output.splitlines() if text.strip()]


def unit_property(unit: str, name: str) -> str:
    """A property of a unit, as text; empty if it has none."""
    return systemctl("show", "--value", "--property", name, unit).strip()


def seconds_of_start(unit: str) -> float:
    """How long a unit's main process took to be ready, at its last start."""
    begin, ready = (
        int(unit_property(unit, name) or 0)
        for name in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    )
    return max(ready - begin, 0) / 1e6


def last_words(unit: str) -> str:
    """The last line that the processes of a unit's last start have logged."""
    command = ["journalctl", "--no-pager", "--output=cat", "--lines=20", f"_SYSTEMD_UNIT={unit}"]
    if invocation := unit_property(unit, "InvocationID"):
        command.append(f"_SYSTEMD_INVOCATION_ID={invocation}")
    return last_line(subprocess.run(command, check=False, capture_output=True, text=True).stdout)  # noqa: S603 - fixed


def last_line(text: str) -> str:
    """The last line of a text that is not empty."""
    lines = [part.strip() for part in text.splitlines() if part.strip()]
    return lines[-1][:300] if lines else "it wrote nothing"
