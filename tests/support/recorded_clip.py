"""A day of two streams in files: what the detector found in 20 seconds of the sample clip, at several times of day."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from streamdet import subscribe
from streamdet.bridges.files.recording import Recording
from streamdet.bridges.files.retention import Retention
from streamdet.bridges.files.tables import Buffer
from streamdet.client import Gap
from streamdet.config import ReplayConfig, RuleConfig, StreamConfig
from streamdet.types import (
    AlertEvent,
    Detection,
    DetectionEvent,
    Frame,
    ObjectEvent,
    PreviewEvent,
    Reason,
    State,
    StateEvent,
    StreamStatus,
)
from support.paths import DATA
from support.publishing import Blank, publisher_at

BEGIN = 1_795_910_400.0
"""2026-11-29 00:00 UTC."""
HOURS = (8, 12, 12, 12, 17)
"""When the clip is played."""
LENGTH_SECONDS = 20.0
WIDTH, HEIGHT = 768, 576
EPOCH = "epoch-1"
_REPLAY = ReplayConfig(endpoint="tcp://127.0.0.1:0", max_events=100_000)
_STREAM = StreamConfig(
    name="campus",
    url="0",
    zones=({"name": "path", "polygon": [[0.0, 0.5], [0.6, 0.5], [0.6, 1.0], [0.0, 1.0]]},),  # type: ignore[arg-type]
    lines=({"name": "crossing", "points": [[0.5, 0.0], [0.5, 1.0]]},),  # type: ignore[arg-type]
)
_RULE = RuleConfig(name="on the path", zone="path", for_seconds=2.0)

Recorded = DetectionEvent | ObjectEvent | AlertEvent | StateEvent


def events_of_clip() -> list[Recorded]:
    """The events of the clip, as the daemon's publisher sends them; the clip begins at 0 in Unix time."""
    found: list[Recorded] = []
    boxes_of_frames = json.loads((DATA / "clip_detections.json").read_text())
    with publisher_at(epoch=EPOCH, replay=_REPLAY) as publisher:
        publisher.put_status(StreamStatus("campus", State.UP, None, "", 0.0))
        publisher.set_stream(_STREAM)
        publisher.set_rules([_RULE])
        kinds = ["detections", "objects", "alerts", "state"]
        with subscribe(
            publisher.endpoint,
            kinds=kinds,  # type: ignore[arg-type] # they are words of the kind
            replay=True,
            resume={"state/campus/": (EPOCH, 0)},
            replay_endpoint=publisher.replay_endpoint,
            timeout_seconds=60,
        ) as events:
            assert events.receive(60) is not None  # it is connected
            for number, boxes in enumerate(boxes_of_frames):
                detections = [Detection("person", score / 100, (x1, y1, x2, y2)) for x1, y1, x2, y2, score in boxes]
                frame = Frame(
                    "campus", number + 1, number / 10, number / 10, "daemon", time.monotonic(), Blank(WIDTH, HEIGHT)
                )
                publisher.put_detections(frame, detections)
            publisher.remove_stream("campus")  # ends the objects
            frames = 0
            alive: set[str] = set()
            for event in events:
                if isinstance(event, DetectionEvent | ObjectEvent | AlertEvent | StateEvent):
                    found.append(event)
                frames += isinstance(event, DetectionEvent)
                if isinstance(event, ObjectEvent):
                    (alive.discard if event.phase == "end" else alive.add)(event.object.object_id)
                if frames == len(boxes_of_frames) and not alive:
                    return found
    raise AssertionError


def moved(event: Recorded, stream: str, begins_at: float, seqs: int) -> Recorded:
    """The event in another stream, at another time and with later numbers."""
    event = replace(event, stream=stream, seq=event.seq + seqs)
    if isinstance(event, StateEvent):
        return replace(event, since=begins_at, published_at=begins_at)
    at = begins_at + event.frame.captured_at
    event = replace(event, frame=replace(event.frame, captured_at=at), published_at=at + 0.05 + 0.01 * (event.seq % 10))
    if isinstance(event, ObjectEvent):
        best = replace(event.object.best, captured_at=begins_at + event.object.best.captured_at)
        began_at = begins_at + event.object.began_at
        return replace(event, object=replace(event.object, began_at=began_at, best=best))
    if isinstance(event, AlertEvent):
        return replace(event, alert=replace(event.alert, raised_at=begins_at + event.alert.raised_at))
    return event


def events_of_day() -> Iterator[Recorded]:
    """The clip at each of the hours, on two streams; the second one is down between two and three."""
    clip = events_of_clip()
    for name, hours in (("campus", HOURS), ("gate", HOURS[:2])):
        for number, hour in enumerate(hours):
            begins_at = BEGIN + 3600 * hour + number * 30
            for event in clip:
                yield moved(event, name, begins_at, 10_000 * number)
        for seq, hour, state in ((9001, 14, State.DOWN), (9002, 15, State.UP), (9003, 18, State.UP)):
            if name == "gate" or seq == 9003:
                reason = Reason.TIMEOUT if state is State.DOWN else None
                at = BEGIN + 3600 * hour
                yield StateEvent(name, EPOCH, seq, at, state, reason, "", at)


def record_day(folder: Path) -> list[Recorded]:
    """Writes the day into a folder."""
    recording = Recording(folder, ("parquet",), "auto", Retention(folder, 2**40, 1e9))
    recording.open()
    buffer, recorded = Buffer(), []
    for event in events_of_day():
        assert not isinstance(event, PreviewEvent)
        assert buffer.add(event)
        recorded.append(event)
    buffer.add_gap(Gap("gate", "detections/gate/", 300, 42), EPOCH, BEGIN + 3600 * 15)
    recording.write(buffer.take(), {"detections/campus/": (EPOCH, 1)})
    recording.close()
    return recorded
