"""Decoded pictures in the format of the decoder; colour is converted only on request."""

from __future__ import annotations

import threading
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from streamdet.errors import SourceError
from streamdet.types import Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


# A few bytes can claim a picture of any size; the largest cameras have about 50 megapixels.
MAX_SIDE_PIXELS = 16384
MAX_PIXELS = 64 * 1024 * 1024
# The most that is in use: half the width of a 2:1 picture, or a third and a quarter of anamorphic recorders.
MAX_PIXEL_ASPECT = 4.0

YuvLayout = Literal["yuv420p", "nv12"]
Matrix = Literal["bt601", "bt709", "bt2020", "smpte240m"]

# yuvj420p is FFmpeg's older name for full range.
_YUV_LAYOUTS: dict[str, YuvLayout] = {"yuv420p": "yuv420p", "yuvj420p": "yuv420p", "nv12": "nv12"}
# By the numbers of FFmpeg's AVColorSpace. 2 is "unspecified", 6 is SMPTE 170M, the same as BT.601.
_MATRICES: dict[int, Matrix] = {
    2: "bt601",
    6: "bt601",
    Colorspace.ITU601: "bt601",
    Colorspace.ITU709: "bt709",
    Colorspace.SMPTE240M: "smpte240m",
    Colorspace.BT2020: "bt2020",
}

# What red and blue contribute to brightness, by the standards.
_BRIGHTNESS: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
}

# The first plane is the brightness of every pixel, in a byte each.
_LUMA_FIRST_NAMES = """
    gray nv12 nv16 nv21 nv24 nv42 yuv410p yuv411p yuv420p yuv422p yuv440p yuv444p yuvj411p yuvj420p yuvj422p yuvj440p
    yuvj444p
"""
_LUMA_FIRST = frozenset(_LUMA_FIRST_NAMES.split())

_UNSPECIFIED = 2
_BT2020_CONSTANT = 10
# Matrices and ranges that swscale knows; at any other number, which a stream may state, it refuses the picture.
_KNOWN_MATRICES = frozenset({0, 1, _UNSPECIFIED, 4, 5, 6, 7, 9})
_KNOWN_RANGES = frozenset({0, 1, 2})

# What cameras and films mostly have: planes of bytes, to be copied line by line.
_COPIED = frozenset({*_YUV_LAYOUTS, "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv420p10le", "p010le"})

# A reformatter keeps its tables from one frame to the next, and serves one thread at a time.
_MAX_SMALL_SIZES = 32
_per_thread = threading.local()


def check_size(width: int, height: int) -> None:
    """Refuses pictures that would fill the memory.

    Raises:
        SourceError: decode_error.
    """
    if max(width, height) > MAX_SIDE_PIXELS or width * height > MAX_PIXELS:
        detail = f"a picture of {width}x{height} pixels is too large; the limit is {MAX_PIXELS // 1024**2} megapixels"
        raise SourceError(Reason.DECODE_ERROR, detail)


def admit(frame: VideoFrame) -> None:
    """Refuses what swscale cannot convert; colours of a rare matrix are taken as those of the nearest that it knows.

    Raises:
        SourceError: decode_error.
    """
    name = frame.format.name
    if name not in CONVERTIBLE and name not in IN_HARDWARE:
        raise SourceError(Reason.DECODE_ERROR, f"pictures in the pixel format {name} cannot be converted")
    if frame.colorspace not in _KNOWN_MATRICES:
        frame.colorspace = Colorspace.BT2020 if frame.colorspace == _BT2020_CONSTANT else _UNSPECIFIED
    if frame.color_range not in _KNOWN_RANGES:
        frame.color_range = ColorRange.UNSPECIFIED


class AvPicture:
    """A frame of FFmpeg, mostly YUV 4:2:0 of 1.5 bytes per pixel.

    For any number of threads, which wait for each other.

    The conversion follows the matrix (BT.601, BT.709, ...) and range (full or limited) that the frame is tagged
    with; where it says nothing, BT.601 in limited range, as FFmpeg and OpenCV take it.

    Attributes:
        frame: as decoded, or a copy of that; not turned.
        quarter_turns: counter-clockwise turns that show it upright, 0 to 3.
        pixel_aspect: width of a pixel of the upright picture as a part of its height; 1.0 where it is square.

    Args:
        frame: as decoded.
        quarter_turns: counter-clockwise turns that show it upright, 0 to 3.
        sample_aspect: width of a pixel of `frame` as a part of its height, as the stream says; None where it does
            not. What no camera has, below 1/4 or above 4, is not believed.

    Raises:
        SourceError: decode_error: it could not be converted.
    """

    __slots__ = ("__weakref__", "_lock", "_rgb", "frame", "pixel_aspect", "quarter_turns")

    def __init__(self, frame: VideoFrame, quarter_turns: int = 0, sample_aspect: Fraction | None = None) -> None:
        admit(frame)
        self.frame = frame
        self.quarter_turns = quarter_turns
        aspect = _believed(float(sample_aspect or 1))
        self.pixel_aspect = 1 / aspect if quarter_turns % 2 else aspect
        self._rgb: NDArray[np.uint8] | None = None
        self._lock = threading.Lock()

    @property
    def width(self) -> int:
        """Pixels, of the upright picture."""
        return self.frame.height if self.quarter_turns % 2 else self.frame.width

    @property
    def height(self) -> int:
        """Pixels, of the upright picture."""
        return self.frame.width if self.quarter_turns % 2 else self.frame.height

    def leave_decoder(self) -> None:
        """Copies the pixels, so that the decoder can use their memory again; waits for those who read the picture.

        A decoder gets more memory where its own is in use, and keeps it until it is closed.
        """
        if self.frame.format.name in _COPIED:
            with self._lock:
                self.frame = _copied(self.frame)

    def to_rgb(self) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous; converted once, then kept."""
        with self._lock:
            if self._rgb is None:
                self._rgb = np.ascontiguousarray(np.rot90(_rgb_of(self.frame), self.quarter_turns))
            return self._rgb

    def to_small_bgr(self, width: int, height: int) -> NDArray[np.uint8]:
        """The picture in another size, mean colours of the pixels that become one; far cheaper than all of it in RGB.

        YUV 4:2:0 of 8 bits that is halved, or halved again, takes half the time of other sizes.
        Blue comes first: FFmpeg scales to this order in half the time, and OpenCV encodes it as it is.

        Args:
            width: pixels, of the upright picture.
            height: pixels, likewise.

        Returns:
            uint8 [height, width, 3], contiguous.
        """
        size = (height, width) if self.quarter_turns % 2 else (width, height)
        with self._lock:
            small = _small_bgr_of(self.frame, *size)
        return np.ascontiguousarray(np.rot90(small, self.quarter_turns))

    def to_sampled_rgb(self, width: int, height: int) -> NDArray[np.uint8]:
        """The picture in another size, sampled: between the two rows and columns of pixels that are next to a place.

        YUV 4:2:0 of 8 bits is resized first and converted then.

        Args:
            width: pixels, of the upright picture.
            height: pixels, likewise.

        Returns:
            uint8 [height, width, 3], contiguous.
        """
        size = (height, width) if self.quarter_turns % 2 else (width, height)
        with self._lock:
            planes = _planes_of(self.frame)
            parts = [cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in planes or ()]
            del planes
        if not parts:
            return np.asarray(cv2.resize(self.to_rgb(), (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
        small = cv2.merge(parts)
        rgb = cv2.transform(small, _conversion(_MATRICES[self.frame.colorspace], full_range=self._is_full_range()))
        return np.ascontiguousarray(np.rot90(np.asarray(rgb, np.uint8), self.quarter_turns))

    def to_small_luma(self, width: int, height: int) -> NDArray[np.uint8]:
        """The brightness of the picture in another size, sampled; colours are not converted where it is YUV of 8 bits.

        Args:
            width: pixels, of the upright picture.
            height: pixels, likewise.

        Returns:
            uint8 [height, width], contiguous.
        """
        size = (height, width) if self.quarter_turns % 2 else (width, height)
        with self._lock:
            small = _small_luma_of(self.frame, *size)
        return np.ascontiguousarray(np.rot90(small, self.quarter_turns))

    def to_yuv(self) -> tuple[NDArray[np.uint8], YuvLayout, Matrix, bool] | None:
        """The picture as the decoder left it, half the bytes of RGB.

        None where it is no YUV 4:2:0 of 8 bits, was made with a rare matrix, has an odd side, or is turned.

        Returns:
            uint8 [height * width * 3 / 2]; its layout; the matrix that it was made with; whether it uses 0 to 255.
        """
        if not _is_even_yuv(self.frame) or self.quarter_turns:
            return None
        with self._lock:
            frame = self.frame
            pixels = frame.to_ndarray().astype(np.uint8, copy=False)  # for the types alone: 8 bits they are
        layout, matrix = _YUV_LAYOUTS[frame.format.name], _MATRICES[frame.colorspace]
        return pixels.reshape(-1), layout, matrix, self._is_full_range()

    def _is_full_range(self) -> bool:
        return self.frame.color_range == ColorRange.JPEG or self.frame.format.name == "yuvj420p"


class BgrPicture:
    """A frame of a device, as OpenCV gives it.

    Attributes:
        bgr: uint8 [height, width, 3].
        pixel_aspect: width of a pixel as a part of its height; 1.0 where it is square.
    """

    __slots__ = ("bgr",)

    pixel_aspect = 1.0

    def __init__(self, bgr: NDArray[np.uint8]) -> None:
        self.bgr = bgr

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.bgr.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.bgr.shape[0])

    def to_rgb(self) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous."""
        return np.ascontiguousarray(self.bgr[:, :, ::-1])

    def to_small_bgr(self, width: int, height: int) -> NDArray[np.uint8]:
        """The picture in another size, mean colours of the pixels that become one.

        Args:
            width: pixels.
            height: pixels.

        Returns:
            uint8 [height, width, 3], contiguous.
        """
        if (width, height) == (self.width, self.height):
            return np.ascontiguousarray(self.bgr)
        return np.asarray(cv2.resize(self.bgr, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    def to_small_luma(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 [height, width], contiguous; sampled."""
        small = cv2.resize(self.bgr, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)


@cache
def _conversion(matrix: Matrix, *, full_range: bool) -> NDArray[np.float32]:
    """float32 [3, 4]: from Y, U, V and 1 to RGB."""
    red, blue = _BRIGHTNESS[matrix]
    green = 1 - red - blue
    luma_gain, colour_gain, black = (1.0, 1.0, 0.0) if full_range else (255 / 219, 255 / 224, 16.0)
    from_v, from_u = 2 * (1 - red) * colour_gain, 2 * (1 - blue) * colour_gain
    gains = np.array([[0.0, from_v], [-from_u * blue / green, -from_v * red / green], [from_u, 0.0]])
    gains = np.column_stack(([luma_gain] * 3, gains))
    return np.column_stack((gains, -gains @ [black, 128.0, 128.0])).astype(np.float32)


def _believed(aspect: float) -> float:
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def _copied(frame: VideoFrame) -> VideoFrame:
    """A frame with the same pixels and colours in memory of its own."""
    copy = type(frame)(frame.width, frame.height, frame.format.name)
    copy.colorspace, copy.color_range, copy.pts = frame.colorspace, frame.color_range, frame.pts
    for plane, target in zip(frame.planes, copy.planes, strict=True):
        width = min(plane.line_size, target.line_size)
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size)[:, :width] = rows[:, :width]
    return copy


def _is_even_yuv(frame: VideoFrame) -> bool:
    """Whether it is YUV 4:2:0 of 8 bits, made with a known matrix, with even sides."""
    is_known = frame.format.name in _YUV_LAYOUTS and frame.colorspace in _MATRICES
    return is_known and not frame.width % 2 and not frame.height % 2


def _planes_of(frame: VideoFrame) -> list[NDArray[np.uint8]] | None:
    """Y, U and V as they lie in memory, not turned, or Y and UV; None where it is no such YUV."""
    if not _is_even_yuv(frame):
        return None
    height, width = frame.height, frame.width
    luma, *chroma = (np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in frame.planes)
    if len(chroma) == 1:
        pairs = chroma[0][: height // 2, :width].reshape(height // 2, width // 2, 2)
        return [luma[:height, :width], pairs]
    return [luma[:height, :width], *(plane[: height // 2, : width // 2] for plane in chroma)]


def _halved(frame: VideoFrame, width: int, height: int) -> VideoFrame | None:
    """A frame made smaller by halves; None where they do not lead to this size, or it is no YUV 4:2:0 of 8 bits.

    The mean of two by two pixels takes OpenCV a fraction of the time that swscale takes for means of any size.
    """
    times = frame.width // width
    is_halved = times in (2, 4) and (frame.width, frame.height) == (width * times, height * times)
    large = _planes_of(frame) if is_halved and not (width % 2 or height % 2) else None
    if large is None:
        return None
    small = VideoFrame(width, height, frame.format.name)
    small.colorspace, small.color_range = frame.colorspace, frame.color_range
    for source, target in zip(large, _planes_of(small) or [], strict=True):
        halved = source
        while halved.shape[0] > 2 * target.shape[0]:
            half = (halved.shape[1] // 2, halved.shape[0] // 2)
            halved = np.asarray(cv2.resize(halved, half, interpolation=cv2.INTER_AREA), np.uint8)
        cv2.resize(halved, (target.shape[1], target.shape[0]), dst=target, interpolation=cv2.INTER_AREA)
    return small


def _rgb_of(frame: VideoFrame) -> NDArray[np.uint8]:
    reformatter: VideoReformatter | None = getattr(_per_thread, "reformatter", None)
    if reformatter is None:
        reformatter = _per_thread.reformatter = VideoReformatter()
    # One thread: by default each conversion would start as many as there are processors.
    return _pixels_of(reformatter.reformat(frame, format="rgb24", threads=1))


def _small_bgr_of(frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    return _converted_to_bgr(_halved(frame, width, height) or frame, width, height)


def _converted_to_bgr(frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    # Streams take turns, and the tables of a reformatter fit one pair of sizes.
    reformatters: dict[tuple[int, ...], VideoReformatter] = _per_thread.__dict__.setdefault("small", {})
    key = (frame.width, frame.height, width, height)
    if key not in reformatters and len(reformatters) >= _MAX_SMALL_SIZES:
        reformatters.clear()
    reformatter = reformatters.setdefault(key, VideoReformatter())
    return _pixels_of(reformatter.reformat(frame, width, height, "bgr24", interpolation=Interpolation.AREA, threads=1))


def _small_luma_of(frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
    if frame.format.name not in _LUMA_FIRST:
        bgr = _small_bgr_of(frame, width, height)
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), np.uint8)
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    # Only some lines are read: a large picture does not fit into the caches of a processor.
    luma = rows[: frame.height : max(1, frame.height // height), : frame.width]
    return np.asarray(cv2.resize(luma, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _pixels_of(frame: VideoFrame) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    return np.ascontiguousarray(rows[:, : frame.width * 3]).reshape(frame.height, frame.width, 3)
