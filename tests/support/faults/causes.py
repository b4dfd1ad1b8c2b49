"""What goes wrong, how it begins and how it is over: each function makes one kind of cause on a stage."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from support.faults.front import HEALTHY, Behaviour
from support.faults.media import Live
from support.faults.names import ADDRESS
from support.faults.stage import LOGIN, MOUNTS, Stage
from support.hls import LiveHls
from support.rtsp import RtspServer
from support.videos import make_video


def nothing() -> None:
    """What begins by itself, or is never over."""


@dataclass
class Cause:
    """One on a stage.

    Attributes:
        url: of the stream that it strikes.
        later: it begins when the stream is up; otherwise it is there before the daemon starts.
        begin: has it begin.
        lift: has it be over.
        has_struck: whether anything has come of it yet; it is not lifted before.
        keys: of the stream's configuration, besides.
    """

    url: str
    later: bool = False
    begin: Callable[[], object] = nothing
    lift: Callable[[], object] = nothing
    has_struck: Callable[[], bool] = lambda: True
    keys: Mapping[str, Any] = field(default_factory=dict)


Make = Callable[[Stage, str], Cause]


def always(path: str, behaviour: Behaviour) -> Make:
    """A front that behaves so from the start."""

    def make(stage: Stage, _name: str) -> Cause:
        front, url = stage.front(path, behaviour)
        return Cause(url, lift=lambda: front.behave(HEALTHY))

    return make


def later(path: str, behaviour: Behaviour) -> Make:
    """A front that begins to behave so."""

    def make(stage: Stage, _name: str) -> Cause:
        front, url = stage.front(path)
        return Cause(url, later=True, begin=lambda: front.behave(behaviour), lift=lambda: front.behave(HEALTHY))

    return make


def black_hole(path: str) -> Make:
    """The firewall drops every packet, both ways."""

    def make(stage: Stage, _name: str) -> Cause:
        front, url = stage.front(path)
        rules = f"-p tcp -d 127.0.0.1 --dport {front.port}", f"-p tcp -s 127.0.0.1 --sport {front.port}"
        holes = []
        return Cause(
            url, later=True, begin=lambda: holes.append(stage.firewall(*rules)), lift=lambda: holes.pop().close()
        )

    return make


def hls_always(behaviour: Behaviour) -> Make:
    """A front before an HLS server that behaves so from the start."""

    def make(stage: Stage, name: str) -> Cause:
        stage.hls(name)
        return always(f"http:/{name}.m3u8", behaviour)(stage, name)

    return make


def hls_later(behaviour: Behaviour) -> Make:
    """A front before an HLS server that begins to behave so."""

    def make(stage: Stage, name: str) -> Cause:
        stage.hls(name)
        return later(f"http:/{name}.m3u8", behaviour)(stage, name)

    return make


def hls_ends() -> Make:
    """A playlist says that nothing more will come; later more comes."""

    def make(stage: Stage, name: str) -> Cause:
        live = stage.hls(name)
        url = f"http://{LOGIN}@127.0.0.1:{stage.web.port}/{name}.m3u8"
        begin, lift = (lambda: setattr(live, "ended", True)), (lambda: setattr(live, "ended", False))
        return Cause(url, later=True, begin=begin, lift=lift)

    return make


def hls_stands_still() -> Make:
    """The encoder behind a playlist stops, and the server goes on serving what there is; later it goes on."""

    def make(stage: Stage, name: str) -> Cause:
        live = stage.hls(name)
        url = f"http://{LOGIN}@127.0.0.1:{stage.web.port}/{name}.m3u8"
        return Cause(url, later=True, begin=lambda: _stop(live), lift=lambda: setattr(live, "stopped_at", None))

    return make


def _stop(live: LiveHls) -> None:
    live.stopped_at = time.monotonic()


def loses_datagrams(path: str, probability: float, ports: tuple[int, int]) -> Make:
    """The firewall drops so many of the RTP packets that a server sends over UDP, from ports of its own."""

    def make(stage: Stage, _name: str) -> Cause:
        own = stage.server(RtspServer({path: MOUNTS[path]}, transport="udp", udp_ports=ports))
        rule = f"-p udp -d 127.0.0.1 --sport {ports[0]}:{ports[1]}"
        rule += f" -m statistic --mode random --probability {probability}"
        holes = []
        return Cause(
            own.url(path, LOGIN),
            later=True,
            begin=lambda: holes.append(stage.firewall(rule)),
            lift=lambda: holes.pop().close(),
            has_struck=lambda: stage.dropped(rule) > 0,
            keys={"transport": "udp"},
        )

    return make


def server(what: Literal["killed", "stopped"], transport: str) -> Make:
    """GStreamer's server itself is killed, or stands still."""

    def make(stage: Stage, _name: str) -> Cause:
        own = stage.server(RtspServer({"/ball": MOUNTS["/ball"]}, transport=transport))
        begin, lift = (own.kill, own.start) if what == "killed" else (own.freeze, own.thaw)
        return Cause(own.url("/ball", LOGIN), later=True, begin=begin, lift=lift, keys={"transport": transport})

    return make


def offers_only_udp(asked_for: str) -> Make:
    """GStreamer's server answers 461 to who asks for TCP; later one that has both takes its place."""

    def make(stage: Stage, _name: str) -> Cause:
        picky = stage.server(RtspServer({"/ball": MOUNTS["/ball"]}, transport="udp"))
        front, url = stage.front("rtsp:/ball", port=picky.port)

        def replace() -> None:
            front.server_port = stage.rtsp.port

        return Cause(url, lift=replace, keys={"transport": asked_for})

    return make


def untrusted(scheme: Literal["rtsps", "https"]) -> Make:
    """A server with a certificate that no one vouches for; later one with the right one takes its place."""

    def make(stage: Stage, _name: str) -> Cause:
        trusted = stage.certificates[0]
        ports = [_secure_port(stage, scheme, certificate) for certificate in stage.certificates]
        front, url = stage.front(f"{scheme}:{'/ball' if scheme == 'rtsps' else '/mjpeg'}", port=ports[1])

        def replace() -> None:
            front.server_port = ports[0]

        return Cause(url, lift=replace, keys={"tls_ca_file": str(trusted[0])})

    return make


def _secure_port(stage: Stage, scheme: str, certificate: tuple[Path, Path]) -> int:
    if scheme == "https":
        return stage.secure_web(certificate).port
    tls = {"certificate": str(certificate[0]), "key": str(certificate[1])}
    return stage.server(RtspServer({"/ball": MOUNTS["/ball"]}, tls=tls)).port


def name(answer: Literal["unknown", "silent"]) -> Make:
    """The camera's name is not known, or no one says whether it is."""

    def make(stage: Stage, name: str) -> Cause:
        stage.names.answers[f"{name}.test"] = answer

        def answer_it() -> None:
            stage.names.answers[f"{name}.test"] = "known"

        return Cause(f"http://{LOGIN}@{name}.test:{stage.web.port}/mjpeg", lift=answer_it)

    return make


def pipe(*, later: bool) -> Make:
    """No one writes into a named pipe: not yet, or not any more; later someone does."""

    def make(stage: Stage, name: str) -> Cause:
        path = stage.folder / name
        writing = stage.writer(path).writing
        if later:
            writing.set()
        return Cause(str(path), later=later, begin=writing.clear, lift=writing.set)

    return make


def device(begin: Callable[[Path], object]) -> Make:
    """A camera at this machine, of which something becomes; later it is plugged in again."""

    def make(stage: Stage, name: str) -> Cause:
        path = stage.devices / name
        plug_in(path)
        return Cause(str(path), later=True, begin=lambda: begin(path), lift=lambda: plug_in(path))

    return make


def plug_in(path: Path) -> None:
    """Makes a file that `servers/camera.c` takes for a device, or makes one go on that stands still."""
    path.write_bytes(bytes([128]) * (4 * 8192 + 1))


def stand_still(path: Path) -> None:
    """The device is there, and gives no more frames."""
    os.utime(path, (0, 0))


def resolver(stage: Stage) -> list[str]:
    """What to put before a command so that it asks the stage's name server."""
    config = stage.folder / "resolv.conf"
    config.write_text(f"nameserver {ADDRESS}\noptions timeout:1 attempts:2\n")
    mount = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, str(config)]


def with_cameras(stage: Stage) -> list[str]:
    """What to put before a command so that it sees the stage's devices."""
    source, library = Path(__file__).parents[1] / "servers" / "camera.c", stage.folder / "camera.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return ["env", f"LD_PRELOAD={library}"]


def healthy(stage: Stage) -> Live:
    """What players send when all is well."""
    return stage.live


def changes(to: Callable[[Stage], Live], first: Callable[[Stage], Live] = healthy) -> Make:
    """What a live stream over HTTP brings becomes something else, within the connection."""

    def make(stage: Stage, name: str) -> Cause:
        good, other = first(stage), to(stage)
        url = stage.channel(name, good)
        channel = stage.player.channels[name]
        return Cause(
            url,
            later=True,
            begin=lambda: setattr(channel, "live", other),
            lift=lambda: setattr(channel, "live", good),
        )

    return make


def plays(live: Callable[[Stage], Live], then: Callable[[Stage], Live] | None = healthy) -> Make:
    """A live stream over HTTP that is so from the start; later it is another one, unless there is none."""

    def make(stage: Stage, name: str) -> Cause:
        url, channel = stage.channel(name, live(stage)), stage.player.channels[name]
        other = channel.live if then is None else then(stage)
        return Cause(url, lift=lambda: setattr(channel, "live", other))

    return make


def file(suffix: str, content: Callable[[bytes], bytes], *, loop: bool = True) -> Make:
    """A file that was made from a good one; later the good one takes its place."""

    def make(stage: Stage, name: str) -> Cause:
        good = make_video(stage.folder / f"good-{name}{suffix}")
        bad = stage.folder / f"{name}{suffix}"
        bad.write_bytes(content(good.read_bytes()))
        return Cause(str(bad), lift=lambda: good.replace(bad), keys={"loop": loop})

    return make


def huge_file(suffix: str) -> Make:
    """A terabyte of zeros, none of which takes room on the disk; later a good one takes its place."""

    def make(stage: Stage, name: str) -> Cause:
        cause = file(suffix, lambda _good: b"")(stage, name)
        os.truncate(cause.url, 1 << 40)
        return cause

    return make


def file_vanishes() -> Make:
    """As on a disk that is unplugged while the file is played in a loop, and plugged in again."""

    def make(stage: Stage, name: str) -> Cause:
        path, away = stage.folder / f"{name}.mp4", stage.folder / f"{name}.away"
        make_video(path)
        return Cause(
            str(path), later=True, begin=lambda: path.rename(away), lift=lambda: away.rename(path), keys={"loop": True}
        )

    return make
