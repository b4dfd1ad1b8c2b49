"""Tries a hardware decoder: `python -P -m streamdet.capture.sources.hardware_trial NAME`.

A short film of each codec is decoded with it and with the CPU. The results are written to the standard output, one JSON
object per line: how far its pictures are from those of the CPU, and its CPU time as a part of theirs. Whatever else the
driver does, up to a crash, ends this process alone.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import cast

import av
import numpy as np

from streamdet.assets import sample_clip
from streamdet.capture.sources.hardware import TRIED_CODECS, Decoder, open_hardware

_SIZE = (1280, 720)
_FRAMES = 24
_KEY_FRAMES = 8
_ENCODERS = {"h264": "libx264", "hevc": "libx265"}
# Longer than the daemon waits for it.
_LONGEST_SECONDS = 90


def film(codec: str) -> bytes:
    """A film in memory: pictures of the sample clip, with a key frame before each eight of them."""
    file = io.BytesIO()
    with av.open(str(sample_clip())) as clip, av.open(file, "w", "matroska") as made:
        options = {"preset": "ultrafast", "x265-params": "log-level=none"}
        stream = cast("av.VideoStream", made.add_stream(_ENCODERS[codec], rate=25, options=options))
        stream.width, stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = _KEY_FRAMES
        for number, frame in zip(range(_FRAMES), clip.decode(video=0), strict=False):
            picture = frame.reformat(*_SIZE, "yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            made.mux(stream.encode(picture))
        made.mux(stream.encode(None))
    return file.getvalue()


def compare(codec: str, open_decoder: Callable[[av.VideoCodecContext], Decoder]) -> dict[str, str | float]:
    """Decodes a film with a device and with the CPU.

    Args:
        codec: FFmpeg's name.
        open_decoder: opens the device's decoder.

    Returns:
        the codec; and either a `problem` or `difference`, the mean of the worst picture in colours of 255, and `cost`,
        the CPU time as a part of what the CPU alone needs.
    """
    try:
        with av.open(io.BytesIO(film(codec)), "r") as container:
            stream = container.streams.video[0]
            software = stream.codec_context
            software.thread_count = 1
            hardware = open_decoder(software)
            packets = [packet for packet in container.demux(stream) if packet.size]
            wanted, found = _decode(software, packets), _decode(hardware, packets)
            problem = _unlike(wanted, found)
            if problem:
                return {"codec": codec, "problem": problem}
            differences = [_difference(*pair) for pair in zip(wanted, found, strict=True)]
            # Once more, without what only the first pictures cost, and from a key frame on after a stop.
            cost = _seconds(hardware, packets) / _seconds(software, packets)
            return {"codec": codec, "difference": max(differences), "cost": cost}
    except (av.FFmpegError, OSError, RuntimeError, ValueError, KeyError) as error:
        return {"codec": codec, "problem": " ".join(str(error).split())[:200] or type(error).__name__}


def _decode(decoder: Decoder, packets: list[av.Packet[av.VideoStream]]) -> list[av.VideoFrame]:
    frames = [frame for packet in packets for frame in decoder.decode(packet)]
    frames += decoder.decode(None)
    decoder.flush_buffers()
    return frames


def _seconds(decoder: Decoder, packets: list[av.Packet[av.VideoStream]]) -> float:
    """CPU time of all threads, those of the driver among them."""
    began = time.process_time()
    _decode(decoder, packets)
    return max(time.process_time() - began, 1e-6)


def _unlike(wanted: list[av.VideoFrame], found: list[av.VideoFrame]) -> str:
    """How pictures differ but for their colours: what streams are cut and counted by; empty where they do not."""
    if len(found) != len(wanted):
        return f"{len(found)} pictures of {len(wanted)}"
    for number, (mine, its) in enumerate(zip(wanted, found, strict=True)):
        if (its.width, its.height) != (mine.width, mine.height):
            return f"a picture of {its.width}x{its.height}, not {mine.width}x{mine.height}"
        if (its.pts, its.key_frame) != (mine.pts, mine.key_frame):
            return f"picture {number} has another time, or is not marked as the key frame that it is"
    return ""


def _difference(mine: av.VideoFrame, its: av.VideoFrame) -> float:
    mine_rgb, its_rgb = (frame.to_ndarray(format="rgb24").astype(np.int16) for frame in (mine, its))
    return float(np.abs(mine_rgb - its_rgb).mean())


def main(name: str) -> None:
    """Tries a device with each codec."""
    signal.alarm(_LONGEST_SECONDS)
    for codec in TRIED_CODECS:
        print(json.dumps(compare(codec, lambda decoder: open_hardware(name, decoder))), flush=True)  # noqa: T201 - ours


if __name__ == "__main__":
    main(sys.argv[1])
