"""What is published of a stream whose frames the motion gate holds back."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
from prometheus_client import generate_latest

from streamdet.config import RuleConfig, StreamConfig
from streamdet.delivery.events import EventWriter, FrameEvents, FrameResult
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import AlertEvent, Drop, Frame, FrameInfo, ObjectEvent, Scene
from support.publishing import PERSON, Blank
from support.waiting import wait_until

FPS = 10


class Gate:
    """Keeps what it gets, and has a newest frame."""

    def __init__(self) -> None:
        self.scenes: list[Scene] = []
        self.held: Frame | None = None

    def set_scene(self, stream: str, scene: Scene) -> None:
        assert stream == "yard"
        self.scenes.append(scene)

    def newest_held(self, stream: str) -> Frame | None:
        return self.held


@dataclass
class Yard:
    writer: EventWriter
    gate: Gate
    metrics: Metrics
    seq: int = 0
    gated: int = 0
    begin: float = 0.0

    def detect(self, *detections: Any, is_audit: bool = False) -> FrameEvents:
        self.seq += 1
        info = FrameInfo(self.seq, self.seq / FPS, self.seq / FPS, "daemon", 640, 360)
        self.metrics.frame_captured("yard", 0.0)
        self.metrics.ledger.published("yard")
        self.gate.held = None
        result = FrameResult("yard", info, self.at, detections, None, gated_before=self.gated, is_audit=is_audit)
        return self.writer.detections(result)

    def hold(self, frames: int) -> None:
        self.seq += frames
        self.gated += frames
        at = self.seq / FPS
        self.gate.held = Frame("yard", self.seq, at, at, "daemon", self.at, Blank(), is_gated=True)

    @property
    def at(self) -> float:
        """When the newest frame was captured: now is when it ends."""
        return self.begin + self.seq / FPS

    def pass_time(self) -> list[ObjectEvent | AlertEvent]:
        events: list[ObjectEvent | AlertEvent] = []
        newest = self.gate.held

        def passed() -> bool:
            events.extend(message.event for message in self.writer.stand_still())
            return newest is None or self.writer._seen_seqs.get("yard") == newest.seq

        wait_until(passed)
        return events


def yard_of(**settings: Any) -> Yard:
    metrics, gate = Metrics(Ledger()), Gate()
    metrics.set_stream("yard", ["person"], has_gate=True)
    writer = EventWriter("e", 60.0, metrics, gates=gate)
    writer.set_stream(StreamConfig(name="yard", url="rtsp://192.0.2.7/", gate="motion", **settings))
    return Yard(writer, gate, metrics, begin=time.monotonic() - 60)


def test_the_next_event_says_how_many_frames_were_held_back() -> None:
    yard = yard_of()
    yard.detect()
    yard.hold(57)
    events = [yard.detect(), yard.detect()]
    assert [one.message.event.gated for one in events if one.message is not None] == [57, 0]
    assert [one.message.event.seq for one in events if one.message is not None] == [2, 3]
    # The stream was removed and added again: the queue counts from 0.
    yard.gated = 3
    again = yard.detect().message
    assert again is not None
    assert again.event.gated == 3


def test_the_gate_hears_of_every_frame_and_of_every_break() -> None:
    yard = yard_of()
    assert yard.gate.scenes[-1] == Scene(0, is_settled=False)
    yard.detect()
    assert yard.gate.scenes[-1] == Scene(1, is_settled=True, width=640, height=360)
    yard.detect(PERSON)
    assert yard.gate.scenes[-1] == Scene(2, False, (PERSON.box,), 640, 360)  # noqa: FBT003 - as in the class
    yard.detect()
    for breaks in (
        lambda: yard.writer.set_stream(StreamConfig(name="yard", url="rtsp://192.0.2.8/", gate="motion")),
        lambda: list(yard.writer.end_all(reason="reload")),  # type: ignore[arg-type]
    ):
        yard.gate.scenes.clear()
        yard.detect(PERSON)
        breaks()
        if len(yard.gate.scenes) > 1:
            assert yard.gate.scenes[-1] == Scene(0, is_settled=False)


def test_objects_and_rules_go_on_while_frames_are_held_back() -> None:
    zone = {"name": "door", "polygon": [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]}
    yard = yard_of(zones=[zone])
    list(yard.writer.set_rules([RuleConfig(name="waits", zone="door", for_seconds=20.0)]))
    for _ in range(4 * FPS):
        yard.detect(PERSON)
    yard.hold(30 * FPS)
    events = yard.pass_time()
    assert [type(event).__name__ for event in events] == ["ObjectEvent", "AlertEvent"]
    assert all(event.frame.seq == yard.seq for event in events)
    # Nothing is silent, although the newest frame that was detected is long ago.
    yard.hold(25 * FPS)
    yard.begin = time.monotonic() - yard.seq / FPS
    yard.hold(0)
    assert list(yard.writer.end_silent()) == []
    assert yard.metrics.registry.get_sample_value("streamdet_objects_present", {"stream": "yard"}) == 1
    # They end once no frame comes at all.
    yard.gate.held = replace(yard.gate.held, captured_monotonic_seconds=time.monotonic() - 5)  # type: ignore[type-var]
    yard.writer._open["yard"].silent_monotonic_seconds = 0.0
    ended = [message.event for message in yard.writer.end_silent()]
    assert [event.phase for event in ended] == ["end", "cleared"]
    assert yard.gate.scenes[-1] == Scene(0, is_settled=False)


def test_time_does_not_pass_while_an_earlier_frame_is_on_its_way() -> None:
    yard = yard_of()
    for _ in range(4 * FPS):
        yard.detect(PERSON)
    yard.metrics.frame_captured("yard", 0.0)  # waits for the detector
    yard.hold(12 * FPS)
    yard.writer._still_monotonic_seconds = 0.0
    assert list(yard.writer.stand_still()) == []
    assert yard.writer._seen_seqs["yard"] < yard.seq
    yard.metrics.frame_dropped("yard", Drop.SUPERSEDED)
    assert [event.phase for event in yard.pass_time()] == ["update"]


@pytest.mark.parametrize("blur", [(), ("person",)])
def test_analytics_that_fail_end_every_object_and_other_streams_go_on(
    blur: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = yard_of(blur=blur)
    for _ in range(4 * FPS):
        yard.detect(PERSON)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(yard.writer._analytics["yard"], "stand_still", fail)
    yard.hold(12 * FPS)
    (ended,) = yard.pass_time()
    assert isinstance(ended, ObjectEvent)
    assert (ended.phase, ended.reason) == ("end", "internal_error")
    assert yard.metrics.registry.get_sample_value("streamdet_unexpected_errors_total", {"part": "analytics"}) == 1


def test_an_audit_is_counted_and_what_it_finds() -> None:
    yard = yard_of()
    yard.detect()
    yard.hold(100)
    yard.detect(PERSON, is_audit=True)
    for _ in range(5):
        yard.detect(PERSON)
    yard.detect(PERSON, is_audit=True)
    counts = yard.metrics.gate_counts("yard")
    assert counts is not None
    assert counts == (2, 1)
    yard.metrics.remove_stream("yard")
    assert yard.metrics.gate_counts("yard") is None
    assert b"streamdet_gate_missed_total{" not in _page(yard.metrics)


def _page(metrics: Metrics) -> bytes:
    return generate_latest(metrics.registry)
