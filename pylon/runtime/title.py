"""The title of a forked worker: what `ps` and ``/proc/PID/cmdline`` show.

A fork has the arguments of its template. The kernel shows the memory from `arg_start` to `arg_end`
(``/proc/self/stat``), which belongs to the process, so `set_title` writes there. The new last
argument must be no longer than the old ones together; a longer one is cut.

Called by `workers.template`. On a system without that file nothing happens.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Final

_ARG_START: Final = 48  # field numbers of proc(5)
_ARG_END: Final = 49


@cache
def find_title() -> tuple[int, int, bytes] | None:
    """Return the address of the arguments, their length, and those that all titles begin with.

    Returns None where a title cannot be set. The template calls it for all its forks.
    """
    try:
        text = Path("/proc/self/stat").read_text()
        shown = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # from the third one on
    start, end = int(fields[_ARG_START - 3]), int(fields[_ARG_END - 3])
    if not start:
        return None
    kept = shown[: shown.index(b"-m")] if b"-m" in shown else shown[:1]
    return start, end - start, b"\0".join([*kept, b"-m", b""])


def set_title(module: str) -> None:
    """Show this process as ``python -P -m MODULE``, as if it had been executed."""
    sys.argv[:] = [module]
    if (found := find_title()) is not None:
        start, length_bytes, kept = found
        title = (kept + module.encode())[: length_bytes - 1]
        ctypes.memmove(start, title.ljust(length_bytes, b"\0"), length_bytes)
