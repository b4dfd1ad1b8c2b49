"""Keeps the memory of a batch for the next one, instead of asking the kernel for fresh pages each time.

What no batch uses is given back once in a while: what a long life leaves between its blocks would else stay for ever.
"""

from __future__ import annotations

import ctypes

# mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_NEVER = 2**31 - 1

TRIM_SECONDS = 60.0
"""How often to give memory back: the next batch then takes some 50 ms longer, a thousandth of that time."""


def keep_memory() -> bool:
    """Tells glibc never to give memory back, and to take large blocks from the heap like all others.

    By default each large tensor is mapped anew and every page of it is cleared by the kernel on first use: half of
    the time of a batch of 8 large frames. In exchange the process stays as large as it once was, until `trim_memory`.

    Returns:
        whether there was a glibc to tell.
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
