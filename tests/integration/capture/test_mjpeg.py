"""Motion JPEG over HTTP as devices send it."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdet.capture.sources import SourceFrame, open_source
from streamdet.capture.sources.mjpeg import JpegFinder
from streamdet.errors import SourceError
from streamdet.types import Reason
from support.capturing import SECRET, stream_config
from support.mjpeg import PICTURES, camera, jpeg
from support.web import WebServer


def with_thumbnail(picture: bytes) -> bytes:
    """A picture that holds another in its header, as cameras' pictures do."""
    inner = b"Exif\0\0" + jpeg(9)
    return picture[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + picture[2:]


_MIXED = "multipart/x-mixed-replace; boundary="
_JPEG = b"Content-Type: image/jpeg\r\n"


def _parts(head: Callable[[bytes], bytes], tail: bytes = b"\r\n") -> Iterator[bytes]:
    for number in itertools.count():
        picture = PICTURES[number % 20]
        yield head(picture) + picture + tail


def _length(picture: bytes, off: int = 0) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % (len(picture) + off)


# Content-Type (None: no such header), and what follows.
VARIANTS: dict[str, tuple[str | None, Callable[[], Iterator[bytes]]]] = {
    "usual": (f"{_MIXED}frame", lambda: _parts(lambda p: b"--frame\r\n" + _JPEG + _length(p))),
    "no length": (f"{_MIXED}frame", lambda: _parts(lambda _: b"--frame\r\n" + _JPEG + b"\r\n")),
    "wrong length": (f"{_MIXED}frame", lambda: _parts(lambda p: b"--frame\r\n" + _JPEG + _length(p, 7))),
    "short length": (f"{_MIXED}frame", lambda: _parts(lambda p: b"--frame\r\n" + _JPEG + _length(p, -99))),
    "boundary behind": (f"{_MIXED}e8b8", lambda: _parts(lambda p: _JPEG + _length(p), b"\r\n--e8b8\r\n")),
    "boundary with dashes": (f"{_MIXED}--frame", lambda: _parts(lambda p: b"--frame\r\n" + _JPEG + _length(p))),
    "boundary without dashes": (f"{_MIXED}frame", lambda: _parts(lambda p: b"frame\r\n" + _JPEG + _length(p))),
    "quoted, charset": (f'{_MIXED}"frame"; charset=x', lambda: _parts(lambda p: b"--frame\r\n" + _JPEG + _length(p))),
    "another boundary": (f"{_MIXED}frame", lambda: _parts(lambda p: b"--other\r\n" + _JPEG + _length(p))),
    "no boundary named": ("multipart/x-mixed-replace", lambda: _parts(lambda p: b"--x\r\n" + _JPEG + _length(p))),
    "image/jpg": (f"{_MIXED}frame", lambda: _parts(lambda p: b"--frame\r\ncontent-type: image/jpg\r\n" + _length(p))),
    "line feeds": (f"{_MIXED}frame", lambda: _parts(lambda _: b"--frame\nContent-Type: image/jpeg\n\n", b"\n")),
    "no headers": (f"{_MIXED}frame", lambda: _parts(lambda _: b"--frame\r\n\r\n")),
    "preamble": (f"{_MIXED}f", lambda: itertools.chain([b"\r\nHello\r\n"], _parts(lambda p: b"--f\r\n" + _length(p)))),
    "no content type": (None, lambda: _parts(lambda p: b"--frame\r\n" + _JPEG + _length(p))),
    "mixed": ("Multipart/Mixed; boundary=f", lambda: _parts(lambda p: b"--f\r\n" + _JPEG + _length(p))),
    "bare": ("image/jpeg", lambda: _parts(lambda _: b"", b"")),
    "bare, of unknown kind": ("application/octet-stream", lambda: _parts(lambda _: b"", b"")),
    "x-motion-jpeg": ("video/x-motion-jpeg", lambda: _parts(lambda _: b"\0\0", b"\xff\xff")),
    "without their ends": (f"{_MIXED}f", lambda: (
        b"--f\r\n\r\n" + p[:-2] + b"\r\n" for p in itertools.cycle(PICTURES))),
    "byte by byte": (f"{_MIXED}f", lambda: (
        bytes([b]) for part in _parts(lambda p: b"--f\r\n" + _length(p)) for b in part)),
}  # fmt: skip


def read(url: str, frames: int, **values: object) -> list[SourceFrame]:
    source = open_source(stream_config(url, **values))
    try:
        assert (source.info.codec, source.info.live) == ("mjpeg", True)
        return [source.read() for _ in range(frames)]
    finally:
        source.close()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_way_to_send_pictures(variant: tuple[str | None, Callable[[], Iterator[bytes]]]) -> None:
    with camera(*variant) as url:
        means = [frame.picture.to_rgb().mean() for frame in read(url, 8)]
    assert means == pytest.approx([40 + 10 * n for n in range(8)], abs=3)


def test_a_picture_is_there_with_its_last_byte() -> None:
    def body() -> Iterator[bytes]:
        yield b"--f\r\n\r\n" + PICTURES[0]
        time.sleep(0.2)
        for picture in PICTURES[1:]:
            sent.append(time.monotonic())
            yield b"\r\n--f\r\n\r\n" + picture
            time.sleep(0.2)

    sent: list[float] = []
    with camera(f"{_MIXED}f", body) as url:
        source = open_source(stream_config(url))
        source.read()
        delays = []
        for _ in range(4):
            source.read()
            delays.append(time.monotonic() - sent[-1])
        source.close()
    assert min(delays) < 0.15


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_where_a_picture_ends(options: tuple[int, ...]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8)
    picture = with_thumbnail(cv2.imencode(".jpg", noise, options)[1].tobytes())
    finder = JpegFinder()
    found = [each for byte in b"--f\r\n\r\n" + picture * 2 + b"\r\n" for each in finder.feed(bytes([byte]))]
    assert found == [picture, picture]
    assert JpegFinder().feed(picture * 3) == [picture] * 3


@given(st.lists(st.sampled_from([b"\xff", b"\xd8", b"\xd9", b"\xda", b"\0", b"\xe1\0\3a", b"a", PICTURES[0]])))
def test_any_bytes_are_passed_over(pieces: list[bytes]) -> None:
    finder = JpegFinder()
    for piece in pieces:
        for picture in finder.feed(piece):
            assert picture.startswith(b"\xff\xd8\xff")
            assert picture.endswith(b"\xff\xd9")
    # Whatever came before, and however it looks, the second whole picture at the latest is found.
    assert PICTURES[1] in [
        each for _ in range(3) for each in finder.feed(b"\xff\xd9" * 2 + bytes(70_000) + PICTURES[1])
    ]


@pytest.mark.parametrize(("then", "reason"), [((), Reason.ENDED), (itertools.repeat(b"x"), Reason.TIMEOUT)])
def test_pictures_that_stop(then: Iterator[bytes], reason: Reason) -> None:
    three = [b"--f\r\n\r\n" + PICTURES[0]] * 3
    with camera(f"{_MIXED}f", lambda: itertools.chain(three, then), 0.01) as url:
        source = open_source(stream_config(url, stall_seconds=0.5))
        for _ in range(3):
            source.read()
        with pytest.raises(SourceError) as caught:
            source.read()
        source.close()
    assert caught.value.reason is reason


def test_what_is_no_stream_of_jpeg_is_said() -> None:
    sent = itertools.repeat(b"\x89PNG")
    with camera("image/jpeg", lambda: iter(sent), 0.01) as url, pytest.raises(SourceError) as caught:
        read(url, 2, connect_timeout_seconds=0.5, stall_seconds=0.5)
    assert "no whole JPEG picture" in caught.value.detail


@pytest.mark.parametrize(("max_fps", "pause_seconds"), [(None, 1.0), (4, 0.25)])
def test_an_address_of_a_single_picture_is_asked_again_and_again(max_fps: float | None, pause_seconds: float) -> None:
    numbers = itertools.count()
    with camera("image/jpeg", lambda: iter([PICTURES[next(numbers) % 20]])) as url:
        source = open_source(stream_config(url, max_fps=max_fps))
        assert source.info.live
        pictures, times = [], []
        for _ in range(4):
            pictures.append(source.read())
            times.append(time.monotonic())
        source.close()
    means = [frame.picture.to_rgb().mean() for frame in pictures]
    assert means == pytest.approx([40 + 10 * n for n in range(4)], abs=3)
    assert {frame.pts_seconds for frame in pictures} == {None}
    # The first ones may have been read at opening.
    assert times[-1] - times[-2] == pytest.approx(pause_seconds, abs=0.2)


def test_a_stream_of_parts_that_ends_after_one_picture_has_ended() -> None:
    with camera(f"{_MIXED}f", lambda: iter([b"--f\r\n\r\n" + PICTURES[0]])) as url:
        source = open_source(stream_config(url))
        source.read()
        with pytest.raises(SourceError) as caught:
            source.read()
        source.close()
    assert caught.value.reason is Reason.ENDED


def test_a_single_picture_that_cannot_be_had_any_more_is_a_failure() -> None:
    with WebServer() as web:
        web.pages["/snapshot"] = lambda: PICTURES[len(web.requests) % 20]
        source = open_source(stream_config(web.url("/snapshot"), max_fps=5))
        source.read()
        web.broken.set()
        with pytest.raises(SourceError) as caught:
            deque(iter(source.read, None), maxlen=0)
        source.close()
    assert caught.value.reason is Reason.REFUSED
    assert "503" in caught.value.detail


def test_redirections_over_http() -> None:
    login = f"user:{SECRET}"
    with WebServer(login=login) as web, WebServer() as other:
        other.redirections = {"/to": web.url("/mjpeg")}
        web.redirections = {"/a": "/mjpeg", "/out": other.url("/mjpeg"), "/loop": "/loop", "/file": "file:///etc/passwd",
                            "/nul": "/mjpeg%00"}  # fmt: skip
        assert len(read(web.url("/a", login), 2)) == 2
        assert len(read(web.url("/out", login), 2)) == 2
        assert web.logins
        assert other.logins == []
        # The login was for the first server, and the second one asks for one.
        for url, reason in (
            (other.url("/to", login), Reason.UNAUTHORIZED), (web.url("/loop", login), Reason.REFUSED),
            (web.url("/file", login), Reason.REFUSED), (web.url("/nul", login), Reason.DECODE_ERROR),
        ):  # fmt: skip
            with pytest.raises(SourceError) as caught:
                read(url, 1)
            assert caught.value.reason is reason, url
            assert SECRET not in str(caught.value)
