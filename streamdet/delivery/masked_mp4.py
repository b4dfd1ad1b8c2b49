"""Encodes a clip again with its masks: the areas that they hide are black.

The encoder is libvpx, which PyAV's FFmpeg contains under a permissive licence. Browsers play VP9 in MP4.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import cast

import av
import numpy as np

from streamdet.delivery.mp4 import TICKS_PER_SECOND, TimedPacket, decodable, head_of_file, with_start_codes
from streamdet.delivery.privacy import Hidden
from streamdet.types import VideoParameters

ENCODER = "libvpx-vp9"

_TIME_BASE = Fraction(1, TICKS_PER_SECOND)
# As fast as possible, in one thread, and without lookahead.
_OPTIONS = {"deadline": "realtime", "cpu-used": "8", "row-mt": "0", "lag-in-frames": "0", "g": "100"}
_SMALLEST_BIT_RATE = 500_000
_LARGEST_BIT_RATE = 8_000_000
_MAX_PIXELS = 64 * 1024 * 1024


def has_encoder() -> bool:
    """Whether this FFmpeg has the encoder."""
    try:
        av.Codec(ENCODER, "w")
    except ValueError:
        return False
    return True


def masked_mp4(packets: list[TimedPacket], begin: int, hidden: Hidden, stopping: Callable[[], bool]) -> bytes | None:
    """Encodes a video of packets with the hidden areas black in every picture; None if it was given up.

    Args:
        packets: in the order of decoding, all with the same parameters, from a key frame on.
        begin: beginning of the video, in ticks; earlier pictures are left out.
        hidden: what must not be seen in the upright pictures.
        stopping: whether to give up.

    Raises:
        av.FFmpegError: FFmpeg cannot encode it.
        ValueError: none of its pictures can be decoded.
    """
    parameters = packets[0].packet.parameters
    seconds = max(1.0, (packets[-1].at - packets[0].at) / TICKS_PER_SECOND)
    bit_rate = round(8 * sum(len(timed.packet.data) for timed in packets) / seconds)
    file = io.BytesIO()
    with av.open(file, "w", "mp4", options=head_of_file(len(packets))) as output:
        stream: av.VideoStream | None = None
        first, last = 0, begin - 1
        for frame, sample_aspect in _frames(packets, parameters):
            if stopping():
                return None
            if frame.pts is None or frame.pts <= last:
                continue
            last = frame.pts
            upright = np.rot90(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False), parameters.quarter_turns)
            rgb = hidden.cut(upright)
            if stream is None:
                first = frame.pts
                stream = cast("av.VideoStream", output.add_stream(ENCODER, rate=25, options=_OPTIONS))
                stream.height, stream.width = rgb.shape[:2]
                codec = stream.codec_context
                codec.thread_count, codec.time_base = 1, _TIME_BASE
                if sample_aspect is not None:
                    codec.sample_aspect_ratio = sample_aspect
                codec.bit_rate = min(max(bit_rate, _SMALLEST_BIT_RATE), _LARGEST_BIT_RATE)
            shown = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            shown.pts, shown.time_base = frame.pts - first, _TIME_BASE
            output.mux(stream.encode(shown))
        if stream is None:
            message = "no picture of the clip can be decoded"
            raise ValueError(message)
        output.mux(stream.encode(None))
    return file.getvalue()


def _frames(packets: list[TimedPacket], parameters: VideoParameters) -> Iterator[tuple[av.VideoFrame, Fraction | None]]:
    """Decodes packets; yields the pictures in the order in which they are shown.

    With each comes the sample aspect ratio (width by height of a pixel) of the upright picture.
    """
    decoder = av.VideoCodecContext.create(parameters.codec, "r")
    decoder.extradata = with_start_codes(parameters.parameter_sets)
    decoder.thread_count = 1
    decoder.options = {"max_pixels": str(_MAX_PIXELS)}
    for timed in [*packets, None]:
        packet: av.Packet[av.VideoStream] | None = None
        if timed is not None:
            packet = cast("av.Packet[av.VideoStream]", av.Packet(decodable(timed.packet)))
            packet.pts, packet.time_base = timed.at, _TIME_BASE
        try:
            frames = decoder.decode(packet)
        except av.FFmpegError:
            continue
        aspect = parameters.sample_aspect or decoder.sample_aspect_ratio
        for frame in frames:
            yield frame, 1 / aspect if aspect and parameters.quarter_turns % 2 else aspect
