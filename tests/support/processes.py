"""Daemons as processes of their own, with everything that they need: ports, a configuration, someone to notify."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamdet.assets import sample_clip
from streamdet.client.control import ask
from support.ports import free_ports
from support.waiting import join

PATIENCE_SECONDS = 60.0
SLOW_DAEMON = Path(__file__).parent / "servers" / "slow_daemon.py"
WALKER_DAEMON = Path(__file__).parent / "servers" / "walker_daemon.py"


def stream(name: str, url: object = None, **values: object) -> str:
    """A table of the configuration; the sample clip, again and again, where nothing else is asked for."""
    keys = {"name": name, "url": str(url or sample_clip()), **({} if url else {"loop": True}), **values}
    return "[[streams]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


class DaemonProcess:
    """A daemon; with a detector that costs nothing, unless the real command is asked for.

    Its ports and its files stay the same over `kill` and `start`.
    """

    def __init__(
        self,
        folder: Path,
        *streams: str,
        warm_up_seconds: float = 0.0,
        batch_seconds: float = 0.0,
        comes_and_goes: bool = False,
        environ: Mapping[str, str] | None = None,
        real: bool = False,
        stand_in: Path = SLOW_DAEMON,
        under: Sequence[str] = (),
        host: str = "127.0.0.1",
        publisher: str = "",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.path = folder, folder / "streamdet.toml"
        self.control_path = folder / "c"
        self.port, self.metrics_port = free_ports()
        self.endpoint = f"tcp://{host}:{self.port}"
        self._publisher = publisher
        program = ["-m", "streamdet", "run", "--config"] if real else [str(stand_in)]
        times = [] if real else [str(warm_up_seconds), str(batch_seconds)]
        detects = ["come-and-go"] if comes_and_goes else []
        self._command: Sequence[str] = [*under, sys.executable, *program, str(self.path), *times, *detects]
        self._environ = {**os.environ, **(environ or {}), "NOTIFY_SOCKET": str(folder / "n")}
        self._systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._systemd.bind(str(folder / "n"))
        self._notified: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="systemd", daemon=True)
        self._listener.start()
        self.process: Any = None
        self.write_config(*streams)

    def _listen(self) -> None:
        """Takes what the daemon says at once, as systemd does: a full socket would hold it up."""
        while word := self._systemd.recv(4096).decode():
            self._notified.put(word)

    def write_config(self, *streams: str, more: str = "") -> None:
        self.path.write_text(
            f'[publisher]\nendpoint = "{self.endpoint}"\n{self._publisher}'
            f'[metrics]\nendpoint = "127.0.0.1:{self.metrics_port}"\n'
            f'[spool]\ndirectory = "{self.folder / "spool"}"\n[control]\npath = "{self.control_path}"\n'
            + '[log]\nformat = "json"\n' * ("[log]" not in more)
            + "".join(streams or [stream("clip", max_fps=10)])
            + more
        )

    def start(self) -> Self:
        if self.process is not None:
            self.process.communicate(timeout=PATIENCE_SECONDS)
        self.process = subprocess.Popen(
            self._command, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def wait_for(self, word: str) -> None:
        """Waits until systemd is notified of this."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                if word in self._notified.get(timeout=0.2):
                    return
            assert self.process.poll() is None, self.messages()
        self.process.kill()
        raise AssertionError(self.messages())

    def ready(self) -> Self:
        self.start().wait_for("READY=1")
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def log(self) -> list[dict[str, Any]]:
        """Every line that it wrote; after its end."""
        return [json.loads(line) for line in self.process.communicate(timeout=PATIENCE_SECONDS)[1].splitlines()]

    def messages(self) -> str:
        return "\n".join(str(line["message"]) for line in self.log())

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return ask(self.control_path, method, path, body, PATIENCE_SECONDS)

    def page(self, path: str = "/metrics", timeout: float = PATIENCE_SECONDS) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=timeout) as answer:
            body: bytes = answer.read()
        return body.decode()

    def count(self, name: str, **labels: str) -> float:
        """A value of the metrics page; all of this name and with these labels together."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = re.findall(rf"^streamdet_{name}(\{{.*\}})? (\S+)$", self.page(), re.MULTILINE)
        return sum(float(value) for found, value in lines if all(label in found for label in wanted))

    def is_exact(self, stream: str, page: str = "") -> bool:
        """Whether the ledger of a stream balances, on one and the same page."""
        page = page or self.page()
        counts = {
            name: sum(
                float(value)
                for labels, value in re.findall(rf"^streamdet_frames_{name}(\{{.*\}}) (\S+)$", page, re.MULTILINE)
                if f'stream="{stream}"' in labels
            )
            for name in ("captured_total", "published_total", "dropped_total", "in_flight")
        }
        return counts["captured_total"] == sum(counts.values()) - counts["captured_total"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.communicate(timeout=PATIENCE_SECONDS)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.folder / "n"))
        join(self._listener)
        self._systemd.close()
