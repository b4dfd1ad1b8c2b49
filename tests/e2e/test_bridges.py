"""Bridges as processes beside a daemon: what is killed, loses and doubles nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.ports import free_ports
from support.processes import DaemonProcess, stream
from support.receiver import Receiver
from support.spools import kept_events
from support.waiting import wait_until

PATIENCE_SECONDS = 30.0
RULE = '[[rules]]\nname = "seen"\n'


class Bridge:
    """A bridge to one receiver."""

    def __init__(self, config: Path, port: int) -> None:
        self.port = port
        self._command = [sys.executable, "-m", "streamdet", "bridge", "webhook", "--config", str(config)]
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        return self.process

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_SECONDS)

    def count(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE_SECONDS) as answer:
            page = answer.read().decode()
        found = re.search(rf'^streamdet_bridge_{name}{{bridge="webhook",target="pager"}} (\S+)$', page, re.MULTILINE)
        assert found is not None, page
        return float(found[1])


@contextmanager
def bridge_to(receiver: Receiver, daemon: DaemonProcess, more: str = "") -> Iterator[Bridge]:
    _, port = free_ports()
    webhooks = (
        f'[bridges]\nwebhook_metrics_endpoint = "127.0.0.1:{port}"\n[[webhooks]]\nname = "pager"\n'
        f'url = "{receiver.url}"\nallow_private = true\nevents = ["raised", "cleared", "ended"]\n'
        f"retry_seconds = 0.05\n{more}"
    )
    streams = [stream(name, max_fps=20, track_max_lost_seconds=0.3) for name in ("one", "two")]
    daemon.write_config(*streams, more=RULE + webhooks)
    daemon.ready()
    bridge = Bridge(daemon.path, port)
    try:
        yield bridge
    finally:
        bridge.kill()


def wanted(daemon: DaemonProcess) -> list[str]:
    """The keys of the alerts and ended objects that were published, in order."""
    found = [event for event in kept_events(daemon.folder / "spool") if event["phase"] in ("raised", "cleared", "end")]
    return [f"{event['epoch']}:{event['type']}/{event['stream']}/{event['seq']}" for event in found]


@pytest.mark.slow
def test_kills_on_all_sides_lose_no_alert_and_double_none(tmp_path: Path) -> None:
    with Receiver() as receiver, DaemonProcess(tmp_path / "d", comes_and_goes=True) as daemon:
        with bridge_to(receiver, daemon) as bridge:
            receiver.wait_for(6)
            receiver.then = 503
            came = len(receiver.received)
            wait_until(lambda: len(receiver.received) > came + 2, "it is tried again")
            bridge.kill()  # with an event that waits for its receiver
            daemon.end(signal.SIGKILL)
            daemon.ready()
            receiver.then = 200
            bridge.start()
            receiver.wait_for(len(receiver.taken) + 10)
            daemon.end(signal.SIGKILL)
            daemon.ready()
            receiver.wait_for(len(receiver.taken) + 10)
            bridge.kill()
            bridge.start()
            receiver.wait_for(len(receiver.taken) + 5)
            assert bridge.count("daemon_connected") == 1
            assert daemon.end() == 0
            wait_until(lambda: bridge.count("daemon_connected") == 0, "the bridge notices that the daemon has gone")
            published = wanted(daemon)
            # The first ones may have been published before the bridge was there.
            published = published[published.index(receiver.keys[0]) :]
            daemon.ready()  # the last ones may be asked for only now
            wait_until(lambda: set(published) <= set(receiver.keys), "all of them")
            assert bridge.process.poll() is None
        keys = receiver.keys
        # A kill may fall between the answer and the note of it: then the event comes again, and with the same key.
        assert len(keys) - len(set(keys)) <= 2


@pytest.mark.slow
def test_sigterm_ends_it_while_an_event_waits_and_secrets_stay_secret(tmp_path: Path) -> None:
    with Receiver(then=500) as receiver, DaemonProcess(tmp_path / "d", comes_and_goes=True) as daemon:
        keys = 'secret = "signed-and-sealed"\nheaders = { Authorization = "Bearer 0815-token" }\n'
        with bridge_to(receiver, daemon, keys) as bridge:
            wait_until(lambda: len(receiver.received) > 2, "it is tried again")
            assert bridge.count("queue_events") >= 1
            assert bridge.count("lag_seconds") > 0
            assert bridge.count("events_total") == 0
            bridge.process.terminate()
            _, log = bridge.process.communicate(timeout=PATIENCE_SECONDS)
            assert bridge.process.returncode == 0, log
            for value in ("signed-and-sealed", "0815-token", "secret-token-4711"):
                assert value not in log
            assert "webhook pager: the receiver answered 500" in log
            state = json.loads((daemon.folder / "streamdet.bridges/webhook/pager.json").read_text())
            assert state["position"]


@pytest.mark.parametrize(
    ("bridge", "missing"), [("webhook", "has no [[webhooks]]"), ("mqtt", "has no broker in [mqtt]")]
)
def test_it_starts_without_torch_and_needs_somewhere_to_send(tmp_path: Path, bridge: str, missing: str) -> None:
    path = tmp_path / "streamdet.toml"
    path.write_text('[[streams]]\nname = "a"\nurl = "rtsp://${NOT_KNOWN_HERE}@192.0.2.5/x"\n')
    code = (
        "import sys; from streamdet.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'cv2', 'av'} & set(sys.modules), 'too much is imported'"
    )
    command = [sys.executable, "-c", code, "bridge", bridge, "--config", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert (result.returncode, missing in result.stderr) == (2, True), result.stderr
