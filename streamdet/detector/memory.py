"""Settings of the process's memory: what the allocator keeps, and what is returned to the kernel.

The memory of a batch is kept for the next one, instead of requesting new pages from the kernel each time. Memory that
no batch uses is returned from time to time, so that the fragmentation of a long run does not stay allocated.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from pathlib import Path
from types import ModuleType

# mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_NEVER = 2**31 - 1
_MADV_DONTNEED = 4  # madvise(2), from mman.h

TRIM_SECONDS = 10.0
"""How often to give memory back: that, and the pages that the next batches need again, take some 10 ms, a thousandth.

Between two times the process grows by what was free in between and is written to: the less, the sooner it comes."""

_FOR_SHAPES_ALONE = "torch._meta_registrations"


def use_one_heap() -> None:
    """Makes all threads share one heap; to be called before the first thread starts. Does nothing without glibc.

    Heaps of their own that threads have by then stay in use. What is free at the end of such a heap is never given
    back, not even by `trim_memory`: of the thread that loads the detector, that is 100 MB and more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ctypes.c_int(_M_ARENA_MAX), ctypes.c_int(1))


def keep_memory() -> bool:
    """Makes glibc never give memory back, and take large blocks from the heap like all others.

    By default each large tensor is mapped again and every page of it is cleared by the kernel on first use: half of
    the time of a batch of 8 large frames. In exchange the process stays as large as it once was, until `trim_memory`.

    Returns:
        whether glibc is used and accepted the settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One heap: that of a thread of its own is limited to 64 MiB, and larger blocks would be mapped after all.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    return all(bool(mallopt(ctypes.c_int(key), ctypes.c_int(value))) for key, value in settings)


def trim_memory() -> None:
    """Gives the kernel back every page that is not in use at this moment, from the middle of the heap, too.

    Takes some 10 ms for a process of 1.5 GB, during which no other thread can allocate. Nothing happens without glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def release_library_pages() -> None:
    """Unmaps the pages of libraries and other files that are not written to; those in use come back by themselves.

    Loading a library reads tables that are never looked at again: of the CUDA libraries that torch loads on every
    machine, 150 MB. The kernel takes such pages where memory is short; until then, they make a process look larger.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return
    with contextlib.suppress(OSError, ValueError):
        mapped = None
        for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
            name, *rest = line.split(maxsplit=5)
            if not name.endswith(":"):
                is_constant = len(rest) == 5 and rest[4].startswith("/") and "w" not in rest[0]
                mapped = [int(address, 16) for address in name.split("-")] if is_constant else None
            elif name == "Anonymous:" and mapped is not None and rest[0] == "0":  # else it was written to, once
                start, end = mapped
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(_MADV_DONTNEED))


def available_bytes() -> int:
    """Memory that a new process can use: of the machine, or of the control group where that is less."""
    meminfo = Path("/proc/meminfo").read_text(encoding="utf-8")
    available = 1024 * int(next(line.split()[1] for line in meminfo.splitlines() if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        available = min(available, max(limit - used, 0))
    return available


def import_torchvision() -> None:
    """Imports torch and torchvision without what only torch's compiler uses: 170 MB and half of the time.

    torch itself imports what its operators do with tensors that have shapes but no numbers, in Python, for the
    compiler; the kernels in C++ suffice for the model's outline. torchvision imports the compiler's utilities for one
    function, which it calls where its own RoIAlign is missing; in their place stands a module with that function,
    which imports the true ones when it is called. An import of one of these modules later yields the true one. Does
    nothing where torchvision, or the compiler, has been imported before.
    """
    _import_torch()
    compiler, utilities = "torch._dynamo", "torch._dynamo.utils"
    if "torchvision" in sys.modules or compiler in sys.modules:
        return
    places = {name: ModuleType(name) for name in (compiler, utilities)}
    places[compiler].__path__ = []

    def is_compile_supported(device_type: str) -> bool:
        # First, as in torch itself: the compiler's modules import it in a circle.
        importlib.import_module(_FOR_SHAPES_ALONE)
        return bool(importlib.import_module(utilities).is_compile_supported(device_type))

    places[utilities].__dict__["is_compile_supported"] = is_compile_supported
    sys.modules.update(places)
    try:
        importlib.import_module("torchvision")
    except ImportError:
        # A version that wants more of them gets them.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        for name in places:
            del sys.modules[name]


def _import_torch() -> None:
    """Imports torch with an empty module in place of its meta registrations, unless it has been imported before."""
    if "torch" in sys.modules:
        return
    sys.modules[_FOR_SHAPES_ALONE] = ModuleType(_FOR_SHAPES_ALONE)
    try:
        torch = importlib.import_module("torch")
    finally:
        del sys.modules[_FOR_SHAPES_ALONE]
    vars(torch).pop(_FOR_SHAPES_ALONE.rpartition(".")[2], None)
