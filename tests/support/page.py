"""What tests of the page share: something that publishes as the daemon does, and the page's own process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import zmq

from streamdet import wire
from streamdet.types import (
    Detection,
    DetectionEvent,
    FrameInfo,
    Geometry,
    ObjectEvent,
    PreviewEvent,
    Reason,
    Shape,
    Shot,
    State,
    StateEvent,
    TrackedObject,
)
from support.waiting import PATIENCE_SECONDS, join

WIDTH, HEIGHT = 640, 360
GEOMETRY = Geometry(zones=(Shape("path", ((0.6, 0.1), (0.9, 0.1), (0.9, 0.4), (0.6, 0.4))),))
_INTERVAL_SECONDS = 0.1
_FRAMES_OF_AN_OBJECT_EVENT = 6


def box_of(seq: int) -> tuple[float, float, float, float]:
    """The box moves with the frame, so that boxes of another frame would be seen to be wrong."""
    left = 40.0 + seq * 8 % 200
    return left, 100.0, left + 100, 260.0


def grey_of(seq: int) -> int:
    """So does the brightness of the picture."""
    return 40 + seq * 3 % 120


class Published:
    """Publishes streams over a real socket, in a thread: ten frames a second, two objects in each."""

    def __init__(self, *streams: str) -> None:
        self.states: dict[str, tuple[State, Reason | None, str]] = dict.fromkeys(streams, (State.UP, None, ""))
        self.epoch = "epoch-1"
        self.lose = 0
        self.is_silent = False
        self.asked: Counter[str] = Counter()
        self.watched: set[str] = set()
        self.sent_previews = 0
        self._began = time.time()
        self._seqs: Counter[str] = Counter()
        self._frame = 0
        self._stop = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.xpub_verbose = 1
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stop.set()
        join(self._thread)
        self._context.destroy(linger=0)

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(_INTERVAL_SECONDS):
            self._read_subscriptions()
            if self.is_silent:
                continue
            if turn % 5 == 0:
                for stream in list(self.states):
                    self._send_state(stream)
            turn += 1
            self._frame += 2
            for stream, (state, _, _) in list(self.states.items()):
                if state is State.UP:
                    self._send_frame(stream)

    def _read_subscriptions(self) -> None:
        while self._socket.poll(0):
            message = self._socket.recv()
            topic = message[1:].decode()
            if topic.startswith("preview/"):
                if message[0]:
                    self.asked[topic] += 1
                    self.watched.add(topic)
                else:
                    self.watched.discard(topic)

    def _next(self, topic: str) -> int:
        self._seqs[topic] += 1
        return self._seqs[topic]

    def _send(self, event: wire.Event) -> None:
        self._socket.send_multipart(wire.to_message(event), zmq.NOBLOCK)

    def _send_state(self, stream: str) -> None:
        state, reason, detail = self.states[stream]
        seq = self._next(f"state/{stream}")
        self._send(
            StateEvent(
                stream, self.epoch, seq, time.time(), state=state, reason=reason, detail=detail, since=self._began,
                geometry=GEOMETRY,
            )
        )  # fmt: skip

    def _send_frame(self, stream: str) -> None:
        now = time.time()
        frame = FrameInfo(self._frame, None, now - 0.05, "daemon", WIDTH, HEIGHT)
        detections = (
            Detection("person", 0.93, box_of(self._frame), 7, ("path",)),
            Detection("car", 0.55, (500.0, 300.0, 600.0, 350.0), None),
        )
        if self.lose:
            self._seqs[f"detections/{stream}"] += self.lose
            self.lose = 0
        seq = self._next(f"detections/{stream}")
        self._send(DetectionEvent(stream, self.epoch, seq, now, frame=frame, detections=detections))
        if self._frame // 2 % _FRAMES_OF_AN_OBJECT_EVENT == 1:
            self._send_objects(stream, frame, detections)
        topic = f"preview/{stream}/"
        if topic in self.watched:
            self.sent_previews += 1
            grey = np.full((HEIGHT // 2, WIDTH // 2, 3), grey_of(self._frame), np.uint8)
            jpeg = cv2.imencode(".jpg", grey)[1].tobytes()
            seq = self._next(topic)
            self._send(PreviewEvent(stream, self.epoch, seq, now, frame=frame, detections=detections, jpeg=jpeg))

    def _send_objects(self, stream: str, frame: FrameInfo, detections: tuple[Detection, ...]) -> None:
        """An event of each object, as the daemon sends them now and then while objects are present."""
        for number, found in enumerate(detections, 7):
            best = Shot(frame.seq, frame.captured_at, found.score, found.box)
            seen = TrackedObject(
                f"{self.epoch}-{stream}-{number}", number, found.label, found.score, found.box, self._began, 5.0,
                is_stationary=False, path=(), zones=(), best=best,
            )  # fmt: skip
            seq = self._next(f"objects/{stream}")
            self._send(ObjectEvent(stream, self.epoch, seq, time.time(), "update", frame, seen))


class PageProcess:
    """`streamdet web` in a process of its own, at a free port; `url` ends with a slash.

    Args:
        endpoint: of the daemon; None for a cluster, which `options` name.
        options: of the command.
        metrics: of the daemon.
    """

    def __init__(self, endpoint: str | None, *options: str, metrics: str = "") -> None:
        self._state = tempfile.TemporaryDirectory()
        source = [] if endpoint is None else [endpoint, "--metrics", metrics]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamdet", "web", *source, "--listen", "127.0.0.1:0", "--state-directory",
             self._state.name, "--end-with-stdin", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("the page is at "), self._process.communicate()[1]
        self.url = line.removeprefix("the page is at ").strip()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def kill(self) -> None:
        self._process.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _, errors = self._process.communicate(timeout=PATIENCE_SECONDS)  # closes standard input, which ends it
        self._state.cleanup()
        assert self._process.returncode in (0, -signal.SIGKILL)
        assert "Traceback" not in errors, errors
