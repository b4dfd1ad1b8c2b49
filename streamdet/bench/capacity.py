"""How many streams this machine can take: arithmetic on measured costs, nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

HEADROOM = 0.85
"""Share of the cores that is planned with: frames come unevenly, and a machine without idle time makes them wait."""


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
        """All that the cores do for one frame."""
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
