"""A size of frames that is new to the engine is tried in another process before the daemon uses it."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from streamdet.config import Config
from streamdet.detector.canvases import Canvases, CanvasTrials
from streamdet.detector.choice import Candidate, Outcome, Result
from streamdet.detector.pipeline import ArrayPicture, FasterRcnnDetector
from streamdet.detector.pool import DetectorPool
from streamdet.detector.stages.preprocess import Size
from streamdet.detector.state import FrameSizes, Store
from streamdet.detector.trial import try_size
from streamdet.detector.weights import load_weights
from streamdet.errors import DetectorError
from streamdet.service.daemon import Daemon
from support.detecting import EASY, clip_frames
from support.paths import SUPPORT
from support.ports import free_ports
from support.videos import make_video
from support.waiting import join, wait_until

INT8 = Candidate(engine="openvino", precision="int8")
GOOD = Result(candidate=INT8, outcome=Outcome.AGREES)
CRASHED = Result(candidate=INT8, outcome=Outcome.CRASHED, reason="SIGSEGV (segmentation fault)")


def test_a_canvas_is_used_where_it_is_proven_and_the_smallest_larger_one_else() -> None:
    canvases = Canvases([(384, 640), (640, 384), (384, 512)])
    assert canvases.fit((384, 512)) == (384, 512)
    assert canvases.fit((384, 480)) == (384, 512)
    assert canvases.fit((384, 544)) == (384, 640)
    assert canvases.fit((448, 384)) == (640, 384)
    assert canvases.fit((640, 640)) is None
    canvases.add((384, 480))
    assert canvases.fit((384, 480)) == (384, 480)
    assert Canvases().fit((1, 2)) == (1, 2)


def test_a_size_that_fits_nowhere_waits_for_its_trial() -> None:
    go_on = threading.Event()
    asked = []

    def answer(size: tuple[int, int], _stopping: object) -> Result:
        asked.append(size)
        assert go_on.wait(60)
        return GOOD if size == (400, 400) else CRASHED

    answers: dict[tuple[int, int], object] = {}

    def put(size: tuple[int, int]) -> None:
        try:
            answers[size] = trials.admit(size)
        except DetectorError as error:
            answers[size] = str(error)

    with CanvasTrials(Canvases([(100, 100)]), lambda size: size, answer, failed=[(300, 300)]) as trials:
        assert trials.admit((50, 50))  # on the larger one
        threads = [
            threading.Thread(target=put, args=(size,), daemon=True) for size in [(400, 400), (400, 400), (200, 200)]
        ]
        for thread in threads:
            thread.start()
        put((300, 300))
        assert "failed in an earlier trial" in str(answers[300, 300])
        go_on.set()
        for thread in threads:
            join(thread)
    assert answers[400, 400] is True
    crashed = "failed in its trial (crashed: SIGSEGV (segmentation fault))"
    assert answers[200, 200] == f"frames of 200x200 cannot be detected: the engine {crashed}"
    assert sorted(asked) == [(50, 50), (200, 200), (400, 400)]


def test_an_unexpected_error_is_the_verdict_on_one_size(caplog: pytest.LogCaptureFixture) -> None:
    def fail(size: tuple[int, int], _stopping: object) -> Result:
        if size == (200, 200):
            message = "broken on purpose"
            raise RuntimeError(message)
        return GOOD

    with CanvasTrials(Canvases([]), lambda size: size, fail) as trials:
        with pytest.raises(DetectorError, match="200x200 cannot be detected: the engine could not be tried"):
            trials.admit((200, 200))
        assert trials.admit((300, 300))
    assert "RuntimeError: broken on purpose" in caplog.text


def test_a_stop_ends_the_wait_and_the_trial() -> None:
    begun, stopped = threading.Event(), threading.Event()

    def wait(_size: object, stopping: object) -> None:
        begun.set()
        assert callable(stopping)
        wait_until(stopping, "the worker stops")
        stopped.set()

    trials = CanvasTrials(Canvases([]), lambda size: size, wait)
    with trials:
        waiting = threading.Thread(target=lambda: answers.append(trials.admit((1, 1))), daemon=True)
        answers: list[bool] = []
        waiting.start()
        assert begun.wait(60)
    join(waiting)
    assert answers == [False]
    assert stopped.is_set()


def test_the_daemon_goes_on_where_the_engine_crashes_for_one_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = {
        "known": make_video(tmp_path / "known.mp4", frames=30, width=64, height=48),
        "new": make_video(tmp_path / "new.mp4", frames=30, width=96, height=32),
        "crashes": make_video(tmp_path / "crashes.mp4", frames=30, width=48, height=64),
    }
    port, metrics_port = free_ports()
    config = Config.model_validate(
        {
            "publisher": {"endpoint": f"tcp://127.0.0.1:{port}"},
            "metrics": {"endpoint": f"127.0.0.1:{metrics_port}"},
            "control": {"path": str(tmp_path / "c")},
            "streams": [{"name": name, "url": str(path), "loop": True, "max_fps": 4} for name, path in clips.items()],
        }
    )
    used: set[tuple[int, int]] = set()

    def load(*_: object) -> DetectorPool:
        detector = FasterRcnnDetector(load_weights(EASY), EASY)
        detector.use_canvases_of([(48, 64), (384, 640), (640, 384)])
        find, dense = detector._dense.features, detector._dense

        def features(images: Tensor, input_sizes: Sequence[Size] = ()) -> list[Tensor]:
            used.add((images.shape[2], images.shape[3]))
            return find(images, input_sizes)

        dense.features = features  # type: ignore[method-assign]
        fakes = [sys.executable, "-P", str(SUPPORT / "servers" / "fake_engines.py"), "openvino int8=segfault@48x64"]
        try_this = functools.partial(try_size, EASY, INT8, store=Store(tmp_path), command=fakes)
        trials = CanvasTrials(detector.canvases, detector.canvas_size, try_this)
        sizes = FrameSizes(Store(tmp_path), detector, admit=trials.admit)
        return DetectorPool([detector], prepare=sizes.prepare, worker=trials)

    caplog.set_level(logging.INFO)
    daemon = Daemon(config, load=load)
    thread = threading.Thread(target=daemon.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: "has passed its trial with frames of 96x32" in caplog.text, "the new size is proven")
        wait_until(lambda: (224, 640) in used, "it has its own canvas")
        wait_until(
            lambda: "frames of 48x64: the engine failed in its trial (crashed: SIGSEGV" in caplog.text, "a crash"
        )
        before = {name: counts.published for name, counts in daemon.ledger.snapshot().items()}
        wait_until(
            lambda: all(counts.published > before[name] for name, counts in daemon.ledger.snapshot().items()),
            "all streams go on",
        )
    finally:
        daemon.stop()
        join(thread)
    # The size that crashes stands on a larger canvas, as the other did before its trial.
    assert used == {(384, 512), (384, 640), (224, 640), (640, 384)}


def test_the_same_objects_are_found_on_a_larger_canvas() -> None:
    picture = ArrayPicture(np.ascontiguousarray(clip_frames(1)[0][:, :576]))
    detector = FasterRcnnDetector(load_weights(EASY), EASY)
    (alone,) = detector.detect([picture])
    detector.use_canvases_of([(384, 640)])
    (padded,) = detector.detect([picture])
    best, same = alone[0], padded[0]
    assert best.label == same.label
    assert abs(best.score - same.score) < 0.1
    assert np.abs(np.subtract(best.box, same.box)).max() < 10
