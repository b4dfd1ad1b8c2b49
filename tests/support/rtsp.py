"""Starts, stops and kills real RTSP servers."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.waiting import join

_SCRIPT = Path(__file__).parent / "servers" / "rtsp_server.py"

_PATTERN = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,format=I420,framerate={fps}/1"
# One slice per picture: between the slices of a key frame the payloader would put parameter sets, where FFmpeg begins
# another picture, so that every key frame would count twice.
_X264 = "x264enc tune=zerolatency sliced-threads=false threads=1 speed-preset=ultrafast key-int-max=10"
ENCODED = f"{_X264} ! rtph264pay name=pay0 config-interval=-1"


def h264(fps: int = 25) -> str:
    return f"{_PATTERN.format(fps=fps)} ! {ENCODED}"


_X265 = "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=10"
H265 = f"{_PATTERN.format(fps=10)} ! {_X265} ! rtph265pay name=pay0"
MJPEG = f"{_PATTERN.format(fps=10)} ! jpegenc ! rtpjpegpay name=pay0"
AUDIO = "audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay0"
# An encoding that FFmpeg does not know.
UNKNOWN_CODEC = f"{_PATTERN.format(fps=10)} ! jpegenc ! rtpgstpay name=pay0"
TWO_SIZES = (
    "videotestsrc is-live=true num-buffers=10 ! video/x-raw,width=320,height=240,framerate=10/1 ! all. "
    "videotestsrc is-live=true ! video/x-raw,width=480,height=360,framerate=10/1 ! all. "
    f"concat name=all ! {ENCODED}"
)


class RtspServer:
    """A server process on a free port of 127.0.0.1; it keeps its port over `kill` and `start`.

    Attributes:
        plays: how often clients have begun to play, by path.
    """

    def __init__(
        self,
        mounts: Mapping[str, str] | None = None,
        *,
        transport: str | None = None,
        login: Mapping[str, str] | None = None,
        tls: Mapping[str, str] | None = None,
        udp_ports: tuple[int, int] | None = None,
        shared: bool = True,
        address: str = "127.0.0.1",
        under: Sequence[str] = (),
    ) -> None:
        launches = mounts or {"/video": h264()}
        self._wanted: dict[str, Any] = {
            "port": 0,
            "address": address,
            "login": login,
            "tls": tls,
            "shared": shared,
            "udp_ports": udp_ports,
            "mounts": {path: {"launch": launch, "transport": transport} for path, launch in launches.items()},
        }
        self._under = under
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self.plays: Counter[str] = Counter()

    @property
    def port(self) -> int:
        port: int = self._wanted["port"]
        return port

    def url(self, path: str = "/video", login: str = "", scheme: str = "rtsp", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{login + '@' if login else ''}{host}:{self.port}{path}"

    def start(self) -> Self:
        command = [*self._under, "/usr/bin/python3", str(_SCRIPT), json.dumps(self._wanted)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            message = self._process.communicate()[1]
            raise AssertionError(message)
        self._wanted["port"] = int(line)
        self._thread = threading.Thread(target=self._count, args=(self._process.stdout,), daemon=True)
        self._thread.start()
        return self

    def _count(self, output: Iterable[str]) -> None:
        self.plays.update(line.rstrip("\n") for line in output)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            assert self._thread is not None
            join(self._thread)
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
