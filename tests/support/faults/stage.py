"""The servers of a scene, healthy all of them, and the ways to put something before them."""

from __future__ import annotations

import subprocess
import zlib
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from support import rtsp
from support.capturing import SECRET
from support.certificates import make_certificate
from support.faults import media
from support.faults.front import HEALTHY, Behaviour, Front, Units, Weather
from support.faults.media import Live
from support.faults.names import NameServer
from support.faults.player import Channel, Player, Writer
from support.hls import LiveHls, make_hls
from support.rtsp import RtspServer
from support.web import WebServer

LOGIN = f"user:{SECRET}"
_SNOW = "videotestsrc is-live=true pattern=snow ! video/x-raw,width=320,height=240,format=I420,framerate=10/1"
MOUNTS = {"/ball": rtsp.h264(10), "/snow": f"{_SNOW} ! {rtsp.ENCODED}", "/jpeg": rtsp.MJPEG, "/audio": rtsp.AUDIO}


class Stage:
    """Enter it; what is asked for is started when it is first asked for, and ends with it.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()

    @cached_property
    def weather(self) -> Weather:
        return self._stack.enter_context(Weather())

    @cached_property
    def web(self) -> WebServer:
        return self._stack.enter_context(WebServer())

    @cached_property
    def player(self) -> Player:
        return self._stack.enter_context(Player())

    @cached_property
    def rtsp(self) -> RtspServer:
        return self.server(RtspServer(MOUNTS))

    @cached_property
    def names(self) -> NameServer:
        return self._stack.enter_context(NameServer())

    @cached_property
    def devices(self) -> Path:
        """A folder for what is taken for devices, which must be below /dev."""
        return Path(self._stack.enter_context(TemporaryDirectory(prefix="streamdet-", dir="/dev/shm")))

    @cached_property
    def certificates(self) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
        """One that is trusted, and one that is not."""
        folders = self.folder / "trusted", self.folder / "other"
        for folder in folders:
            folder.mkdir()
        return make_certificate(folders[0]), make_certificate(folders[1])

    @cached_property
    def live(self) -> Live:
        """What players send when all is well: 10 frames of 64x48 a second, from 5000 s of their clock on."""
        return media.retimed(media.video(), lambda seconds: seconds + 5000)

    def server(self, server: RtspServer) -> RtspServer:
        return self._stack.enter_context(server)

    def secure_web(self, certificate: tuple[Path, Path]) -> WebServer:
        return self._stack.enter_context(WebServer(certificate=certificate))

    def channel(self, name: str, live: Live) -> str:
        """Plays it; the URL."""
        self.player.channels[name] = Channel(live)
        return f"http://{LOGIN}@127.0.0.1:{self.player.port}/{name}"

    @cached_property
    def _segments(self) -> Path:
        folder = self.folder / "hls"
        folder.mkdir()
        return make_hls(folder, "segment", media.SECONDS)

    def hls(self, name: str) -> LiveHls:
        """A live playlist at /NAME.m3u8 of `web`."""
        return LiveHls(self.web, self._segments, name)

    def writer(self, path: Path) -> Writer:
        return self._stack.enter_context(Writer(path, self.live))

    def front(self, path: str, behaviour: Behaviour = HEALTHY, port: int | None = None) -> tuple[Front, str]:
        """A front before `rtsp:/MOUNT` or `http:/PATH`, or before another port, and its URL."""
        scheme, _, path = path.partition(":")
        is_rtsp = scheme == "rtsp"
        if port is None:
            port = self.rtsp.port if is_rtsp else self.web.port
        front = Front(self.weather, port, behaviour, Units if is_rtsp else None)
        self._stack.callback(front.close)
        return front, f"{scheme}://{LOGIN}@127.0.0.1:{front.port}{path}"

    def firewall(self, *rules: str) -> ExitStack:
        """Has the kernel apply these rules of `iptables -I INPUT` until the stack that is returned is closed."""
        stack = self._stack.enter_context(ExitStack())
        for rule in rules:
            text = f"INPUT {rule} {_marked(rule)} -j DROP"
            _iptables(f"-I {text}")
            stack.callback(_iptables, f"-D {text}")
        return stack

    def dropped(self, rule: str) -> int:
        """How many packets one of these rules has dropped so far."""
        lines = _iptables("-L INPUT -v -x -n").splitlines()
        return next(int(line.split()[0]) for line in lines if _marked(rule).split()[-1] in line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


def _marked(rule: str) -> str:
    return f"-m comment --comment streamdet-test-{zlib.crc32(rule.encode())}"


def _iptables(arguments: str) -> str:
    return subprocess.run(["iptables", "-w", *arguments.split()], check=True, capture_output=True, text=True).stdout
