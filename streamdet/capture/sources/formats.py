"""Which formats FFmpeg may take what a server sends for."""

from __future__ import annotations

import av

# These lead FFmpeg to further addresses, or read something of this machine.
_LEAD_ELSEWHERE = frozenset(
    {"hls", "concat", "dash", "imf", "rtp", "rtsp", "sap", "sdp", "webm_dash_manifest", "lavfi"}
)

# Separated by commas, as FFmpeg's `format_whitelist` wants them: everything that is what it is by itself.
SELF_CONTAINED = ",".join(sorted(av.formats_available - _LEAD_ELSEWHERE))
