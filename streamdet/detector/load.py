"""Makes the detector that the daemon runs, as the configuration asks for it; torch is imported only when it is made."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from streamdet.config import Config, DetectorConfig
from streamdet.detector.canvases import CanvasTrials
from streamdet.detector.choice import REFERENCE, Choice
from streamdet.detector.memory import import_torchvision, keep_memory
from streamdet.detector.pool import DetectorPool, Running
from streamdet.detector.state import FrameSizes, Store
from streamdet.detector.trial import settle, try_size, usable_cores
from streamdet.monitoring.metrics import Metrics
from streamdet.security.files import state_folder

if TYPE_CHECKING:
    from streamdet.detector.weights import Weights

_log = logging.getLogger(__name__)

_MOST_WORKERS = 64


def choose_workers(workers: int | None, cores: int) -> int:
    """Largest number of batches to detect at the same time on a CPU with this number of cores.

    Threads that each detect a separate batch yield 1.3 to 1.5 times as much as the same number within one batch,
    which wait for each other (docs/decisions.md).

    Args:
        workers: of the configuration; None for one per core.
        cores: that the process may use.
    """
    return workers if workers is not None else min(max(cores, 1), _MOST_WORKERS)


def load_real_detector(config: Config, metrics: Metrics, stopping: Callable[[], bool] = lambda: False) -> DetectorPool:
    """Loads the detector that the configuration asks for; takes seconds, since it needs torch.

    What is "auto" is settled by a trial (`streamdet.detector.trial`), which takes its time at the first start.

    Args:
        config: `[detector]` is used.
        metrics: get the time of each stage, and the device's memory.
        stopping: asked a few times a second during a trial; true ends it.

    Raises:
        DetectorError: weights, labels, engine or device are wrong.
        Interrupted: `stopping` said so.
    """
    # Threads of OpenMP that wait actively take the cores away from captures; to be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_memory()
    import_torchvision()
    from streamdet.detector.device import choose_device, choose_devices, use_threads  # noqa: PLC0415 - see above
    from streamdet.detector.weights import load_weights  # noqa: PLC0415 - the same

    use_threads(1)
    settings = config.detector
    # What is wrong with the device, the weights, or the labels is reported before anything is tried.
    wants_all = settings.device == "cuda:all" and settings.engine in {"auto", "graph"}
    device = choose_devices(settings.device)[0] if wants_all else choose_device(settings.device)
    _warn_of_silent_gpu(settings.device, device.type)
    weights = load_weights(settings)
    settings, choice = settle(settings, stopping=stopping)
    if settings.engine == "graph":
        return _on_cuda_devices(settings, metrics, choice)
    return _on_one_device(settings, weights, metrics, choice)


def _on_one_device(settings: DetectorConfig, weights: Weights, metrics: Metrics, choice: Choice | None) -> DetectorPool:
    """As many workers as the CPU has room for, or one on a CUDA device."""
    from streamdet.detector.device import device_busy, device_memory  # noqa: PLC0415 - needs torch
    from streamdet.detector.pipeline import FasterRcnnDetector, weights_for  # noqa: PLC0415 - the same
    from streamdet.detector.reference import ReferenceDetector  # noqa: PLC0415 - the same

    detector: FasterRcnnDetector | ReferenceDetector
    if settings.engine == "reference":
        detector = ReferenceDetector(weights, settings)
    else:
        detector = FasterRcnnDetector(weights_for(settings, weights), settings, metrics.stage)
    device = detector.device
    if device.type == "cuda":
        metrics.add_device(str(device), lambda: device_memory(device), device_busy(device))
        sizes = FrameSizes(Store(state_folder()), detector)
        return DetectorPool(
            [detector], running=_running(settings, weights, str(device), 1, choice), prepare=sizes.prepare
        )
    cores = usable_cores()
    measured = choice.workers if choice is not None else None
    workers = settings.workers or measured or choose_workers(None, cores)
    trials = None
    tried = choice if choice is not None and choice.is_proven and choice.candidate != REFERENCE else None
    if tried is not None and isinstance(detector, FasterRcnnDetector):
        detector.use_canvases_of(tried.proven_sizes)
        try_this = functools.partial(try_size, settings, tried.candidate)
        trials = CanvasTrials(detector.canvases, detector.canvas_size, try_this, tried.failed_sizes, metrics.unexpected)
    sizes = FrameSizes(Store(state_folder()), detector, admit=trials.admit if trials is not None else None)
    return DetectorPool(
        [detector, *(detector.for_another_thread() for _ in range(workers - 1))],
        cores if settings.workers is None else None,
        shares=True,
        longest_batch_seconds=choice.longest_batch_seconds if choice is not None else None,
        running=_running(settings, weights, str(device), workers, choice),
        prepare=sizes.prepare,
        release=detector.release,
        worker=trials,
    )


def _on_cuda_devices(settings: DetectorConfig, metrics: Metrics, choice: Choice | None) -> DetectorPool:
    """Two workers for each CUDA device that the configuration names, behind the one queue."""
    from streamdet.detector.device import choose_device, device_busy, device_memory  # noqa: PLC0415 - needs torch
    from streamdet.detector.graph.detector import load_graph_detectors  # noqa: PLC0415 - the same

    if choice is not None and settings.device == "auto":
        # The trial was about one of them; for all there is "cuda:all".
        settings = settings.model_copy(update={"device": str(choose_device("auto"))})
    kernels = choice is None or choice.candidate.kernels
    detectors = load_graph_detectors(settings, metrics.stage, kernels=kernels)
    devices = list(dict.fromkeys(detector.device for detector in detectors))
    for device in devices:
        metrics.add_device(str(device), functools.partial(device_memory, device), device_busy(device))
    running = _running(settings, None, ",".join(map(str, devices)), len(detectors), choice)
    sizes = FrameSizes(Store(state_folder()), *detectors)
    return DetectorPool(detectors, running=running, prepare=sizes.prepare)


def _running(
    settings: DetectorConfig, weights: Weights | None, device: str, workers: int, choice: Choice | None
) -> Running:
    """What is reported, and says it in the log."""
    engine, precision = settings.engine, settings.precision
    if weights is not None and weights.exported is not None:
        engine, precision = "openvino", weights.exported.precision
    running = Running(
        device=device,
        engine="torch" if engine == "auto" else engine,
        precision="fp32" if precision == "auto" else precision,
        max_batch_size=settings.largest_batch,
        workers=workers,
        weights=settings.weights,
        left_out=choice.left_out if choice is not None else (),
    )
    _log.info("%s", running.in_words())
    return running


def _warn_of_silent_gpu(wanted: str, device_type: str) -> None:
    """Says that a CPU is about to do the work of a GPU whose driver does not work."""
    if wanted != "auto" or device_type != "cpu":
        return
    found = nvidia_device()
    if found:
        _log.warning(
            "this machine has an NVIDIA device (%s) that CUDA cannot use: detecting on the CPU, many times slower; "
            'look at the driver (nvidia-smi), or write device = "cpu" to say that it is meant so',
            found,
        )


def nvidia_device(root: Path = Path("/")) -> str:
    """Where the kernel shows an NVIDIA display or compute device; empty without one."""
    for path in ("dev/nvidia0", "proc/driver/nvidia/version"):
        if (root / path).exists():
            return f"/{path}"
    try:
        devices = sorted((root / "sys/bus/pci/devices").iterdir())
    except OSError:
        return ""
    for device in devices:
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except (OSError, ValueError):
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return f"PCI {device.name}"
    return ""
