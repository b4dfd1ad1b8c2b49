"""Pictures on their way to subscribers: named by events, fetched, carried by messages, and without what is hidden."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet import AlertEvent, DetectionEvent, ObjectEvent, PreviewEvent, Subscription, subscribe, subscribe_async
from streamdet.config import PicturesConfig, PublisherConfig, ReplayConfig, RuleConfig, StreamConfig
from streamdet.delivery.file_store import FileStore, StoreLimits
from streamdet.delivery.pictures import Pictures
from streamdet.delivery.privacy import Privacy
from streamdet.delivery.publisher import Publisher
from streamdet.delivery.spool import Spool
from streamdet.errors import EndpointError
from streamdet.types import Detection, Frame, PictureInfo
from streamdet.wire import Kind
from streamdet.wire.replay import Refused, request_id
from support.publishing import CAR, PERSON, metrics_of, status_of
from support.spools import Counted
from support.waiting import PATIENCE_SECONDS, wait_until

KINDS: tuple[Kind, ...] = ("detections", "objects", "alerts", "state")
SIZE = (640, 360)
ON_SIGHT = {"name": "on sight", "labels": ["person"], "for_seconds": 0.05, "picture": True}
TOP = {"name": "top", "polygon": [[0.0, 0.0], [1.0, 0.0], [1.0, 0.05], [0.0, 0.05]]}
LEFT = {"name": "left", "polygon": [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]}


@dataclass(frozen=True)
class Noisy:
    """A frame of grey noise, the same one for the same number."""

    number: int
    width: int = SIZE[0]
    height: int = SIZE[1]

    def to_rgb(self) -> NDArray[np.uint8]:
        small = np.random.default_rng(self.number).integers(40, 256, (self.height // 4, self.width // 4, 1), np.uint8)
        return np.repeat(np.repeat(np.repeat(small, 4, axis=0), 4, axis=1), 3, axis=2)


class Gallery:
    """A publisher of one stream, with pictures."""

    def __init__(self, directory: Path, spool: Spool | None = None, **settings: Any) -> None:
        self.metrics = metrics_of("a")
        self.store = FileStore("pictures", directory, ".jpg", StoreLimits(2**30, 1e6, 2**20), self.metrics.pictures)
        self.publisher = Publisher(
            PublisherConfig(endpoint="tcp://127.0.0.1:0", state_interval_seconds=60, preview_max_fps=60),
            "epoch-1",
            self.metrics,
            replay=ReplayConfig(endpoint="tcp://127.0.0.1:0"),
            archive=spool,
            pictures=PicturesConfig(**settings),
            picture_store=self.store,
        )
        self._seq = 0
        self._began = time.monotonic()

    def subscribe(self, *kinds: Kind) -> Subscription:
        publisher = self.publisher
        return subscribe(
            publisher.endpoint,
            kinds=kinds or KINDS,
            replay_endpoint=publisher.replay_endpoint,
            timeout_seconds=PATIENCE_SECONDS,
        )

    def set(self, events: Subscription, *rules: dict[str, Any], **keys: Any) -> None:
        self.publisher.set_rules([RuleConfig.model_validate(rule) for rule in rules])
        config = {"name": "a", "url": "rtsp://192.0.2.5/x", **keys}
        self.publisher.set_stream(StreamConfig.model_validate(config))
        self.publisher.put_status(status_of("a"))
        next(events)  # the state: the subscription has arrived

    def show(self, *found: Detection, frames: int = 1) -> None:
        for _ in range(frames):
            self._seq += 1
            captured = self._began + self._seq / 25
            frame = Frame("a", self._seq, self._seq / 25, time.time(), "daemon", captured, Noisy(self._seq))
            self.publisher.put_detections(frame, found)

    def dropped(self, reason: str) -> float:
        labels = {"reason": reason}
        return self.metrics.registry.get_sample_value("streamdet_pictures_dropped_total", labels) or 0.0


@contextmanager
def gallery_at(directory: Path, spool: Spool | None = None, **settings: Any) -> Iterator[Gallery]:
    gallery = Gallery(directory, spool, **settings)
    with gallery.store, gallery.publisher:
        yield gallery
    assert gallery.publisher.error is None
    assert gallery.store.error is None


def ended(events: Subscription) -> ObjectEvent:
    return next(event for event in events if isinstance(event, ObjectEvent) and event.phase == "end")


def alert(events: Subscription, phase: str) -> AlertEvent:
    return next(event for event in events if isinstance(event, AlertEvent) and event.phase == phase)


def pixels_of(jpeg: bytes | None) -> NDArray[Any]:
    assert jpeg is not None
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return np.asarray(pixels)


def shows(jpeg: bytes | None, info: PictureInfo | None, found: Detection = PERSON) -> bool:
    """Whether a picture shows the frame that is named, around the object."""
    assert info is not None
    assert info.box is not None
    pixels = pixels_of(jpeg)
    left, top = round(found.box[0] - info.box[0]), round(found.box[1] - info.box[1])
    frame = Noisy(info.frame_seq).to_rgb()[top : top + info.height, left : left + info.width]
    return bool(np.abs(pixels.astype(int) - frame).mean() < 12)


def test_the_end_of_an_object_names_a_picture_that_threads_and_asyncio_can_fetch(tmp_path: Path) -> None:
    async def fetch(gallery: Gallery, event: ObjectEvent) -> bytes | None:
        async with subscribe_async(
            gallery.publisher.endpoint, replay_endpoint=gallery.publisher.replay_endpoint
        ) as events:
            return await events.picture(event)

    with gallery_at(tmp_path) as gallery, gallery.subscribe() as events:
        gallery.set(events, track_max_lost_seconds=0.1)
        gallery.show(PERSON, frames=6)
        event = ended(events)
        gallery.show(CAR)
        jpeg = events.picture(event)
        assert shows(jpeg, event.picture)
        assert asyncio.run(fetch(gallery, event)) == jpeg
        assert event.picture is not None
        assert event.picture.jpeg is None
        assert events.picture(event.picture) == events.picture(event.picture.picture_id) == jpeg
        assert events.picture("20261129T140312.345Z-a-3f2a9c01b7de") is None
        assert events.picture("no id") is None
        assert events.picture(None) is None
        waited = next(event for event in events if isinstance(event, DetectionEvent))
        assert waited.frame.seq == 7, "events wait meanwhile"


def test_an_alert_names_a_picture_of_the_frame_that_raised_it_and_keeps_it_when_cleared(tmp_path: Path) -> None:
    other = {**ON_SIGHT, "name": "without", "picture": False}
    with gallery_at(tmp_path) as gallery, gallery.subscribe("alerts", "state") as events:
        gallery.set(events, ON_SIGHT, other, track_max_lost_seconds=0.1)
        gallery.show(PERSON, frames=6)
        raised = {event.alert.rule: event for event in (alert(events, "raised"), alert(events, "raised"))}
        pictured = raised["on sight"]
        assert pictured.picture is not None
        assert pictured.picture.frame_seq == pictured.frame.seq
        assert shows(events.picture(pictured), pictured.picture)
        assert raised["without"].picture is None
        cleared = {event.alert.rule: event for event in (alert(events, "cleared"), alert(events, "cleared"))}
        assert cleared["on sight"].picture == pictured.picture
        assert cleared["without"].picture is None


def test_an_alert_that_no_frame_raises_has_no_picture_and_is_counted(tmp_path: Path) -> None:
    with gallery_at(tmp_path) as gallery, gallery.subscribe() as events:
        gallery.set(events)
        gallery.show(PERSON, frames=6)
        wait_until(lambda: gallery.publisher._pictures and gallery.publisher._pictures._best)
        gallery.publisher.set_rules([RuleConfig.model_validate({**ON_SIGHT, "for_seconds": 0.01})])
        gallery.show(PERSON)
        event = alert(events, "raised")
        assert (event.picture is None) == (gallery.dropped("no_frame") == 1)


@pytest.mark.parametrize("with_spool", [False, True])
def test_where_wanted_the_message_carries_the_picture(tmp_path: Path, with_spool: bool) -> None:
    with (
        Counted(tmp_path / "spool") as counted,
        gallery_at(tmp_path / "kept", counted.spool if with_spool else None, in_events=True) as gallery,
        gallery.subscribe() as events,
    ):
        gallery.set(events, ON_SIGHT, track_max_lost_seconds=0.1)
        gallery.show(PERSON, frames=6)
        raised = alert(events, "raised")
        assert raised.picture is not None
        assert shows(raised.picture.jpeg, raised.picture)
        assert events.picture(raised) is raised.picture.jpeg
        end = ended(events)
        assert end.picture is not None
        assert shows(end.picture.jpeg, end.picture)
        assert gallery.store.read(raised.picture.picture_id, PATIENCE_SECONDS) == raised.picture.jpeg


def test_an_alert_waits_for_its_picture_but_not_for_long_and_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = Noisy.to_rgb

    def slow(self: Noisy) -> NDArray[np.uint8]:
        assert release.wait(PATIENCE_SECONDS)
        return real(self)

    monkeypatch.setattr(Noisy, "to_rgb", slow)
    with gallery_at(tmp_path, in_events=True) as gallery, gallery.subscribe() as events:
        gallery.set(events, ON_SIGHT, track_max_lost_seconds=0.1)
        gallery.show(PERSON, frames=6)
        began = time.monotonic()
        seen = [event for event in (next(events) for _ in range(6)) if isinstance(event, DetectionEvent)]
        assert len(seen) >= 5, "no other event waits"
        raised, cleared = alert(events, "raised"), alert(events, "cleared")
        assert (raised.seq, cleared.seq) == (1, 2)
        assert raised.picture is not None
        assert raised.picture.jpeg is None
        assert time.monotonic() - began < PATIENCE_SECONDS / 2
        release.set()
        assert events.picture(raised) is not None


@pytest.mark.parametrize("in_events", [False, True])
def test_an_encoder_that_hangs_delays_no_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_events: bool
) -> None:
    release = threading.Event()

    def hangs(self: Noisy) -> NDArray[np.uint8]:
        assert release.wait(PATIENCE_SECONDS)
        return np.zeros((self.height, self.width, 3), np.uint8)

    monkeypatch.setattr(Noisy, "to_rgb", hangs)
    with gallery_at(tmp_path, in_events=in_events) as gallery, gallery.subscribe("detections", "state") as events:
        gallery.set(events, ON_SIGHT)
        gallery.show(PERSON, frames=500)
        seqs: list[int] = []
        while len(seqs) < 500:
            event = next(events)
            seqs += [event.frame.seq] if isinstance(event, DetectionEvent) else []
        pictures = gallery.publisher._pictures
        assert pictures is not None
        assert len(pictures._better) <= 1, "no frame is kept but the best view"
        release.set()


def test_masks_are_black_and_blurred_labels_unrecognisable_in_previews_and_pictures(tmp_path: Path) -> None:
    person = Detection("person", 0.9, (400.0, 100.0, 480.0, 260.0))
    with (
        gallery_at(tmp_path, size="frame", quality=95) as gallery,
        gallery.subscribe() as events,
        gallery.subscribe("preview") as previews,
    ):
        wait_until(lambda: gallery.publisher._previews.is_watched("a"))
        gallery.set(events, ON_SIGHT, masks=[LEFT], blur=["person"], track_max_lost_seconds=0.1)
        gallery.show(person, frames=6)
        preview = next(previews)
        assert isinstance(preview, PreviewEvent)
        pictured = [alert(events, "raised"), ended(events)]
        shown = [(preview.frame.seq, preview.jpeg)]
        shown += [(event.picture.frame_seq, events.picture(event) or b"") for event in pictured if event.picture]
        assert len(shown) == 3
        for seq, jpeg in shown:
            pixels, frame = pixels_of(jpeg).astype(int), Noisy(seq).to_rgb().astype(int)
            assert pixels.shape == frame.shape
            assert pixels[:, :310].max() < 30
            assert np.abs(pixels[:, 500:] - frame[:, 500:]).mean() < 20
            assert pixels[100:260, 400:480].std() < frame[100:260, 400:480].std() / 3


def test_a_person_that_is_hidden_for_a_moment_stays_blurred_where_it_was(tmp_path: Path) -> None:
    person = Detection("person", 0.9, (400.0, 100.0, 480.0, 260.0))
    with (
        gallery_at(tmp_path) as gallery,
        gallery.subscribe("state") as events,
        gallery.subscribe("preview") as previews,
    ):
        wait_until(lambda: gallery.publisher._previews.is_watched("a"))
        gallery.set(events, blur=["person"])
        gallery.show(person, frames=5)
        gallery.show()
        pixels = next(
            pixels_of(event.jpeg) for event in previews if isinstance(event, PreviewEvent) and not event.detections
        )
        assert pixels[100:260, 400:480].std() < Noisy(6).to_rgb()[100:260, 400:480].std() / 3


def test_where_it_is_not_known_what_must_be_hidden_no_picture_leaves_and_events_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        message = "no idea"
        raise RuntimeError(message)

    monkeypatch.setattr(Privacy, "see", fails)
    with gallery_at(tmp_path) as gallery, gallery.subscribe() as events, gallery.subscribe("preview") as previews:
        wait_until(lambda: gallery.publisher._previews.is_watched("a"))
        gallery.set(events, ON_SIGHT, blur=["car"], track_max_lost_seconds=0.1)
        gallery.show(CAR, PERSON, frames=6)
        raised = alert(events, "raised")
        assert raised.picture is None
        assert ended(events).picture is None
        assert previews.receive(0.1) is None
        assert gallery.dropped("privacy") == 1
        assert list(tmp_path.iterdir()) == []
    assert "no idea" in caplog.text


def test_without_a_directory_no_frame_is_kept_and_events_name_no_picture(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    gallery.publisher.close()
    gallery.store.close()
    gallery.publisher = Publisher(
        PublisherConfig(endpoint="tcp://127.0.0.1:0"),
        "epoch-1",
        gallery.metrics,
        replay=ReplayConfig(endpoint="tcp://127.0.0.1:0"),
    )
    gallery.show(PERSON, frames=6)
    assert [getattr(item, "picture", "none") for item in gallery.publisher._pending] == [None] * 6
    with gallery.publisher, gallery.subscribe() as events:
        gallery.set(events, ON_SIGHT, track_max_lost_seconds=0.1)
        gallery.show(PERSON, frames=6)
        assert ended(events).picture is None
        assert events.picture("20261129T140312.345Z-a-3f2a9c01b7de") is None


def test_a_daemon_that_does_not_answer_or_does_not_know_the_request_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = 'request has "request": expected one of snapshot, replay'
    with (
        gallery_at(tmp_path) as gallery,
        subscribe(gallery.publisher.endpoint, replay_endpoint=f"ipc://{tmp_path}/absent") as alone,
        gallery.subscribe() as events,
    ):
        with pytest.raises(TimeoutError, match=r"no picture within 0\.1 seconds"):
            alone.picture("20261129T140312.345Z-a-3f2a9c01b7de", 0.1)
        replay = gallery.publisher._replay
        monkeypatch.setattr(replay, "answer", lambda _, request: Refused(request_id(request), "bad_request", why))
        with pytest.raises(EndpointError, match="expected one of snapshot, replay"):
            events.picture("20261129T140312.345Z-a-3f2a9c01b7de")


def test_an_object_that_ends_unseen_has_its_picture_and_nothing_stays_in_memory(tmp_path: Path) -> None:
    with gallery_at(tmp_path) as gallery, gallery.subscribe() as events:
        gallery.set(events)
        gallery.show(PERSON, CAR, frames=6)
        pictures = gallery.publisher._pictures
        assert isinstance(pictures, Pictures)
        wait_until(lambda: len(pictures._best) == 2)
        gallery.publisher.remove_stream("a")
        for event in (ended(events), ended(events)):
            assert shows(events.picture(event), event.picture, PERSON if event.object.label == "person" else CAR)
        wait_until(lambda: not (pictures._best or pictures._better or pictures._known or pictures._next_at))
        assert pictures._best_bytes == 0


def test_objects_that_end_at_the_stop_have_their_pictures(tmp_path: Path) -> None:
    with gallery_at(tmp_path) as gallery, gallery.subscribe() as events:
        gallery.set(events)
        gallery.show(PERSON, frames=6)
        next(event for event in events if isinstance(event, ObjectEvent))
        gallery.publisher.stop()
        event = ended(events)
        gallery.publisher.join()
    assert event.picture is not None
    assert shows((tmp_path / f"{event.picture.picture_id}.jpg").read_bytes(), event.picture)


def test_after_a_change_of_what_is_hidden_no_view_from_before_leaves(tmp_path: Path) -> None:
    with gallery_at(tmp_path, size="frame") as gallery, gallery.subscribe() as events:
        gallery.set(events)
        gallery.show(CAR, frames=6)
        pictures = gallery.publisher._pictures
        assert isinstance(pictures, Pictures)
        wait_until(lambda: pictures._best)
        rules = {"name": "a", "url": "rtsp://192.0.2.5/x", "masks": [TOP]}
        gallery.publisher.set_stream(StreamConfig.model_validate(rules))
        gallery.show(CAR)
        gallery.publisher.remove_stream("a")
        event = ended(events)
        assert event.picture is not None
        assert event.picture.frame_seq == 7
        assert pixels_of(events.picture(event))[:15].max() < 30


def test_no_view_leaves_of_a_person_that_was_taken_for_something_else_before(tmp_path: Path) -> None:
    box = (400.0, 100.0, 480.0, 260.0)
    dog, person = Detection("dog", 0.9, box), Detection("person", 0.6, box)  # by its score the worse view
    with gallery_at(tmp_path, size="frame", quality=95) as gallery, gallery.subscribe() as events:
        gallery.set(events, blur=["person"])
        gallery.show(dog, frames=6)
        pictures = gallery.publisher._pictures
        assert isinstance(pictures, Pictures)
        wait_until(lambda: pictures._best)
        gallery.show(person)
        gallery.publisher.remove_stream("a")
        event = ended(events)
        assert event.picture is not None
        assert event.picture.frame_seq == 7
        pixels = pixels_of(events.picture(event))
        assert pixels[100:260, 400:480].std() < Noisy(7).to_rgb()[100:260, 400:480].std() / 3
