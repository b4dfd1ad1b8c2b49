from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamdet.capture.sources import Source, SourceFrame, SourceInfo
from streamdet.capture.sources.av import AvSource
from streamdet.capture.sources.interrupt import current_interrupt
from streamdet.capture.sources.picture import BgrPicture
from streamdet.capture.thread import Backoff, Capture
from streamdet.errors import HeldError, SourceError
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Drop, Frame, Reason, State
from support.capturing import SECRET, Recorder, stream_config
from support.videos import make_video
from support.waiting import wait_until
from support.web import WebServer

_PICTURE = BgrPicture(np.zeros((4, 4, 3), np.uint8))
_INFO = SourceInfo("raw", 4, 4, None, "fake")


class ScriptedSource:
    """Stands in for cameras that do what no real server can be made to do at will."""

    def __init__(self, steps: Iterator[Callable[[], None]]) -> None:
        self.info = _INFO
        self.closed_by: str | None = None
        self._steps = steps

    def read(self) -> SourceFrame:
        next(self._steps, lambda: wait(60))()
        return SourceFrame(_PICTURE, None, time.time(), "daemon", 0.001)

    def close(self) -> None:
        self.closed_by = threading.current_thread().name


def give() -> None:
    """A frame, at once."""


def wait(seconds: float) -> None:
    if current_interrupt().wait(seconds):
        raise SourceError(Reason.TIMEOUT, "interrupted")


def fail(reason: Reason) -> Callable[[], None]:
    def step() -> None:
        raise SourceError(reason, "as the test wants it")

    return step


def scripted(*rounds: list[Callable[[], None]]) -> tuple[Callable[[object], Source], list[ScriptedSource]]:
    """An `open_source` that gives one source after the other; the last round is repeated."""
    opened: list[ScriptedSource] = []

    def open_source(config: object) -> Source:
        opened.append(ScriptedSource(iter(rounds[min(len(opened), len(rounds) - 1)])))
        return opened[-1]

    return open_source, opened


def hold(seconds: float = 0.0, *, has_picture: bool = True) -> Callable[[], None]:
    """A damaged picture, or data before the first key frame."""

    def step() -> None:
        wait(seconds)
        raise HeldError(has_picture=has_picture)

    return step


def states(recorder: Recorder) -> list[tuple[State, Reason | None]]:
    return [(s.state, s.reason) for s in recorder.statuses]


def test_states_of_a_stream_that_breaks_and_comes_back() -> None:
    open_source, opened = scripted([give, give, fail(Reason.ENDED)], [give])
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source) as recorder:
        wait_until(lambda: len(recorder.frames) == 3, "the frame after the break")
        recorder.wait_for(State.UP)
    assert states(recorder) == [
        (State.CONNECTING, None),
        (State.UP, None),
        (State.DOWN, Reason.ENDED),
        (State.CONNECTING, Reason.ENDED),
        (State.UP, None),
    ]
    assert [f.seq for f in recorder.frames] == [1, 2, 3]
    assert recorder.capture.last_seq == 3
    assert all(s.closed_by == "capture-yard" for s in opened)
    page = recorder.page()
    assert 'streamdet_frames_captured_total{stream="yard"} 3.0' in page
    assert 'streamdet_stream_reconnects_total{reason="ended",stream="yard"} 1.0' in page
    assert 'streamdet_stream_state{state="up",stream="yard"} 1.0' in page
    assert "streamdet_capture_decode_seconds_count 3.0" in page


class _OnePicture(ScriptedSource):
    """Gives one picture that nothing else refers to, and then none."""

    picture: weakref.ref[_Picture] | None = None

    def read(self) -> SourceFrame:
        frame = super().read()
        picture = _Picture()
        self.picture = weakref.ref(picture)
        return replace(frame, picture=picture)


class _Picture(BgrPicture):
    def __init__(self) -> None:
        super().__init__(_PICTURE.bgr)


def test_a_frame_that_was_handed_on_is_not_kept_while_the_next_one_is_waited_for() -> None:
    is_waiting = threading.Event()

    def wait_for_none() -> None:
        is_waiting.set()
        wait(60)

    source = _OnePicture(iter([give, wait_for_none]))
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=lambda _: source) as recorder:
        assert is_waiting.wait(30)
        assert source.picture is not None
        assert source.picture() is not None
        recorder.frames.clear()
        assert source.picture() is None


def test_a_stream_is_decoded_by_one_thread(tmp_path: Path) -> None:
    make_video(tmp_path / "film.mp4", frames=4)
    source = AvSource(stream_config(tmp_path / "film.mp4"))
    try:
        source.read()
        # Each thread more would keep a picture more.
        assert source._stream.codec_context.thread_count == 1
    finally:
        source.close()


def test_up_needs_a_frame() -> None:
    open_source, _ = scripted([fail(Reason.DECODE_ERROR)])
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source) as recorder:
        recorder.wait_for(State.DOWN, Reason.DECODE_ERROR)
    assert State.UP not in [s.state for s in recorder.statuses]


def test_numbers_go_on_from_an_earlier_capture() -> None:
    open_source, _ = scripted([give])
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source, waits=True) as recorder:
        recorder.capture.begin(41)
        wait_until(lambda: recorder.frames, "the frame")
    assert recorder.frames[0].seq == 42


def test_blocked_read_is_a_stall_and_the_stream_is_opened_again() -> None:
    open_source, _ = scripted([give, lambda: wait(60)], [give])
    config = stream_config("rtsp://192.0.2.5/x", stall_seconds=0.3)
    with Recorder(config, open_source=open_source) as recorder:
        wait_until(lambda: len(recorder.frames) == 2, "the frame after the stall")
    assert states(recorder)[:4] == [
        (State.CONNECTING, None),
        (State.UP, None),
        (State.STALLED, Reason.TIMEOUT),
        (State.DOWN, Reason.TIMEOUT),
    ]


def test_read_that_ignores_an_interrupt_is_reported_in_time_and_given_up_when_it_returns() -> None:
    released = threading.Event()
    open_source, opened = scripted([give, lambda: released.wait(60) and None], [give])
    config = stream_config("rtsp://192.0.2.5/x", stall_seconds=0.3)
    with Recorder(config, open_source=open_source) as recorder:
        recorder.wait_for(State.STALLED, Reason.TIMEOUT)
        assert opened[0].closed_by is None
        released.set()
        wait_until(lambda: len(opened) == 2 and len(recorder.frames) == 2, "the second source's frame")
    assert opened[0].closed_by == "capture-yard"


def test_stop_does_not_wait_for_a_read_that_never_ends() -> None:
    released = threading.Event()
    open_source, opened = scripted([give, lambda: released.wait(60) and None])
    recorder = Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source)
    recorder.capture.start()
    wait_until(lambda: recorder.frames, "the frame")
    started = time.monotonic()
    recorder.capture.stop()
    assert not recorder.capture.join()
    assert time.monotonic() - started < 10
    assert opened[0].closed_by is None, "only the thread that reads may release the source"
    released.set()
    assert recorder.capture.join()
    assert opened[0].closed_by == "capture-yard"


def test_stop_during_a_long_wait_for_the_next_attempt() -> None:
    open_source, _ = scripted([fail(Reason.REFUSED)])
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source, backoff=Backoff(60)) as recorder:
        recorder.wait_for(State.DOWN, Reason.REFUSED)


def broken(*_: object) -> None:
    message = "a bug with rtsp://user:pl4nted-Secret@camera/ in it"
    raise ValueError(message)


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.exc_info is not None for record in caplog.records)


def test_an_unexpected_error_is_a_failure_of_its_stream_alone(caplog: pytest.LogCaptureFixture) -> None:
    open_source, opened = scripted([give, broken], [give, broken], [give])
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source, backoff=Backoff(0.01)) as recorder:
        wait_until(lambda: len(opened) == 3, "the third connection")
        recorder.wait_for(State.UP)
    up, down = (State.UP, None), (State.DOWN, Reason.INTERNAL_ERROR)
    again = (State.CONNECTING, Reason.INTERNAL_ERROR)
    assert states(recorder) == [(State.CONNECTING, None), up, down, again, up, down, again, up]
    assert all(source.closed_by for source in opened)
    assert "ValueError: a bug" in recorder.statuses[2].detail
    assert SECRET not in recorder.everything_said()
    assert 'streamdet_stream_reconnects_total{reason="internal_error",stream="yard"} 2.0' in recorder.page()
    assert 'streamdet_unexpected_errors_total{part="capture"} 2.0' in recorder.page()
    assert tracebacks(caplog) == 1


def test_a_source_that_cannot_even_be_opened_or_closed_for_a_bug_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(ScriptedSource):
        def close(self) -> None:
            broken()

    opened: list[Source] = []

    def open_source(_: object) -> Source:
        opened.append(Stuck(iter([give, fail(Reason.ENDED)])))
        if len(opened) == 2:
            broken()
        return opened[-1]

    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source, backoff=Backoff(0.01)) as recorder:
        wait_until(lambda: len(opened) >= 3, "the third connection")
        recorder.wait_for(State.DOWN, Reason.INTERNAL_ERROR)
    assert tracebacks(caplog) == 1


def test_a_frame_that_cannot_be_put_is_in_the_ledger() -> None:
    open_source, opened = scripted([give])
    recorder = Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source, backoff=Backoff(0.01))
    recorder.capture._put = broken
    with recorder:
        wait_until(lambda: len(opened) >= 3, "the third connection")
    counts = recorder.metrics.ledger.snapshot()["yard"]
    assert counts.captured == counts.dropped[Drop.INTERNAL_ERROR] >= 2
    assert counts.in_flight == 0


def test_a_frame_that_cannot_be_used_takes_its_connection_down_and_no_later_one() -> None:
    open_source, opened = scripted([give])
    failure = SourceError(Reason.DECODE_ERROR, "the picture cannot be used")
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source, backoff=Backoff(0.01)) as recorder:
        wait_until(lambda: len(recorder.frames) == 1, "the frame")
        recorder.capture.take_down(1, failure)
        wait_until(lambda: len(recorder.frames) == 2, "the frame of the next connection")
        # The same once more, late: it was of the connection before.
        recorder.capture.take_down(1, failure)
        time.sleep(0.1)
        assert recorder.state is State.UP
        assert len(opened) == 2
    assert [state for state in states(recorder) if state[0] is State.DOWN] == [(State.DOWN, Reason.DECODE_ERROR)]


def test_a_watch_that_fails_for_a_stream_takes_that_one_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capture, "_on_overdue", broken)
    open_source, _ = scripted([give, lambda: wait(60)], [give])
    config = stream_config("rtsp://192.0.2.5/x", stall_seconds=0.3)
    with Recorder(config, open_source=open_source, backoff=Backoff(0.01)) as recorder:
        recorder.wait_for(State.DOWN, Reason.INTERNAL_ERROR)
        recorder.wait_for(State.UP)


def test_file_played_once_ends_for_good(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4")
    with Recorder(stream_config(clip, pace="fastest")) as recorder:
        status = recorder.wait_for(State.DOWN, Reason.ENDED)
        wait_until(lambda: not recorder.capture.is_alive(), "the end of the thread")
    assert status.detail == "the end of the file"
    assert [f.seq for f in recorder.frames] == list(range(1, 11))
    assert states(recorder)[-1] == (State.DOWN, Reason.ENDED)


def test_missing_file_is_tried_again(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    with Recorder(stream_config(clip, pace="fastest")) as recorder:
        recorder.wait_for(State.DOWN, Reason.NOT_FOUND)
        make_video(tmp_path / "made.mp4").rename(clip)
        recorder.wait_for(State.DOWN, Reason.ENDED)
    assert len(recorder.frames) == 10


def test_fastest_waits_for_a_slow_consumer_and_loses_nothing(tmp_path: Path, metrics: Metrics) -> None:
    clip = make_video(tmp_path / "clip.mp4")
    with Recorder(stream_config(clip, pace="fastest", stall_seconds=0.2), metrics) as recorder:
        taken: list[Frame] = recorder.frames
        original = recorder.capture._put

        def slow(frame: Frame) -> None:
            time.sleep(0.3 if frame.seq == 5 else 0)
            original(frame)

        recorder.capture._put = slow
        recorder.wait_for(State.DOWN, Reason.ENDED)
    assert len(taken) == 10
    assert State.STALLED not in [s.state for s in recorder.statuses]


@pytest.fixture
def metrics() -> Metrics:
    from streamdet.monitoring.ledger import Ledger  # noqa: PLC0415 - only here

    return Metrics(Ledger())


def test_stop_while_the_server_is_silent() -> None:
    with WebServer() as web:
        with Recorder(stream_config(web.url("/mjpeg"), stall_seconds=60)) as recorder:
            recorder.wait_for_frames(2)
            web.silent.set()
            time.sleep(0.3)
        assert not recorder.capture.is_alive()


def test_stall_and_recovery_of_a_real_server() -> None:
    with WebServer() as web, Recorder(stream_config(web.url("/mjpeg"), stall_seconds=1)) as recorder:
        recorder.wait_for(State.UP)
        web.silent.set()
        recorder.wait_for(State.STALLED, Reason.TIMEOUT)
        recorder.wait_for(State.DOWN, Reason.TIMEOUT)
        web.silent.clear()
        recorder.wait_for(State.UP)
        recorder.wait_for_frames(3)
    assert [f.seq for f in recorder.frames] == list(range(1, len(recorder.frames) + 1))


def test_backoff_doubles_up_to_its_limit_and_resets() -> None:
    backoff = Backoff()
    waits = [backoff.next_seconds() for _ in range(8)]
    wanted = [1, 2, 4, 8, 16, 30, 30, 30]
    assert all(0.8 * w <= seconds <= 1.2 * w for seconds, w in zip(waits, wanted, strict=True))
    assert len(set(waits)) == len(waits), "there is no chance in it"
    backoff.reset(up_seconds=3)
    assert 0.8 <= backoff.next_seconds() <= 1.2


class KeptBackoff(Backoff):
    """Keeps its waits."""

    def __init__(self) -> None:
        super().__init__(0.01)
        self.waits: list[float] = []

    def next_seconds(self) -> float:
        self.waits.append(super().next_seconds())
        return self.waits[-1]


@pytest.mark.parametrize("reason", [Reason.ENDED, Reason.OVERLOAD])
def test_a_stream_that_ends_soon_starts_its_backoff_again_unless_it_costs_much(reason: Reason) -> None:
    open_source, opened = scripted([give, fail(reason)])
    backoff = KeptBackoff()
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source, backoff=backoff) as recorder:
        wait_until(lambda: len(opened) == 7, "the seventh connection")
        recorder.wait_for(State.DOWN, reason)
    assert all(wait > 0.02 for wait in backoff.waits[2:]), "one that ends at once is not asked without a pause"
    assert (max(backoff.waits) < 0.05) == (reason is Reason.ENDED)


def test_damaged_pictures_are_counted_and_not_handed_on() -> None:
    open_source, _ = scripted([give, hold(), hold(), hold(has_picture=False), give])
    with Recorder(stream_config("rtsp://192.0.2.5/x"), open_source=open_source) as recorder:
        wait_until(lambda: len(recorder.frames) == 2, "the frame after the damage")
        counts = recorder.metrics.ledger.snapshot()["yard"]
    assert [f.seq for f in recorder.frames] == [1, 4]
    assert (counts.captured, counts.dropped[Drop.DAMAGED]) == (4, 2)
    assert [s.state for s in recorder.statuses] == [State.CONNECTING, State.UP]


def test_stream_joined_between_key_frames_waits_for_one_however_long_it_takes() -> None:
    joined = [hold(0.1, has_picture=n % 2 == 0) for n in range(25)]
    open_source, opened = scripted([*joined, give])
    config = stream_config("rtsp://192.0.2.5/x", stall_seconds=0.5)
    with Recorder(config, open_source=open_source) as recorder:
        recorder.wait_for(State.UP)
    assert [(s.state, s.reason, s.detail) for s in recorder.statuses[:3]] == [
        (State.CONNECTING, None, ""), (State.CONNECTING, None, "waiting for a key frame"), (State.UP, None, "")
    ]  # fmt: skip
    assert len(opened) == 1


def test_stream_that_falls_silent_while_it_waits_for_a_key_frame_is_given_up() -> None:
    open_source, _ = scripted([hold(0.05), hold(0.05), lambda: wait(60)], [give])
    config = stream_config("rtsp://192.0.2.5/x", stall_seconds=0.5)
    with Recorder(config, open_source=open_source) as recorder:
        recorder.wait_for(State.UP)
    assert states(recorder)[:2] == [(State.CONNECTING, None), (State.DOWN, Reason.TIMEOUT)]


def test_damage_that_lasts_is_a_stall_and_the_stream_is_opened_again() -> None:
    open_source, _ = scripted([give, *[hold(0.05)] * 100], [give])
    config = stream_config("rtsp://192.0.2.5/x", stall_seconds=0.5)
    with Recorder(config, open_source=open_source) as recorder:
        wait_until(lambda: len(recorder.frames) == 2, "the frame after the damage")
    assert states(recorder)[:5] == [
        (State.CONNECTING, None),
        (State.UP, None),
        (State.STALLED, Reason.DECODE_ERROR),
        (State.DOWN, Reason.DECODE_ERROR),
        (State.CONNECTING, Reason.DECODE_ERROR),
    ]
    assert "damaged" in recorder.statuses[2].detail
