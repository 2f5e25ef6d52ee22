"""Interpreter: how a process that has loaded everything collects garbage and shares time.

What lives as long as the process need not be traversed: a collection of the oldest generation
would stop all threads for tens of milliseconds. A thread waits for the interpreter after each
system call while another thread runs Python code, up to the switch interval; so that is short.

`freeze_template` is for the process that workers are forked from (`workers.template`), `freeze`
for each worker and the supervisor, once it has loaded what it serves with.
"""

from __future__ import annotations

import gc
import sys
from typing import Final

from pylon.runtime import memory

_THRESHOLDS: Final = (10_000, 20, 50)
_SWITCH_S: Final = 0.000_5


def freeze_template() -> None:
    """Take what the template has imported out of the collector's sight, before any fork.

    A collection would write to each object, and so copy its page in each worker.
    """
    gc.collect()
    memory.give_back()
    memory.fill_holes()
    gc.freeze()


def freeze() -> None:
    """Take everything loaded so far out of the collector's sight, collect less often, and have
    threads give way sooner. What loading has left behind goes back to the kernel."""
    gc.collect()
    memory.give_back()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    # PERF: beside a thread that runs Python code, a system call of the hub takes 0.02 ms in place
    # of 10 (p99). In the supervisor the flusher is such a thread for the writer.
    sys.setswitchinterval(_SWITCH_S)
