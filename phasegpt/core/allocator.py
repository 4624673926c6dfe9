"""The C library's allocator: memory that is freed is kept for the next step.

As glibc begins, it gives large tensors back to the system and takes them anew in every step, and
each page taken costs a fault: with GPT-2's vocabulary a quarter of a step on a CPU.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

# glibc: free memory at the top of the heap beyond which it goes back to the system, and the
# size from which a block is mapped by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _MAPPED = 2**31 - 1, 2**28  # bytes
_OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Ask glibc not to give freed blocks below 256 MiB back to the system; whether it was asked.

    Numbers do not change. The process stays as large as it has ever been, and that is larger than
    before: 1.6 in place of 1.2 GB with a small model of GPT-2's vocabulary. Nothing happens with
    another C library, and where the environment says how memory is to be allocated.
    """
    if sys.platform != "linux" or any(name.startswith(_OF_THE_USER) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # In this order: the other alone would have more blocks mapped, and given back, than before.
    return bool(mallopt(_MMAP_THRESHOLD, _MAPPED)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))
