"""FFmpeg's options: for each kind of stream, and how much memory it may take at once."""

from __future__ import annotations

import ctypes

import av

from streamdet.capture.sources.diagnosis import HTTP_KINDS, ca_file_of
from streamdet.capture.sources.picture import MAX_PIXELS
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, kind_of_url

# Four bytes for every pixel of the largest picture (see `picture`); larger pictures are refused.
MAX_ALLOCATION_BYTES = 256 * 1024 * 1024

# These lead FFmpeg to further addresses, or read something of this machine.
_LEAD_ELSEWHERE = frozenset(
    {"hls", "concat", "dash", "imf", "rtp", "rtsp", "sap", "sdp", "webm_dash_manifest", "lavfi"}
)

# Formats that open no other files or addresses, separated by commas for FFmpeg's `format_whitelist`.
_SELF_CONTAINED = ",".join(sorted(av.formats_available - _LEAD_ELSEWHERE))


# FFmpeg's defaults look at 5 s of a live stream before the first frame; the header and one frame are enough. Where it
# is joined between two key frames, nothing says its size, and only the amount ends the look.
_SHORT_ANALYSIS = {"analyzeduration": "100000", "probesize": "32000", "fpsprobesize": "0"}
# Packets are put in order before they count as lost, also over TCP, where servers leave some out when a client is slow:
# otherwise FFmpeg does not look at their numbers.
_IN_ORDER = {"reorder_queue_size": "16"}
_TRANSPORTS = {
    "tcp": {"rtsp_transport": "tcp", **_IN_ORDER},
    "udp": {"rtsp_transport": "udp"},
    # UDP is asked for when the server answers 461, Unsupported Transport.
    "auto": {"rtsp_transport": "tcp+udp", "rtsp_flags": "prefer_tcp", **_IN_ORDER},
}
# Which further addresses a stream may lead to: a playlist from the network must not read files of this machine.
_PROTOCOLS = {
    UrlKind.RTSP: "rtp,rtcp,udp,tcp",
    UrlKind.RTSPS: "rtp,rtcp,udp,tcp,tls",
    # Answers come as files from `http_client`: FFmpeg itself asks no web server.
    UrlKind.HTTP: "data",
    UrlKind.HTTPS: "data",
    UrlKind.FILE: "file,crypto,data",
}

# For HLS, whose files come from `hls`: FFmpeg names their protocols, and must not do with them what it does with
# connections of its own.
HLS_OPTIONS = {
    "analyzeduration": "5000000",
    "http_persistent": "0",
    "http_multiple": "0",
    "protocol_whitelist": "http,https,tcp,tls,crypto,data",
    "format_whitelist": f"hls,{_SELF_CONTAINED}",
}


# For RTSP by way of `rtsp.RtspRelay`, which is on this machine and has one connection for all.
RELAYED_OPTIONS = {"rtsp_transport": "tcp", "protocol_whitelist": "rtp,rtcp,udp,tcp"}


def transport_of(config: StreamConfig) -> str | None:
    """How RTSP carries pictures; None for everything else."""
    # Encrypted RTSP carries everything in its one connection.
    return {UrlKind.RTSP: config.transport, UrlKind.RTSPS: "tcp"}.get(kind_of_url(config.url))


def options_for(config: StreamConfig) -> dict[str, str]:
    """FFmpeg's options, by name.

    Args:
        config: of the stream.
    """
    kind, transport = kind_of_url(config.url), transport_of(config)
    options = {"protocol_whitelist": _PROTOCOLS[kind], "max_pixels": str(MAX_PIXELS)}
    if kind in HTTP_KINDS:
        # By default 5 s of pictures are looked at, which take a minute from a camera of two pictures a second: FFmpeg
        # takes pictures without timestamps for 25 a second.
        options |= {"format_whitelist": _SELF_CONTAINED, **_SHORT_ANALYSIS}
    if transport is not None:
        options |= {"allowed_media_types": "video", **_SHORT_ANALYSIS, **_TRANSPORTS[transport]}
    if kind is UrlKind.RTSPS:
        options["tls_verify"] = "1" if config.tls_verify else "0"
        ca_file = ca_file_of(config)
        if config.tls_verify and ca_file:
            options["ca_file"] = ca_file
    return options


def limit_allocations(extension: str) -> bool:
    """Sets the limit for the copy of FFmpeg that a Python extension was built with, in this whole process.

    Args:
        extension: path of its shared library, which is loaded already.

    Returns:
        False where its build gives no access to the limit.
    """
    try:
        limit = ctypes.CDLL(extension).av_max_alloc
    except (OSError, AttributeError):
        return False
    limit.argtypes, limit.restype = (ctypes.c_size_t,), None
    limit(MAX_ALLOCATION_BYTES)
    return True
