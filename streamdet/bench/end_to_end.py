"""Measures one model from file to event: a plain loop; the daemon without a detector, overloaded, and in real time."""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av
import torch

from streamdet.bench.cases import Model
from streamdet.bench.compare import Measured, quartiles
from streamdet.bench.daemon import DaemonUnderTest, Load
from streamdet.bench.frames import Clip
from streamdet.bench.machine import core_count, cpu_seconds
from streamdet.detector.weights import Weights, weights_to_bytes
from streamdet.errors import StreamdetError

HEADROOM = 0.85
"""Share of the cores that is planned with: frames come unevenly, and a machine without idle time makes them wait."""

_STAND_IN_STREAMS = 4
_MAX_STREAMS = 16
_KEPT_UP_SHARE = 0.99
OVERLOAD = 4.0
"""Frames that come in the case of overload, for each one that can be detected."""
_MOST_OVERLOAD_STREAMS = 64
# The runs that are judged take a third of the time, so that streams have enough frames to compare.
_JUDGED_SHARE = 0.35
OVERLOAD_ROUNDS = 3
"""In each, every batch size has a run: what slows the machine down for a while slows all of them."""
_BOUND_DETECTIONS, _BOUND_MS = 4.0, 100.0
_BEST_SHARE = 0.95
_FAIR_RATIO, _FAIR_FRAMES = 1.1, 2
# To start a daemon and stop it, before that has been measured.
_USUAL_START_SECONDS = 8.0


def decode_milliseconds(path: Path, seconds: float) -> float:
    """CPU time to decode one frame with PyAV alone, in one thread; the file is read again at its end."""
    frames, began, cpu = 0, time.perf_counter(), cpu_seconds()
    while not frames or time.perf_counter() - began < seconds:
        with av.open(f"file:{path}") as container:
            container.streams.video[0].codec_context.thread_count = 1
            for _ in container.decode(video=0):
                frames += 1
                if time.perf_counter() - began >= seconds:
                    break
    return 1000 * (cpu_seconds() - cpu) / frames


@dataclass(frozen=True)
class Costs:
    """CPU time of one frame on this machine, in milliseconds, summed over the cores.

    Attributes:
        decode_ms: of H.264, one thread, PyAV alone.
        overhead_ms: of everything in the daemon that is neither decoding nor the detector.
        detector_ms: of the detector.
        device_ms: time of the accelerator; None where the detector runs on the CPU.
    """

    decode_ms: float
    overhead_ms: float
    detector_ms: float
    device_ms: float | None = None

    @property
    def cpu_ms(self) -> float:
        """The CPU time of all cores for one frame."""
        return self.decode_ms + self.overhead_ms + self.detector_ms


def capacity_fps(costs: Costs, cores: int, headroom: float = HEADROOM) -> float:
    """Frames per second that the cores, and the accelerator where there is one, can take."""
    limits = [1000 * cores / costs.cpu_ms]
    if costs.device_ms is not None:
        limits.append(1000 / costs.device_ms)
    return headroom * min(limits)


def capacity(costs: Costs, cores: int, fps: float, headroom: float = HEADROOM) -> dict[str, Any]:
    """How many streams fit, ready for JSON.

    Args:
        costs: of one frame.
        cores: that this process may use.
        fps: of each stream.
        headroom: share of the cores to plan with, 0 to 1.
    """
    total = capacity_fps(costs, cores, headroom)
    return {
        "streams": math.floor(total / fps + 1e-9),
        "fps": round(fps, 3),
        "fps_of_all_streams": round(total, 1),
        "cores": cores,
        "headroom": headroom,
        "cpu_ms_per_frame": {name: value and round(value, 3) for name, value in asdict(costs).items()},
    }


def judge_overload(
    runs: Sequence[dict[str, Any]],
    runs_of_batches: Mapping[int, Sequence[dict[str, Any]]],
    batch: int,
    detection_ms: float,
) -> dict[str, Any]:
    """What the runs of an overloaded daemon show, ready for JSON, and whether it keeps to the bounds.

    The throughput is compared round by round with that of the batch size whose median is the highest, of those that
    keep to the bound of latency: larger batches may detect more, with older events. Latencies are medians of the runs,
    the numbers of events those of the least fair run, all else is of the run in the middle.

    Args:
        runs: of the daemon as it is, one for each round.
        runs_of_batches: others in the same rounds, by their batch size.
        batch: the largest in the runs that are judged.
        detection_ms: one frame alone, while all workers are busy.
    """
    bound_ms = _BOUND_DETECTIONS * detection_ms + _BOUND_MS
    of_sizes = {batch: runs} | dict(runs_of_batches)
    medians = {size: statistics.median(run["fps_published"] for run in of_size) for size, of_size in of_sizes.items()}
    p95_ms = {size: _p95_ms(of_size) for size, of_size in of_sizes.items()}
    in_time = [size for size, found in p95_ms.items() if size == batch or found < bound_ms]
    best = max(in_time, key=lambda size: medians[size])
    ratios = [
        own["fps_published"] / other["fps_published"] if other["fps_published"] else 0.0
        for own, other in zip(runs, of_sizes[best], strict=True)
    ]
    share = min(statistics.median(ratios), 1.0)
    marks = [run["latency_ms"] for run in runs]
    latency_ms = (
        {name: round(statistics.median(each[name] for each in marks), 2) for name in marks[0]} if all(marks) else None
    )
    fewest, most = max((run["events_of_a_stream"] for run in runs), key=_unfairness)
    holds = {
        "latency": latency_ms is not None and latency_ms["p95"] < bound_ms,
        "throughput": share >= _BEST_SHARE,
        "fairness": all(_is_fair(*run["events_of_a_stream"]) for run in runs),
    }
    middle = sorted(runs, key=lambda run: float(run["fps_published"]))[len(runs) // 2]
    return middle | {
        "rounds": len(runs),
        "latency_ms": latency_ms,
        "events_of_a_stream": [fewest, most],
        "batch": batch,
        "detection_ms": round(detection_ms, 2),
        "bound_ms": round(bound_ms, 1),
        "fps_of_batches": {str(size): round(fps, 2) for size, fps in sorted(medians.items())},
        "p95_ms_of_batches": {str(size): round(found, 1) for size, found in sorted(p95_ms.items()) if found < math.inf},
        "best_batch": best,
        "throughput_of_best": round(share, 3),
        "throughput_of_best_quartiles": [round(value, 3) for value in quartiles(ratios)],
        "holds": holds,
        "passed": all(holds.values()),
    }


def _p95_ms(runs: Sequence[dict[str, Any]]) -> float:
    """In the median; infinite where a run had no event."""
    return statistics.median(run["latency_ms"]["p95"] if run["latency_ms"] else math.inf for run in runs)


def _is_fair(fewest: int, most: int) -> bool:
    return fewest > 0 and (most <= _FAIR_RATIO * fewest or most <= fewest + _FAIR_FRAMES)


def _unfairness(events: tuple[int, int]) -> tuple[bool, float]:
    fewest, most = events
    return not _is_fair(fewest, most), most / fewest if fewest else math.inf


class Step:
    """Follows a run through its steps.

    Args:
        on_step: called with what is going on, and the share of the run that is over, 0 to 1.
        clock: seconds, which never go back.
    """

    def __init__(self, on_step: Callable[[str, float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_step = on_step
        self._clock = clock
        self._began: float | None = None
        # What is planned, of which this step has a part.
        self._left_seconds = 0.0
        self._starts_left = 0
        self._starts: list[float] = []
        self._text = ""
        self._seconds = 0.0

    def plan(self, seconds: float, starts: int) -> float:
        """Plans the steps that are still to come.

        Args:
            seconds: of measuring, in all.
            starts: how often a daemon is started.

        Returns:
            How many seconds that will take.
        """
        self._began, self._left_seconds, self._starts_left = self._clock(), seconds, starts
        return self._seconds_left(0.0)

    def begin(self, text: str, seconds: float) -> None:
        """Begins a step that measures for so long."""
        self._text, self._seconds = text, seconds
        self.share(0.0)

    def share(self, share: float) -> None:
        """Reports the finished share of the step, 0 to 1."""
        over = 0.0
        if self._began is not None:
            elapsed = self._clock() - self._began
            over = elapsed / max(elapsed + self._seconds_left(share), 1e-9)
        self._on_step(self._text, over)

    def started(self, seconds: float) -> None:
        """Reports how long it took to start a daemon and stop it: the next ones will take as long."""
        self._starts.append(seconds)
        self._starts_left = max(self._starts_left - 1, 0)

    def end(self) -> None:
        """Ends the step."""
        self._left_seconds = max(self._left_seconds - self._seconds, 0.0)
        self._seconds = 0.0
        self.share(0.0)

    def _seconds_left(self, share: float) -> float:
        start = statistics.median(self._starts) if self._starts else _USUAL_START_SECONDS
        return max(self._left_seconds - share * self._seconds, 0.0) + self._starts_left * start


class EndToEnd:
    """Measures one model in the daemon and beside it.

    Args:
        model: what is detected with.
        weights: what the daemon is given; the model's, or what was exported of them.
        best: the row whose engine, precision and batch size the daemon uses.
        clip: what the streams play.
        folder: for the files of the daemon.
        device: where the detector runs.
        step: called with the progress.
    """

    def __init__(
        self, model: Model, weights: Weights, best: Measured, clip: Clip, folder: Path, device: torch.device, step: Step
    ) -> None:
        self.best = best
        self._model = model
        self._clip = clip
        self._folder = folder
        self._device = device
        self._step = step
        self._weights = folder / "weights.safetensors"
        self._weights.write_bytes(weights_to_bytes(weights))

    def plain_loop(self, seconds: float) -> dict[str, Any]:
        """Runs the plain loop."""
        self._step.begin("a plain loop of OpenCV and torchvision", seconds)
        weights = self._folder / "plain.safetensors"
        weights.write_bytes(weights_to_bytes(self._model.weights))
        arguments = [str(self._clip.path), str(weights), str(self._device), str(seconds)]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        command = [sys.executable, "-P", "-m", "streamdet.bench.plain_loop", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
        self._step.end()
        if result.returncode:
            msg = f"the plain loop failed: {(result.stderr.strip().splitlines() or ['it printed nothing'])[-1]}"
            raise StreamdetError(msg)
        return {"model": self._model.name, **json.loads(result.stdout)}

    def costs(self, decode_seconds: float, daemon_seconds: float) -> tuple[Costs, dict[str, Any]]:
        """What one frame costs, part by part; and the run of the daemon without a detector that this rests on."""
        self._step.begin("decoding alone, and the daemon without a detector", decode_seconds + daemon_seconds)
        decode = decode_milliseconds(self._clip.path, decode_seconds)
        load = Load(self._clip, _STAND_IN_STREAMS, {})
        daemon_share = daemon_seconds / max(decode_seconds + daemon_seconds, 1e-9)
        idle = self._run(
            load, daemon_seconds, lambda share: self._step.share(1 - daemon_share * (1 - share)), stand_in=True
        )
        self._step.end()
        overhead = max(idle["cpu_ms_per_frame"] - decode, 0.0)
        device_ms = None if self._device.type == "cpu" else 1000 * self.best.seconds
        return Costs(decode, overhead, 1000 * self.best.cpu_seconds, device_ms), idle

    def capacity(self, costs: Costs) -> dict[str, Any]:
        """How many streams of the clip's size and rate fit."""
        case = self.best.case
        return {
            "model": self._model.name, "engine": case.engine, "precision": case.precision,
            "width": self._clip.size[0], "height": self._clip.size[1],
            **capacity(costs, core_count(), self._clip.fps),
        }  # fmt: skip

    def saturated(self, workers: int | None, plain_fps: float, seconds: float) -> dict[str, Any]:
        """The daemon with more frames than it can detect, none of which is dropped: its throughput.

        Args:
            workers: None leaves them to the daemon.
            plain_fps: of the plain loop.
            seconds: how long.
        """
        case = self.best.case
        load = Load(self._clip, min(case.batch * case.workers, _MAX_STREAMS), self._table(workers), realtime=False)
        self._step.begin("the daemon, with more frames than it can detect", seconds)
        found = self._measure(load, seconds)
        return found | {"speedup_over_plain_loop": round(found["fps_published"] / plain_fps, 3)}

    def paced(self, workers: int | None, streams: int, seconds: float) -> dict[str, Any]:
        """Runs the daemon with this many streams in real time, to measure its latency."""
        self._step.begin(f"the daemon with {streams} streams in real time", seconds)
        found = self._measure(Load(self._clip, streams, self._table(workers)), seconds)
        return found | {"kept_up": found["frames_published"] >= _KEPT_UP_SHARE * found["frames_captured"]}

    def overload(
        self,
        workers: int | None,
        fps: float,
        batches: Sequence[int],
        detection_ms: float,
        seconds: float,
        *,
        as_chosen: bool,
    ) -> dict[str, Any]:
        """The daemon with streams in real time that send four times as many frames as it can detect.

        Args:
            workers: None leaves them to the daemon.
            fps: that it can detect.
            batches: sizes to compare with what it does.
            detection_ms: one frame alone, while all workers are busy.
            seconds: for all sizes and rounds together.
            as_chosen: whether the embedded weights run, and the daemon may choose the batch size; otherwise it has that
                of the best row.
        """
        streams = min(math.ceil(OVERLOAD * fps / self._clip.fps), _MOST_OVERLOAD_STREAMS)
        load = Load(self._clip, streams, self._table(workers))
        own = {"weights": "embedded", "max_batch_size": "auto"} if as_chosen else {}
        others = [batch for batch in batches if as_chosen or batch != self.best.case.batch]
        self._step.begin(f"the daemon with {streams} streams, more than it can detect", seconds)

        def measure(changed: dict[str, Any], share: float) -> dict[str, Any]:
            changed_load = replace(load, detector=load.detector | changed)
            found = self._run(changed_load, share * seconds / rounds, lambda _share: None)
            done.append(share / rounds)
            self._step.share(sum(done))
            return found

        rounds = OVERLOAD_ROUNDS if others else 1
        done: list[float] = []
        runs: list[dict[str, Any]] = []
        runs_of_batches: dict[int, list[dict[str, Any]]] = {batch: [] for batch in others}
        for number in range(rounds):
            # There and back, so that none is always the first.
            for batch in (None, *others) if number % 2 == 0 else (*reversed(others), None):
                if batch is None:
                    runs.append(measure(own, _JUDGED_SHARE if others else 1.0))
                else:
                    part = (1 - _JUDGED_SHARE) / len(others)
                    runs_of_batches[batch].append(measure({"max_batch_size": batch}, part))
        self._step.end()
        return judge_overload(runs, runs_of_batches, self.best.case.batch, detection_ms)

    def _table(self, workers: int | None) -> dict[str, Any]:
        """The table `[detector]`."""
        case = self.best.case
        table = {
            "weights": str(self._weights), "device": str(self._device), "engine": case.engine,
            "precision": case.precision, "max_batch_size": case.batch,
        }  # fmt: skip
        return table if workers is None else table | {"workers": workers}

    def _measure(self, load: Load, seconds: float) -> dict[str, Any]:
        found = self._run(load, seconds, self._step.share)
        self._step.end()
        return found

    def _run(
        self, load: Load, seconds: float, on_share: Callable[[float], None], *, stand_in: bool = False
    ) -> dict[str, Any]:
        began = time.monotonic()
        with DaemonUnderTest(load, self._folder, _free_endpoint(), stand_in=stand_in) as daemon:
            found = daemon.measure(seconds, on_share)
        self._step.started(max(time.monotonic() - began - seconds, 0.0))
        return found


def _free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
