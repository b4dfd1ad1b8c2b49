"""What counts as a detection changes while a daemon runs: from one frame to the next, and only where it was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamdet.client import subscribe
from streamdet.types import DetectionEvent
from support.processes import DaemonProcess, stream

DETECTOR = (
    '[detector]\nengine = "torch"\nprecision = "fp32"\nmax_batch_size = 8\ndevice = "cpu"\nscore_threshold = {}\n'
)
FRAMES = 5


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    with DaemonProcess(tmp_path / "daemon", environ=environ, real=True) as daemon:
        write(daemon, 0.5)
        yield daemon.ready()


def write(daemon: DaemonProcess, threshold: float, **of_one: object) -> None:
    one, other = stream("one", pace="fastest", **of_one), stream("other", pace="fastest")
    daemon.write_config(one, other, more=DETECTOR.format(threshold))


class Log:
    """Reads events, and checks that none is missing and that no frame is."""

    def __init__(self, events: Iterator[object]) -> None:
        self._events = events
        self.seen: dict[str, list[DetectionEvent]] = {"one": [], "other": []}

    def read(self) -> DetectionEvent:
        while True:
            event = next(self._events)
            if isinstance(event, DetectionEvent):
                before = self.seen[event.stream]
                if before:
                    assert event.seq == before[-1].seq + 1
                    assert event.frame.seq == before[-1].frame.seq + 1
                before.append(event)
                return event

    def wait_for_change(self, name: str, is_new: Callable[[DetectionEvent], bool]) -> None:
        """Reads until a few frames of a stream are as they are to be: all of them, after none of the frames before."""
        begin = len(self.seen[name])
        while [is_new(event) for event in self.seen[name][begin:]].count(True) < FRAMES:
            self.read()
            assert len(self.seen[name]) < begin + 200
        answers = [is_new(event) for event in self.seen[name][begin:]]
        assert answers == sorted(answers), f"{name}: {answers}"

    def newest(self, name: str) -> list[DetectionEvent]:
        return self.seen[name][-FRAMES:]


def scores(event: DetectionEvent) -> list[float]:
    return [found.score for found in event.detections]


def test_settings_change_from_one_frame_to_the_next(daemon: DaemonProcess) -> None:
    with subscribe(daemon.endpoint, kinds=["detections"]) as events:
        log = Log(iter(events))
        for name in ("one", "other"):
            log.wait_for_change(name, lambda event: len(event.detections) > 0)

        assert daemon.ask("PATCH", "/v1/streams/one", {"labels": ["bus"]})["streams"]["updated"] == ["one"]
        log.wait_for_change("one", lambda event: not event.detections)
        log.wait_for_change("other", lambda event: len(event.detections) > 0)

        daemon.ask("PATCH", "/v1/streams/one", {"labels": None, "score_threshold": 0.05})
        log.wait_for_change("one", lambda event: min(scores(event), default=1.0) < 0.5)
        assert all(min(scores(event)) > 0.5 for event in log.newest("other"))

        # The stream's own threshold wins over that of the detector, which the other one follows.
        write(daemon, 0.9)
        answer = daemon.ask("POST", "/v1/reload")
        assert (answer["streams"]["updated"], answer["needs_restart"]) == (["other"], [])
        log.wait_for_change("other", lambda event: min(scores(event), default=1.0) > 0.9)
        assert all(min(scores(event)) < 0.5 for event in log.newest("one"))
        described = daemon.ask("GET", "/v1/streams/one")["detection"]
        assert (described["score_threshold"], described["max_detections"]) == (0.05, 100)

        # Tiles, from the next frame on.
        daemon.ask("PATCH", "/v1/streams/one", {"tiles": "2x2"})
        assert daemon.ask("GET", "/v1/streams/one")["detection"]["tiles"] == "2x2"
        number = log.newest("one")[-1].seq
        log.wait_for_change("one", lambda event: event.seq > number)

        # In the file itself, with a size.
        daemon.ask("POST", "/v1/streams/one/reset")
        write(daemon, 0.5, score_threshold=0.05, min_size=0.25, score_thresholds={})
        daemon.ask("POST", "/v1/reload")
        log.wait_for_change("one", lambda event: min(heights(event), default=1.0) >= 0.25 - 1e-6)

    for name in ("one", "other"):
        assert daemon.count("stream_connects_total", stream=name) == 1
        assert daemon.count("frames_dropped_total", stream=name) == 0
        assert daemon.is_exact(name)


def heights(event: DetectionEvent) -> list[float]:
    return [(found.box[3] - found.box[1]) / event.frame.height for found in event.detections]


def test_labels_that_the_weights_do_not_know_are_refused_with_the_nearest(daemon: DaemonProcess) -> None:
    with pytest.raises(
        Exception, match=r'streams\[one\]\.labels: hold "persn", which is not a published label; did yo'
    ):
        daemon.ask("PATCH", "/v1/streams/one", {"labels": ["persn"]})
    with pytest.raises(
        Exception, match=r'score_thresholds\.cra: "cra" is not a label of the weights; did you mean "car'
    ):
        daemon.ask("PATCH", "/v1/streams/one", {"score_thresholds": {"cra": 0.3}})
    zone = {"name": "door", "polygon": [[0, 0], [1, 0], [1, 1]], "labels": ["car"]}
    daemon.ask("PATCH", "/v1/streams/one", {"labels": ["person"]})
    with pytest.raises(Exception, match=r'"car", which is not a published label; published are person'):
        daemon.ask("PATCH", "/v1/streams/one", {"zones": [zone]})
