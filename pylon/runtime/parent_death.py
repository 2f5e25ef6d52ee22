"""The lifeline: a process that dies when its parent does.

Kept apart from `workers.boot`, because the arbiter of the HTTP workers needs it too and must
not import what opens greenlets, sockets of the bus or the store before it forks.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

EXIT_ORPHAN: Final = 1
_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies.

    Raises:
        SystemExit: the parent is not `parent_pid`: it died before the request was made.
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        raise SystemExit(EXIT_ORPHAN)
