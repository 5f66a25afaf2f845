"""What the C library does with memory that torch gives back between two batches: it keeps it for the next one."""

from __future__ import annotations

import ctypes
import sys

# mallopt(3), <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1024 * 1024
# The largest that glibc takes. What is larger, such as the pixels of a very large image, goes back to the system.
_LARGEST_BLOCK_BYTES = 32 * _MIB
# At the end of each arena. A batch of eight in profile tiny's detection needs more than one heap of 64 MiB.
_KEPT_BYTES = 64 * _MIB


def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB of freed memory in each of its arenas. Call it before threads start.

    glibc gives the end of an arena back to the system as soon as it is free, and the next batch gets it anew, page by
    page: about 3 000 page faults an image, a quarter of the time of a batch of eight in profile tiny's detection. Where
    the C library knows no such settings, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:
        return
    for parameter, value in (
        (_M_MMAP_THRESHOLD, _LARGEST_BLOCK_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_TOP_PAD, _KEPT_BYTES),
    ):
        mallopt(parameter, value)
