"""What FFmpeg is told before it opens a stream."""

from __future__ import annotations

from streamdet.capture.sources.diagnosis import HTTP_KINDS, TLS_KINDS, ca_file_of
from streamdet.capture.sources.formats import SELF_CONTAINED
from streamdet.capture.sources.picture import MAX_PIXELS
from streamdet.config import StreamConfig
from streamdet.config.addresses import UrlKind, kind_of_url

# FFmpeg's defaults look at 5 s of a live stream before the first frame; the header and one frame are enough. Where it
# is joined between two key frames, nothing says its size, and only the amount ends the look.
_SHORT_ANALYSIS = {"analyzeduration": "100000", "probesize": "32000"}
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
    UrlKind.HTTP: "http,https,tcp,tls,crypto,data",
    UrlKind.HTTPS: "http,https,tcp,tls,crypto,data",
    UrlKind.FILE: "file,crypto,data",
}

# For HLS, whose files come from `hls`: FFmpeg must not do with them what it does with connections of its own.
HLS_OPTIONS = {
    "analyzeduration": "5000000",
    "http_persistent": "0",
    "http_multiple": "0",
    "format_whitelist": f"hls,{SELF_CONTAINED}",
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
        # Without multiple_requests FFmpeg asks for the connection to be closed, and goes on with it all the same where
        # the answer does not say that it is: the first key frame of a film is lost then.
        options |= {"format_whitelist": SELF_CONTAINED, "multiple_requests": "1", **_SHORT_ANALYSIS}
    if transport is not None:
        options |= {"allowed_media_types": "video", **_SHORT_ANALYSIS, **_TRANSPORTS[transport]}
    if kind in TLS_KINDS:
        options["tls_verify"] = "1" if config.tls_verify else "0"
        ca_file = ca_file_of(config)
        if config.tls_verify and ca_file:
            options["ca_file"] = ca_file
    return options
