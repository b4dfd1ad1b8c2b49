"""The matrix: what goes wrong with cameras, networks and media, and what a daemon must make of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from streamdet.types import Reason
from support.faults import media
from support.faults.causes import (
    always,
    black_hole,
    changes,
    device,
    file,
    file_vanishes,
    hls_always,
    hls_ends,
    hls_later,
    hls_stands_still,
    huge_file,
    later,
    loses_datagrams,
    name,
    offers_only_udp,
    pipe,
    plays,
    server,
    stand_still,
    untrusted,
)
from support.faults.front import Behaviour, hang_up, noise, says, shift, silence, trickle
from support.faults.media import Live
from support.faults.scene import Fault
from support.faults.stage import Stage

_RTSP, _HTTP, _SNOW, _JPEG = "rtsp:/ball", "http:/mjpeg", "rtsp:/snow", "rtsp:/jpeg"
_GST = ("gst-rtsp-server",)

_REFUSING = Behaviour(listens=False, ends="closed")
_RESET = Behaviour(ends="reset")
_HALF_OPEN = Behaviour(carry=silence, strikes=True)
_SILENT = Behaviour(answer=silence, carry=silence)
_LORIS = Behaviour(carry=trickle(4))
_NOISE = Behaviour(carry=noise(1))
_SLOW_LINK = Behaviour(carry=trickle(20_000, 1000))
# Each request of HLS is a new connection.
_SILENT_NOW = Behaviour(answer=silence, carry=silence, ends="closed")


def _rtsp_says(status: str, *headers: str) -> Behaviour:
    return says("\r\n".join([f"RTSP/1.0 {status}", "{cseq}", *headers, "", ""]))


def _http_says(status: str, *headers: str) -> Behaviour:
    return says("\r\n".join([f"HTTP/1.1 {status}", "Content-Length: 0", *headers, "", ""]))


_MULTIPART = "multipart/x-mixed-replace; boundary=frame"
_WANTS_LOGIN = 'WWW-Authenticate: Basic realm="camera"'
_HEADERS_FOR_EVER = says("HTTP/1.1 200 OK\r\n", then=b"X-More: more\r\n" * 50, again_every_seconds=0.01)
_ZEROS_FOR_EVER = says("HTTP/1.1 200 OK\r\n\r\n", then=bytes(50_000), again_every_seconds=0.01)
_PLAYLIST = "HTTP/1.1 200 OK\r\n\r\n#EXTM3U\n"
_PLAYLIST_FOR_EVER = says(_PLAYLIST, then=b"#EXTINF:1,\na.ts\n" * 20_000, again_every_seconds=0.01)
_PLAYLIST_OF_ITSELF = says(f"{_PLAYLIST}#EXT-X-STREAM-INF:BANDWIDTH=1\nplaylist-of-itself.m3u8\n")


def _jpeg(side_pixels: int, claimed_pixels: int) -> bytes:
    """A picture that says that it is so large."""
    jpeg = bytearray(cv2.imencode(".jpg", np.full((side_pixels, side_pixels, 3), 99, np.uint8))[1].tobytes())
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = claimed_pixels.to_bytes(2, "big") * 2
    return bytes(jpeg)


def _jpegs(jpeg: bytes) -> Live:
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    part = head.encode() + jpeg + b"\r\n"
    return Live(part * media.FPS * media.SECONDS, media.SECONDS, _MULTIPART, len(part))


def small_pictures(_stage: Stage) -> Live:
    return _jpegs(_jpeg(64, 64))


def _bomb(_stage: Stage) -> Live:
    """A few bytes that claim 268 megapixels, again and again."""
    return _jpegs(_jpeg(16, 16384))


def _endless(_stage: Stage) -> Live:
    """The beginning of a picture, and then no end of it: 1 MB/s."""
    head = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
    return Live(head + _jpeg(64, 64)[:200] + b"picture" * 8_000_000, media.SECONDS, _MULTIPART)


def _av1(_stage: Stage) -> Live:
    return Live(media.video("libsvtav1", container="matroska").data, content_type="video/x-matroska")


FAULTS = (
    # Servers that are not there, go away, or do not answer
    Fault("refused", always(_HTTP, Behaviour(listens=False)), (Reason.REFUSED,)),
    Fault("refused-rtsp", always(_RTSP, Behaviour(listens=False)), (Reason.REFUSED,), needs=_GST),
    Fault("goes-away", later(_RTSP, _REFUSING), (Reason.ENDED, Reason.REFUSED), needs=_GST),
    Fault("killed", server("killed", "tcp"), (Reason.ENDED, Reason.REFUSED), needs=_GST),
    Fault("stopped-tcp", server("stopped", "tcp"), (Reason.TIMEOUT,), stalls=True, needs=_GST),
    Fault("stopped-udp", server("stopped", "udp"), (Reason.TIMEOUT,), stalls=True, needs=_GST),
    Fault("hangs-up", always(_RTSP, Behaviour(answer=hang_up)), (Reason.REFUSED,), needs=_GST),
    Fault("silent", always(_HTTP, _SILENT), (Reason.TIMEOUT,)),
    Fault("silent-rtsp", always(_RTSP, _SILENT), (Reason.TIMEOUT,), needs=_GST),
    # Networks
    Fault("black-hole", black_hole(_HTTP), (Reason.TIMEOUT,), stalls=True, needs=("iptables",)),
    Fault("black-hole-rtsp", black_hole(_RTSP), (Reason.TIMEOUT,), stalls=True, needs=("iptables", *_GST)),
    Fault("breaks-off", later(_HTTP, Behaviour(ends="closed")), (Reason.ENDED,)),
    Fault("reset", later(_HTTP, _RESET), (Reason.ENDED,)),
    Fault("reset-rtsp", later(_RTSP, _RESET), (Reason.ENDED,), needs=_GST),
    Fault("half-open", later(_HTTP, _HALF_OPEN), (Reason.TIMEOUT,), stalls=True),
    Fault("half-open-rtsp", later(_RTSP, _HALF_OPEN), (Reason.TIMEOUT,), stalls=True, needs=_GST),
    Fault("slow-loris", always(_HTTP, _LORIS), (Reason.TIMEOUT,)),
    Fault("slow-loris-rtsp", always(_RTSP, _LORIS), (Reason.TIMEOUT,), needs=_GST),
    Fault("slow-loris-later", later(_HTTP, _LORIS), (Reason.TIMEOUT,), stalls=True),
    Fault("slow-link", always(_RTSP, _SLOW_LINK), needs=_GST),
    Fault("slow-link-for-much", later(_SNOW, _SLOW_LINK), needs=_GST),
    Fault("noise-1-percent", later(_SNOW, Behaviour(carry=noise(0.01))), needs=_GST),
    Fault("noise-100-percent", later(_RTSP, _NOISE), (Reason.DECODE_ERROR,), stalls=True, needs=_GST),
    Fault("noise-100-percent-jpeg", later(_JPEG, _NOISE), (Reason.TIMEOUT,), stalls=True, needs=_GST),
    Fault(
        "loss-5-percent-udp",
        loses_datagrams("/ball", 0.05, (9100, 9119)),
        needs=("iptables", *_GST),
    ),
    Fault(
        "loss-100-percent-udp",
        loses_datagrams("/ball", 1, (9120, 9139)),
        (Reason.TIMEOUT,),
        stalls=True,
        needs=("iptables", *_GST),
    ),
    Fault("name-unknown", name("unknown"), (Reason.DNS,), needs=("util-linux",)),
    Fault("name-server-silent", name("silent"), (Reason.DNS,), needs=("util-linux",)),
    # What servers answer
    Fault("401", always(_HTTP, _http_says("401 Unauthorized", _WANTS_LOGIN)), (Reason.UNAUTHORIZED,)),
    Fault("401-rtsp", always(_RTSP, _rtsp_says("401 Unauthorized", _WANTS_LOGIN)), (Reason.UNAUTHORIZED,), needs=_GST),
    Fault("404", always(_HTTP, _http_says("404 Not Found")), (Reason.NOT_FOUND,)),
    Fault("404-rtsp", always(_RTSP, _rtsp_says("404 Not Found")), (Reason.NOT_FOUND,), needs=_GST),
    Fault("461-tcp", offers_only_udp("tcp"), (Reason.REFUSED,), needs=_GST),
    Fault("461-auto", offers_only_udp("auto"), needs=_GST),
    Fault("503", always(_HTTP, _http_says("503 Busy")), (Reason.REFUSED,)),
    Fault("503-rtsp", always(_RTSP, _rtsp_says("503 Busy")), (Reason.REFUSED,), needs=_GST),
    Fault("redirect-loop", always(_HTTP, _http_says("302 Found", "Location: /again")), (Reason.REFUSED,)),
    Fault(
        "redirect-loop-rtsp",
        always(_RTSP, _rtsp_says("302 Found", "Location: rtsp://127.0.0.1:{port}/again")),
        (Reason.REFUSED,),
        needs=_GST,
    ),
    Fault("headers-for-ever", always(_HTTP, _HEADERS_FOR_EVER), (Reason.REFUSED,)),
    Fault("zeros-for-ever", always(_HTTP, _ZEROS_FOR_EVER), (Reason.DECODE_ERROR,)),
    Fault("untrusted", untrusted("https"), (Reason.TLS,), needs=("openssl",)),
    Fault("untrusted-rtsp", untrusted("rtsps"), (Reason.TLS,), needs=("openssl", *_GST)),
    # Playlists
    Fault("hls-ends", hls_ends(), (Reason.ENDED,)),
    Fault("hls-stands-still", hls_stands_still(), (Reason.TIMEOUT,), stalls=True),
    Fault("hls-goes-away", hls_later(_REFUSING), (Reason.REFUSED,)),
    Fault("hls-silent", hls_later(_SILENT_NOW), (Reason.TIMEOUT,), stalls=True),
    Fault("hls-slow-loris", hls_later(_LORIS), (Reason.TIMEOUT,), stalls=True),
    Fault("hls-404", hls_later(_http_says("404 Not Found")), (Reason.NOT_FOUND,)),
    Fault("playlist-for-ever", hls_always(_PLAYLIST_FOR_EVER), (Reason.DECODE_ERROR,)),
    Fault("playlist-of-itself", hls_always(_PLAYLIST_OF_ITSELF), (Reason.DECODE_ERROR,)),
    # Media
    Fault("codec-changes", changes(lambda _: media.video("libx265")), (Reason.DECODE_ERROR,), stalls=True),
    Fault("size-changes", changes(lambda _: media.video(width=128, height=96))),
    Fault("times-go-back", changes(lambda stage: media.retimed(stage.live, lambda s: s - 5000))),
    Fault("times-go-forward", changes(lambda stage: media.retimed(stage.live, lambda s: s + 5000))),
    Fault("times-repeat", changes(lambda stage: media.retimed(stage.live, lambda _: 5020.0))),
    Fault("picture-ends-not-sound", changes(lambda _: media.sound()), (Reason.TIMEOUT, Reason.NO_VIDEO), stalls=True),
    Fault("times-go-back-rtsp", later(_RTSP, Behaviour(carry=shift(-5000))), needs=_GST),
    Fault("times-go-forward-rtsp", later(_RTSP, Behaviour(carry=shift(5000))), needs=_GST),
    Fault("sound-only", plays(lambda _: media.sound()), (Reason.NO_VIDEO,)),
    Fault("av1", plays(_av1, then=None)),
    Fault("16k-pictures", changes(_bomb, first=small_pictures), (Reason.DECODE_ERROR,), stalls=True),
    Fault("picture-for-ever", changes(_endless, first=small_pictures), (Reason.TIMEOUT,), stalls=True),
    # Files
    Fault("file-empty", file(".mp4", lambda _good: b""), (Reason.DECODE_ERROR,)),
    Fault("file-cut-off", file(".mp4", lambda good: good[:500]), (Reason.DECODE_ERROR,)),
    Fault("file-half", file(".ts", lambda good: good[: len(good) // 2], loop=False), (Reason.ENDED,), returns=False),
    Fault("file-endless", huge_file(".ts"), (Reason.DECODE_ERROR,)),
    Fault("file-vanishes", file_vanishes(), (Reason.NOT_FOUND,)),
    Fault("pipe-not-written", pipe(later=False), (Reason.TIMEOUT,)),
    Fault("pipe-falls-silent", pipe(later=True), (Reason.TIMEOUT,), stalls=True),
    # Cameras at this machine
    Fault("device-unplugged", device(Path.unlink), (Reason.ENDED, Reason.NOT_FOUND), needs=("gcc",)),
    Fault("device-stands-still", device(stand_still), (Reason.TIMEOUT,), stalls=True, needs=("gcc",)),
)
