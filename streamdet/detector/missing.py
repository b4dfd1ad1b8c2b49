"""Checks quickly, without torch, whether this machine has what the configured detector needs."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from streamdet.config import DetectorConfig
from streamdet.extras import how_to_install

PUBLISHED_FILES = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
    "fasterrcnn_mobilenet_v3_large_fpn": "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
    "fasterrcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "fasterrcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
}
"""The file of each architecture that torchvision trained on COCO."""


def cache_folders() -> tuple[Path, ...]:
    """Our own cache folder, then the one of torch hub, where other programs may have left the file."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - without a home: no error
    torch_home = os.path.expanduser(os.environ.get("TORCH_HOME") or f"{cache}/torch")  # noqa: PTH111 - the same
    return Path(cache) / "streamdet", Path(torch_home) / "hub" / "checkpoints"


def missing_parts(config: DetectorConfig) -> Iterator[str]:
    """Warnings about weights, device and engine, each with what to do; nothing is downloaded or started.

    A warning, not an error: the file may be checked on another machine than the one that it is for.
    """
    yield from _weights(config)
    if config.device.startswith("cuda"):
        yield from _cuda(config.device)
    if config.engine == "openvino" and importlib.util.find_spec("openvino") is None:
        yield f'detector.engine: OpenVINO is not installed here: {how_to_install("openvino")}; or use "auto"'


def _weights(config: DetectorConfig) -> Iterator[str]:
    """Of files that are named by their path, the configuration has been found wrong before."""
    if config.weights != "coco":
        return
    name = PUBLISHED_FILES[config.model or ""]
    if not any((folder / name).is_file() for folder in cache_folders()):
        yield (
            f'detector.weights: "coco" with {config.model} is not downloaded yet: the first start downloads '
            f"{name}, unless it is put into {cache_folders()[0]} before"
        )


def _cuda(device: str) -> Iterator[str]:
    count = cuda_device_count()
    _, _, number = device.partition(":")
    wanted = int(number) if number.isdecimal() else 0
    if wanted >= count:
        there = f"only {count}" if count else "none that works"
        yield (
            f'detector.device: "{device}" is asked for, and of CUDA devices this machine has {there}; '
            'look at the driver (nvidia-smi), or use "auto", which takes any device'
        )


def cuda_device_count() -> int:
    """How many CUDA devices the driver offers to this process; 0 without a driver, or with one that does not work."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
