"""Opens a stream and reads its frames; every failure is a `SourceError` with a reason.

    open_source(config)  ->  Source  ->  read() -> SourceFrame   or   SourceError(reason, detail)

`open_source` selects the source by the kind of the URL: `av` reads network streams and files, `device` V4L2 devices;
the other files of this package serve these two. A source never retries: to try again, open another source. Only the
thread that opened a source reads and closes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, kind_of_url
from streamdet.errors import HeldError, SourceError
from streamdet.types import Clock, Demand, PacketSink, Picture, Reason


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a source found when it was opened.

    Attributes:
        codec: such as "h264"; "raw" for pictures that came without one.
        width: pixels, of the first frame; later ones may differ.
        height: pixels.
        fps: mean frames per second of a file; None if the file does not state it, and for live streams, whose rate is
            measured (see `clocks.FrameRate`).
        backend: "av" (PyAV) or "opencv", which reads devices.
        hwaccel: the hardware that decodes; None for software.
        transport: how RTSP carries pictures: "tcp", "udp" or "auto" (whatever the server offered, TCP first); None for
            everything else.
        live: false for what has an end that is known from the beginning: a file, here or behind http://, or a complete
            playlist.
    """

    codec: str
    width: int
    height: int
    fps: float | None
    backend: str
    hwaccel: str | None = None
    transport: str | None = None
    live: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """One decoded frame.

    Attributes:
        picture: the pixels.
        pts_seconds: presentation time in the stream's own clock, growing over the loops of a file; None when the
            source gives none.
        captured_at: Unix time in seconds.
        clock: whose clock `captured_at` is.
        decode_seconds: what decoding took, without any waiting.
        packet_pts: the timestamp of the packet that it was decoded from; None if it has no timestamp.
    """

    picture: Picture
    pts_seconds: float | None
    captured_at: float
    clock: Clock
    decode_seconds: float = 0.0
    packet_pts: int | None = None


class Source(Protocol):
    """A stream that is open."""

    @property
    def info(self) -> SourceInfo:
        """What was found at opening."""

    def read(self) -> SourceFrame:
        """Waits for the next frame.

        Raises:
            LeftOutError: a picture came that is not decoded: read again.
            HeldError: data arrive, but no sound picture yet: read again.
            SourceError: no more frames come: close the source.
        """

    def close(self) -> None:
        """Releases everything; only the thread that reads may call it."""


def read_sound(source: Source) -> SourceFrame:
    """Waits for the next sound frame, for as long as data arrive.

    Raises:
        SourceError: no more frames come: close the source.
    """
    while True:
        try:
            return source.read()
        except HeldError:
            if current_interrupt().is_set():
                raise SourceError(Reason.TIMEOUT, "no sound picture yet") from None


def open_source(config: StreamConfig, packets: PacketSink | None = None, demand: Demand | None = None) -> Source:
    """Opens a stream.

    Args:
        config: where it is and how to read it.
        packets: gets the encoded packets, too; None where they are not wanted.
        demand: which frames are worth decoding; None for all.

    Raises:
        SourceError: it cannot be opened.
    """
    if kind_of_url(config.url) is UrlKind.DEVICE:
        from streamdet.capture.sources.device import DeviceSource  # noqa: PLC0415 - most streams never need OpenCV

        source = DeviceSource(config)
        if packets is not None:
            packets.refuse(source.info.codec)
        return source
    from streamdet.capture.sources.av import AvSource  # noqa: PLC0415 - nor devices PyAV

    return AvSource(config, packets, demand)


def open_packets(config: StreamConfig, packets: PacketSink) -> Source:
    """Opens a stream of which only packets are wanted; each `read` ends with a `HeldError`.

    Args:
        config: where it is and how to read it; not of a device.
        packets: gets the encoded packets.

    Raises:
        SourceError: it cannot be opened.
    """
    from streamdet.capture.sources.av import AvSource  # noqa: PLC0415 - as above

    return AvSource(config, packets, decodes=False)
