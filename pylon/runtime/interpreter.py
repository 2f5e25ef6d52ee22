"""Interpreter: sets the garbage collector and the switch interval of a process (CPython).

Modules and the app live as long as the process, so the collector need not traverse them: a full
collection would stop all threads for tens of milliseconds. `gc.freeze` excludes these objects.

While one thread runs Python code, another thread waits for the interpreter lock after each system
call, for up to the switch interval. So `freeze` makes that interval short.

`freeze_template` is for the template process, before it forks (`workers.template`, `workers.boot`).
`freeze` is for each worker and the supervisor, after it has loaded its modules and the app.
"""

from __future__ import annotations

import gc
import sys
from typing import Final

from pylon.runtime import memory

_THRESHOLDS: Final = (10_000, 20, 50)
_SWITCH_S: Final = 0.000_5


def freeze_template() -> None:
    """Exclude all objects of the template from garbage collection, before any fork.

    A collection would write to each object, and so copy its memory page in each worker.
    """
    gc.collect()
    # PERF: the cache of attribute look-ups is full after the imports, so each look-up of a worker
    # would write to two names: the one that leaves the cache and the one that enters. Empty, it
    # saves 0.9 MiB in each worker.
    sys._clear_type_cache()
    memory.give_back()
    memory.fill_holes()
    gc.freeze()


def freeze() -> None:
    """Exclude all present objects from collection, collect less often, and switch threads sooner.

    The free memory that loading has left goes back to the kernel.
    """
    gc.collect()
    memory.give_back()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    # PERF: beside a thread that runs Python code, a system call of the hub takes 0.02 ms in place
    # of 10 (p99). In the supervisor the flusher is such a thread for the writer.
    sys.setswitchinterval(_SWITCH_S)
