"""Restart: executes the program on disk in place of this one, and takes over what it left.

The process keeps its pid and its listening descriptors, whose numbers travel in the environment
(`supervisor.sockets`), as the number of the next generation does. `supervisor.generations` has had
the new program check itself and its settings before.

Invariant: the variables are removed when they are read, so no child inherits them. Log event:
restart.executed. Called by `supervisor.main`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import MutableMapping
from typing import Final, NoReturn

from pylon import log
from supervisor.sockets import Listeners, pack_listeners, unpack_listeners

_KEPT: Final = "PYLON_KEPT_LISTENERS"
GENERATION: Final = "PYLON_GENERATION"  # of the children, too

_log = log.get_logger("supervisor")


def take_over(environ: MutableMapping[str, str]) -> tuple[Listeners | None, int]:
    """Return what the program left that has executed this one: its listeners, and the number of
    the next generation."""
    packed, number = environ.pop(_KEPT, None), environ.pop(GENERATION, "1")
    if packed is None:
        return None, 1
    return unpack_listeners(packed), int(number)


def execute_anew(listeners: Listeners, generation: int) -> NoReturn:
    """Execute the program on disk in place of this one, with the same arguments."""
    # Until the next program handles it: a SIGHUP would end a process that does not.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    environ = {**os.environ, _KEPT: pack_listeners(listeners), GENERATION: str(generation)}
    _log.info("restart.executed", generation=generation)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
