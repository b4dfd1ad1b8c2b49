"""Notifies systemd of what the service does, as sd_notify(3) describes it; does nothing outside of a service."""

from __future__ import annotations

import logging
import os
import socket
import time

from streamdet.monitoring.log import LogThrottle

_log = logging.getLogger(__name__)
_throttle = LogThrottle()

# systemd reads at once; a full socket must not block the main thread for longer than this.
_SEND_TIMEOUT_SECONDS = 1.0


def ready() -> None:
    """The start, or a reload, is over."""
    _notify("READY=1")


def reloading() -> None:
    """A reload begins; `ready` ends it."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The end begins."""
    _notify("STOPPING=1")


def status(text: str) -> None:
    """One line for `systemctl status`."""
    # A line break would begin another assignment.
    _notify("STATUS=" + " ".join(text.split()))


def extend_start(seconds: float) -> None:
    """The start goes on: it may take this much longer from now on, whatever TimeoutStartSec= says."""
    _notify(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")


def watchdog() -> None:
    """The service makes progress."""
    _notify("WATCHDOG=1")


def watchdog_interval_seconds() -> float | None:
    """The longest time that may pass between two calls of `watchdog`; None when systemd does not watch.

    sd_watchdog_enabled(3) recommends to call it after half of that.
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid not in {"", str(os.getpid())}:
        return None
    return int(microseconds) / 1e6


def _notify(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        # Linux's abstract namespace.
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifications:
            notifications.settimeout(_SEND_TIMEOUT_SECONDS)
            notifications.sendto(message.encode(), address)
    except OSError as error:
        # Detection goes on; systemd decides whether a watchdog that is not fed ends it.
        _throttle.log(_log, logging.WARNING, "cannot send %s to systemd: %s", message.partition("=")[0], error)
