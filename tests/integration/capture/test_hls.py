"""HLS: what cameras and servers send in good faith is read, and what would lead FFmpeg astray is refused in time."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from streamdet.capture.sources import open_source, read_sound
from streamdet.capture.sources.hls.playlist import MAX_BYTES, Playlists, absolute
from streamdet.capture.sources.interrupt import Interrupt
from streamdet.config import StreamConfig
from streamdet.errors import SourceError
from streamdet.types import Reason
from support.capturing import SECRET, stream_config
from support.hls import LiveHls, make_hls, master
from support.waiting import join
from support.web import WebServer

_LOGIN = f"user:{SECRET}"


def count_frames(config: StreamConfig) -> int:
    """How many pictures there are until the end.

    Raises:
        SourceError: it is none.
    """
    source = open_source(config)
    for count in itertools.count():
        try:
            read_sound(source)
        except SourceError as error:
            source.close()
            if error.reason is not Reason.ENDED:
                raise
            return count
    raise AssertionError


# ---------------------------------------------------------------- In good faith


def test_live_stream_of_several_variants_goes_on_over_many_playlists(tmp_path: Path) -> None:
    with WebServer(tmp_path) as web:
        LiveHls(web, make_hls(tmp_path, "high", 60))
        LiveHls(web, make_hls(tmp_path, "low", 60, width=32))
        web.pages["/live.m3u8"] = lambda: master("high", "low")
        source = open_source(stream_config(web.url("/live.m3u8")))
        pictures = [source.read() for _ in range(80)]
        source.close()
    times = [picture.pts_seconds for picture in pictures]
    assert times == pytest.approx([n / 10 for n in range(80)], abs=0.02)
    assert {picture.picture.width for picture in pictures} == {64}
    # The other variant is not fetched once it is known.
    assert sum(path.startswith("/low") for path in web.requests) <= 4
    assert web.requests.count("/high.m3u8") > 3


@pytest.mark.parametrize("is_other", [False, True])
def test_numbers_of_segments_may_go_back(tmp_path: Path, *, is_other: bool) -> None:
    with WebServer(tmp_path) as web:
        live = LiveHls(web, make_hls(tmp_path, "old", 60), "live")
        live.goes_back = -100
        source = open_source(stream_config(web.url("/live.m3u8")))
        for _ in range(20):
            source.read()
        if is_other:
            # The encoder was started again, with other files.
            LiveHls(web, make_hls(tmp_path, "new", 60), "live")
        else:
            live.goes_back = -80
        began = time.monotonic()
        times = [source.read().pts_seconds for _ in range(60)]
        source.close()
    assert time.monotonic() - began < 9
    steps = [after - before for before, after in itertools.pairwise(times)]
    assert steps == pytest.approx([0.1] * 59, abs=0.02)


_SHAPES = {
    "plain": {},
    "fragments": {"hls_segment_type": "fmp4"},
    "ranges": {"hls_flags": "single_file"},
    "encrypted": {"hls_enc": "1", "hls_enc_key": "k" * 16, "hls_enc_iv": "v" * 16},
}


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_all_shapes_of_segments_are_read(tmp_path: Path, shape: str, *, knows_ranges: bool) -> None:
    make_hls(tmp_path, "clip", 3, _SHAPES[shape])
    with WebServer(tmp_path, login=_LOGIN) as web:
        web.knows_ranges = knows_ranges
        assert count_frames(stream_config(web.url("/clip.m3u8", _LOGIN))) == 30


@pytest.mark.parametrize("shape", _SHAPES)
def test_a_playlist_may_be_a_file(tmp_path: Path, shape: str) -> None:
    folder = tmp_path / "a folder of 100 %"
    folder.mkdir()
    path = make_hls(folder, "clip", 2, _SHAPES[shape])
    assert count_frames(stream_config(path, pace="fastest")) == 20


def test_a_playlist_that_is_a_file_is_looked_at_as_well(tmp_path: Path) -> None:
    path = tmp_path / "many.m3u8"
    path.write_bytes(master(*[f"v{number}" for number in range(100)]))
    with pytest.raises(SourceError) as caught:
        count_frames(stream_config(path))
    assert caught.value.reason is Reason.DECODE_ERROR
    assert "more than 64 playlists" in caught.value.detail
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(SourceError) as caught:
            count_frames(stream_config(path))
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "is not allowed" in caught.value.detail


@pytest.mark.parametrize("shape", _SHAPES)
def test_playlist_may_be_elsewhere(tmp_path: Path, shape: str) -> None:
    make_hls(tmp_path, "clip", 2, _SHAPES[shape])
    with WebServer(tmp_path) as there, WebServer() as here:
        here.redirections["/here/clip.m3u8"] = there.url("/clip.m3u8")
        assert count_frames(stream_config(here.url("/here/clip.m3u8"))) == 20
        assert here.requests == ["/here/clip.m3u8"]


@pytest.mark.parametrize("path", ["/clip.m3u8", "/clip0.ts"])
def test_no_redirection_leads_to_another_kind_of_server(tmp_path: Path, path: str) -> None:
    make_hls(tmp_path, "clip", 1)
    with socket.create_server(("127.0.0.1", 0)) as other, WebServer(tmp_path) as web:
        other.settimeout(0.0)
        web.redirections[path] = f"ftp://127.0.0.1:{other.getsockname()[1]}/clip.m3u8"
        with pytest.raises(SourceError) as caught:
            count_frames(stream_config(web.url("/clip.m3u8"), connect_timeout_seconds=5))
        if path.endswith("m3u8"):
            assert caught.value.reason is Reason.DECODE_ERROR
            assert "ftp://" in caught.value.detail
        # Nothing has knocked there.
        with pytest.raises(BlockingIOError):
            other.accept()


def test_a_playlist_is_recognised_by_what_it_is(tmp_path: Path) -> None:
    make_hls(tmp_path, "clip", 2)
    with WebServer(tmp_path) as web:
        web.pages["/camera"] = (tmp_path / "clip.m3u8").read_bytes
        assert count_frames(stream_config(web.url("/camera"))) == 20


def test_a_segment_that_cannot_be_fetched_is_left_out(tmp_path: Path) -> None:
    make_hls(tmp_path, "clip", 4)
    (tmp_path / "clip1.ts").unlink()
    with WebServer(tmp_path) as web:
        assert count_frames(stream_config(web.url("/clip.m3u8"))) == 30


def segments_of(playlist: Path) -> list[list[str]]:
    lines = playlist.read_text().splitlines()
    return [lines[n : n + 2] for n, line in enumerate(lines) if line.startswith("#EXTINF")]


@pytest.mark.parametrize("mark", [["#EXT-X-DISCONTINUITY"], []], ids=["marked", "unmarked"])
@pytest.mark.parametrize("shape", ["plain", "encrypted"])
def test_no_picture_is_lost_where_another_recording_begins(tmp_path: Path, mark: list[str], shape: str) -> None:
    # Each numbers its packets from 0 on.
    pieces = [segments_of(make_hls(tmp_path, name, 2, _SHAPES[shape])) for name in "abc"]
    key = [line for line in (tmp_path / "a.m3u8").read_text().splitlines() if line.startswith("#EXT-X-KEY")]
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", *key]
    for piece in pieces:
        lines += [*mark, *itertools.chain(*piece)]
    (tmp_path / "x.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    with WebServer(tmp_path) as web:
        assert count_frames(stream_config(web.url("/x.m3u8"))) == 60


def test_a_picture_that_a_server_cuts_is_not_shown(tmp_path: Path) -> None:
    # HEVC's decoder does not notice that the end of a picture is missing.
    first = segments_of(make_hls(tmp_path, "clip", 2, codec="libx265", noisy=True))[0][1]
    with WebServer(tmp_path) as web:
        web.cut_at[f"/{first}"] = (tmp_path / first).stat().st_size - 188
        assert count_frames(stream_config(web.url("/clip.m3u8"))) == 19


def test_server_that_goes_away_is_why_the_stream_ends(tmp_path: Path) -> None:
    with WebServer(tmp_path) as web:
        LiveHls(web, make_hls(tmp_path, "live", 60))
        threading.Timer(2.0, web.broken.set).start()
        with pytest.raises(SourceError) as caught:
            count_frames(stream_config(web.url("/live.m3u8")))
    assert caught.value.reason is Reason.REFUSED


def two_formats(folder: Path, *, one_file: bool = False, same_name: bool = False) -> tuple[list[str], list[str]]:
    """The lines of two playlists of fragments of different size, 3 s each, from the section on that says the format."""
    parts = []
    for name, width in (("a", 64), ("b", 128)):
        options = {"hls_segment_type": "fmp4", "hls_fmp4_init_filename": f"{name}-init.mp4"}
        playlist = make_hls(folder, name, 3, options | ({"hls_flags": "single_file"} if one_file else {}), width)
        lines = playlist.read_text().splitlines()
        begin = next(n for n, line in enumerate(lines) if line.startswith("#EXT-X-MAP"))
        parts.append([line for line in lines[begin:] if line != "#EXT-X-ENDLIST"])
    if same_name:
        parts[1][0] = parts[0][0]
    return parts[0], parts[1]


_HEAD = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-TARGETDURATION:1"]


def sizes_until_end(config: StreamConfig) -> list[int]:
    source, widths, times = open_source(config), [], []
    with suppress(SourceError):
        while True:
            frame = source.read()
            widths.append(frame.picture.width)
            times.append(frame.pts_seconds)
    source.close()
    assert times == pytest.approx([n / 10 for n in range(len(times))], abs=0.03)
    return widths


@pytest.mark.parametrize("one_file", [False, True])
def test_a_film_goes_on_in_another_format(tmp_path: Path, *, one_file: bool) -> None:
    first, second = two_formats(tmp_path, one_file=one_file)
    lines = [*_HEAD, *first, "#EXT-X-DISCONTINUITY", *second, "#EXT-X-DISCONTINUITY", *first, "#EXT-X-ENDLIST"]
    with WebServer(tmp_path) as web:
        web.pages["/x.m3u8"] = lambda: "\n".join(lines).encode()
        widths = sizes_until_end(stream_config(web.url("/x.m3u8")))
    assert widths == [64] * 30 + [128] * 30 + [64] * 30


def test_an_encoder_that_starts_again_may_write_another_section_of_the_same_name(tmp_path: Path) -> None:
    first, second = two_formats(tmp_path, same_name=True)
    listed, sections_read = 1, 0
    with WebServer(tmp_path) as web:

        def playlist() -> bytes:
            """One more segment each time; the fourth is of the second format."""
            nonlocal listed
            listed += 1
            lines = [
                *first[: 1 + 2 * listed],
                *(["#EXT-X-DISCONTINUITY", *second[: 1 + 2 * (listed - 3)]] if listed > 3 else []),
            ]
            return "\n".join([*_HEAD, *lines, *(["#EXT-X-ENDLIST"] if listed > 6 else [])]).encode()

        def section() -> bytes:
            nonlocal sections_read
            sections_read += 1
            return (tmp_path / ("b-init.mp4" if listed > 3 and sections_read > 1 else "a-init.mp4")).read_bytes()

        web.pages["/x.m3u8"], web.pages["/a-init.mp4"] = playlist, section
        widths = sizes_until_end(stream_config(web.url("/x.m3u8")))
    assert widths == [64] * 30 + [128] * 30


# ---------------------------------------------------------------- In time


def test_silent_server_is_given_up_in_time(silent_port: int) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(stream_config(f"http://127.0.0.1:{silent_port}/x.m3u8", connect_timeout_seconds=0.5))
    assert caught.value.reason is Reason.TIMEOUT


@pytest.mark.parametrize("when", ["opening", "reading"])
def test_interrupt_ends_every_wait(tmp_path: Path, silent_port: int, when: str) -> None:
    interrupt = Interrupt()
    patient = {"connect_timeout_seconds": 60, "stall_seconds": 60}
    make_hls(tmp_path, "clip", 2)
    with WebServer(tmp_path) as web, interrupt.bound():
        playlist = (tmp_path / "clip.m3u8").read_text()
        silent = playlist.replace("clip1.ts", f"http://127.0.0.1:{silent_port}/clip1.ts")
        (tmp_path / "silent.m3u8").write_text(silent)
        url = f"http://127.0.0.1:{silent_port}/x.m3u8" if when == "opening" else web.url("/silent.m3u8")
        timer = threading.Timer(1.0, interrupt.set)
        timer.start()
        started = time.monotonic()
        with pytest.raises(SourceError) as caught:
            count_frames(stream_config(url, **patient))
        join(timer)
    assert caught.value.reason is Reason.TIMEOUT
    assert time.monotonic() - started < 20


# ---------------------------------------------------------------- In bad faith

_READ_AND_SAY_PEAK = """
import sys
from pathlib import Path
from streamdet.config import StreamConfig
from streamdet.errors import SourceError
from streamdet.capture.sources import open_source
def peak():
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
config = StreamConfig(
    name="hostile", url=sys.argv[1], connect_timeout_seconds=4, stall_seconds=4,
)
try:
    open_source(StreamConfig(name="none", url="http://127.0.0.1:1/"))
except SourceError:
    before = peak()
try:
    source = open_source(config)
    while True:
        source.read()
except SourceError as error:
    print(error.reason, error.detail)
print(peak() - before)
"""


class HostileServer:
    """Answers every request with what `answer` yields, for as long as someone takes it.

    Attributes:
        connections: how many there have been.
    """

    def __init__(self, answer: Callable[[str], Iterator[bytes]]) -> None:
        self.connections = 0
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            join(thread)
        self._socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self.connections += 1
                thread = threading.Thread(target=self._send, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _send(self, client: socket.socket) -> None:
        with client, suppress(OSError, IndexError):
            client.settimeout(30)
            path = client.recv(65536).split()[1].decode()
            for piece in self._answer(path):
                client.sendall(piece)


_OK = b"HTTP/1.1 200 OK\r\n\r\n"
_TYPED = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\n\r\n"
_BEGIN = _OK + b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n"


def endless(piece: bytes, begin: bytes = _BEGIN) -> Callable[[str], Iterator[bytes]]:
    def answer(_path: str) -> Iterator[bytes]:
        yield begin
        while True:
            yield piece

    return answer


def leads_to_itself(_path: str) -> Iterator[bytes]:
    yield _OK + master("x", "x")


def leads_ever_deeper(path: str) -> Iterator[bytes]:
    yield _OK + master(*(f"{path.strip('/')}{n}" for n in range(9)))


def many_variants(_path: str) -> Iterator[bytes]:
    yield _OK + master(*map(str, range(20_000)))


def empty_segments(path: str) -> Iterator[bytes]:
    segments = b"".join(b"#EXTINF:1,\n%d.ts\n" % n for n in range(50_000))
    yield _BEGIN + segments + b"#EXT-X-ENDLIST\n" if path.endswith("m3u8") else _OK


def segments_are_playlists(_path: str) -> Iterator[bytes]:
    yield _BEGIN + b"".join(b"#EXTINF:1,\n%d.ts\n" % n for n in range(1000)) + b"#EXT-X-ENDLIST\n"


def long_addresses(path: str) -> Iterator[bytes]:
    """Each segment of a few bytes takes some thousand bytes of FFmpeg's memory."""
    if path == "/x.m3u8":
        yield _OK + master(*("a" * 3900 + str(n) for n in range(60)))
    else:
        yield _BEGIN + b"#EXTINF:1,\na\n" * 150_000


def keys_with_long_addresses(_path: str) -> Iterator[bytes]:
    key = b'#EXT-X-KEY:METHOD=AES-128,URI="' + b"k" * 3900 + b'"\n'
    yield _BEGIN + key + b"#EXTINF:1,\na\n" * 150_000


def hidden_by_other_line_ends(_path: str) -> Iterator[bytes]:
    yield _OK + b"#EXTM3U\r" + master("x").replace(b"\n", b"\r") * 30_000


def leads_to_endless_answer(_path: str) -> Iterator[bytes]:
    yield b"HTTP/1.1 302 Found\r\nLocation: /again.m3u8\r\n\r\n"
    while True:
        yield bytes(1 << 20)


def endless_list_of_files(_path: str) -> Iterator[bytes]:
    yield _OK + b"ffconcat version 1.0\n" + b"file x\n" * 50


_BAD_FAITH = {
    "without end": (endless(b"#EXTINF:1,\na.ts\n" * 5000), "/x.m3u8", "decode_error"),
    "line without end": (endless(b"a" * 65536), "/x.m3u8", "decode_error"),
    "not named so": (endless(b"#EXTINF:1,\na.ts\n" * 5000, _TYPED + b"#EXTM3U\n"), "/x", "decode_error"),
    "nothing without end": (endless(b"a" * 65536, _OK), "/x.m3u8", "decode_error"),
    "leads to itself": (leads_to_itself, "/x.m3u8", "decode_error"),
    "leads ever deeper": (leads_ever_deeper, "/x.m3u8", "decode_error"),
    "many variants": (many_variants, "/x.m3u8", "decode_error"),
    "empty segments": (empty_segments, "/x.m3u8", "timeout"),
    "segments are playlists": (segments_are_playlists, "/x.m3u8", "decode_error"),
    "long addresses": (long_addresses, "/x.m3u8", "decode_error"),
    "keys with long addresses": (keys_with_long_addresses, "/x.m3u8", "decode_error"),
    "hidden by other line ends": (hidden_by_other_line_ends, "/x.m3u8", "decode_error"),
    "leads to an endless answer": (leads_to_endless_answer, "/x.m3u8", "refused"),
    "segment without end": (
        lambda path: iter([_BEGIN + b"#EXTINF:1,\na.ts\n"]) if "m3u8" in path else endless(bytes(65536), _OK)(path),
        "/x.m3u8",
        "decode_error",
    ),
    "list of files": (endless_list_of_files, "/x", "decode_error"),
}


@pytest.mark.parametrize("case", _BAD_FAITH)
def test_bad_faith_costs_little_and_is_reported(case: str) -> None:
    answer, path, reason = _BAD_FAITH[case]
    with HostileServer(answer) as server:
        # In a process of its own: the peak of this one is that of other tests.
        command = [sys.executable, "-c", _READ_AND_SAY_PEAK, f"http://127.0.0.1:{server.port}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    reported, kilobytes = done.stdout.splitlines()
    assert reported.split()[0] == reason, reported
    assert int(kilobytes) < 150_000
    assert server.connections < 400


_ADDRESSES = [
    b"\xff\xfe.ts", b"http://[/a.ts", b"http://[::1/a.ts", b"http://h:99999999/a.ts", b"http://a b/a.ts",
    "http://\u00e4..x/a.ts".encode(), b"file:///etc/passwd", b"ftp://x/a.ts", b"data:,abc", b"data:x", b"//", b"?",
    b"http:", b"https://", b"crypto+http://h/a.ts", b"crypto:a.ts", b"concat:a.ts|b.ts", b"subfile,,:a.ts",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/x.m3u8", "/elsewhere.m3u8"])
@pytest.mark.parametrize("address", _ADDRESSES)
def test_addresses_that_are_none_are_reported(tmp_path: Path, address: bytes, path: str) -> None:
    key = b'#EXT-X-KEY:METHOD=AES-128,URI="' + address + b'"\n'
    first, *others = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n", b"#EXTINF:1,\n" + address + b"\n", b"#EXT-X-ENDLIST\n"
    with WebServer(tmp_path) as web:
        web.redirections["/elsewhere.m3u8"] = "/x.m3u8"
        for body in (first + b"".join(others), first + key + b"".join(others), master("?").replace(b"?.m3u8", address)):
            (tmp_path / "x.m3u8").write_bytes(body)
            with pytest.raises(SourceError):
                count_frames(stream_config(web.url(path), connect_timeout_seconds=2))


_ANSWERS = [
    "401 X\r\nWWW-Authenticate: Digest realm=",
    "401 X\r\nWWW-Authenticate: Digest =",
    "401 X\r\nWWW-Authenticate: Digest realm",
    '401 X\r\nWWW-Authenticate: Digest realm="a", nonce="b", algorithm=X',
    '401 X\r\nWWW-Authenticate: Digest realm="a", nonce="b", qop="auth-int"',
    "401 X\r\nWWW-Authenticate: Basic",
    "401 X\r\nWWW-Authenticate: ,,=,",
    "401 X",
    "407 X\r\nProxy-Authenticate: Digest realm=",
    "302 X\r\nLocation: http://[",
    "302 X\r\nLocation: file:///etc/passwd",
    "302 X\r\nLocation: http://\u00e4\u00f6/",
    "302 X",
    "200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "200 X\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    "200 X\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n#EXTM3U\r\nzz",
    "200 X\r\nContent-Length: -5\r\n\r\n#EXTM3U",
    "200 X\r\n" + "X: y\r\n" * 200,
    "200 X\r\nX: " + "y" * 70_000,
    "200",
    "-1 X",
    "99999 X",
    "",
]


@pytest.mark.parametrize("answer", _ANSWERS, ids=range(len(_ANSWERS)))
def test_answers_that_make_no_sense_are_reported(answer: str) -> None:
    def answers(_path: str) -> Iterator[bytes]:
        yield f"HTTP/1.1 {answer}\r\n\r\n".encode("latin-1")

    with HostileServer(answers) as server, pytest.raises(SourceError):
        count_frames(stream_config(f"http://{_LOGIN}@127.0.0.1:{server.port}/x.m3u8", connect_timeout_seconds=2))


def test_sections_that_ffmpeg_never_forgets_are_counted() -> None:
    playlists = Playlists()
    body = b"#EXTM3U\n" + b'#EXT-X-MAP:URI="a"\n' * 10_000
    with pytest.raises(SourceError, match="more segments than a stream needs"):
        deque((playlists.admit("http://h/x", "http://h/x", body) for _ in range(100)), maxlen=0)


def test_playlist_of_a_day_is_admitted_again_and_again() -> None:
    playlists = Playlists()
    body = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n" + b"".join(
        b"#EXTINF:2.0,\nvideo/2026-01-01/%08d.ts\n" % n for n in range(43_200)
    )
    assert len(body) < MAX_BYTES
    for _ in range(100):
        playlists.admit("http://h/x", "http://h/x", body)


def test_addresses_become_whole() -> None:
    body = b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="k?a=1"\n#EXT-X-MAP:URI="/i.mp4"\n#EXTINF:1,\r\n../a.ts\n'
    assert absolute(body, "http://h/b/c.m3u8") == (
        b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="http://h/b/k?a=1"\n#EXT-X-MAP:URI="http://h/i.mp4"\n#EXTINF:1,\n'
        b"http://h/a.ts\n\n"
    )
