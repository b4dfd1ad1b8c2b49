"""Decoded pictures as the libraries left them; colour is converted only for who asks."""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from streamdet.capture.sources.pixel_formats import CONVERTIBLE, IN_HARDWARE
from streamdet.errors import SourceError
from streamdet.types import Reason

if TYPE_CHECKING:
    from av import VideoFrame
    from numpy.typing import NDArray

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

_UNSPECIFIED = 2
_BT2020_CONSTANT = 10
# Matrices and ranges that swscale knows; at any other number, which a stream may state, it refuses the picture.
_KNOWN_MATRICES = frozenset({0, 1, _UNSPECIFIED, 4, 5, 6, 7, 9})
_KNOWN_RANGES = frozenset({0, 1, 2})

# A reformatter keeps its tables from one frame to the next, and serves one thread at a time.
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

    The conversion follows the matrix (BT.601, BT.709, ...) and range (full or limited) that the frame is tagged
    with; where it says nothing, BT.601 in limited range, as FFmpeg and OpenCV take it.

    Attributes:
        frame: as decoded; not turned.
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

    __slots__ = ("_lock", "_rgb", "frame", "pixel_aspect", "quarter_turns")

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

    def to_rgb(self) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], contiguous; converted once, then kept."""
        with self._lock:
            if self._rgb is None:
                self._rgb = np.ascontiguousarray(np.rot90(_rgb_of(self.frame), self.quarter_turns))
            return self._rgb

    def to_yuv(self) -> tuple[NDArray[np.uint8], YuvLayout, Matrix, bool] | None:
        """The picture as the decoder left it, half the bytes of RGB.

        None where it is no YUV 4:2:0 of 8 bits, was made with a rare matrix, has an odd side, or is turned.

        Returns:
            uint8 [height * width * 3 / 2]; its layout; the matrix that it was made with; whether it uses 0 to 255.
        """
        frame = self.frame
        matrix = _MATRICES.get(frame.colorspace)
        if frame.format.name not in _YUV_LAYOUTS or matrix is None:
            return None
        if frame.width % 2 or frame.height % 2 or self.quarter_turns:
            return None
        full_range = frame.color_range == ColorRange.JPEG or frame.format.name == "yuvj420p"
        pixels = frame.to_ndarray().astype(np.uint8, copy=False)  # for the types alone: 8 bits they are
        return pixels.reshape(-1), _YUV_LAYOUTS[frame.format.name], matrix, full_range


class BgrPicture:
    """A frame of OpenCV.

    Attributes:
        bgr: uint8 [height, width, 3].
        pixel_aspect: width of a pixel as a part of its height; 1.0 where it is square.
    """

    __slots__ = ("bgr", "pixel_aspect")

    def __init__(self, bgr: NDArray[np.uint8], sample_aspect: float = 1.0) -> None:
        self.bgr = bgr
        self.pixel_aspect = _believed(sample_aspect)

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


def _believed(aspect: float) -> float:
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def _rgb_of(frame: VideoFrame) -> NDArray[np.uint8]:
    reformatter: VideoReformatter | None = getattr(_per_thread, "reformatter", None)
    if reformatter is None:
        reformatter = _per_thread.reformatter = VideoReformatter()
    # One thread: by default each conversion would start as many as there are processors.
    plane = reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    return np.ascontiguousarray(rows[:, : frame.width * 3]).reshape(frame.height, frame.width, 3)
