"""Notices that data were lost on the way, which FFmpeg says nowhere but in its log.

A decoder conceals what is missing, and some (HEVC) do not even mark such pictures. Only messages of two kinds count:
those of lost RTP packets and of gaps in MPEG-TS. Nothing of FFmpeg's log is written anywhere, since it may hold a URL.
"""

from __future__ import annotations

import logging
import threading

import av.logging

_SIGNS = ("RTP: missed", "Packet corrupt", "RTP: PT=")

_threads = threading.local()


class _Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Remembers for the thread that reads, in which FFmpeg writes this."""
        if str(record.msg).startswith(_SIGNS):
            _threads.lost = True


_logger = logging.getLogger("libav")
_logger.addHandler(_Listener())
_logger.propagate = False
# For FFmpeg a message is a repeated one also when another thread has written it.
av.logging.set_skip_repeated(False)
av.logging.set_level(av.logging.WARNING)


def lost_data() -> bool:
    """Whether data were lost that this thread has tried to read since it last asked."""
    lost: bool = getattr(_threads, "lost", False)
    _threads.lost = False
    return lost
