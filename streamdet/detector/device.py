"""Chooses the device, and translates the errors that a device raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import torch

from streamdet.errors import DetectorError, DeviceLostError


def choose_device(name: str) -> torch.device:
    """Finds the device that the configuration asks for.

    Args:
        name: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        DetectorError: there is no such device.
    """
    count = 0 if name == "cpu" else torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda:all":
        msg = 'detector.device: "cuda:all" goes with engine = "graph" alone; use "cuda" or "cuda:N" with this one'
        raise DetectorError(msg)
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == "cuda"):
        msg = f'detector.device: {name!r} is not a device; use "auto", "cpu", "cuda" or "cuda:N"'
        raise DetectorError(msg)
    index = int(number or 0)
    if index >= count:
        there = f"only {', '.join(f'cuda:{i}' for i in range(count))}" if count else "no CUDA device"
        msg = f'detector.device: {name!r} is asked for, but this machine has {there}; "auto" takes any device'
        raise DetectorError(msg)
    return torch.device("cuda", index)


def choose_devices(name: str) -> list[torch.device]:
    """Finds all devices that the configuration asks for, for engines that can use several.

    Args:
        name: as for `choose_device`, or "cuda:all"; "auto" takes every CUDA device too.

    Raises:
        DetectorError: there is no such device.
    """
    count = torch.cuda.device_count()
    if name == "cuda:all" and not count:
        msg = 'detector.device: "cuda:all" is asked for, but this machine has no CUDA device; "auto" takes any device'
        raise DetectorError(msg)
    if name in {"auto", "cuda:all"} and count:
        return [torch.device("cuda", index) for index in range(count)]
    return [choose_device(name)]


def use_threads(count: int) -> None:
    """Sets how many CPU threads one operation of torch or OpenCV may use; the only place where this is done."""
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def compute_exactly() -> None:
    """Has CUDA devices multiply float32 as such.

    By default cuDNN rounds it to TF32, 10 bits of mantissa, in convolutions: scores then differ by more than 1e-3 from
    those of a CPU. Who wants speed asks for bf16.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def device_errors() -> Iterator[None]:
    """Turns what torch raises when a device fails into errors that callers without torch can tell apart.

    Raises:
        MemoryError: the device has not enough memory for this batch; a smaller one may pass.
        DeviceLostError: the CUDA context is gone; only a new process helps.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(_first_line(error)) from error
    except torch.AcceleratorError as error:
        msg = f"the CUDA device failed: {_first_line(error)}"
        raise DeviceLostError(msg) from error
    except RuntimeError as error:
        # The CPU's allocator has no type of its own.
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError(_first_line(error)) from error
        raise


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes in use, by any process, and bytes in all, of a CUDA device."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def device_busy(device: torch.device) -> Callable[[], float] | None:
    """Reads the share of the last moments in which a kernel ran on a CUDA device, 0 to 1; None where no one can tell.

    It takes the library nvidia-ml-py, which speaks to the driver.
    """

    def read() -> float:
        return torch.cuda.utilization(device) / 100

    try:
        read()
    except (ModuleNotFoundError, RuntimeError):
        return None
    return read
