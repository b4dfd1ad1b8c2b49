"""One model from file to event: a plain loop, the daemon without a detector, with too much to do, and in real time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from streamdet.bench.capacity import Costs, capacity
from streamdet.bench.cases import Model
from streamdet.bench.compare import Measured
from streamdet.bench.daemon import DaemonUnderTest, Load
from streamdet.bench.decode import decode_milliseconds
from streamdet.bench.frames import Clip
from streamdet.bench.machine import core_count
from streamdet.bench.plan import Step
from streamdet.detector.weights import Weights, weights_to_bytes
from streamdet.errors import StreamdetError

_STAND_IN_STREAMS = 4
_MAX_STREAMS = 16
_KEPT_UP_SHARE = 0.99


class EndToEnd:
    """Measures one model in the daemon and beside it.

    Args:
        model: what is detected with.
        weights: what the daemon is given; the model's, or what was exported of them.
        best: the row whose engine, precision and batch size the daemon uses.
        clip: what the streams play.
        folder: for the files of the daemon.
        device: where the detector runs.
        step: is told how far we are.
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
        """What a user would otherwise run."""
        self._step.begin("a plain loop of OpenCV and torchvision", seconds)
        weights = self._folder / "plain.safetensors"
        weights.write_bytes(weights_to_bytes(self._model.weights))
        arguments = [str(self._clip.path), str(weights), str(self._device), str(seconds)]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        command = [sys.executable, "-P", "-m", "streamdet.bench.plain_loop", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
        self._step.end()
        if result.returncode:
            msg = f"the plain loop failed: {(result.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
            raise StreamdetError(msg)
        return {"model": self._model.name, **json.loads(result.stdout)}

    def costs(self, decode_seconds: float, daemon_seconds: float) -> tuple[Costs, dict[str, Any]]:
        """What one frame costs, part by part; and the run of the daemon without a detector that this rests on."""
        self._step.begin("decoding alone, and the daemon without a detector", decode_seconds + daemon_seconds)
        decode = decode_milliseconds(self._clip.path, decode_seconds)
        load = Load(self._clip, _STAND_IN_STREAMS, {})
        with DaemonUnderTest(load, self._folder, _free_endpoint(), stand_in=True) as daemon:
            idle = daemon.measure(daemon_seconds, self._step.share)
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
        """The daemon with so many streams that send as cameras do: its latency."""
        self._step.begin(f"the daemon with {streams} streams in real time", seconds)
        found = self._measure(Load(self._clip, streams, self._table(workers)), seconds)
        return found | {"kept_up": found["frames_published"] >= _KEPT_UP_SHARE * found["frames_captured"]}

    def _table(self, workers: int | None) -> dict[str, Any]:
        """The table `[detector]`."""
        case = self.best.case
        table = {
            "weights": str(self._weights), "device": str(self._device), "engine": case.engine,
            "precision": case.precision, "max_batch_size": case.batch,
        }  # fmt: skip
        return table if workers is None else table | {"workers": workers}

    def _measure(self, load: Load, seconds: float) -> dict[str, Any]:
        with DaemonUnderTest(load, self._folder, _free_endpoint()) as daemon:
            found = daemon.measure(seconds, self._step.share)
        self._step.end()
        return found


def _free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
