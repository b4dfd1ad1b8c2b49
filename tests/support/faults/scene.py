"""One real daemon, many streams side by side, each with a fault of its own, and healthy ones between them.

All that is waited for is waited for once: `record` lets everything happen, and tests look at what was seen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streamdet.types import Reason, State, StateEvent
from support.faults.causes import Cause, Make, resolver, with_cameras
from support.faults.stage import LOGIN, Stage
from support.faults.watching import DaemonProcess, Watched
from support.packages import is_there
from support.priority import ahead_of_other_tests
from support.videos import make_video

KEYS = {"connect_timeout_seconds": 5, "stall_seconds": 5}
# For faults that must not interrupt a stream: a busy machine adds to what they take.
_PATIENT_KEYS = {"connect_timeout_seconds": 15, "stall_seconds": 15}
_LONGEST_SECONDS = 90.0
_STEP_SECONDS = 0.05
_STAYS_SECONDS = 3.0
# So long after its beginning, a fault shows in what comes.
STRIKES_SECONDS = 1.0
_ROUNDING = 0.001  # of times in events
_SETTLE_SECONDS = 10.0
FRAMES = 5


@dataclass(frozen=True)
class Fault:
    """A row of the matrix.

    Attributes:
        name: of the fault, and of the stream that it strikes.
        cause: makes it.
        down: why the stream is down, one reason after the other; nothing when it stays up.
        stalls: it is seen to stand still before it is down.
        returns: the stream is up again after the fault is over.
        needs: Debian packages.
    """

    name: str
    cause: Make
    down: tuple[Reason, ...] = ()
    stalls: bool = False
    returns: bool = True
    needs: tuple[str, ...] = ()


@dataclass
class Story:
    """When what happened to a stream, in Unix seconds; 0 for never.

    Attributes:
        later: the fault began while the stream was up.
        began: the fault.
        lifted: the fault was over.
        recovered: the stream was up again.
        done: frames came again, or will never come.
    """

    later: bool
    began: float = 0.0
    lifted: float = 0.0
    recovered: float = 0.0
    done: float = 0.0


@dataclass
class Recording:
    """What happened, and what was seen of it.

    Attributes:
        bystanders: names of the healthy streams.
        stories: by name of the fault.
        seen: of the daemon.
        end: the metrics when all streams had been paused.
    """

    bystanders: tuple[str, ...]
    stories: dict[str, Story] = field(default_factory=dict)
    seen: Watched = field(default_factory=Watched)
    end: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)

    def states(self, stream: str) -> list[StateEvent]:
        """Of a stream, up to the moment at which all were paused."""
        return [event for event in self.seen.states.get(stream, []) if event.reason is not Reason.PAUSED]

    def since(self, stream: str) -> list[StateEvent]:
        """The states from the beginning of the stream's fault on."""
        story = self.stories[stream]
        return [event for event in self.states(stream) if not story.later or event.since >= story.began - _ROUNDING]


def reasons(states: Sequence[StateEvent]) -> tuple[Reason, ...]:
    """Why a stream was down, without repetitions."""
    found: list[Reason] = []
    for event in states:
        if event.state is State.DOWN and event.reason is not None and found[-1:] != [event.reason]:
            found.append(event.reason)
    return tuple(found)


def record(folder: Path, faults: Sequence[Fault]) -> Recording:
    """Lets all faults happen whose packages there are.

    Args:
        folder: for files.
        faults: all of them.
    """
    faults = [fault for fault in faults if all(is_there(package) for package in fault.needs)]
    with ahead_of_other_tests(), Stage(folder) as stage:
        streams = _bystanders(stage)
        recording = Recording(tuple(streams))
        causes = {fault.name: fault.cause(stage, fault.name) for fault in faults}
        for fault in faults:
            cause = causes[fault.name]
            streams[fault.name] = {"url": cause.url, **({} if fault.down else _PATIENT_KEYS), **cause.keys}
        command = resolver(stage) if is_there("util-linux") else []
        command += with_cameras(stage) if is_there("gcc") else []
        with DaemonProcess(folder, streams, KEYS, *command) as daemon:
            recording.seen = daemon.seen
            acts = [_Act(fault, causes[fault.name], recording, daemon) for fault in faults]
            deadline = time.monotonic() + _LONGEST_SECONDS
            while not all(act.story.done for act in acts) and time.monotonic() < deadline:
                daemon.check_alive()
                for act in acts:
                    act.go_on()
                time.sleep(_STEP_SECONDS)
            recording.end = _settle(daemon)
    return recording


def _bystanders(stage: Stage) -> dict[str, dict[str, object]]:
    clip = make_video(stage.folder / "bystander.mp4", frames=100)
    found: dict[str, dict[str, object]] = {
        "bystander-http": {"url": f"http://{LOGIN}@127.0.0.1:{stage.web.port}/mjpeg"},
        "bystander-file": {"url": str(clip), "loop": True},
    }
    if is_there("gst-rtsp-server"):
        found["bystander-rtsp"] = {"url": stage.rtsp.url("/ball", LOGIN)}
    return found


def _settle(daemon: DaemonProcess) -> dict[str, dict[tuple[str, ...], float]]:
    """Pauses everything and waits until every frame has become of something, and every event has arrived."""
    daemon.pause(paused=True)
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        page = daemon.sample().values
        settled = all(
            ("streamdet_stream_reason", "paused") in values
            and values["streamdet_frames_in_flight",] == 0
            and values["streamdet_frames_published_total",] == daemon.published(stream)
            for stream, values in page.items()
        )
        # Otherwise the tests of the ledger say what is wrong, and of which stream.
        if settled or time.monotonic() > deadline:
            return page
        time.sleep(_STEP_SECONDS)


class _Act:
    """One fault on its way: the stream is up, the fault begins, shows, is lifted, the stream is up again."""

    def __init__(self, fault: Fault, cause: Cause, recording: Recording, daemon: DaemonProcess) -> None:
        self.story = recording.stories[fault.name] = Story(cause.later)
        self._fault = fault
        self._cause = cause
        self._recording = recording
        self._daemon = daemon
        if not cause.later:
            self.story.began = time.time()

    def go_on(self) -> None:
        """One step, if it can be done now."""
        story, now = self.story, time.time()
        if not story.began:
            if self._is_up_since(0.0):
                story.began = now
                self._cause.begin()
        elif not story.lifted:
            if self._has_shown(now) and self._cause.has_struck():
                self._cause.lift()
                story.lifted = time.time()
        elif not story.done:
            self._look_for_end(now)

    def _has_shown(self, now: float) -> bool:
        states = self._recording.since(self._fault.name)
        if not self._fault.down:
            return now - self.story.began > _STAYS_SECONDS and self._is_up_since(self.story.began + STRIKES_SECONDS)
        # Who is down from the start must have been tried again, in vain.
        tries = 1 if self.story.later or not self._fault.returns else 2
        # Some faults end with the connection: the stream may be up again before anyone looks.
        is_down_or_back = bool(states) and states[-1].state in {State.DOWN, State.UP}
        return is_down_or_back and reasons(states) == self._fault.down and _downs(states) >= tries

    def _look_for_end(self, now: float) -> None:
        story = self.story
        if not self._fault.returns:
            story.done = now if now - story.lifted > _STAYS_SECONDS else 0.0
            return
        if not story.recovered:
            ups = [event.since for event in self._recording.since(self._fault.name) if event.state is State.UP]
            lasts = not self._fault.down
            story.recovered = story.lifted if lasts else max([at for at in ups if at > story.began], default=0.0)
        elif self._is_up_since(story.recovered):
            story.done = now

    def _is_up_since(self, moment: float) -> bool:
        # The newest come last: the list grows, and there are many.
        newest = self._daemon.seen.frames.get(self._fault.name, [])[-FRAMES:]
        return len(newest) == FRAMES and newest[0].at > moment and self._daemon.status(self._fault.name)[0] is State.UP


def _downs(states: Sequence[StateEvent]) -> int:
    return sum(event.state is State.DOWN for event in states)
