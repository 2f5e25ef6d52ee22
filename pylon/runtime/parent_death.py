"""The parent's death: a process asks the kernel to end it when its parent ends (prctl(2)).

The kernel forgets the request at a fork, and repeats it for each parent that the process gets. So
a worker makes it when the supervisor has become its parent.

Called by `workers.template`, `workers.boot` and `pylon.cli.dev`.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

EXIT_ORPHAN: Final = 1
_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies.

    Raises:
        SystemExit: the parent is not `parent_pid`: it died before the request was made.
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        raise SystemExit(EXIT_ORPHAN)
