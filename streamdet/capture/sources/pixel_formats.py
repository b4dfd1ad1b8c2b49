"""Which pixel formats are taken from a decoder.

Swscale, which turns them into RGB, refuses some, and for others it ends the process by an assertion. A camera chooses
the format, so only those are taken that were converted and resized without either, at odd and at even sizes from one
pixel on, in processes of their own (`tests/test_pixel_formats.py` does it again). Left out are the Bayer patterns and
`yaf32`, which ended the process, and others that nothing but a hostile camera sends, such as `bgr4` and `rgbaf32`.
"""

from __future__ import annotations

_CONVERTIBLE = """
    0bgr 0rgb abgr argb ayuv ayuv64be ayuv64le bgr0 bgr24 bgr444be bgr444le bgr48be bgr48le bgr4_byte bgr555be
    bgr555le bgr565be bgr565le bgr8 bgra bgra64be bgra64le gbrap gbrap10be gbrap10le gbrap12be gbrap12le gbrap14be
    gbrap14le gbrap16be gbrap16le gbrapf16be gbrapf16le gbrapf32be gbrapf32le gbrp gbrp10be gbrp10le gbrp10msbbe
    gbrp10msble gbrp12be gbrp12le gbrp12msbbe gbrp12msble gbrp14be gbrp14le gbrp16be gbrp16le gbrp9be gbrp9le
    gbrpf16be gbrpf16le gbrpf32be gbrpf32le gray gray10be gray10le gray12be gray12le gray14be gray14le gray16be
    gray16le gray9be gray9le grayf16be grayf16le grayf32be grayf32le monob monow nv12 nv16 nv20be nv20le nv21 nv24
    nv42 p010be p010le p012be p012le p016be p016le p210be p210le p212be p212le p216be p216le p410be p410le p412be
    p412le p416be p416le pal8 rgb0 rgb24 rgb444be rgb444le rgb48be rgb48le rgb4_byte rgb555be rgb555le rgb565be
    rgb565le rgb8 rgba rgba64be rgba64le rgbaf16be rgbaf16le rgbf16be rgbf16le rgbf32be rgbf32le uyva uyvy422
    uyyvyy411 v30xle vuya vuyx vyu444 x2bgr10le x2rgb10le xv30le xv36be xv36le xv48be xv48le xyz12be xyz12le y210le
    y212le y216le ya16be ya16le ya8 yaf16be yaf16le yuv410p yuv411p yuv420p yuv420p10be yuv420p10le yuv420p12be
    yuv420p12le yuv420p14be yuv420p14le yuv420p16be yuv420p16le yuv420p9be yuv420p9le yuv422p yuv422p10be yuv422p10le
    yuv422p12be yuv422p12le yuv422p14be yuv422p14le yuv422p16be yuv422p16le yuv422p9be yuv422p9le yuv440p yuv440p10be
    yuv440p10le yuv440p12be yuv440p12le yuv444p yuv444p10be yuv444p10le yuv444p10msbbe yuv444p10msble yuv444p12be
    yuv444p12le yuv444p12msbbe yuv444p12msble yuv444p14be yuv444p14le yuv444p16be yuv444p16le yuv444p9be yuv444p9le
    yuva420p yuva420p10be yuva420p10le yuva420p16be yuva420p16le yuva420p9be yuva420p9le yuva422p yuva422p10be
    yuva422p10le yuva422p12be yuva422p12le yuva422p16be yuva422p16le yuva422p9be yuva422p9le yuva444p yuva444p10be
    yuva444p10le yuva444p12be yuva444p12le yuva444p16be yuva444p16le yuva444p9be yuva444p9le yuvj411p yuvj420p
    yuvj422p yuvj440p yuvj444p yuyv422 yvyu422
"""
CONVERTIBLE = frozenset(_CONVERTIBLE.split())
"""Measured with libswscale 9.5; by FFmpeg's names."""
# Pictures that are still in a device's memory; only a decoder that was asked for yields them.
IN_HARDWARE = frozenset({"cuda", "drm_prime", "qsv", "vaapi", "vdpau", "videotoolbox_vld", "vulkan"})
