"""Asking a publisher for what its spool, its store of pictures and its store of clips keep."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq
from prometheus_client import CollectorRegistry

from streamdet import AsyncPast, EndpointError, NotKeptError, Past, WireError
from streamdet.client.past import StreamSums
from streamdet.client.picture import PictureFetch
from streamdet.config import ClipsConfig, PublisherConfig, ReplayConfig
from streamdet.delivery.clips import Clips
from streamdet.delivery.event_store import EventStore, Record
from streamdet.delivery.file_store import FileStore, StoreLimits, new_id
from streamdet.delivery.history import History
from streamdet.delivery.jpeg import to_jpeg
from streamdet.delivery.publisher import Publisher
from streamdet.monitoring.metrics import PICTURES_DROPPED, FileStoreMetrics
from streamdet.types import PictureInfo
from streamdet.wire import to_message
from streamdet.wire.replay import MAX_CLIP_PART_BYTES, decode_request
from support.occurring import alert_event, object_event
from support.publishing import Blank, metrics_of, status_of
from support.waiting import join, wait_until

_AT = 1760000000.0
_REPLAY = ReplayConfig(endpoint="tcp://127.0.0.1:0")


@dataclass
class Kept:
    """A publisher whose spool has 600 objects and an alert, and which keeps a picture and a clip."""

    publisher: Publisher
    picture: PictureInfo
    jpeg: bytes
    clip_id: str
    clip: bytes

    @property
    def where(self) -> dict[str, Any]:
        return {"endpoint": self.publisher.endpoint, "replay_endpoint": self.publisher.replay_endpoint}


def fill(directory: Path, picture: PictureInfo, clip_id: str) -> Path:
    store = EventStore(directory, 2**30, "e0", {})
    events = [object_event(object_id=f"o{number}", phase="end", label="car") for number in range(600)]
    events.append(object_event("gate", object_id="last", phase="end", picture=picture))
    events.append(alert_event("gate", clip_id=clip_id))  # type: ignore[arg-type]
    records = []
    for seq, event in enumerate(events, 1):
        topic, payload = to_message(event)
        records.append(Record("e0", topic.decode(), seq, _AT + seq, payload))
    store.append(records)
    store.close()
    return store.path


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    metrics = metrics_of()
    limits = StoreLimits(2**30, 1e9, 2**20)
    store_metrics = FileStoreMetrics(CollectorRegistry(), "pictures", PICTURES_DROPPED)
    pictures = FileStore("pictures", tmp_path / "pictures", ".jpg", limits, store_metrics)
    clips = Clips(ClipsConfig(directory=str(tmp_path / "clips")), metrics)
    jpeg = to_jpeg(Blank().to_rgb(), 640, 80)
    assert jpeg is not None
    now = time.time()
    picture_id, clip_id, clip = new_id("gate", now), new_id("gate", now), os.urandom(2 * MAX_CLIP_PART_BYTES + 17)
    picture = PictureInfo(picture_id, 1, 640, 360, None)
    history = History(fill(tmp_path / "spool", picture, clip_id))
    config = PublisherConfig(endpoint="tcp://127.0.0.1:0")
    publisher = Publisher(config, "e1", metrics, replay=_REPLAY, picture_store=pictures, clips=clips, history=history)
    with pictures, clips, history, publisher:
        pictures.keep(picture_id, jpeg)
        clips._store.keep(clip_id, clip)
        wait_until(lambda: clips.path_of(clip_id) is not None)
        yield Kept(publisher, picture, jpeg, clip_id, clip)
    assert (publisher.error, history.error, pictures.error, clips.error) == (None,) * 4


def test_it_finds_events_pictures_clips_and_sums(kept: Kept) -> None:
    with Past(**kept.where) as past:
        events = list(past.events())
        assert [getattr(event, "object", None) and event.object.object_id for event in events[:3]] == [  # type: ignore[union-attr]
            None, "last", "o599",
        ]  # fmt: skip
        assert len(events) == 602
        assert past.picture(events[1]) == kept.jpeg
        assert past.clip(events[0]) == kept.clip  # type: ignore[arg-type]
        assert [event.stream for event in past.events(label="person")] == ["gate", "gate"]
        assert past.page(zone="door", limit=5).next is None
        part = past.clip_part(kept.clip_id, 2 * MAX_CLIP_PART_BYTES)
        assert part is not None
        assert (part.content, part.size_bytes) == (kept.clip[-17:], len(kept.clip))
        beyond = past.clip_part(kept.clip_id, len(kept.clip) + 5)
        assert beyond is not None
        assert beyond.content == b""
        assert past.picture(new_id("gate", 5.0)) is past.clip(new_id("gate", 5.0)) is past.clip("no id") is None
        timeline = past.timeline(_AT, _AT + 1000, 10)
        assert timeline.kept_since == _AT + 1
        assert [sums.stream for sums in timeline.streams] == ["front-door", "gate"]
        assert sum(timeline.streams[0].presence["car"].values()) == 600


def test_tasks_ask_at_once(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each is answered, also those for the same: none has to ask again.
    monkeypatch.setattr("streamdet.client.past._ASK_AGAIN_SECONDS", 100.0)

    async def ask() -> None:
        async with AsyncPast(**kept.where, timeout_seconds=60) as past:
            jpegs, clips, pages = await asyncio.gather(
                asyncio.gather(*(past.picture(kept.picture) for _ in range(10))),
                asyncio.gather(*(past.clip(kept.clip_id) for _ in range(4))),
                asyncio.gather(*(past.page(label="person") for _ in range(4))),
            )
            assert set(jpegs) == {kept.jpeg}
            assert set(clips) == {kept.clip}
            assert [len(page.events) for page in pages] == [2] * 4
            assert len([event async for event in past.events()]) == 602
            assert len((await past.timeline(_AT, _AT + 1000, 10)).streams) == 2
            assert await past.picture(new_id("gate", 5.0)) is None

    asyncio.run(ask())


def test_a_daemon_that_keeps_nothing_says_so() -> None:
    async def ask(where: dict[str, Any]) -> None:
        async with AsyncPast(**where) as past:
            with pytest.raises(NotKeptError, match=r"set directory in \[spool\]"):
                await past.timeline(_AT, _AT + 1, 1)

    with Publisher(PublisherConfig(endpoint="tcp://127.0.0.1:0"), "e1", metrics_of(), replay=_REPLAY) as publisher:
        where = {"endpoint": publisher.endpoint, "replay_endpoint": publisher.replay_endpoint}
        with Past(**where) as past:
            with pytest.raises(NotKeptError, match=r"no events are kept on disk; set directory in \[spool\]"):
                past.page()
            assert past.clip("20261129T140312.345Z-gate-3f2a9c01b7de") is None
            with pytest.raises(EndpointError, match="limit is 0"):
                past.page(limit=0)
        asyncio.run(ask(where))


def test_a_daemon_says_whether_it_has_streams() -> None:
    async def has_streams(publisher: Publisher) -> bool:
        async with AsyncPast(publisher.endpoint, replay_endpoint=publisher.replay_endpoint) as past:
            return await past.has_streams()

    with Publisher(PublisherConfig(endpoint="tcp://127.0.0.1:0"), "e1", metrics_of(), replay=_REPLAY) as publisher:
        assert asyncio.run(has_streams(publisher)) is False
        publisher.put_status(status_of("gate"))
        wait_until(lambda: "gate" in publisher._writer.streams)
        assert asyncio.run(has_streams(publisher)) is True
        publisher.remove_stream("gate")
        wait_until(lambda: not publisher._writer.streams)
        assert asyncio.run(has_streams(publisher)) is False


@contextmanager
def answering(asked: list[int], first: int = 1) -> Iterator[str]:
    """Answers from the first of these requests on, each with what is no answer and then with an empty page."""
    endpoints: list[str] = []
    stop = threading.Event()

    def answer(context: zmq.Context[Any]) -> None:
        with context.socket(zmq.ROUTER) as router:
            endpoints.append(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
            while not stop.is_set():
                if router.poll(20):
                    client, payload = router.recv_multipart()
                    asked.append(decode_request(payload).id)
                    if len(asked) == first:
                        router.send_multipart([client, b"no JSON"])
                        page = b'{"version":1,"id":1,"ok":true,"answer":"history","next":null}'
                        router.send_multipart([client, page])

    with zmq.Context() as context:
        thread = threading.Thread(target=answer, args=(context,), daemon=True)
        thread.start()
        try:
            wait_until(lambda: endpoints)
            yield endpoints[0]
        finally:
            stop.set()
            join(thread)


def test_it_asks_again_and_gives_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdet.client.past._ASK_AGAIN_SECONDS", 0.05)
    asked: list[int] = []

    async def ask(endpoint: str) -> None:
        async with AsyncPast("tcp://127.0.0.1:1", replay_endpoint=endpoint, timeout_seconds=30) as past:
            assert (await past.page()).events == []
            assert asked == [1, 1, 1]
        async with AsyncPast("tcp://127.0.0.1:1", replay_endpoint=endpoint, timeout_seconds=0.1) as late:
            with pytest.raises(TimeoutError, match=r"has not answered at .* within 0.1 seconds"):
                await late.page()

    with answering(asked, first=3) as endpoint:
        asyncio.run(ask(endpoint))


def test_an_answer_that_cannot_be_read_counts_as_lost() -> None:
    asked: list[int] = []
    with answering(asked) as endpoint, Past("tcp://127.0.0.1:1", replay_endpoint=endpoint, timeout_seconds=30) as past:
        assert past.page().events == []
    assert asked == [1]
    fetch = PictureFetch(PictureInfo("20261129T140312.345Z-gate-3f2a9c01b7de", 0, 0, 0, None), 0.0, 5.0)
    assert fetch.request(0.0) is not None
    fetch.answer([b"no JSON"], 0.1)
    assert not fetch.is_done


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"stream": "a"}', b'{"presence": 5, "alerts": [], "stream": ""}'])
def test_sums_that_make_no_sense_are_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        StreamSums.read(payload)
