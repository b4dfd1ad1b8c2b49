"""The MQTT bridge as a process, between a real daemon and a real Mosquitto, all of which are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.mosquitto import Listener, Mosquitto, listener_of
from support.processes import DaemonProcess, stream
from support.spools import kept_events
from support.waiting import wait_until

PATIENCE_SECONDS = 30.0
RIGHT = "right-word-4711"


class Bridge:
    def __init__(self, config: Path) -> None:
        self._command = [sys.executable, "-m", "streamdet", "bridge", "mqtt", "--config", str(config)]
        self.process: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)

    def kill(self) -> str:
        self.process.kill()
        return self.process.communicate(timeout=PATIENCE_SECONDS)[1]


@contextmanager
def bridge_between(daemon: DaemonProcess, broker: Mosquitto) -> Iterator[Bridge]:
    tables = (
        f'[mqtt]\nbroker = "mqtt://127.0.0.1:{broker.port}"\nprefix = "s"\nmetrics_endpoint = "127.0.0.1:0"\n'
        f'username = "bridge"\npassword = "{RIGHT}"\n[pictures]\ndirectory = "pictures"\n'
        '[[rules]]\nname = "seen"\npicture = true\n'
    )
    daemon.write_config(stream("yard", max_fps=20, track_max_lost_seconds=0.3), more=tables)
    daemon.ready()
    bridge = Bridge(daemon.path)
    try:
        yield bridge
    finally:
        bridge.kill()


def alerts(listener: Listener) -> list[tuple[str, int]]:
    """Epoch and number of the alerts that a listener was sent, in order."""
    found = [json.loads(payload) for payload in listener.topic("s/yard/alerts/seen")]
    return [(one["epoch"], one["seq"]) for one in found]


def published(daemon: DaemonProcess) -> list[tuple[str, int]]:
    events = kept_events(daemon.folder / "spool")
    return [(one["epoch"], one["seq"]) for one in events if one["type"] == "alerts"]


@pytest.mark.slow
@pytest.mark.package("mosquitto")
def test_kills_of_bridge_broker_and_daemon_lose_no_alert(tmp_path: Path) -> None:
    with (
        Mosquitto(tmp_path, password=RIGHT) as broker,
        DaemonProcess(tmp_path / "d", comes_and_goes=True) as daemon,
        listener_of(broker, RIGHT) as listener,
        bridge_between(daemon, broker) as bridge,
    ):
        wait_until(lambda: len(alerts(listener)) > 3, "alerts")
        bridge.kill()
        listener.wait_for("s/availability", b"offline")
        daemon.end(signal.SIGKILL)
        daemon.ready()
        bridge.start()
        came = len(alerts(listener))
        wait_until(lambda: len(alerts(listener)) > came + 5, "alerts of both epochs")
        bridge.process.send_signal(signal.SIGSTOP)
        broker.kill()
        listener.subscribed.clear()
        broker.start()
        assert listener.subscribed.wait(PATIENCE_SECONDS)
        bridge.process.send_signal(signal.SIGCONT)
        came = len(alerts(listener))
        wait_until(lambda: len(alerts(listener)) > came + 5, "alerts after the broker's death")
        all_of_them = published(daemon)
        wait_until(lambda: set(all_of_them[-3:]) <= set(alerts(listener)), "the last ones")
        found = list(dict.fromkeys(alerts(listener)))
        # The first ones may have been published before the bridge was there, and others since it was looked.
        expected = all_of_them[all_of_them.index(found[0]) :]
        assert found[: len(expected)] == expected
        assert daemon.end() == 0
        assert any(payload.startswith(b"\xff\xd8") for payload in listener.topic("s/yard/picture"))
        bridge.process.terminate()
        _, log = bridge.process.communicate(timeout=PATIENCE_SECONDS)
        assert bridge.process.returncode == 0, log
        assert RIGHT not in log
