"""Objects whose frames the motion gate holds back."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from streamdet.analytics.stream_analytics import Seen, StreamAnalytics
from streamdet.config import RuleConfig, StreamConfig
from streamdet.types import Detection, EndReason, FrameInfo

FPS = 10
DOOR = {"name": "door", "polygon": [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]], "dwell_seconds": [30.0]}
WAITER = Detection("person", 0.9, (100.0, 50.0, 140.0, 150.0))


class Yard:
    def __init__(self, **settings: Any) -> None:
        config = StreamConfig(name="yard", url="0", gate="motion", **settings)
        objects, alerts = count(1), count(1)
        self.analytics = StreamAnalytics(config, count(1), lambda: f"o{next(objects)}", lambda: f"a{next(alerts)}")
        self.seq = 0
        self.seen: list[Seen] = []

    def info(self) -> FrameInfo:
        return FrameInfo(self.seq, self.seq / FPS, self.seq / FPS, "daemon", 640, 360)

    def detect(self, *detections: Detection, frames: int = 1, **how: bool) -> Seen:
        for _ in range(frames):
            self.seq += 1
            self.seen.append(self.analytics.see(detections, self.info(), self.seq / FPS, **how))
            how = {}
        return self.seen[-1]

    def hold(self, seconds: float, *, ticks: bool = True) -> None:
        """Frames are held back; twice a second, time passes."""
        for _ in range(round(seconds * FPS)):
            self.seq += 1
            if ticks and self.seq % (FPS // 2) == 0:
                self.seen.append(self.analytics.stand_still(self.info(), self.seq / FPS))

    @property
    def is_settled(self) -> bool:
        return self.analytics.scene(self.info()).is_settled

    def ended(self) -> list[tuple[str, EndReason | None]]:
        return [(one.object.object_id, one.reason) for seen in self.seen for one in seen.objects if one.phase == "end"]

    def walker(self, frames: int, x: float = 300.0, **how: bool) -> None:
        for step in range(frames):
            self.detect(Detection("person", 0.9, (x + 5 * step, 50.0, x + 40 + 5 * step, 150.0)), **how)
            how = {}


@pytest.mark.parametrize("ticks", [True, False])
def test_who_stands_still_lives_on_however_long_no_frame_is_detected(ticks: bool) -> None:
    yard = Yard()
    before = yard.detect(WAITER, frames=4 * FPS)
    assert yard.is_settled
    for _ in range(3):
        yard.hold(60, ticks=ticks)
        after = yard.detect(WAITER, is_still=True)
        assert after.detections[0].track_id == before.detections[0].track_id
        assert yard.is_settled
    assert yard.ended() == []


def test_without_a_gate_a_pause_ends_him() -> None:
    yard = Yard()
    yard.detect(WAITER, frames=4 * FPS)
    yard.hold(60, ticks=False)
    yard.detect(WAITER)
    assert yard.ended() == [("o1", EndReason.LOST)]


def test_durations_and_rules_are_reached_while_frames_are_held_back() -> None:
    yard = Yard(zones=(DOOR,))
    yard.analytics.set_rules([RuleConfig(name="waits", zone="door", for_seconds=20.0)])
    yard.detect(WAITER, frames=4 * FPS)
    yard.hold(40)
    alerts = [alert for seen in yard.seen for alert in seen.alerts]
    changes = [change for seen in yard.seen for one in seen.objects for change in one.changes]
    assert [(alert.phase, alert.alert.rule) for alert in alerts] == [("raised", "waits")]
    assert alerts[0].frame.seq == pytest.approx(20 * FPS, abs=FPS)
    assert ("dwell", 30.0) in [(change.change, change.seconds) for change in changes]
    yard.detect(WAITER, is_still=True)
    assert yard.analytics.zone_counts(yard.seen[-1].detections) == {"door": 1}


@pytest.mark.parametrize("ticks", [True, False])
def test_time_without_frames_counts_for_absence(ticks: bool) -> None:
    yard = Yard()
    yard.analytics.set_rules([RuleConfig(name="empty", none_for_seconds=30.0)])
    yard.detect(frames=FPS)
    yard.hold(40, ticks=ticks)
    yard.detect(is_still=True)
    alerts = [alert for seen in yard.seen for alert in seen.alerts]
    assert [alert.phase for alert in alerts] == ["raised"]


def test_who_is_not_found_again_is_missing_and_lost_in_the_end() -> None:
    yard = Yard()
    yard.detect(WAITER, frames=4 * FPS)
    yard.hold(30)
    yard.detect(is_still=True)
    assert not yard.is_settled
    assert yard.analytics.scene(yard.info()).boxes == (WAITER.box,)
    # Held back meanwhile or not: nothing keeps him alive.
    yard.hold(1.5)
    yard.detect(frames=FPS, is_still=True)
    assert yard.ended() == [("o1", EndReason.LOST)]
    assert yard.is_settled


def test_one_who_is_missed_for_a_moment_is_still_there() -> None:
    yard = Yard()
    yard.detect(WAITER, frames=4 * FPS)
    yard.detect(frames=3)
    assert yard.is_settled
    yard.hold(30)
    yard.detect(WAITER, is_still=True)
    assert yard.ended() == []


def test_who_walks_is_not_held() -> None:
    yard = Yard()
    yard.walker(2 * FPS)
    assert not yard.is_settled
    yard.hold(10)
    assert yard.ended() == [("o1", EndReason.LOST)]


def test_an_object_of_an_audit_is_missed_once_it_is_certain() -> None:
    yard = Yard()
    yard.detect(frames=FPS)
    yard.walker(1, is_still=True, is_audit=True)
    assert yard.seen[-1].missed == 0
    yard.walker(10, x=305.0)
    assert sum(seen.missed for seen in yard.seen) == 1


def test_what_is_known_or_turns_out_to_be_nothing_is_not_missed() -> None:
    yard = Yard()
    yard.detect(WAITER, frames=4 * FPS)
    yard.hold(20)
    yard.detect(WAITER, is_still=True, is_audit=True)
    yard.detect(WAITER, Detection("person", 0.9, (400.0, 50.0, 440.0, 150.0)), is_audit=True)
    yard.detect(WAITER, frames=2 * FPS)
    assert sum(seen.missed for seen in yard.seen) == 0


def test_what_appears_outside_the_zones_of_interest_is_not_missed() -> None:
    yard = Yard(zones=(DOOR,), gate_zones=("door",))
    yard.detect(frames=FPS)
    yard.walker(1, x=500.0, is_audit=True)
    yard.walker(10, x=505.0)
    assert sum(seen.missed for seen in yard.seen) == 0
    yard.walker(1, x=20.0, is_audit=True)
    yard.walker(10, x=25.0)
    assert sum(seen.missed for seen in yard.seen) == 1


def test_without_tracks_the_newest_detections_are_known() -> None:
    yard = Yard(track=False)
    yard.detect(WAITER)
    assert yard.is_settled
    assert yard.detect(WAITER, is_still=True, is_audit=True).missed == 0
    other = Detection("person", 0.9, (400.0, 50.0, 440.0, 150.0))
    assert yard.detect(WAITER, other, is_audit=True).missed == 1


def test_a_run_over_events_holds_objects_as_well() -> None:
    yard = Yard()
    waiter = Detection("person", 0.9, WAITER.box, track_id=7)
    for _ in range(4 * FPS):
        yard.seq += 1
        yard.analytics.see_published([waiter], (), yard.info(), yard.seq / FPS)
    yard.hold(30, ticks=False)
    seen = yard.analytics.see_published([waiter], (), yard.info(), yard.seq / FPS, is_still=True)
    assert [one.phase for one in seen.objects] == ["update"]
