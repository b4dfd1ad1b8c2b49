"""An exception in any thread of the daemon.

One that a single frame, stream, request or client is at fault for costs that one: all others go on. Any other
exception drains the daemon and ends it with 1, and it says in one line which thread it was and why.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
import zmq

from streamdet import subscribe
from streamdet.analytics.tracker import Tracker
from streamdet.analytics.zones import Zones
from streamdet.bench.stand_in import StandIn
from streamdet.capture.thread import Capture
from streamdet.client.control import ask
from streamdet.config import Config, load_config
from streamdet.delivery.connections import ConnectionGuard
from streamdet.delivery.event_store import EventStore
from streamdet.delivery.events import EventWriter
from streamdet.delivery.file_store import FileStore
from streamdet.delivery.history import History
from streamdet.delivery.pictures import Pictures, View
from streamdet.delivery.preview import Previews
from streamdet.delivery.privacy import Privacy
from streamdet.delivery.replay import Replay
from streamdet.delivery.spool import Spool
from streamdet.detector.pool import DetectorPool
from streamdet.errors import EXIT_UNAVAILABLE, ControlError
from streamdet.http.server import HttpServer, _Connections, _Protocol
from streamdet.inference.thread import Inference
from streamdet.monitoring.rates import Rates
from streamdet.service.control.api import _Api
from streamdet.service.control.operations import Operations
from streamdet.service.control.unix_socket import PeerGuard
from streamdet.service.daemon import Daemon
from streamdet.service.live_config import LiveConfig
from streamdet.service.pages import _MetricsPage
from streamdet.types import Detection, Drop, Picture, Reason
from streamdet.wire.replay import Refused, ReplayRequest, SnapshotRequest, decode_answer, encode_request
from support.ports import free_ports
from support.processes import stream
from support.videos import make_video
from support.waiting import join, wait_until

_ENDS_WITHIN_SECONDS = 5.0


class Running:
    """A daemon with everything switched on, in a thread of this process."""

    def __init__(self, folder: Path, *streams: str, detector: StandIn | None = None) -> None:
        self.control_path = folder / "c"
        path = folder / "streamdet.toml"
        port, metrics_port = free_ports()
        path.write_text(
            f'[publisher]\nendpoint = "tcp://127.0.0.1:{port}"\n'
            f'[metrics]\nendpoint = "127.0.0.1:{metrics_port}"\n'
            f'[spool]\ndirectory = "{folder / "spool"}"\n[pictures]\ndirectory = "{folder / "pictures"}"\n'
            f'[control]\npath = "{self.control_path}"\n' + "".join(streams)
        )
        self.config: Config = load_config(path)
        self.daemon = Daemon(self.config, path, load=lambda *_: DetectorPool([detector or StandIn()]))
        self.outcome: int | BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.outcome = self.daemon.run()
        except RuntimeError as error:
            self.outcome = error

    def published(self, name: str) -> int:
        return self.daemon.ledger.snapshot()[name].published

    def join(self) -> None:
        self._thread.join(_ENDS_WITHIN_SECONDS)
        assert not self._thread.is_alive(), "it did not end in time"

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.daemon.ledger.snapshot() and self.published("clip") > 2, "frames")
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.stop()
        join(self._thread)


def broken(*_: object, **__: object) -> None:
    message = "broken on purpose"
    raise RuntimeError(message)


def provoke_nothing(_running: Running) -> None:
    """It happens by itself."""


def ask_for_a_page(running: Running) -> None:
    with suppress(OSError):
        urlopen(f"http://{running.config.metrics.endpoint}/metrics", timeout=30).close()


def ask_for_control(running: Running) -> None:
    with suppress(ControlError):
        ask(running.control_path, "GET", "/v1/streams", timeout_seconds=5)


def look(running: Running) -> None:
    with subscribe(running.config.publisher.endpoint, kinds=["preview"]) as pictures:
        pictures.receive(1)


def reconnect(running: Running) -> None:
    for paused in (True, False):
        with suppress(ControlError):  # it has ended already
            ask(running.control_path, "PATCH", "/v1/streams/clip", {"paused": paused}, 5)


def asked(running: Running, question: SnapshotRequest | ReplayRequest) -> object:
    with zmq.Context() as context, context.socket(zmq.REQ) as asker:
        asker.rcvtimeo, asker.linger = 5000, 0
        publisher = running.config.publisher.endpoint
        asker.connect(f"tcp://127.0.0.1:{int(publisher.rpartition(':')[2]) + 1}")
        asker.send(encode_request(question))
        return decode_answer(asker.recv_multipart())


def ask_for_events(running: Running) -> None:
    assert asked(running, SnapshotRequest(7)) == Refused(7, "failed", "an unexpected error; see the log")


def ask_for_old_events(running: Running) -> None:
    question = ReplayRequest(7, "detections/clip/", 1, epoch="0123456789abcdef")
    assert asked(running, question) == Refused(7, "failed", "an unexpected error; see the log")


def ask_for_a_reload(running: Running) -> None:
    with pytest.raises(ControlError, match="unexpected error: RuntimeError: broken on purpose"):
        ask(running.control_path, "POST", "/v1/reload", timeout_seconds=5)
    assert running.daemon.metrics.registry.get_sample_value("streamdet_config_last_reload_successful") == 0


def ask_for_the_past(running: Running) -> None:
    with pytest.raises(ControlError):
        ask(running.control_path, "GET", "/v1/alerts", timeout_seconds=5)


# Where each thread is hit, and what makes it come there.
_THREADS: dict[str, tuple[type, str, Callable[[Running], None]]] = {
    "inference": (Inference, "_detect_some", provoke_nothing),
    "publisher": (EventWriter, "due_states", provoke_nothing),
    "previews": (Previews, "beat", look),
    "spool": (Spool, "_tidy", provoke_nothing),
    "history": (History, "_answer", ask_for_the_past),
    "pictures": (Pictures, "_turn", reconnect),
    "pictures store": (FileStore, "_tidy", provoke_nothing),
    "control": (_Connections, "add", ask_for_control),
    "connections": (ConnectionGuard, "_cut_floods", provoke_nothing),
    "metrics": (_Connections, "add", ask_for_a_page),
}


@pytest.mark.parametrize("name", _THREADS)
def test_an_error_in_a_thread_ends_the_daemon_in_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    where, method, provoke = _THREADS[name]

    with Running(tmp_path, stream("clip", max_fps=20)) as running:
        began = time.monotonic()
        with monkeypatch.context() as patch:
            patch.setattr(where, method, broken)
            provoke(running)
            running.join()
        assert time.monotonic() - began < 2 * _ENDS_WITHIN_SECONDS
        assert running.outcome == 1
        for ledger in running.daemon.ledger.snapshot().values():
            assert ledger.in_flight == 0
    assert error_of(caplog) == f"{running.daemon._failed.name} ended unexpectedly: broken on purpose"
    assert error_of(caplog).startswith(name)


# The part that counts what one frame, stream, request or client is at fault for; where it is hit; what makes it come
# there; and what is to be seen of it.
_DATA: list[tuple[str, type, str, Callable[[Running], None]]] = [
    ("capture", Capture, "_hand_on", provoke_nothing),
    ("capture", Capture, "_open_in_time", reconnect),
    ("analytics", Tracker, "update", provoke_nothing),
    ("analytics", Zones, "see", provoke_nothing),
    ("preview", Previews, "_encode", look),
    ("pictures", View, "jpeg", reconnect),
    ("pictures", Privacy, "see", provoke_nothing),
    ("subscription", EventWriter, "subscribed", look),
    ("replay", Replay, "answer", ask_for_events),
    ("control", Operations, "_list", ask_for_control),
    ("control", History, "_read", ask_for_the_past),
    ("http", _Api, "_carried_out", ask_for_control),
    ("http", PeerGuard, "refusal", ask_for_control),
    ("replay", EventStore, "answer", ask_for_old_events),
    ("reload", LiveConfig, "_merged", ask_for_a_reload),
    ("http", _MetricsPage, "_newest", ask_for_a_page),
    ("http", _Protocol, "bind", ask_for_a_page),
]


@pytest.mark.parametrize(
    ("part", "where", "method", "provoke"), _DATA, ids=lambda value: getattr(value, "__name__", value)
)
def test_an_error_that_one_datum_is_at_fault_for_costs_that_one(
    part: str,
    where: type,
    method: str,
    provoke: Callable[[Running], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = getattr(where, method)

    def broken_for_clip(self: object, *arguments: object, **keywords: object) -> object:
        if isinstance(self, Capture) and self.name != "capture-clip":
            return real(self, *arguments, **keywords)
        return broken()

    zone = 'zones = [{ name = "all", polygon = [[0, 0], [1, 0], [1, 1]] }]\n'
    with Running(tmp_path, stream("clip", max_fps=20) + zone, stream("other", max_fps=20)) as running:
        registry = running.daemon.metrics.registry

        def seen() -> float:
            return registry.get_sample_value("streamdet_unexpected_errors_total", {"part": part}) or 0.0

        with monkeypatch.context() as patch:
            patch.setattr(where, method, broken_for_clip)
            provoke(running)
            wait_until(seen, "an unexpected error")
            published = running.published("other")
            wait_until(lambda: running.published("other") > published + 3, "frames of the other stream")
        published = running.published("clip")
        wait_until(lambda: running.published("clip") > published + 3, "frames of the stream that it hit")
        assert running.outcome is None
        assert ask(running.control_path, "GET", "/v1/about")["epoch"] == running.daemon.epoch
        events = f"tcp://127.0.0.1:{running.config.publisher.endpoint.rpartition(':')[2]}"
        with subscribe(events, ["clip"], kinds=["detections"]) as numbers:
            seqs = [event.seq for event in (numbers.receive(5) for _ in range(3)) if event is not None]
        assert seqs == list(range(seqs[0], seqs[0] + 3))
        running.daemon.stop()
        running.join()
        assert running.outcome == 0
        for ledger in running.daemon.ledger.snapshot().values():
            assert ledger.in_flight == 0
    unexpected = [record for record in caplog.records if "broken on purpose" in record.getMessage()]
    assert sum(record.exc_info is not None for record in unexpected) == 1


def error_of(caplog: pytest.LogCaptureFixture) -> str:
    (said,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    return said.getMessage()


def test_a_client_whose_network_goes_ends_nothing_but_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_: object) -> None:
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    with Running(tmp_path, stream("clip", max_fps=20)) as running:
        with monkeypatch.context() as patch:
            patch.setattr(HttpServer, "_arrive", unreachable)
            ask_for_a_page(running)
        url = f"http://{running.config.metrics.endpoint}/healthz"
        with urlopen(url, timeout=30) as answer:
            assert answer.status == HTTPStatus.OK
        assert running.outcome is None


def test_one_operation_of_opencv_is_one_thread_whatever_detects(tmp_path: Path) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        with Running(tmp_path, stream("clip", max_fps=20)):
            assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


def test_an_error_in_the_main_thread_drains_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(tmp_path, stream("clip", max_fps=20)) as running:
        monkeypatch.setattr(Rates, "sample", broken)
        running.join()
        assert str(running.outcome) == "broken on purpose"
        assert running.daemon.ledger.snapshot()["clip"].in_flight == 0


class Choosy(StandIn):
    """Cannot use small pictures, until it is allowed to."""

    can_small = False

    def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
        if not self.can_small and any(picture.width < 400 for picture in pictures):
            message = "no such kernel"
            raise ValueError(message)
        return super().detect(pictures, *settings)


def test_a_stream_whose_pictures_the_detector_cannot_use_is_down_and_others_lose_nothing(tmp_path: Path) -> None:
    detector = Choosy()
    odd = stream("odd", make_video(tmp_path / "odd.mp4"), loop=True)
    with Running(tmp_path, stream("clip", max_fps=20), odd, detector=detector) as running:
        statuses = running.daemon._streams.statuses  # type: ignore[union-attr] # it runs
        wait_until(lambda: statuses()["odd"].reason is Reason.DECODE_ERROR, "the odd stream to be down")
        assert "the picture cannot be used: ValueError: no such kernel" in statuses()["odd"].detail
        published = running.published("clip")
        wait_until(lambda: running.published("clip") > published + 5, "frames of the other stream")
        ledgers = running.daemon.ledger.snapshot()
        assert ledgers["odd"].dropped[Drop.DECODE_ERROR] > 0
        assert ledgers["clip"].dropped[Drop.DECODE_ERROR] == 0
        detector.can_small = True
        wait_until(lambda: running.published("odd") > 3, "frames of the odd stream, now that it can be used")
        assert running.outcome is None
        running.daemon.stop()
        running.join()
        assert all(ledger.in_flight == 0 for ledger in running.daemon.ledger.snapshot().values())


class Hungry(StandIn):
    """Asks for more memory than there is, for more than so many pictures."""

    def __init__(self) -> None:
        self.most = 1

    def detect(self, pictures: Sequence[Picture], *settings: object) -> list[list[Detection]]:
        if len(pictures) > self.most:
            np.empty(2**62, np.uint8)
        return super().detect(pictures, *settings)


def test_memory_that_runs_out_halves_batches_and_ends_the_daemon_only_for_a_single_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector = Hungry()
    streams = [stream(name, max_fps=10) for name in ("clip", "b", "c", "d")]
    with Running(tmp_path, *streams, detector=detector) as running:
        metrics = running.daemon.metrics.registry
        wait_until(lambda: metrics.get_sample_value("streamdet_out_of_memory_total"), "a batch that does not fit")
        seen = {name: running.published(name) for name in ("clip", "b", "c", "d")}
        wait_until(lambda: all(running.published(name) > seen[name] + 3 for name in seen), "frames of every stream")
        detector.most = 0
        running.join()
        assert running.outcome == EXIT_UNAVAILABLE
        for ledger in running.daemon.ledger.snapshot().values():
            assert ledger.in_flight == 0
    assert "memory ran out on a single frame of 768x576" in error_of(caplog)
