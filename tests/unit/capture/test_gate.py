"""Which frames pass the motion gate."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamdet.capture.gate import Gates, MotionGate
from streamdet.config import StreamConfig
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Frame, Pass, Scene

FPS = 10


class Still:
    """A picture of noise, with someone at a column or no one."""

    def __init__(self, chance: np.random.Generator, column: int | None, size: tuple[int, int]) -> None:
        self.width, self.height = size
        self._chance, self._column = chance, column

    def to_rgb(self) -> NDArray[np.uint8]:
        raise AssertionError

    def to_small_luma(self, width: int, height: int) -> NDArray[np.uint8]:
        luma = 100 + self._chance.normal(0, 1.0, (height, width))
        if self._column is not None:
            luma[20:60, self._column : self._column + 16] += 60
        return luma.astype(np.uint8)


class Broken(Still):
    def to_small_luma(self, width: int, height: int) -> NDArray[np.uint8]:
        raise ValueError((width, height))


class Line:
    """A gate, the frames that come to it, and a detector that sees what passes, unless it is down."""

    def __init__(self, *, chance: Callable[[], float] = lambda: 1.0, **settings: Any) -> None:
        self.config = StreamConfig(name="yard", url="rtsp://192.0.2.7/", gate="motion", **settings)
        self.gate = MotionGate(self.config, chance=chance)
        self.random = np.random.default_rng(1)
        self.seq = 0
        self.size = (640, 360)
        self.is_settled = True
        self.detects = True
        self.fps = float(FPS)

    def frame(self, column: int | None = None, *, begins: bool = False, watched: bool = False) -> Pass | None:
        self.seq += 1
        seconds = self.seq / self.fps
        picture = Still(self.random, column, self.size)
        why = self.gate.judge(
            Frame("yard", self.seq, seconds, seconds, "daemon", seconds, picture, begins=begins), is_watched=watched
        )
        if why is not None and self.detects:
            self.gate.set_scene(Scene(self.seq, self.is_settled))
        return why

    def frames(self, seconds: float, column: int | None = None, **how: bool) -> list[Pass | None]:
        return [self.frame(column, **how) for _ in range(round(seconds * self.fps))]


def test_everything_passes_until_the_background_is_known_and_then_nothing() -> None:
    line = Line()
    first = line.frames(2)
    assert set(first[:20]) == {Pass.LEARNING}
    assert line.frames(5)[2:] == [None] * 48
    assert line.gate.newest_held is not None
    assert line.gate.newest_held.seq == line.seq


def test_motion_passes_and_for_a_while_afterwards() -> None:
    line = Line()
    line.frames(4)
    assert Pass.MOTION in line.frames(0.3, 30)
    assert line.gate.newest_held is None
    assert set(line.frames(1, 40)) == {Pass.MOTION}
    after = line.frames(6)
    assert set(after[:10]) == {Pass.MOTION}
    assert after[40:] == [None] * 20


def test_what_has_moved_passes_until_the_detector_has_seen_it() -> None:
    line = Line()
    line.frames(4)
    line.detects = False
    line.frames(0.5, 30)
    assert set(line.frames(20)[5:]) == {Pass.MOTION}
    line.detects = True
    assert line.frames(4)[-10:] == [None] * 10


def test_the_hold_lasts_until_max_fps_lets_a_frame_pass() -> None:
    line = Line(max_fps=0.25)
    line.frames(4)
    line.frames(0.5, 30)
    assert set(line.frames(5)) == {Pass.MOTION}


def test_objects_that_move_or_are_missing_pass() -> None:
    line = Line()
    line.frames(4)
    line.is_settled = False
    line.gate.set_scene(Scene(line.seq, is_settled=False, boxes=((1.0, 2.0, 30.0, 40.0),), width=640, height=360))
    assert set(line.frames(5)) == {Pass.OBJECTS}
    line.is_settled = True
    assert line.frames(3)[1:] == [None] * 29


@pytest.mark.parametrize("max_seconds", [0.5, 2.0, 10.0])
def test_one_passes_in_gate_max_seconds(max_seconds: float) -> None:
    line = Line(gate_max_seconds=max_seconds)
    line.frames(4)
    why = line.frames(60)
    at = [number for number, one in enumerate(why) if one is not None]
    assert {why[number] for number in at} == {Pass.PERIODIC}
    assert all(after - before <= max_seconds * FPS + 1 for before, after in pairwise(at))
    assert len(at) <= 60 / max_seconds + 1


def test_another_one_passes_if_the_one_that_was_due_is_lost() -> None:
    line = Line(gate_max_seconds=5.0)
    line.frames(4)
    line.detects = False
    why = line.frames(20)
    assert 14 <= why.count(Pass.PERIODIC) <= 19
    line.detects = True
    assert line.frames(10).count(Pass.PERIODIC) <= 3


def test_one_passes_every_second_while_someone_looks() -> None:
    line = Line()
    line.frames(4)
    assert 9 <= line.frames(10, watched=True).count(Pass.WATCHED) <= 10
    assert line.frames(5).count(Pass.WATCHED) == 0


def test_one_of_two_hundred_is_audited() -> None:
    random = np.random.default_rng(3)
    line = Line(chance=random.random)
    line.size = (64, 48)
    line.frames(4)
    audited = line.frames(200).count(Pass.AUDIT)
    assert 3 <= audited <= 20  # 10 are expected


def test_who_is_seen_in_an_audit_only_is_still_compared_with_before() -> None:
    line = Line(chance=lambda: 0.0)
    line.frames(4)
    assert line.frame() is Pass.AUDIT
    # Were the scene to follow, he would be part of it.
    assert {Pass.MOTION} >= set(line.frames(0.5, 30)[1:])


def test_a_new_connection_and_another_size_are_learned_again() -> None:
    line = Line()
    line.frames(4)
    assert line.frame(begins=True) is Pass.LEARNING
    assert set(line.frames(1.5)) == {Pass.LEARNING}
    line.frames(3)
    line.size = (1280, 720)
    assert line.frame() is Pass.LEARNING


def test_a_slow_stream_is_gated_too() -> None:
    line = Line()
    line.fps = 1.0
    line.frames(20)
    quiet = line.frames(30)
    assert set(quiet) == {None, Pass.PERIODIC}
    assert line.frame(30) is Pass.MOTION


def test_masks_and_zones_of_interest() -> None:
    left = [[0.0, 0.0], [0.4, 0.0], [0.4, 1.0], [0.0, 1.0]]
    masked = Line(masks=({"name": "road", "polygon": left},))
    cars_only = Line(masks=({"name": "road", "polygon": left, "labels": ["car"]},))
    counted = Line(zones=({"name": "door", "polygon": left},))
    of_interest = Line(zones=({"name": "door", "polygon": left},), gate_zones=("door",))
    # 30 and 250 of 480 samples are left and right.
    expected = {masked: (False, True), cars_only: (True, True), counted: (True, True), of_interest: (True, False)}
    for line, opens in expected.items():
        line.frames(4)
        assert (Pass.MOTION in line.frames(0.5, 30)) == opens[0]
        line.frames(6)
        assert (Pass.MOTION in line.frames(0.5, 250)) == opens[1]


def test_a_configuration_takes_effect_with_the_next_frame() -> None:
    line = Line()
    line.frames(4)
    line.gate.config = line.config.model_copy(update={"gate_max_seconds": 1.0})
    assert 8 <= line.frames(10).count(Pass.PERIODIC) <= 11


def test_gates_of_streams() -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("yard", ["person"], has_gate=True)
    gates = Gates(metrics)
    config = StreamConfig(name="yard", url="rtsp://192.0.2.7/", gate="motion")
    chance = np.random.default_rng(1)

    def frame(seq: int, kind: type[Still] = Still) -> Frame:
        seconds = seq / FPS
        given = Frame("yard", seq, seconds, seconds, "daemon", seconds, kind(chance, None, (640, 360)))
        return gates.judged(given, lambda _stream: False)

    assert not any(frame(seq).is_gated for seq in range(1, 60))
    gates.set_stream(config)
    for seq in range(60, 100):
        frame(seq)
        gates.set_scene("yard", Scene(seq, is_settled=True))
    held = [frame(seq) for seq in range(100, 110)]
    assert sum(one.is_gated for one in held) >= 9
    newest = gates.newest_held("yard")
    assert newest is not None
    assert newest.seq >= 108
    # One that cannot be judged is not lost.
    broken = frame(111, Broken)
    assert not broken.is_gated
    assert metrics.registry.get_sample_value("streamdet_unexpected_errors_total", {"part": "gate"}) == 1
    of_learning = {"stream": "yard", "reason": "learning"}
    assert metrics.registry.get_sample_value("streamdet_gate_passed_total", of_learning) == 20
    gates.set_stream(config.model_copy(update={"gate": "off"}))
    assert not any(frame(seq).is_gated for seq in range(112, 200))
    assert gates.newest_held("yard") is None


def test_an_audit_is_marked() -> None:
    metrics = Metrics(Ledger())
    metrics.set_stream("yard", ["person"], has_gate=True)
    gates = Gates(metrics)
    gates.set_stream(StreamConfig(name="yard", url="rtsp://192.0.2.7/", gate="motion"))
    chance = np.random.default_rng(1)
    marked = 0
    for seq in range(1, 1500):
        seconds = seq / FPS
        given = Frame("yard", seq, seconds, seconds, "daemon", seconds, Still(chance, None, (64, 48)))
        frame = gates.judged(given, lambda _stream: False)
        assert not (frame.is_audit and frame.is_gated)
        marked += frame.is_audit
        if not frame.is_gated:
            gates.set_scene("yard", Scene(seq, is_settled=True))
    counted = metrics.registry.get_sample_value("streamdet_gate_passed_total", {"stream": "yard", "reason": "audit"})
    assert counted == marked > 0
