"""The heap of the process: what goes back to the kernel, and what forks do not write to.

`keep_freed`: memory of large answers is kept for the next one.
glibc gives a block above 128 KiB back as soon as it is freed, and takes each page of the next
one by a fault: for an answer of 280 KiB, which SQLite makes by growing a text, that was 180
faults and 40 % of the time (measured; 1,020 against 590 us). With the thresholds below such
blocks come from the heap, of which up to `_TRIM_BYTES` stay when they are free.

`keep_blocks`: the identity process hashes passwords in blocks of 19 MiB. Each took 4,900 page
faults, 7 of 40 ms (measured). With a higher threshold the block of one hash serves the next, until
the process is quiet and gives it back.

`give_back`: the writer's process is another matter. A few large rows would leave it large for
good, so it returns free memory after them.

`fill_holes`: a forked worker shares the heap of its template, page by page, until it writes to a
page. Its first allocations would go to the holes that imports have left, and so copy a page each:
the 62 KiB of a database connection copied 436 KiB. The template fills its holes before it forks
(0.7 MiB in 0.7 ms), so allocations of workers lie together behind the heap: 104 KiB instead.

`keep_freed` is called by `connect.open_reader`, `keep_blocks` by `workers.identity.hashing`,
`give_back` by the writer's thread and
`pylon.runtime.interpreter`, `fill_holes` by `interpreter.freeze_template`; each acts on the whole
process. With another C library nothing happens.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_HOLE_MAX_BYTES: Final = 64 * 1024
_HOLE_MIN_BYTES: Final = 24
_TRIM_BYTES: Final = 8 * 1024 * 1024
_MMAP_BYTES: Final = 2 * 1024 * 1024
_MMAP_MAX_BYTES: Final = 32 * 1024 * 1024  # glibc takes no more


@cache
def keep_freed() -> None:
    """Set the thresholds, once in each process."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def keep_blocks(size_bytes: int, count: int) -> None:
    """Keep freed blocks of a size, so many as may be in use at once. For this process only."""
    keep_freed()  # a later call of it changes nothing
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES + size_bytes * count)
        libc.mallopt(_M_MMAP_THRESHOLD, min(size_bytes + _MMAP_BYTES, _MMAP_MAX_BYTES))


def give_back() -> None:
    """Return the free memory of this process to the kernel: after work on large rows."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library."""

    _fields_ = tuple(
        (name, ctypes.c_size_t) for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    )


def fill_holes() -> None:
    """Allocate the free blocks between others for good, the large ones first."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return
    libc.mallinfo2.restype = _MallocInfo
    malloc, free, sbrk = libc.malloc, libc.free, libc.sbrk
    malloc.restype = sbrk.restype = ctypes.c_void_p
    malloc.argtypes, free.argtypes, sbrk.argtypes = (
        (ctypes.c_size_t,), (ctypes.c_void_p,), (ctypes.c_ssize_t,)
    )
    top = sbrk(0) - libc.mallinfo2().keepcost  # the free end of the heap, which may stay
    size_bytes = _HOLE_MAX_BYTES
    while size_bytes >= _HOLE_MIN_BYTES:
        block = malloc(size_bytes)
        if block is None or block >= top:
            free(block)
            size_bytes = size_bytes * 3 // 4 if size_bytes > 256 else size_bytes - 16
