"""Makes the detector that the daemon runs, as the configuration asks for it; torch is imported only when it is made."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING

from streamdet.config import Config
from streamdet.detector.memory import import_torchvision, keep_memory
from streamdet.detector.several import SeveralDetectors
from streamdet.metrics import Metrics

if TYPE_CHECKING:
    from streamdet.detector.fixed.detector import FixedDetector
    from streamdet.detector.pipeline import FasterRcnnDetector
    from streamdet.detector.reference import ReferenceDetector

_log = logging.getLogger(__name__)

_MOST_WORKERS = 64


def choose_workers(workers: int | None, cores: int) -> int:
    """How many batches to detect at the same time at the most on a CPU of so many cores.

    Threads that each detect a batch of their own yield 1.3 to 1.5 times as much as as many threads within one batch,
    which wait for each other (docs/decisions.md).

    Args:
        workers: of the configuration; None for one per core.
        cores: that the process may use.
    """
    return workers if workers is not None else min(max(cores, 1), _MOST_WORKERS)


def load_real_detector(
    config: Config, metrics: Metrics
) -> SeveralDetectors[FasterRcnnDetector | ReferenceDetector] | SeveralDetectors[FixedDetector]:
    """Loads the detector that the configuration asks for; takes seconds, since it needs torch.

    Args:
        config: `[detector]` is used.
        metrics: told the time of each stage, and the device's memory.

    Raises:
        DetectorError: weights, labels, engine or device are wrong.
    """
    # Threads of OpenMP that wait actively take the cores away from captures; to be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_memory()
    import_torchvision()
    from streamdet.detector.device import device_busy, device_memory, use_threads  # noqa: PLC0415 - see above
    from streamdet.detector.pipeline import load_detector  # noqa: PLC0415 - the same
    from streamdet.detector.reference import ReferenceDetector  # noqa: PLC0415 - the same
    from streamdet.detector.weights import load_weights  # noqa: PLC0415 - the same

    use_threads(1)
    if config.detector.engine == "graph":
        return _on_cuda_devices(config, metrics)
    detector: FasterRcnnDetector | ReferenceDetector
    if config.detector.engine == "reference":
        detector = ReferenceDetector(load_weights(config.detector), config.detector)
    else:
        detector = load_detector(config.detector, metrics.stage)
    device = detector.device
    if device.type == "cuda":
        metrics.add_device(str(device), lambda: device_memory(device), device_busy(device))
        return SeveralDetectors(detector, 1)
    cores = len(os.sched_getaffinity(0))
    workers = choose_workers(config.detector.workers, cores)
    _log.info("detecting up to %d batches at a time, one thread each", workers)
    return SeveralDetectors(detector, workers, cores if config.detector.workers is None else None, shares=True)


def _on_cuda_devices(config: Config, metrics: Metrics) -> SeveralDetectors[FixedDetector]:
    """Two workers for each CUDA device that the configuration names, behind the one queue."""
    from streamdet.detector.device import device_busy, device_memory  # noqa: PLC0415 - needs torch
    from streamdet.detector.fixed.detector import load_graph_detectors  # noqa: PLC0415 - the same

    detectors = load_graph_detectors(config.detector, metrics.stage)
    for device in dict.fromkeys(detector.device for detector in detectors):
        metrics.add_device(str(device), functools.partial(device_memory, device), device_busy(device))
    several = SeveralDetectors(detectors[0], 1)
    several.detectors = detectors
    return several
