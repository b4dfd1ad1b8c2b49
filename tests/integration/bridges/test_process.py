"""The process of a bridge, and systemd's watchdog."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from support.waiting import PATIENCE_SECONDS

# A bridge whose only thread works until a file appears, and then hangs as in a disk that does not answer.
_PROGRAM = """
import sys, threading
from pathlib import Path
from streamdet.bridges.process import run_bridge
from streamdet.monitoring.bridge_metrics import BridgeMetrics
from streamdet.worker import Worker

class Hanging(Worker):
    join_timeout_seconds = 0.0
    quiet_seconds = 0.5

    def run(self):
        while not self.stopping and not Path(sys.argv[1]).exists():
            self.beat()
            self.sleep(0.05)
        self.sleep(600)

run_bridge(BridgeMetrics("webhook"), "127.0.0.1:0", None, lambda on_error: [Hanging("to phone", on_error)])
"""


def test_the_watchdog_is_fed_only_while_events_can_be_handed_on(tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_SECONDS)
        with subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(hang)],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            fed = 0
            while fed < 10:
                fed += systemd.recv(4096) == b"WATCHDOG=1"
            hang.touch()
            systemd.settimeout(3)
            began = time.monotonic()
            try:
                while time.monotonic() - began < PATIENCE_SECONDS:
                    systemd.recv(4096)
                is_quiet = False
            except TimeoutError:
                is_quiet = True
            process.terminate()
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert is_quiet
    assert "to phone has made no progress" in errors
    assert process.returncode == 0
