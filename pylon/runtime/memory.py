"""Memory of large answers is kept for the next one instead of going back to the kernel.

glibc gives a block above 128 KiB back as soon as it is freed, and takes each page of the next
one by a fault: for an answer of 280 KiB, which SQLite makes by growing a text, that was 180
faults and 40 % of the time (measured; 1,020 against 590 us). With the thresholds below such
blocks come from the heap, of which up to `_TRIM_BYTES` stay when they are free.

The writer's process is another matter: a few large rows would leave it large for good, so that it
calls `give_back` after them.

`keep_freed` is called by `connect.open_reader`, `give_back` by the writer's thread; the effect is
on the whole process. With another C library nothing happens.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_TRIM_BYTES: Final = 8 * 1024 * 1024
_MMAP_BYTES: Final = 2 * 1024 * 1024


@cache
def keep_freed() -> None:
    """Set the thresholds, once in each process."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def give_back() -> None:
    """Return the free memory of this process to the kernel: after work on large rows."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
