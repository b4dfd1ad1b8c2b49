"""Objects and alerts of a daemon that is killed, reloaded or paused, or loses its camera: each begins and ends once."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamdet import AlertEvent, ObjectEvent, Subscription, subscribe
from streamdet.types import EndReason
from support.processes import DaemonProcess, stream
from support.rtsp import RtspServer, h264
from support.spools import kept_events
from support.waiting import wait_until

pytestmark = pytest.mark.slow

RULE = '[[rules]]\nname = "seen"\n'


def kept(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """The events of objects and alerts in the spool, over all epochs, in their order."""
    return kept_events(daemon.folder / "spool")


def phases_of(events: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The phases of each object and alert, by its id."""
    phases = defaultdict(list)
    for event in events:
        of = event["object"]["object_id"] if event["type"] == "objects" else event["alert"]["alert_id"]
        phases[of].append(event["phase"])
    return phases


def check_each_has_one_end(events: list[dict[str, Any]]) -> None:
    for of, phases in phases_of(events).items():
        assert [phase for phase in phases if phase != "update"] in (["begin", "end"], ["raised", "cleared"]), of
        assert phases[-1] in ("end", "cleared"), of
    numbers = defaultdict(list)
    for event in events:
        numbers[event["epoch"], event["type"], event["stream"]].append(event["seq"])
    for topic, seqs in numbers.items():
        assert seqs == list(range(1, len(seqs) + 1)), topic
    raised = [event["alert"] for event in events if event["phase"] == "raised"]
    assert max(Counter((alert["rule"], *alert["object_ids"]) for alert in raised).values(), default=1) == 1


def of_objects(events: Subscription) -> Iterator[ObjectEvent]:
    return (event for event in events if isinstance(event, ObjectEvent))


def of_both(event: object) -> list[ObjectEvent | AlertEvent]:
    assert isinstance(event, ObjectEvent | AlertEvent)
    return [event]


def test_whenever_it_is_killed_each_object_has_one_end_over_all_epochs(tmp_path: Path) -> None:
    seed = time.time_ns()
    moments = random.Random(seed)  # noqa: S311 - any moments will do
    streams = [stream(name, max_fps=20, track_max_lost_seconds=0.3) for name in ("one", "two")]
    epochs = 2
    got: list[ObjectEvent | AlertEvent] = []
    with DaemonProcess(tmp_path / "d", comes_and_goes=True) as daemon:
        daemon.write_config(*streams, more=RULE)
        for _ in range(epochs):
            daemon.ready()
            with subscribe(daemon.endpoint, kinds=["objects", "alerts"]) as events:
                for _ in range(moments.randrange(1, 60)):
                    got += of_both(events.receive(30))
                time.sleep(moments.random() / 20)  # any moment between two events
                daemon.end(signal.SIGKILL)
                while (event := events.receive(0.1)) is not None:
                    got += of_both(event)
        # Once more, as soon as the events of the earlier epochs are on their way.
        daemon.ready()
        daemon.end(signal.SIGKILL)
        daemon.ready()
        with subscribe(daemon.endpoint, kinds=["objects"]) as events:
            next(event for event in of_objects(events) if event.phase == "begin")
            assert daemon.end() == 0
        found = kept(daemon)
        check_each_has_one_end(found)
        # What a subscriber got, a kill does not take back: nothing begins or ends again for it.
        numbers = {(event["epoch"], event["type"], event["stream"], event["seq"]) for event in found}
        kinds = {ObjectEvent: "objects", AlertEvent: "alerts"}
        assert {(event.epoch, kinds[type(event)], event.stream, event.seq) for event in got} <= numbers, seed
        reasons = Counter(event["reason"] for event in found if event["phase"] == "end")
        assert reasons[EndReason.RESTART] >= epochs, seed
        assert reasons[EndReason.STOPPING], seed
        assert len({event["epoch"] for event in found}) >= epochs


def test_reload_pause_and_sigterm_end_objects_at_once(tmp_path: Path) -> None:
    clip = stream("clip", max_fps=20)
    with DaemonProcess(tmp_path / "d") as daemon:
        daemon.write_config(clip, stream("other", max_fps=20), more=RULE)
        daemon.ready()
        with subscribe(daemon.endpoint, kinds=["objects", "alerts"], streams=["clip"]) as events:

            def next_of(phase: str, kind: type[ObjectEvent | AlertEvent] = ObjectEvent) -> Any:
                return next(event for event in events if isinstance(event, kind) and event.phase == phase)

            def change(text: str, more: str = RULE) -> None:
                daemon.write_config(text, stream("other", max_fps=20), more=more)
                daemon.process.send_signal(signal.SIGHUP)

            first = next_of("update").object
            # Rules, zones and limits leave it as it is.
            zone = {"name": "door", "polygon": [[0, 0], [1, 0], [1, 1]], "dwell_seconds": [0.5], "anchor": "any"}
            zones = "zones = [{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in zone.items()) + "}]\n"
            change(clip.replace("max_fps = 20", "max_fps = 18") + zones)
            entered = next(event for event in events if isinstance(event, ObjectEvent) and event.changes)
            assert (entered.object.object_id, entered.phase) == (first.object_id, "update")
            # Tracking that begins again does not.
            change(clip + "track_start_score = 0.7\n")
            ended = next_of("end")
            assert (ended.object.object_id, ended.reason) == (first.object_id, EndReason.RELOAD)
            assert next_of("cleared", AlertEvent).alert.object_ids == (first.object_id,)
            second = next_of("begin").object
            assert second.object_id != first.object_id
            # A rule that goes clears its alerts, and one that comes raises one for who is there.
            change(clip + "track_start_score = 0.7\n", more=RULE.replace("seen", "there"))
            assert next_of("cleared", AlertEvent).alert.rule == "seen"
            assert next_of("raised", AlertEvent).alert.object_ids == (second.object_id,)
            # A file that is wrong changes nothing.
            change(clip + "track_start_score = 7\n", more="")
            daemon.ask("PATCH", "/v1/streams/clip", {"paused": True})
            ended = next_of("end")
            assert (ended.object.object_id, ended.reason) == (second.object_id, EndReason.REMOVED)
            daemon.ask("PATCH", "/v1/streams/clip", {"paused": False})
            third = next_of("update").object
            daemon.process.send_signal(signal.SIGTERM)
            ended = next_of("end")
            assert (ended.object.object_id, ended.reason) == (third.object_id, EndReason.STOPPING)
        assert daemon.process.wait(5) == 0
        found = kept(daemon)
        check_each_has_one_end(found)
        assert phases_of(found)[first.object_id].count("end") == 1


@pytest.mark.package("gst-rtsp-server")
def test_a_camera_that_is_gone_for_a_moment_keeps_its_objects_and_one_that_stays_away_loses_them(
    tmp_path: Path,
) -> None:
    # GStreamer's server may crash when two clients come to one shared mount at the same moment.
    mounts = {"/patient": h264(), "/hasty": h264()}
    with RtspServer(mounts, shared=False) as camera, DaemonProcess(tmp_path / "d") as daemon:
        patient = stream("patient", camera.url("/patient"), track_max_lost_seconds=30)
        hasty = stream("hasty", camera.url("/hasty"), track_max_lost_seconds=1.0)
        daemon.write_config(patient, hasty)
        daemon.ready()
        with subscribe(daemon.endpoint, kinds=["objects"]) as events:
            of = of_objects(events)
            begun: dict[str, ObjectEvent] = {}
            while len(begun) < 2:
                event = next(of)
                begun.setdefault(event.stream, event)
            # It stands still: the stream is up, and no frame comes.
            camera.freeze()
            frozen_at = time.monotonic()
            lost = next(event for event in of if event.phase == "end")
            assert (lost.stream, lost.reason) == ("hasty", EndReason.LOST)
            assert time.monotonic() - frozen_at < 10
            camera.thaw()
            next(event for event in of if event.stream == "hasty" and event.phase == "begin")
            # It is gone: the stream is down.
            camera.kill()
            lost = next(event for event in of if event.reason is EndReason.STREAM_DOWN)
            assert lost.stream == "hasty"
            camera.start()
            back = next(event for event in of if event.stream == "hasty" and event.phase == "begin")
            assert back.object.object_id not in (lost.object.object_id, begun["hasty"].object.object_id)
            stays = next(event for event in of if event.stream == "patient")
            assert (stays.phase, stays.object.object_id) == ("update", begun["patient"].object.object_id)
            # The time of the stream went on.
            assert abs(stays.object.seconds - (stays.frame.captured_at - stays.object.began_at)) < 1
        wait_until(lambda: daemon.count("objects_present", stream="patient") == 1)
        assert daemon.end() == 0
        check_each_has_one_end(kept(daemon))
