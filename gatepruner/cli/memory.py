"""How memory is managed in the process of a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# Parameters of glibc's mallopt (https://man7.org/linux/man-pages/man3/mallopt.3.html), and the
# variables that set them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
TUNABLES = ("glibc.malloc.trim_threshold", "glibc.malloc.mmap_threshold")
LARGEST_KEPT = 2**30  # bytes
MOST_FREE = 2**31 - 1  # bytes; the greatest value that mallopt takes
LARGEST_KEPT_BEFORE = 2**25  # bytes; glibc before 2.35 refuses a greater threshold


def keep_pages(environment: Mapping[str, str] = os.environ) -> bool:
    """Have glibc keep the memory that this process frees, for its next activations.

    By default glibc returns every large block to the system when it is freed and takes a new one
    for the next layer, whose pages the kernel has to clear again.

    Args:
        environment: nothing changes if it has one of the variables that say how glibc does this.

    Returns:
        Whether anything was changed: not where there is no glibc.
    """
    tuned = any(name in environment.get("GLIBC_TUNABLES", "") for name in TUNABLES)
    if sys.platform != "linux" or tuned or any(name in environment for name in VARIABLES):
        return False
    import ctypes

    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    library.mallopt(TRIM_THRESHOLD, MOST_FREE)
    return any(
        library.mallopt(MMAP_THRESHOLD, size) for size in (LARGEST_KEPT, LARGEST_KEPT_BEFORE)
    )
