"""Reads the daemon's metrics page for values that events do not contain: stage times, batches, drops by reason."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from streamdet.web.cluster_board import ClusterBoard

_DROPPED = "streamdet_frames_dropped_total"
_NAMES = (
    "streamdet_stage_seconds_sum",
    "streamdet_stage_seconds_count",
    "streamdet_batch_size_sum",
    "streamdet_batch_size_count",
    "streamdet_queue_wait_seconds_sum",
    "streamdet_queue_wait_seconds_count",
    _DROPPED,
)
_ENGINE = "streamdet_engine_info"
_TIMEOUT_SECONDS = 2.0
_MAX_PAGE_BYTES = 8 << 20
# Means and rates are those of about the last ten seconds.
_WINDOW_READINGS = 6
# Older readings are from before no one looked.
_WINDOW_SECONDS = 30.0
# Less is shown as nothing.
_LEAST_FPS = 0.05


class _Reading(NamedTuple):
    at: float
    values: dict[tuple[str, str, str], float]


class Stages:
    """Keeps the last readings; belongs to the event loop.

    Args:
        endpoint: HOST:PORT of the daemon's metrics page; None when it is not to be read.
        why_not: why it is not to be read.
        min_interval_seconds: between two readings, however many browsers look at a detail page.
    """

    def __init__(
        self,
        endpoint: str | None,
        *,
        why_not: str = "the page was started without --metrics",
        min_interval_seconds: float = 2.0,
    ) -> None:
        self._min_interval_seconds = min_interval_seconds
        names = urllib.parse.urlencode([("name[]", name) for name in (*_NAMES, _ENGINE)])
        self._url = None if endpoint is None else f"http://{endpoint}/metrics?{names}"
        self._readings: list[_Reading] = []
        self._tried_at = 0.0
        self._engine = ""
        self._problem = why_not if endpoint is None else ""

    async def read(self, streams: Iterable[str] = ()) -> None:  # noqa: ARG002 - one page has all of them
        """Reads the page, if it is time."""
        if self._url is not None and time.monotonic() - self._tried_at >= self._min_interval_seconds:
            try:
                await self._read_page(self._url)
            finally:
                self._tried_at = time.monotonic()

    def dropped(self) -> dict[str, dict[str, float]]:
        """Frames per second that were dropped over the last seconds, by stream and reason."""
        by_stream: dict[str, dict[str, float]] = {}
        for (name, reason, stream), per_second in self._per_second().items():
            if name == _DROPPED and per_second >= _LEAST_FPS:
                by_stream.setdefault(stream, {})[reason] = round(per_second, 2)
        return by_stream

    def summary(self, stream: str) -> dict[str, Any]:
        """Stage times, batch size, queueing and this stream's drops, over the last seconds."""
        return {"problem": self._problem, "engine": self._engine, **self._means(stream)}

    async def _read_page(self, url: str) -> None:
        try:
            page = await asyncio.to_thread(_get, url)
            reading = _Reading(time.monotonic(), dict(_values(page)))
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._readings.clear()
            reason = getattr(error, "reason", None) or error
            self._problem = f"the daemon's metrics page cannot be read: {reason}"
            return
        self._problem = ""
        self._engine = _engine(page)
        if self._readings and any(reading.values.get(k, 0) < v for k, v in self._readings[-1].values.items()):
            # Counters that fell: the daemon was started again.
            self._readings.clear()
        recent = [before for before in self._readings if reading.at - before.at <= _WINDOW_SECONDS]
        self._readings = [*recent, reading][-_WINDOW_READINGS:]

    def _per_second(self) -> dict[tuple[str, str, str], float]:
        if len(self._readings) < 2:
            return {}
        first, last = self._readings[0], self._readings[-1]
        seconds = last.at - first.at
        return {key: (value - first.values.get(key, 0.0)) / seconds for key, value in last.values.items()}

    def _means(self, stream: str) -> dict[str, Any]:
        if len(self._readings) < 2:
            return {"stages": [], "batch_size": None, "queue_wait_ms": None, "dropped_fps": {}}
        last, changed = self._readings[-1], Counter(self._per_second())
        stages = [label for name, label, _ in last.values if name == "streamdet_stage_seconds_sum"]
        return {
            "stages": [
                {"stage": stage, "ms": _mean(changed, "streamdet_stage_seconds", stage, 1000)} for stage in stages
            ],
            "batch_size": _mean(changed, "streamdet_batch_size", "", 1),
            "queue_wait_ms": _mean(changed, "streamdet_queue_wait_seconds", "", 1000),
            "dropped_fps": self.dropped().get(stream, {}),
        }


class StagesOfNodes:
    """The same for the nodes of a cluster, of which each is read while a browser shows one of its streams.

    Args:
        board: knows which node watches a stream, and where its metrics page is.
    """

    def __init__(self, board: ClusterBoard) -> None:
        self._board = board
        self._nodes: dict[str, tuple[str, Stages]] = {}

    async def read(self, streams: Iterable[str] = ()) -> None:
        """Reads the pages of the nodes that watch these streams, if it is time."""
        nodes = {node for stream in streams if (node := self._board.node_of(stream)) is not None}
        # Readings of nodes whose streams no one has looked at meanwhile would be means over all that time.
        self._nodes = {node: self._nodes[node] for node in self._nodes.keys() & nodes}
        await asyncio.gather(*(self._of(node).read() for node in nodes))

    def dropped(self) -> dict[str, dict[str, float]]:
        """As `Stages.dropped`; of each stream what its node says."""
        return {
            stream: reasons
            for node, (_, stages) in self._nodes.items()
            for stream, reasons in stages.dropped().items()
            if self._board.node_of(stream) == node
        }

    def summary(self, stream: str) -> dict[str, Any]:
        """As `Stages.summary`, of the node that watches the stream."""
        node = self._board.node_of(stream)
        if node is None:
            return Stages(None, why_not="no node watches the stream").summary(stream)
        return self._of(node).summary(stream)

    def _of(self, node: str) -> Stages:
        page = self._board.metrics_of(node)
        if node not in self._nodes or self._nodes[node][0] != page:
            why_not = f"the metrics page of {node} is not open to this machine"
            self._nodes[node] = page, Stages(page or None, why_not=why_not)
        return self._nodes[node][1]


def _mean(changed: Counter[tuple[str, str, str]], name: str, label: str, unit: float) -> float | None:
    count = changed[f"{name}_count", label, ""]
    return round(changed[f"{name}_sum", label, ""] / count * unit, 3) if count else None


def _get(url: str) -> str:
    # Nothing of a proxy or a redirect: this is a page on this machine, or one that the operator named.
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.HTTPHandler())
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    opener.add_handler(urllib.request.HTTPDefaultErrorHandler())
    with contextlib.closing(opener.open(url, timeout=_TIMEOUT_SECONDS)) as answer:
        body: bytes = answer.read(_MAX_PAGE_BYTES + 1)
    if len(body) > _MAX_PAGE_BYTES:
        message = f"it has more than {_MAX_PAGE_BYTES} bytes"
        raise ValueError(message)
    return body.decode()


def _engine(page: str) -> str:
    """The engine in a few words; empty if the daemon does not report it."""
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == _ENGINE:
                of = sample.labels.get
                return f"{of('engine', '')} in {of('precision', '')} on {of('device', '')}, weights {of('weights', '')}"
    return ""


def _values(page: str) -> Iterable[tuple[tuple[str, str, str], float]]:
    """Samples by (name, stage or reason, stream)."""
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in _NAMES:
                label = sample.labels.get("stage") or sample.labels.get("reason") or ""
                yield (sample.name, label, sample.labels.get("stream", "")), sample.value
