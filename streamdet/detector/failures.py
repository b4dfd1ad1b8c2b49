"""What the errors of detectors and their libraries mean: memory ran out, or the accelerator is lost.

The library is known by the error's class or words alone, so that this module loads without torch.
"""

from __future__ import annotations

# What libraries say when memory runs out, besides the exception types made for it: CUDA and its libraries, torch's
# allocator on the CPU, OpenCV. Lower case.
_OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate",
    "status_alloc_failed",
)
# What they say when the CUDA context is broken; every later call fails too. Lower case.
_DEVICE_LOST_PHRASES = ("cuda error", "cuda driver error", "status_execution_failed", "status_internal_error")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, so that a smaller batch may pass."""
    if isinstance(error, MemoryError) or _is_of_torch(error, "OutOfMemoryError"):
        return True
    return _says(error, _OUT_OF_MEMORY_PHRASES)


def is_device_lost(error: BaseException) -> bool:
    """Whether only a new process can use the accelerator again."""
    return _is_of_torch(error, "AcceleratorError") or _says(error, _DEVICE_LOST_PHRASES)


def first_line(error: BaseException) -> str:
    """The error in one line; CUDA's go on with pages of advice."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _is_of_torch(error: BaseException, name: str) -> bool:
    """Whether the error is of this class of torch."""
    return any(kind.__name__ == name and kind.__module__.split(".")[0] == "torch" for kind in type(error).__mro__)


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    """Whether a library's error (a RuntimeError, or OpenCV's own class) contains one of the phrases."""
    if not isinstance(error, RuntimeError) and type(error).__module__.split(".")[0] != "cv2":
        return False
    text = str(error).lower()
    return any(phrase in text for phrase in phrases)
