# ruff: noqa: INP001 - part of a program, not a module
"""What the daemon watches, and the daemon: cameras that can be broken, a configuration, a process."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from relay import Relay

from streamdet.assets import sample_clip
from streamdet.client.control import ask
from support.ports import free_ports
from support.rtsp import RtspServer, h264

CAMERAS = ("north", "east", "south")
_CAMERA_FPS = 10
_STREAM_FPS = 3


@dataclass
class Camera:
    """A real RTSP server, and what stands between it and the daemon."""

    server: RtspServer
    relay: Relay

    @property
    def url(self) -> str:
        """As the daemon knows it."""
        return f"rtsp://127.0.0.1:{self.relay.port}/video"


class Scene:
    """Cameras and the daemon that watches them; ends both.

    Args:
        folder: for the configuration, the spool, the log and the control socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_path = folder / "streamdet.toml"
        self.result_path = folder / "result.json"
        self.control_path = folder / "control.sock"
        # Events and, at the port after that, what subscribers ask for again.
        self.port, self.metrics_port = free_ports()
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.cameras: dict[str, Camera] = {}
        self._stack = ExitStack()
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        for number, name in enumerate(CAMERAS):
            server = self._stack.enter_context(RtspServer({"/video": h264(_CAMERA_FPS)}))
            self.cameras[name] = Camera(server, self._stack.enter_context(Relay(server.port, number)))
        self.write_config()
        log = self._stack.enter_context((self.folder / "daemon.log").open("wb"))
        program = str(Path(__file__).with_name("daemon.py"))
        self.process = subprocess.Popen(  # noqa: S603 - this very program's other half
            [sys.executable, program, str(self.config_path), str(self.result_path)], stderr=log, cwd=self.folder
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._stack.close()

    def write_config(self, *, more: str = "", fps: int = _STREAM_FPS) -> None:
        """Writes the configuration; with `more` behind it."""
        streams = {name: camera.url for name, camera in self.cameras.items()} | {"clip": str(sample_clip())}
        tables = "".join(
            f'[[streams]]\nname = "{name}"\nurl = "{url}"\nmax_fps = {fps}\nstall_seconds = 3\n'
            + ("loop = true\n" if name == "clip" else "")
            for name, url in streams.items()
        )
        self.config_path.write_text(
            "[detector]\nworkers = 1\n"
            f'[publisher]\nendpoint = "{self.endpoint}"\n[metrics]\nendpoint = "127.0.0.1:{self.metrics_port}"\n'
            f'[control]\npath = "{self.control_path}"\n'
            # Full before memory is measured: what fills up to its bound is no leak.
            "[replay]\nmax_events = 1000\n"
            f'[spool]\ndirectory = "{self.folder / "spool"}"\nmax_bytes = "32 MiB"\n{tables}{more}'
            '[[rules]]\nname = "seen"\n',
            encoding="utf-8",
        )

    def ask(self, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        """Asks the daemon at its control socket."""
        return ask(self.control_path, method, path, body, timeout_seconds=30)

    def metrics(self) -> str:
        """The metrics page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            page: bytes = answer.read()
        return page.decode()
