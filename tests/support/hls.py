"""HLS as servers really send it: segments made by FFmpeg, in playlists that end, or that go on as time goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from support.web import WebServer

FPS = 10
_WINDOW = 4


def make_hls(
    folder: Path,
    name: str,
    seconds: int,
    options: Mapping[str, str] | None = None,
    width: int = 64,
    codec: str = "libx264",
    *,
    noisy: bool = False,
) -> Path:
    """A playlist of segments of a second, each a key frame and nine others.

    Args:
        folder: for all files.
        name: of the playlist, without its suffix.
        seconds: how long it is.
        options: of FFmpeg's HLS muxer.
        width: pixels.
        codec: of FFmpeg, for the pictures.
        noisy: whether the pictures are noise, so that each takes many packets.
    """
    random = np.random.default_rng(7)
    path = folder / f"{name}.m3u8"
    with av.open(str(path), "w", "hls", options={"hls_time": "1", "hls_list_size": "0", **(options or {})}) as output:
        stream = output.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
        stream.codec_context.gop_size = FPS
        stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
        if codec == "libx265":
            stream.options |= {"x265-params": f"keyint={FPS}:min-keyint={FPS}:log-level=none"}
        for number in range(seconds * FPS):
            grey = np.full((48, width, 3), 40 + number % 20 * 9, np.uint8)
            pixels = random.integers(0, 256, grey.shape, np.uint8) if noisy else grey
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    # FFmpeg names keys by their whole path.
    path.write_text(path.read_text().replace(f"{folder}/", ""))
    return path


class LiveHls:
    """A playlist of the newest seconds, served by a web server at /NAME.m3u8 from the first request on.

    Args:
        web: that serves it.
        whole: a playlist of everything that there will be to send.
        name: of the live one; that of `whole` unless given.

    Attributes:
        ended: the playlist says that nothing more will come.
        goes_back: subtracted from the numbers of segments.
        stopped_at: when the encoder stopped, on the clock of `time.monotonic`; None while it goes on.
    """

    def __init__(self, web: WebServer, whole: Path, name: str | None = None) -> None:
        self.ended = False
        self.goes_back = 0
        self.stopped_at: float | None = None
        self._segments = re.findall(r"^[^#\n]+$", whole.read_text(), re.MULTILINE)
        for segment in self._segments:
            web.pages[f"/{segment}"] = whole.with_name(segment).read_bytes
        web.pages[f"/{name or whole.stem}.m3u8"] = self._playlist
        self._began: float | None = None

    def _playlist(self) -> bytes:
        now = time.monotonic() if self.stopped_at is None else self.stopped_at
        if self._began is None:
            # As one that has been sending for a while.
            self._began = now - _WINDOW
        done = min(len(self._segments), int(now - self._began))
        first = max(0, done - _WINDOW)
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:3",
            "#EXT-X-TARGETDURATION:2",
            f"#EXT-X-MEDIA-SEQUENCE:{first - self.goes_back}",
        ]
        for segment in self._segments[first:done]:
            lines += ["#EXTINF:1.0,", segment]
        return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if self.ended else []), ""]).encode()


def master(*names: str) -> bytes:
    """A playlist of variants, the best one first."""
    lines = ["#EXTM3U"]
    for number, name in enumerate(names):
        lines += [f"#EXT-X-STREAM-INF:BANDWIDTH={1_000_000 - number}", f"{name}.m3u8"]
    return "\n".join([*lines, ""]).encode()
