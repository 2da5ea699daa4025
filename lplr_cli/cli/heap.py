"""Memory that was given back is taken again at once: how much of it the C library keeps for the process of a command.

By default glibc returns what lies free at the end of its heap once that is a few times the largest block so far. Bounds
over balls make and free some dozens of activations a layer: they would be returned and fetched anew for each ball, page
by page, which took a tenth of the certificate of a path at width 256.
"""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt (malloc.h) and their bytes: the largest block that comes from the heap (no more is allowed), and
# what may lie free at its end.
_MMAP_THRESHOLD, _LARGEST_BLOCK = -3, 32 << 20
_TRIM_THRESHOLD, _FREE = -1, 128 << 20
# Whoever sets these has decided.
_SET_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep up to 128 MiB of what is freed; whether this C library does, and nobody has said otherwise.

    For a process of one's own: it holds for all that runs in it, and cannot be taken back.
    """
    if any(name in os.environ for name in _SET_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Either alone is worse than none: it ends the growth of the other with the blocks that are used.
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_TRIM_THRESHOLD, _FREE))
