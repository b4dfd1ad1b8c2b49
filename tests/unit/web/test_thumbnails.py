from __future__ import annotations

import cv2
import numpy as np
import pytest

from streamdet.web.thumbnails import Thumbnails, size_of, small


def picture(width: int, height: int) -> bytes:
    """White on the left half, black on the right, red in the middle."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 255
    pixels[height // 2 - 20 : height // 2 + 20, width // 2 - 20 : width // 2 + 20] = (0, 0, 255)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


@pytest.mark.parametrize("size", [(640, 360), (1920, 1080), (3840, 2160), (300, 3000)])
def test_a_large_picture_becomes_small_and_keeps_its_shape(size: tuple[int, int]) -> None:
    jpeg = picture(*size)
    assert size_of(jpeg) == size
    made = small(jpeg)
    assert made is not None
    width, height = size_of(made) or (0, 0)
    assert max(width, height) == 400
    assert abs(width / height - size[0] / size[1]) < 0.02
    assert len(made) < len(jpeg)


def test_a_small_picture_stays_as_it_is() -> None:
    jpeg = picture(160, 120)
    assert small(jpeg) is jpeg


@pytest.mark.parametrize("size", [(640, 360), (3840, 2160)])
def test_around_a_box_its_object_is_in_the_middle(size: tuple[int, int]) -> None:
    x, y = size[0] / 2, size[1] / 2
    made = small(picture(*size), (x - 20, y - 20, x + 20, y + 20))
    assert made is not None
    pixels = cv2.imdecode(np.frombuffer(made, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    height, width = pixels.shape[:2]
    assert abs(width / height - 4 / 3) < 0.05
    middle, left, right = (pixels[height // 2, at].tolist() for at in (width // 2, 3, width - 4))
    assert middle[2] > 200
    assert middle[0] < 60
    assert left[0] > 200
    assert right[2] < 60


@pytest.mark.parametrize("box", [(0.0, 0.0, 5.0, 5.0), (600.0, 300.0, 640.0, 360.0), (-9.0, 0.0, 9999.0, 9999.0)])
def test_a_box_at_the_edge_shows_what_there_is(box: tuple[float, float, float, float]) -> None:
    made = small(picture(640, 360), box)
    assert made is not None
    assert max(size_of(made) or (0, 0)) <= 400


@pytest.mark.parametrize("jpeg", [b"", b"\xff\xd8\xff", b"\xff\xd8" + bytes(100), picture(64, 64)[:200]])
def test_what_cannot_be_read_is_no_picture(jpeg: bytes) -> None:
    assert small(jpeg) in (None, jpeg)


def test_a_picture_that_is_far_too_large_is_not_decoded() -> None:
    jpeg = bytearray(picture(640, 360))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert size_of(bytes(jpeg)) == (65535, 65535)
    assert small(bytes(jpeg)) is None


def test_those_not_asked_for_longest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.web.thumbnails._MAX_KEPT_BYTES", 30)
    kept = Thumbnails()
    for name in "abc":
        kept.keep(name, bytes(10))
    kept.get("a")
    kept.keep("d", bytes(10))
    assert [name for name in "abcd" if kept.get(name) is not None] == ["a", "c", "d"]
