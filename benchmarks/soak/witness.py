# ruff: noqa: INP001 - part of a program, not a module
"""A healthy subscriber, which must not notice what others do: it counts events, latency, and what it lost."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from streamdet import AlertEvent, DetectionEvent, Gap, ObjectEvent, subscribe
from streamdet.client.subscription import Restart
from streamdet.types import StateEvent

_RECEIVE_SECONDS = 0.5
_LAST_EVENTS_SECONDS = 3.0


class Witness:
    """Reads events with `replay=True` in a thread of its own.

    Attributes:
        events: detection events of every stream.
        lost: events that no one has any more.
        restarts: changes of epoch.
        states: what each stream does.
        unended: objects and alerts that have begun and not ended.
        confused: events of objects and alerts that have ended already, or begin twice.
    """

    def __init__(self, endpoint: str) -> None:
        self.events: dict[str, int] = {}
        self.lost = 0
        self.restarts = 0
        self.states: dict[str, str] = {}
        self.unended: set[str] = set()
        self.confused = 0
        self._ended: set[str] = set()
        self._latencies: list[float] = []
        self._lock = threading.Lock()
        self._subscription = subscribe(endpoint, kinds=["detections", "objects", "alerts", "state"], replay=True)
        self._ends_at = 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness")

    @property
    def ended(self) -> int:
        """How many objects and alerts have ended."""
        return len(self._ended)

    def take_latencies(self) -> list[float]:
        """Seconds from capture to publication of the events since the last call."""
        with self._lock:
            taken, self._latencies = self._latencies, []
        return taken

    def _run(self) -> None:
        with self._subscription as events:
            # What the daemon published last may still be on its way when it has ended.
            while not self._ending.is_set() or time.monotonic() < self._ends_at:
                event = events.receive(_RECEIVE_SECONDS)
                match event:
                    case DetectionEvent():
                        self.events[event.stream] = self.events.get(event.stream, 0) + 1
                        with self._lock:
                            self._latencies.append(event.published_at - event.frame.captured_at)
                    case ObjectEvent():
                        self._follow(event.object.object_id, event.phase)
                    case AlertEvent():
                        self._follow(event.alert.alert_id, event.phase)
                    case Gap():
                        self.lost += event.count
                    case Restart():
                        self.restarts += 1
                    case StateEvent():
                        self.states[event.stream] = event.state

    def _follow(self, of: str, phase: str) -> None:
        if of in self._ended or (of in self.unended and phase in ("begin", "raised")):
            self.confused += 1
        if phase in ("end", "cleared"):
            self.unended.discard(of)
            self._ended.add(of)
        else:
            self.unended.add(of)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ends_at = time.monotonic() + _LAST_EVENTS_SECONDS
        self._ending.set()
        self._thread.join()
