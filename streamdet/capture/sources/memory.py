"""How much memory FFmpeg may take at once.

A camera, or who took its place, may begin a picture that never ends. FFmpeg would keep all of it, up to 2 GB for each
of several copies, before it gives up.
"""

from __future__ import annotations

import ctypes

# Four bytes for every pixel of the largest picture (see `picture`): more is no picture that could be used.
MAX_ALLOCATION_BYTES = 256 * 1024 * 1024


def limit_allocations(extension: str) -> bool:
    """Sets the limit for the copy of FFmpeg that a Python extension was built with, in this whole process.

    Args:
        extension: path of its shared library, which is loaded already.

    Returns:
        False where it has been built in a way that does not let anybody set it.
    """
    try:
        limit = ctypes.CDLL(extension).av_max_alloc
    except (OSError, AttributeError):
        return False
    limit.argtypes, limit.restype = (ctypes.c_size_t,), None
    limit(MAX_ALLOCATION_BYTES)
    return True
