from __future__ import annotations

import gc
import itertools
import socket
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from streamdet.capture.sources import Source, SourceFrame, open_source, read_sound
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.capture.sources.picture import AvPicture
from streamdet.capture.sources.turns import OPENING, Turns
from streamdet.errors import SourceError
from streamdet.types import Reason
from support.capturing import SECRET, stream_config
from support.certificates import make_certificate
from support.films import make_film, number_in
from support.hls import make_hls, master
from support.videos import concatenate, make_audio, make_video
from support.waiting import join
from support.web import WebServer


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def read_all(source: Source) -> tuple[list[SourceFrame], SourceError]:
    frames = []
    try:
        while True:
            frames.append(read_sound(source))
    except SourceError as error:
        return frames, error
    finally:
        source.close()


def test_a_closed_source_needs_no_garbage_collector(clip: Path) -> None:
    """Its decoder takes ten megabytes, and old garbage is looked for once in hours."""
    source = open_source(stream_config(clip, pace="fastest"))
    read_sound(source)
    source.close()
    known = weakref.ref(source)
    gc.disable()
    try:
        del source
        assert known() is None
    finally:
        gc.enable()


def test_files_are_opened_in_turns_and_one_that_takes_long_holds_up_none_for_good(clip: Path) -> None:
    with ExitStack() as others:
        for _ in range(OPENING.at_once):
            others.enter_context(OPENING.turn())
        began = time.monotonic()
        open_source(stream_config(clip)).close()
        assert time.monotonic() - began >= OPENING.longest_wait_seconds


def test_a_stop_ends_the_wait_for_a_turn() -> None:
    turns, interrupt, has_turn = Turns(1, longest_wait_seconds=3600), Interrupt(), threading.Event()

    def open_file() -> None:
        with interrupt.bound(), turns.turn():
            has_turn.set()

    with turns.turn():
        opening = threading.Thread(target=open_file, daemon=True)
        opening.start()
        assert not has_turn.is_set()
        interrupt.set()
        join(opening)
    assert has_turn.is_set()


@pytest.mark.parametrize("b_frames", [0, 2])
def test_pictures_in_use_keep_no_memory_of_the_decoder(tmp_path: Path, b_frames: int) -> None:
    """What a decoder has once got it keeps, 3 MB for each picture of 1080p that was in use at the same time."""
    film = make_film(tmp_path / "film.mp4", seconds=6, bframes=b_frames)
    source = open_source(stream_config(film, pace="fastest"))
    in_use: list[AvPicture] = []
    places: Counter[int] = Counter()
    try:
        for number in range(60):
            picture = read_sound(source).picture
            assert isinstance(picture, AvPicture)
            places[picture.frame.planes[0].buffer_ptr] += 1
            if number % 3 == 0:
                in_use.append(picture)
            del picture
    finally:
        source.close()
    assert len(places) <= 4 + 2 * b_frames, places
    assert [number_in(picture.to_rgb()) for picture in in_use] == list(range(0, 60, 3))


def failure(url: object, **values: object) -> SourceError:
    """What reading a stream ends with."""
    try:
        _, error = read_all(open_source(stream_config(url, **values)))
    except SourceError as at_opening:
        error = at_opening
    assert SECRET not in "".join(traceback.format_exception(error))
    return error


def test_file_as_fast_as_possible_loses_nothing(clip: Path) -> None:
    source = open_source(stream_config(clip, pace="fastest"))
    frames, error = read_all(source)
    assert error.reason is Reason.ENDED
    assert not source.info.live
    assert (source.info.width, source.info.height, source.info.fps) == (64, 48, 25.0)
    assert [f.pts_seconds for f in frames] == pytest.approx([n / 25 for n in range(10)], abs=1e-6)
    assert [int(f.picture.to_rgb().mean()) for f in frames] == pytest.approx([40 + 10 * n for n in range(10)], abs=2)
    assert all(f.clock == "daemon" and abs(f.captured_at - time.time()) < 60 for f in frames)


def test_file_in_real_time_takes_its_time(clip: Path) -> None:
    started = time.monotonic()
    frames, _ = read_all(open_source(stream_config(clip)))
    assert len(frames) == 10
    assert time.monotonic() - started > 0.3


def test_loop_goes_on_with_growing_time(clip: Path) -> None:
    source = open_source(stream_config(clip, pace="fastest", loop=True))
    frames = [source.read() for _ in range(25)]
    source.close()
    assert [f.pts_seconds for f in frames] == pytest.approx([n / 25 for n in range(25)], abs=1e-6)
    assert abs(int(frames[20].picture.to_rgb().mean()) - 40) <= 2


@pytest.mark.parametrize("spelling", ["file://{}", "{}"])
def test_files_are_found_however_they_are_written(tmp_path: Path, spelling: str) -> None:
    clip = make_video(tmp_path / "a b:c.mp4", frames=2)
    location = spelling.format(str(clip).replace(" ", "%20") if "file" in spelling else clip)
    frames, _ = read_all(open_source(stream_config(location, pace="fastest")))
    assert len(frames) == 2


@pytest.mark.parametrize(
    ("codec", "name", "pixel_format"),
    [("libx264", "h264", "yuv420p"), ("libsvtav1", "av1", "yuv420p"), ("mjpeg", "mjpeg", "yuvj420p")],
)
def test_codecs(tmp_path: Path, codec: str, name: str, pixel_format: str) -> None:
    clip = make_video(tmp_path / "clip.mp4", codec=codec, pixel_format=pixel_format)
    source = open_source(stream_config(clip, pace="fastest"))
    frames, _ = read_all(source)
    assert source.info.codec == name
    assert int(frames[5].picture.to_rgb().mean()) == pytest.approx(90, abs=2)


def test_size_may_change_within_a_stream(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.h264", container="h264")
    large = make_video(tmp_path / "large.h264", width=128, height=96, container="h264")
    both = concatenate(tmp_path / "both.h264", small, large)
    frames, _ = read_all(open_source(stream_config(both, pace="fastest")))
    sizes = [(f.picture.width, f.picture.height) for f in frames]
    assert sizes == [(64, 48)] * 10 + [(128, 96)] * 10
    assert all(f.picture.to_rgb().shape == (f.picture.height, f.picture.width, 3) for f in frames)


def test_turned_file_is_shown_upright(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=2)
    content = bytearray(clip.read_bytes())
    # The display matrix of the track header (ISO/IEC 14496-12, 8.3.2): here a turn by 90 degrees clockwise.
    matrix = content.index(b"tkhd") + 4 + 40
    turned = [0, 0x00010000, 0, -0x00010000, 0, 0, 48 << 16, 0, 0x40000000]
    content[matrix : matrix + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in turned)
    clip.write_bytes(content)
    picture = read_all(open_source(stream_config(clip, pace="fastest")))[0][0].picture
    assert (picture.width, picture.height) == (48, 64)
    assert picture.to_rgb().shape == (64, 48, 3)


def test_bad_files(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.txt").write_text("hello\n" * 100)
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:500])
    make_audio(tmp_path / "audio.m4a")
    wanted = {
        "empty.mp4": Reason.DECODE_ERROR,
        "text.txt": Reason.NO_VIDEO,
        "text.mp4": Reason.DECODE_ERROR,
        "cut.mp4": Reason.DECODE_ERROR,
        "audio.m4a": Reason.NO_VIDEO,
        "missing.mp4": Reason.NOT_FOUND,
        "clip.mp4/inside": Reason.NOT_FOUND,
        ".": Reason.NO_VIDEO,
    }
    (tmp_path / "clip.mp4").write_bytes(b"")
    found = {name: failure(tmp_path / name).reason for name in wanted}
    assert found == wanted


@pytest.mark.parametrize("container", ["avi", "matroska", "mov", "flv"])
def test_title_in_another_encoding_is_shown_all_the_same(tmp_path: Path, container: str) -> None:
    clip = make_video(tmp_path / "clip", container=container, title="TITLE-TITLE")
    content = clip.read_bytes()
    assert b"TITLE-TITLE" in content
    clip.write_bytes(
        content.replace(b"TITLE-TITLE", "T\u00efT\u00efTITLE\u00ff\u00fe\u00c0\u00c1"[:11].encode("latin-1"))
    )
    frames, _ = read_all(open_source(stream_config(clip, pace="fastest")))
    assert len(frames) == 10


def test_codec_without_decoder(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=2)
    clip.write_bytes(clip.read_bytes().replace(b"avc1", b"zzzz"))
    assert failure(clip).reason is Reason.UNSUPPORTED_CODEC


def test_file_that_is_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.ts", frames=50, container="mpegts").read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole[: len(whole) // 2])
    frames, error = read_all(open_source(stream_config(cut, pace="fastest")))
    assert error.reason is Reason.ENDED
    assert 10 < len(frames) < 50


def test_broken_packets_are_left_out(tmp_path: Path) -> None:
    content = bytearray(make_video(tmp_path / "clip.ts", frames=50, container="mpegts").read_bytes())
    noise = np.random.default_rng(1).integers(0, 256, 1500, np.uint8).tobytes()
    content[len(content) // 2 : len(content) // 2 + len(noise)] = noise
    (tmp_path / "broken.ts").write_bytes(content)
    frames, error = read_all(open_source(stream_config(tmp_path / "broken.ts", pace="fastest")))
    assert error.reason is Reason.ENDED
    assert 20 < len(frames) <= 50


def test_picture_of_monstrous_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.capture.sources.picture.MAX_SIDE_PIXELS", 100)
    monster = make_video(tmp_path / "monster.h264", width=128, height=96, container="h264")
    error = failure(monster)
    assert error.reason is Reason.DECODE_ERROR
    assert "128x96" in error.detail


def test_picture_that_becomes_monstrous_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.capture.sources.picture.MAX_SIDE_PIXELS", 100)
    small = make_video(tmp_path / "small.h264", container="h264")
    monster = make_video(tmp_path / "monster.h264", width=128, height=96, container="h264")
    both = concatenate(tmp_path / "both.h264", small, monster)
    frames, error = read_all(open_source(stream_config(both, pace="fastest")))
    assert len(frames) == 10
    assert error.reason is Reason.DECODE_ERROR


def test_decoder_takes_no_memory_for_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.capture.sources.av.MAX_PIXELS", 100 * 100)
    small = make_video(tmp_path / "small.h264", container="h264")
    large = make_video(tmp_path / "large.h264", width=128, height=96, container="h264")
    both = concatenate(tmp_path / "both.h264", small, large)
    frames, _ = read_all(open_source(stream_config(both, pace="fastest")))
    assert [f.picture.width for f in frames] == [64] * 10


@pytest.mark.parametrize("device", ["99", "/dev/video99"])
def test_missing_device(device: str) -> None:
    assert failure(device).reason is Reason.NOT_FOUND


def test_device_that_is_none() -> None:
    assert failure("/dev/null").reason is Reason.NO_VIDEO


def test_http_mjpeg() -> None:
    with WebServer() as web:
        source = open_source(stream_config(web.url("/mjpeg")))
        frames = [source.read() for _ in range(3)]
        source.close()
        assert source.info.live
    assert 30 < frames[0].picture.to_rgb().mean() < 250


def test_hls_comes_in_real_time(tmp_path: Path) -> None:
    make_video(tmp_path / "live.m3u8", frames=20, container="hls")
    with WebServer(tmp_path) as web:
        started = time.monotonic()
        frames, error = read_all(open_source(stream_config(web.url("/live.m3u8"))))
    assert len(frames) == 20
    assert error.reason is Reason.ENDED
    assert time.monotonic() - started > 0.6


def test_playlist_from_the_network_reads_no_files_of_this_machine(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "secret.ts", container="mpegts")
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", f"file://{clip}", "#EXT-X-ENDLIST"]
    (tmp_path / "evil.m3u8").write_text("\n".join(lines))
    with WebServer(tmp_path) as web:
        assert failure(web.url("/evil.m3u8")).reason is Reason.DECODE_ERROR


def test_http_failures() -> None:
    with WebServer(login=f"user:{SECRET}") as web:
        wrong = failure(web.url("/mjpeg", f"user:{SECRET}-not"))
        none = failure(web.url("/mjpeg"))
        missing = failure(web.url("/nope", f"user:{SECRET}"))
        broken = failure(web.url("/broken", f"user:{SECRET}"))
        page = failure(web.url("/page", f"user:{SECRET}"))
        web.pages |= {"/api.mp4": lambda: b'{"error": "log in first"}', "/xml": lambda: b"<?xml version='1.0'?><e/>"}
        api, xml = (failure(web.url(path, f"user:{SECRET}")) for path in ("/api.mp4", "/xml"))
    assert "sends a web page (HTML), not a video" in page.detail
    assert "sends JSON, not a video" in api.detail
    assert "sends XML, not a video" in xml.detail
    reasons = [e.reason for e in (wrong, none, missing, broken, page)]
    assert reasons == [
        Reason.UNAUTHORIZED, Reason.UNAUTHORIZED, Reason.NOT_FOUND, Reason.REFUSED, Reason.DECODE_ERROR
    ]  # fmt: skip


def test_why_a_film_whose_index_is_at_its_end_cannot_be_read(tmp_path: Path, clip: Path) -> None:
    head, moov, index = clip.read_bytes().partition(b"moov")
    gap = 2 << 20  # more than is read on to where the index is
    free = gap.to_bytes(4, "big") + b"free" + bytes(gap - 8)
    (tmp_path / "far.mp4").write_bytes(head[:-4] + free + head[-4:] + moov + index)
    (tmp_path / "cut.mp4").write_bytes(head[:-4])
    with WebServer(tmp_path) as web:
        frames, _ = read_all(open_source(stream_config(web.url("/far.mp4"))))
        assert len(frames) == 10
        cut = failure(web.url("/cut.mp4"))
        web.knows_ranges = False
        far = failure(web.url("/far.mp4"))
        where = f"localhost:{web.port}"
    assert far.reason is cut.reason is Reason.DECODE_ERROR
    assert f"the index of this MP4 is at its end, and {where} does not send parts of a file" in far.detail
    assert cut.detail == failure(tmp_path / "cut.mp4").detail
    assert cut.detail == "this MP4 has no index (moov): it was not written to its end"


@pytest.mark.parametrize("scheme", ["rtsp", "http", "rtsps", "https"])
def test_no_server(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"{scheme}://user:{SECRET}@127.0.0.1:{unused.getsockname()[1]}/x"
        tls = {"tls_verify": False} if scheme.endswith("s") else {}
        assert failure(url, **tls).reason is Reason.REFUSED
    assert failure(f"{scheme}://user:{SECRET}@nowhere.invalid/x", **tls).reason is Reason.DNS


@pytest.mark.parametrize("scheme", ["rtsp", "http", "rtsps"])
def test_silent_server(silent_port: int, scheme: str) -> None:
    url = f"{scheme}://user:{SECRET}@127.0.0.1:{silent_port}/x"
    error = failure(url, connect_timeout_seconds=0.5)
    assert error.reason is Reason.TIMEOUT


def test_server_of_another_kind() -> None:
    with WebServer() as web:
        assert failure(web.url("/mjpeg").replace("http", "rtsp")).reason is Reason.REFUSED


def test_https_server_must_be_trusted(certificate: tuple[Path, Path]) -> None:
    with WebServer(certificate=certificate) as web:
        error = failure(web.url("/mjpeg"))
        assert error.reason is Reason.TLS
        assert "self-signed" in error.detail
        for trusted in ({"tls_ca_file": str(certificate[0])}, {"tls_verify": False}):
            source = open_source(stream_config(web.url("/mjpeg"), **trusted))
            assert source.read().picture.width == 64
            source.close()
        assert failure(web.url("/mjpeg"), tls_ca_file="/missing.pem").reason is Reason.TLS


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_interrupt_ends_opening(silent_port: int, scheme: str) -> None:
    interrupt = Interrupt()
    timer = threading.Timer(0.3, interrupt.set)
    timer.start()
    started = time.monotonic()
    with interrupt.bound():
        error = failure(f"{scheme}://127.0.0.1:{silent_port}/x", connect_timeout_seconds=60)
    join(timer)
    assert error.reason is Reason.TIMEOUT
    assert time.monotonic() - started < 20


def test_interrupt_ends_reading() -> None:
    interrupt = Interrupt()
    with WebServer() as web, interrupt.bound():
        source = open_source(stream_config(web.url("/mjpeg"), stall_seconds=60))
        source.read()
        web.silent.set()
        timer = threading.Timer(0.3, interrupt.set)
        timer.start()
        started = time.monotonic()
        _, error = read_all(source)
        join(timer)
    assert error.reason is Reason.TIMEOUT
    assert time.monotonic() - started < 20


def test_a_file_is_decoded_with_the_cpu_and_one_line_says_so(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(stream_config(clip, name="without-vdpau", hwaccel="vdpau", pace="fastest"))
    frames, _ = read_all(source)
    assert len(frames) == 10
    assert source.info.hwaccel is None
    assert [r.getMessage() for r in caplog.records] == [
        "h264 is decoded with the CPU, not in hardware by vdpau (any device: it is used for live streams alone)"
    ]


def test_every_piece_of_a_verified_playlist_is_verified(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    (tmp_path / "other").mkdir()
    other_certificate = make_certificate(tmp_path / "other")
    make_video(tmp_path / "live.m3u8", frames=20, container="hls")
    playlist = (tmp_path / "live.m3u8").read_text()
    login = f"user:{SECRET}"
    trust = {"tls_ca_file": str(certificate[0]), "stall_seconds": 60}
    with (
        WebServer(tmp_path, login, certificate) as web,
        WebServer(tmp_path, None, other_certificate) as untrusted,
        WebServer(tmp_path) as plain,
    ):
        for name, server in (("untrusted", untrusted), ("plain", plain)):
            (tmp_path / f"{name}.m3u8").write_text(playlist.replace("live0.ts", server.url("/live0.ts")))
            (tmp_path / f"{name}-without-suffix").write_text((tmp_path / f"{name}.m3u8").read_text())
            for path in (f"/{name}.m3u8", f"/{name}-without-suffix"):
                assert failure(web.url(path, login), **trust).reason is Reason.TLS
        frames, error = read_all(open_source(stream_config(web.url("/live.m3u8", login), **trust)))
        assert len(frames) == 20
        assert error.reason is Reason.ENDED
        assert failure(web.url("/nope.m3u8", login), **trust).reason is Reason.NOT_FOUND
        assert failure(web.url("/live.m3u8", "user:wrong"), **trust).reason is Reason.UNAUTHORIZED
        assert failure(web.url("/live.m3u8", login)).reason is Reason.TLS


# ---------------------------------------------------------------- Films behind http://, covers, clocks that are none


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi"])
def test_a_film_behind_http_is_a_file(tmp_path: Path, container: str) -> None:
    make_video(tmp_path / "film", container=container, frames=20)
    with WebServer(tmp_path) as web:
        started = time.monotonic()
        source = open_source(stream_config(web.url("/film")))
        assert not source.info.live
        frames, error = read_all(source)
        assert time.monotonic() - started > 0.7
        assert (len(frames), error.reason, error.is_final) == (20, Reason.ENDED, True)
        assert [f.pts_seconds for f in frames] == pytest.approx([n / 25 for n in range(20)], abs=2e-3)
        source = open_source(stream_config(web.url("/film"), loop=True))
        frames = [source.read() for _ in range(25)]
        source.close()
    assert [f.pts_seconds for f in frames] == pytest.approx([n / 25 for n in range(25)], abs=2e-3)


def test_a_film_is_whole_behind_a_server_that_closes_without_saying_so(tmp_path: Path) -> None:
    # What is behind the pictures is read first, by a request of its own.
    make_video(tmp_path / "film", codec="rawvideo", pixel_format="rgb24", container="mov", frames=20)
    with WebServer(tmp_path) as web:
        web.protocol = "HTTP/1.1"
        frames, error = read_all(open_source(stream_config(web.url("/film"))))
        assert web.requests.count("/film") >= 2
    assert (len(frames), error.is_final) == (20, True)


def test_a_complete_playlist_is_a_film_and_the_last_one_of_a_live_stream_is_none(tmp_path: Path) -> None:
    make_video(tmp_path / "film.m3u8", frames=20, container="hls")
    live = (tmp_path / "film.m3u8").read_text().replace("#EXT-X-MEDIA-SEQUENCE:0", "#EXT-X-MEDIA-SEQUENCE:77")
    (tmp_path / "ended.m3u8").write_text(live)
    with WebServer(tmp_path) as web:
        source = open_source(stream_config(web.url("/film.m3u8"), loop=True))
        frames = [source.read() for _ in range(30)]
        source.close()
        assert not source.info.live
        ended = open_source(stream_config(web.url("/ended.m3u8")))
        assert ended.info.live
        assert not read_all(ended)[1].is_final
    assert [f.pts_seconds for f in frames] == pytest.approx([n / 25 for n in range(30)], abs=2e-3)


class SlowTs:
    """An MPEG-TS camera behind HTTP that sends one picture after the other, each when it is asked to; for one client.

    Args:
        folder: for a file.
        pictures: how many there are of each of two encoders, of which the second starts its timestamps again.
    """

    def __init__(self, folder: Path, pictures: int) -> None:
        self.pieces: list[bytes] = []
        for part in range(2):
            film = make_video(folder / f"{part}.ts", container="mpegts", frames=pictures, fps=1).read_bytes()
            packets = [film[at : at + 188] for at in range(0, len(film), 188)]
            begins = [
                n for n, packet in enumerate(packets) if packet[1] & 64 and packet[2] == 0 and packet[1] & 31 == 1
            ]
            cuts = [0, *begins[1:], len(packets)]
            self.pieces += [b"".join(packets[a:b]) for a, b in itertools.pairwise(cuts)]

    @contextmanager
    def served(self, pause_seconds: float) -> Iterator[str]:
        closing = threading.Event()

        def send(server: socket.socket) -> None:
            with suppress(OSError), server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/MP2T\r\n\r\n")
                for piece in self.pieces:
                    connection.sendall(piece)
                    if closing.wait(pause_seconds):
                        return

        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(60)
            thread = threading.Thread(target=send, args=(server,), daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.getsockname()[1]}/live.ts"
            finally:
                closing.set()
                join(thread)


def test_timestamps_of_a_live_stream_that_start_again_do_not_go_back(tmp_path: Path) -> None:
    with SlowTs(tmp_path, 10).served(0.03) as url:
        frames, error = read_all(open_source(stream_config(url)))
    assert error.reason is Reason.ENDED
    times = [frame.pts_seconds for frame in frames]
    assert len(times) > 15
    assert all(0 < after - before <= 1.01 for before, after in itertools.pairwise(times))


def test_a_slow_live_stream_over_http_stays_up(tmp_path: Path) -> None:
    # As one of a picture every five seconds with the default of five seconds to connect.
    with SlowTs(tmp_path, 6).served(0.5) as url:
        source = open_source(stream_config(url, connect_timeout_seconds=0.5, stall_seconds=3))
        frames = [source.read() for _ in range(8)]
        source.close()
    assert len({frame.pts_seconds for frame in frames}) == 8


def test_a_film_that_breaks_off_has_not_ended(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.ts", container="mpegts", frames=200).read_bytes()

    def send_halves(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(ConnectionError):
                    connection.recv(65536)
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(film)}\r\n\r\n".encode()
                    connection.sendall(head + film[: len(film) // 2])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=send_halves, args=(server,), daemon=True)
        thread.start()
        try:
            source = open_source(stream_config(f"http://127.0.0.1:{server.getsockname()[1]}/film.ts"))
            frames, error = read_all(source)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            join(thread)
    assert 20 < len(frames) < 200
    assert not error.is_final


@pytest.mark.parametrize("kind", ["multipart", "raw"])
def test_pictures_without_timestamps_have_none(kind: str) -> None:
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8))[1].tobytes()
    parted = kind == "multipart"
    part = (
        b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(jpeg), jpeg) if parted else jpeg
    )

    def send(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            content_type = b"multipart/x-mixed-replace; boundary=x" if parted else b"image/jpeg"
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n" % content_type)
            for _ in range(200):
                connection.sendall(part)
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        thread = threading.Thread(target=lambda: send(server.accept()[0]), daemon=True)
        thread.start()
        source = open_source(stream_config(f"http://127.0.0.1:{server.getsockname()[1]}/v.mjpeg"))
        frames = [source.read() for _ in range(5)]
        source.close()
        join(thread)
    assert source.info.live
    assert source.info.fps is None
    assert [f.pts_seconds for f in frames] == [None] * 5


def test_the_film_is_read_and_not_its_cover_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "drone.mp4"
    with av.open(str(path), "w") as output:
        cover = output.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        film = output.add_stream("libx264", rate=25)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            for stream in (cover, film)[number > 0 :]:
                grey = np.full((stream.height, stream.width, 3), 99, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(frame))
        for stream in (cover, film):
            output.mux(stream.encode(None))
    found = {}
    for track in (None, 0, 1):
        source = open_source(stream_config(path, pace="fastest", video_track=track))
        frames, _ = read_all(source)
        found[track] = (frames[0].picture.width, len(frames))
    assert found == {None: (64, 10), 0: (32, 1), 1: (64, 10)}
    error = failure(path, video_track=2)
    assert error.reason is Reason.NO_VIDEO
    assert "no video track 2" in error.detail


def test_another_variant_of_a_playlist_can_be_chosen(tmp_path: Path) -> None:
    with WebServer(tmp_path) as web:
        make_hls(tmp_path, "high", 2)
        make_hls(tmp_path, "low", 2, width=32)
        web.pages["/all.m3u8"] = lambda: master("high", "low")
        found = []
        for track in (None, 0, 1):
            source = open_source(stream_config(web.url("/all.m3u8"), video_track=track))
            found.append(source.read().picture.width)
            source.close()
    assert found == [64, 64, 32]
