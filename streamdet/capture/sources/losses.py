"""Notices that data were lost on the way, which FFmpeg says nowhere but in its log.

A decoder conceals what is missing, and some (HEVC) do not even mark such pictures. Only messages of two kinds count:
those of lost RTP packets and of gaps in MPEG-TS. Nothing of FFmpeg's log is written anywhere, since it may hold a URL.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field

import av.logging

_RTP = ("RTP: missed", "RTP: PT=")
# FFmpeg marks also the packet that its parser makes next; the message names the one that is meant.
_CORRUPT = re.compile(r"Packet corrupt \(stream = [0-9]+, dts = (-?[0-9]+|NOPTS)\)")
# What its demuxer of segments has said already, but of the wrong packet.
_OF_HLS = "libav.hls"
_MOST_REMEMBERED = 64


@dataclass(slots=True)
class Losses:
    """What a thread has learnt about what it has tried to read.

    Attributes:
        rtp: whether RTP packets were lost.
        times: decoding times of packets of which a part was lost, in the units of their stream.
    """

    rtp: bool = False
    times: set[int] = field(default_factory=set)


_threads = threading.local()


class _Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Remembers for the thread that reads, in which FFmpeg writes this."""
        text, losses = str(record.msg), _of_this_thread()
        if text.startswith(_RTP):
            losses.rtp = True
        elif record.name != _OF_HLS and (found := _CORRUPT.match(text)) is not None:
            losses.rtp |= found[1] == "NOPTS"
            if found[1] != "NOPTS" and len(losses.times) < _MOST_REMEMBERED:
                losses.times.add(int(found[1]))


def _of_this_thread() -> Losses:
    losses: Losses | None = getattr(_threads, "losses", None)
    if losses is None:
        losses = _threads.losses = Losses()
    return losses


_logger = logging.getLogger("libav")
_logger.addHandler(_Listener())
_logger.propagate = False
# For FFmpeg a message is a repeated one also when another thread has written it.
av.logging.set_skip_repeated(False)
av.logging.set_level(av.logging.WARNING)


def take_losses() -> Losses:
    """What was lost of what this thread has tried to read since it last asked."""
    losses, _threads.losses = _of_this_thread(), Losses()
    return losses
