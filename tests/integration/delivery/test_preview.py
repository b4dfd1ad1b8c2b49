from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamdet import DetectionEvent, PreviewEvent, subscribe, wire
from streamdet.config import PublisherConfig
from streamdet.delivery.jpeg import near_half, to_jpeg
from streamdet.delivery.preview import Preview, Previews
from streamdet.delivery.sockets import Subscriptions
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Frame, FrameInfo, Picture
from streamdet.worker import Wakeup
from support.knocking import RawSubscriber
from support.publishing import PERSON, frame_of, metrics_of, publisher_at, status_of
from support.waiting import wait_until

PATIENCE_SECONDS = 60.0
INFO = FrameInfo(1, None, 1.0, "daemon", 640, 360)


@dataclass
class Grey:
    """A picture of one grey value, which shows in the JPEG which frame it was."""

    value: int
    width: int = 1280
    height: int = 720

    def to_rgb(self) -> NDArray[np.uint8]:
        return np.full((self.height, self.width, 3), self.value, np.uint8)


def grey_frame(stream: str, seq: int, captured: float | None = None) -> Frame:
    now = time.monotonic() if captured is None else captured
    return Frame(stream, seq, None, time.time(), "daemon", now, Grey(seq % 250))


def pixels_of(jpeg: bytes) -> NDArray[Any]:
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.asarray(decoded)


@contextlib.contextmanager
def previews_of(metrics: Metrics | None = None, **settings: Any) -> Iterator[Previews]:
    with contextlib.closing(Wakeup()) as encoded:
        yield Previews(PublisherConfig(**settings), encoded, metrics or metrics_of("a", "b"))


@pytest.fixture
def previews() -> Iterator[Previews]:
    with previews_of() as idle:
        yield idle


def encoded_by(previews: Previews, count: int) -> list[Preview]:
    """The first pictures that come out, in their order."""
    done: list[Preview] = []
    with previews:
        wait_until(lambda: done.extend(previews.take()) or len(done) >= count)
    return done


def offer(previews: Previews, stream: str, seq: int, picture: Picture | None = None) -> None:
    event = DetectionEvent(stream, "e", seq, 1.0, INFO, (PERSON,))
    previews.offer(event, picture or Grey(seq))


def test_only_who_asks_for_previews_switches_them_on(previews: Previews) -> None:
    for prefix in (b"", b"p", b"preview", b"detections/", b"state/a/"):
        previews.subscription(b"\x01" + prefix)
    assert not previews.is_watched("a")
    previews.subscription(b"\x01preview/a/")
    assert previews.is_watched("a")
    assert not previews.is_watched("a2")
    previews.subscription(b"\x01preview/")
    assert previews.is_watched("a2")
    previews.subscription(b"\x00preview/")
    assert previews.is_watched("a")
    previews.subscription(b"\x00preview/a/")
    assert not previews.is_watched("a")


def test_a_flood_of_subscriptions_fills_no_memory(previews: Previews) -> None:
    for index in range(20_000):
        previews.subscription(b"\x01preview/%d" % index)
    assert len(previews._prefixes) == 1000
    # It keeps the pictures from no one else: where not all that is wanted is known, all is shown.
    previews.subscription(b"\x01preview/a/")
    assert previews.is_watched("a")
    for index in range(20_000):
        previews.subscription(b"\x00preview/%d" % index)
    assert not previews.is_watched("a")


@given(st.lists(st.floats(0.001, 0.5), min_size=1, max_size=300), st.floats(0.5, 30))
def test_no_more_pictures_are_kept_than_allowed(pauses: list[float], max_fps: float) -> None:
    moments = [1000.0 + sum(pauses[: index + 1]) for index in range(len(pauses))]
    with previews_of(preview_max_fps=max_fps) as previews:
        previews.subscription(b"\x01preview/")
        due = [moment for moment in moments if previews.is_due("a", moment)]
    assert due[0] == moments[0]
    assert len(due) <= (moments[-1] - moments[0]) * max_fps + 1.001
    # A picture that follows when one is due for certain is never left out.
    assert all(now in due for before, now in itertools.pairwise(moments) if now - before >= 1 / max_fps + 1e-6)


def test_frames_that_come_evenly_give_the_rate_that_was_asked_for() -> None:
    with previews_of(preview_max_fps=7) as previews:
        previews.subscription(b"\x01preview/")
        kept = sum(previews.is_due("a", 5 + index / 25) for index in range(25 * 20))
    assert kept == pytest.approx(7 * 20, abs=2)


@pytest.mark.parametrize(
    ("watched", "fps", "side"), [(1, 5, 640), (4, 5, 640), (12, 2, 368), (20, 1.2, 320), (50, 1, 320)]
)
def test_of_many_streams_there_are_fewer_and_smaller_pictures(watched: int, fps: float, side: int) -> None:
    with previews_of() as previews:
        previews.subscription(b"\x01preview/")
        names = [f"s{number}" for number in range(watched)]
        moments = [1.0 + index / 25 for index in range(25 * 21)]
        # While streams are still being found, they have more.
        due = [now for now in moments for name in names if previews.is_due(name, now) and now >= 2.0]
        assert len(due) / 20 / watched == pytest.approx(fps, rel=0.06)
        assert previews._side == side
        previews.subscription(b"\x00preview/")
        previews.subscription(b"\x01preview/s0/")
        assert previews._side == 640


def test_pictures_of_several_streams_fall_due_together() -> None:
    with previews_of() as previews:
        previews.subscription(b"\x01preview/")
        due: list[float] = []
        for index in range(10 * 20):
            for number in range(12):
                # Each begins at another time, and has frames of its own times.
                now = 100.0 + index / 10 + number / 120
                if index >= number and previews.is_due(f"s{number}", now) and index >= 30:
                    due.append(now)
    assert len(due) == pytest.approx(12 * 2 * 17, rel=0.06)
    assert max(moment % 0.5 for moment in due) < 0.1


class CountingWakeup(Wakeup):
    """Counts how often it is rung."""

    def __init__(self) -> None:
        super().__init__()
        self.rung = 0

    def wake(self) -> None:
        self.rung += 1
        super().wake()


def test_pictures_that_come_together_are_sent_together() -> None:
    names = [f"s{number}" for number in range(12)]
    with contextlib.closing(CountingWakeup()) as encoded:
        previews = Previews(PublisherConfig(), encoded, metrics_of(*names))
        previews.subscription(b"\x01preview/")
        for name in names:
            assert previews.is_due(name, 1.0)
            offer(previews, name, 1, OnlySmall(64, 36))
        done = encoded_by(previews, 12)
        assert [one.event.stream for one in done] == names
        # One is enough, but a busy machine may take its time over each.
        assert 1 <= encoded.rung <= 6


def test_a_picture_does_not_wait_for_ever_for_those_of_other_streams() -> None:
    with previews_of() as previews:
        previews.subscription(b"\x01preview/")
        for name in ("a", "b", "c"):
            previews.is_due(name, 1.0)
        offer(previews, "b", 1)
        assert [one.event.stream for one in encoded_by(previews, 1)] == ["b"]


@pytest.mark.parametrize(
    ("longer", "side", "max_side", "part"),
    [
        (767, 368, 640, 368),
        (768, 368, 640, 384), (704, 368, 640, 352), (640, 368, 640, 368), (1920, 368, 640, 368), (2560, 640, 640, 640),
        (1280, 640, 640, 640), (1300, 640, 640, 640), (1300, 640, 700, 650), (1536, 368, 640, 384),
    ],
)  # fmt: skip
def test_a_half_of_a_picture_is_taken_where_it_is_near(longer: int, side: int, max_side: int, part: int) -> None:
    assert near_half(longer, side, max_side) == part


def test_a_wall_shows_halves_of_small_pictures() -> None:
    names = [f"s{number}" for number in range(12)]
    with contextlib.closing(Wakeup()) as encoded:
        previews = Previews(PublisherConfig(), encoded, metrics_of(*names))
        previews.subscription(b"\x01preview/")
        for name in names:
            previews.is_due(name, 1.0)
        offer(previews, "s0", 1, OnlySmall(768, 576))
        offer(previews, "s1", 1, Grey(7, 768, 576))
        done = encoded_by(previews, 2)
    assert [pixels_of(one.jpeg).shape for one in done] == [(288, 384, 3)] * 2


def test_each_stream_has_one_slot_and_the_newest_wins() -> None:
    metrics = metrics_of("a", "b")
    with previews_of(metrics) as previews:
        previews.subscription(b"\x01preview/")
        for seq in range(1, 6):
            offer(previews, "a", seq)
        offer(previews, "b", 9)
        done = encoded_by(previews, 2)
    assert [(one.event.stream, one.event.seq) for one in done] == [("a", 5), ("b", 9)]
    assert pixels_of(done[0].jpeg).mean() == pytest.approx(5, abs=1)
    sample = metrics.registry.get_sample_value
    assert sample("streamdet_previews_encoded_total", {"stream": "a"}) == 1
    assert sample("streamdet_preview_encode_seconds_count") == 2


@dataclass
class OnlySmall:
    """A picture that gives no frame in full: red at the top, blue at the bottom."""

    width: int
    height: int

    def to_rgb(self) -> NDArray[np.uint8]:
        raise AssertionError

    def to_small_bgr(self, width: int, height: int) -> NDArray[np.uint8]:
        bgr = np.zeros((height, width, 3), np.uint8)
        bgr[: height // 2, :, 2] = bgr[height // 2 :, :, 0] = 200
        return bgr


@pytest.mark.parametrize(("width", "height", "shown"), [(1920, 1080, (640, 360)), (640, 360, (640, 360))])
def test_no_frame_is_converted_in_full_for_a_preview_that_hides_nothing(
    width: int, height: int, shown: tuple[int, int]
) -> None:
    with previews_of() as previews:
        previews.subscription(b"\x01preview/")
        offer(previews, "a", 1, OnlySmall(width, height))
        (done,) = encoded_by(previews, 1)
    pixels = pixels_of(done.jpeg)
    assert pixels.shape == (shown[1], shown[0], 3)
    assert pixels[10, 10].tolist() == pytest.approx([0, 0, 200], abs=12)
    assert pixels[-10, 10].tolist() == pytest.approx([200, 0, 0], abs=12)


def test_nothing_is_encoded_for_who_has_gone(previews: Previews) -> None:
    offer(previews, "a", 1)
    previews.subscription(b"\x01preview/b/")
    offer(previews, "b", 2)
    done = encoded_by(previews, 1)
    assert [one.event.stream for one in done] == ["b"]


def test_a_removed_stream_leaves_nothing_behind(previews: Previews) -> None:
    previews.subscription(b"\x01preview/")
    assert previews.is_due("a", 1.0)
    offer(previews, "a", 1)
    previews.remove_stream("a")
    assert not previews._slots
    assert not previews._due_seconds
    offer(previews, "a", 2)
    with previews:
        wait_until(lambda: previews._done)
    previews.remove_stream("a")
    assert not previews.take()


def test_pictures_are_made_smaller_and_never_larger() -> None:
    for width, height, shown in ((1920, 1080, (640, 360)), (1080, 1920, (360, 640)), (320, 240, (320, 240))):
        jpeg = to_jpeg(Grey(100, width, height).to_rgb(), 640, 75)
        assert jpeg is not None
        assert pixels_of(jpeg).shape == (shown[1], shown[0], 3)
    thin = to_jpeg(np.zeros((1, 10_000, 3), np.uint8), 640, 75)
    assert thin is not None
    assert pixels_of(thin).shape == (1, 640, 3)


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (768, 576), (1001, 999), (2592, 1944), (4000, 402)])
def test_a_picture_that_is_made_smaller_has_the_mean_colours(width: int, height: int) -> None:
    # Lines of one pixel, which would vanish or stay if some pixels were left out, over colours that change slowly.
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, :, 0] = np.linspace(0, 250, width)
    rgb[:, :, 2] = np.linspace(0, 250, height)[:, np.newaxis]
    rgb[:, ::2, 1] = 100
    jpeg = to_jpeg(rgb, 368, 95)
    assert jpeg is not None
    found = pixels_of(jpeg)[:, :, ::-1].astype(int)
    expected = cv2.resize(rgb, found.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(found - expected).mean() < 5
    assert found[:, :, 1].std() < 12


def test_colours_are_right() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:] = (200, 100, 30)
    jpeg = to_jpeg(rgb, 640, 95)
    assert jpeg is not None
    assert pixels_of(jpeg)[32, 32].tolist() == pytest.approx([30, 100, 200], abs=4)


def test_a_picture_that_would_be_too_large_loses_quality() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1440, 1920, 3), np.uint8)
    jpeg = to_jpeg(noise, 1920, 100)
    assert jpeg is not None
    assert len(jpeg) <= wire.MAX_MESSAGE_BYTES


def test_someone_who_looks_gets_the_picture_that_the_boxes_belong_to() -> None:
    metrics = metrics_of("a", "b")
    with publisher_at(metrics=metrics, preview_max_fps=60) as publisher:
        endpoint = publisher.endpoint
        with subscribe(endpoint, ["a"], ["preview", "state"], timeout_seconds=PATIENCE_SECONDS) as events:
            publisher.put_status(status_of("a"))
            next(events)
            seen: list[PreviewEvent] = []
            for seq in range(1, 1000):
                for stream in ("a", "b"):
                    metrics.frame_captured(stream, time.time())
                    publisher.put_detections(grey_frame(stream, seq, seq / 60), [PERSON])
                item = events.receive(0.02)
                if isinstance(item, PreviewEvent):
                    seen.append(item)
                if len(seen) == 3:
                    break
        wait_until(lambda: not publisher._previews._prefixes)
        encoded = metrics.registry.get_sample_value("streamdet_previews_encoded_total", {"stream": "a"})
        publisher.put_detections(grey_frame("a", 2000, 5000.0), [PERSON])
        metrics.frame_captured("a", time.time())
        wait_until(lambda: not metrics.ledger.snapshot()["a"].in_flight)
        assert metrics.registry.get_sample_value("streamdet_previews_encoded_total", {"stream": "a"}) == encoded
    assert [event.seq for event in seen] == [1, 2, 3]
    for event in seen:
        assert (event.stream, event.frame.width, event.frame.height) == ("a", 1280, 720)
        assert event.detections == (PERSON,)
        assert pixels_of(event.jpeg).shape == (360, 640, 3)
        assert pixels_of(event.jpeg).mean() == pytest.approx(event.frame.seq % 250, abs=1)
    assert metrics.registry.get_sample_value("streamdet_previews_encoded_total", {"stream": "b"}) == 0
    counts = metrics.ledger.snapshot()
    assert all(stream.in_flight == 0 and stream.captured == stream.published for stream in counts.values())


def test_a_message_that_is_no_subscription_switches_nothing_off() -> None:
    with (
        publisher_at(preview_max_fps=50) as publisher,
        zmq.Context() as context,
        context.socket(zmq.SUB) as looker,
        context.socket(zmq.XSUB) as hostile,
    ):
        looker.linger = hostile.linger = 0
        looker.connect(publisher.endpoint)
        looker.subscribe("preview/a/")
        publisher.put_status(status_of("a"))
        wait_until(lambda: publisher._previews.is_watched("a"))
        hostile.connect(publisher.endpoint)
        for message in ([b"\x02preview/a/"], [b"\x00preview/a/"], [b"\x05", b"\x00preview/a/"], [b""]):
            hostile.send_multipart(message)
        hostile.send(b"\x01preview/b/")
        wait_until(lambda: publisher._previews.is_watched("b"))
        assert publisher._previews.is_watched("a")


def test_only_who_has_subscribed_can_take_it_back() -> None:
    with (
        publisher_at() as publisher,
        zmq.Context() as context,
        context.socket(zmq.SUB) as looker,
        contextlib.closing(RawSubscriber(publisher.endpoint)) as hostile,
        contextlib.closing(RawSubscriber(publisher.endpoint)) as other,
    ):
        looker.linger = 0
        looker.connect(publisher.endpoint)
        looker.subscribe("preview/a/")
        wait_until(lambda: publisher._previews.is_watched("a"))
        for message in (b"\x00preview/a/", b"\x01preview/a/", b"\x00preview/a/", b"\x00preview/a/", b"\x01preview/b/"):
            hostile.send(bytes([0, len(message)]) + message)
        wait_until(lambda: publisher._previews.is_watched("b"))
        other.send(b"\x00\x0b\x01preview/b/\x00\x0b\x01preview/c/")
        wait_until(lambda: publisher._previews.is_watched("c"))
        hostile.send(b"\x00\x0b\x00preview/b/\x00\x0b\x01preview/d/")
        wait_until(lambda: publisher._previews.is_watched("d"))
        assert publisher._previews.is_watched("a")
        assert publisher._previews.is_watched("b")
        other.close()
        wait_until(lambda: not publisher._previews.is_watched("b") and not publisher._previews.is_watched("c"))
        looker.unsubscribe("preview/a/")
        wait_until(lambda: not publisher._previews.is_watched("a"))
        assert publisher._previews.is_watched("d")


def test_a_connection_that_has_the_descriptor_of_one_that_has_ended_takes_nothing_from_others() -> None:
    seconds, open_ones = 0.0, {7, 8}
    subscriptions = Subscriptions(lambda descriptor: descriptor in open_ones, lambda: seconds)
    assert subscriptions.note(b"\x01preview/a/", 7) == b"\x01preview/a/"
    subscriptions.note(b"\x01preview/a/", 8)
    # 7 has ended, and belongs to another at once.
    assert subscriptions.note(b"\x00preview/a/", None) is None
    seconds = 1.0
    assert not list(subscriptions.ended())
    assert subscriptions.note(b"\x00preview/a/", 7) is None
    assert len(subscriptions) == 1
    subscriptions.note(b"\x01preview/a/", 7)
    open_ones.clear()
    seconds = 5.0
    assert not list(subscriptions.ended())
    seconds = 6.0
    assert list(subscriptions.ended()) == [b"\x00preview/a/"]
    assert len(subscriptions) == 0


def test_two_lookers_and_one_leaves() -> None:
    with publisher_at() as publisher, subscribe(publisher.endpoint, kinds=["preview"]):
        with subscribe(publisher.endpoint, kinds=["preview"]), subscribe(publisher.endpoint, ["a"], ["preview"]):
            wait_until(lambda: len(publisher._previews._prefixes) == 2)
        wait_until(lambda: len(publisher._previews._prefixes) == 1)
        assert publisher._previews.is_watched("a")
    assert not publisher._previews.is_alive()


def test_previews_come_only_when_asked_for() -> None:
    with (
        publisher_at(preview_max_fps=60) as publisher,
        subscribe(publisher.endpoint, timeout_seconds=PATIENCE_SECONDS) as events,
        subscribe(publisher.endpoint, kinds=["preview"], timeout_seconds=PATIENCE_SECONDS) as pictures,
    ):
        publisher.put_status(status_of("a"))
        next(events)
        wait_until(lambda: publisher._previews.is_watched("a"))
        publisher.put_detections(frame_of("a", 1), [PERSON])
        assert isinstance(next(pictures), PreviewEvent)
        publisher.put_detections(frame_of("a", 2), [PERSON])
        kinds = {type(next(events)) for _ in range(2)}
    assert PreviewEvent not in kinds


def test_a_slow_encoder_delays_no_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(self: Grey) -> NDArray[np.uint8]:
        assert release.wait(PATIENCE_SECONDS)
        return np.zeros((self.height, self.width, 3), np.uint8)

    monkeypatch.setattr(Grey, "to_rgb", slow)
    with (
        publisher_at(preview_max_fps=60) as publisher,
        subscribe(publisher.endpoint, kinds=["preview"]),
        subscribe(publisher.endpoint, kinds=["detections", "state"], timeout_seconds=PATIENCE_SECONDS) as events,
    ):
        publisher.put_status(status_of("a"))
        next(events)
        wait_until(lambda: publisher._previews.is_watched("a"))
        for seq in range(1, 201):
            publisher.put_detections(grey_frame("a", seq), [PERSON])
        seqs: list[int] = []
        while len(seqs) < 200:
            event = next(events)
            seqs += [event.frame.seq] if isinstance(event, DetectionEvent) else []
        assert len(publisher._previews._slots) <= 1
        release.set()
    assert seqs == list(range(1, 201))
