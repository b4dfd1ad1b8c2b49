from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from streamdet.detector.picture_files import decode_rgb, read_rgb
from streamdet.errors import DataError
from support.detecting import claiming_png


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", claiming_png(100_000, 100_000), claiming_png(2_000_000, 10), claiming_png(60, 60)[:40]],
)
def test_what_is_no_picture_is_none(tmp_path: Path, content: bytes) -> None:
    assert decode_rgb(content) is None
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded as a picture"):
        read_rgb(tmp_path / "a.png")


def test_every_kind_of_pixel_becomes_rgb_of_8_bits(tmp_path: Path) -> None:
    grey = np.full((4, 6), 200, np.uint8)
    for pixels in (grey, grey.astype(np.uint16) * 257, np.dstack([grey] * 4), np.dstack([grey] * 3)):
        path = tmp_path / "a.png"
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        np.testing.assert_array_equal(read_rgb(path), np.dstack([grey] * 3))
