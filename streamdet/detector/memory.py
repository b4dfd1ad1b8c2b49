"""Keeps the memory of a batch for the next one, instead of asking the kernel for fresh pages each time."""

from __future__ import annotations

import ctypes

# mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Tells glibc never to give memory back, and to take large blocks from the heap like all others.

    By default each large tensor is mapped anew and every page of it is cleared by the kernel on first use: half of
    the time of a batch of 8 large frames. In exchange the process stays as large as it once was.

    Returns:
        whether there was a glibc to tell.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One heap: that of a thread of its own is limited to 64 MiB, and larger blocks would be mapped after all.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    return all(bool(mallopt(ctypes.c_int(key), ctypes.c_int(value))) for key, value in settings)
