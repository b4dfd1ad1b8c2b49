"""What tests of capture share: a capture whose frames and states are kept."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any, Self

import pytest
from prometheus_client import generate_latest

from streamdet.capture.sources import SourceFrame, SourceInfo, open_source
from streamdet.capture.thread import Backoff, Capture
from streamdet.config import StreamConfig
from streamdet.errors import SourceError
from streamdet.monitoring.ledger import Ledger
from streamdet.monitoring.metrics import Metrics
from streamdet.types import Frame, Reason, State, StreamStatus
from support.waiting import wait_until

SECRET = "pl4nted-Secret"  # noqa: S105 - a planted one


def stream_config(url: object, **values: Any) -> StreamConfig:
    return StreamConfig.model_validate({"name": "yard", "url": str(url), **values})


def read(url: str, frames: int = 3, **values: Any) -> tuple[SourceInfo, list[SourceFrame]]:
    """What a source found, and its first frames."""
    source = open_source(stream_config(url, connect_timeout_seconds=20, **values))
    try:
        return source.info, [source.read() for _ in range(frames)]
    finally:
        source.close()


def failure(url: str, **values: Any) -> SourceError:
    """The error that reading a stream ends with; it shows no secret."""
    with pytest.raises(SourceError) as caught:
        read(url, **values)
    assert SECRET not in str(caught.value)
    return caught.value


class Recorder:
    """Runs a capture and keeps its states and the number and size of its frames."""

    def __init__(self, config: StreamConfig, metrics: Metrics | None = None, **arguments: Any) -> None:
        self.metrics = metrics or Metrics(Ledger())
        self.metrics.set_stream(config.name, ())
        self.statuses: list[StreamStatus] = []
        self.frames: list[Frame] = []
        self._lock = threading.Lock()
        arguments.setdefault("backoff", Backoff(0.2, 0.5))
        self.capture = Capture(config, self._put, self.statuses.append, self.metrics, **arguments)

    def _put(self, frame: Frame) -> None:
        with self._lock:
            self.frames.append(frame)
            logging.getLogger("test").debug("%s", frame)

    @property
    def state(self) -> State:
        return self.capture.status.state

    def wait_for(self, state: State, reason: Reason | None = None, seconds: float = 30.0) -> StreamStatus:
        """Waits for a state from now on (the present one counts)."""
        begin = max(0, len(self.statuses) - 1)

        def found() -> list[StreamStatus]:
            return [s for s in self.statuses[begin:] if s.state is state and (reason is None or s.reason is reason)]

        wait_until(found, f"{state} {reason or ''}, came: {self.statuses[begin:]}", seconds)
        return found()[0]

    def wait_for_frames(self, more: int, seconds: float = 30.0) -> None:
        wanted = len(self.frames) + more
        wait_until(lambda: len(self.frames) >= wanted, f"{more} more frames", seconds)

    def page(self) -> str:
        return generate_latest(self.metrics.registry).decode()

    def everything_said(self) -> str:
        return f"{self.statuses}{self.page()}"

    def __enter__(self) -> Self:
        self.capture.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.capture.stop()
        ended = self.capture.join()
        if kind is None:
            assert ended, "the capture did not end in time"
            assert self.capture.error is None
