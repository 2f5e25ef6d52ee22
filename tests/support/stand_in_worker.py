"""A stand-in for every role, for the supervisor's tests: heartbeats, signals, nothing else.

`STAND_IN_<ROLE>` says how it behaves: ``well`` (the default), ``dies`` at once, ``silent``
after its first heartbeat, ``stubborn`` (ignores SIGTERM), ``slow`` (takes 1 s to end), ``frozen``
(as an arbiter it beats once, and its workers go on). A file ``mood-<role>`` in the working
directory wins over the variable.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import gevent
import gevent.event

from pylon.bus.child import ChildEnv
from pylon.bus.file_beat import FileBeat
from pylon.bus.messages import WorkerStatus
from pylon.bus.runtime import Runtime
from pylon.bus.status import StatusSender
from pylon.clock import SystemClock
from pylon.metrics import MESSAGES_SENT, snapshot
from pylon.runtime.parent_death import die_with_parent

_SLOW_S = 1.0


def write_line(text: str) -> None:
    """Write a line to the log in one piece, since all workers share the log."""
    os.write(1, f"{text}\n".encode())


def main() -> int:
    child = ChildEnv.from_environ(os.environ)
    die_with_parent(child.supervisor_pid)
    mood = os.environ.get(f"STAND_IN_{child.role.upper()}", "well")
    if (chosen := Path(f"mood-{child.role}")).exists():
        mood = chosen.read_text()
    if mood == "dies":
        return 3
    ended = gevent.event.Event()
    listener = None if child.listen_fd is None else socket.socket(fileno=child.listen_fd)

    def stop_accepting() -> None:
        if listener is not None:
            listener.close()
        write_line(f"{child.role} stops accepting")

    gevent.signal_handler(signal.SIGUSR1, stop_accepting)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        if mood == "stubborn":
            signal.signal(number, signal.SIG_IGN)
        else:
            gevent.signal_handler(number, ended.set)
    if mood == "frozen":
        FileBeat(Runtime(child.runtime_dir).arbiter(child.worker), SystemClock())
    sender = StatusSender(Runtime(child.runtime_dir))
    MESSAGES_SENT.inc(5)
    while not ended.is_set():
        sender.send(WorkerStatus(child.role, child.worker, os.getpid(), True, 2, snapshot()))
        if mood == "silent":
            signal.pause()
        ended.wait(0.1)
    if mood == "slow":
        gevent.sleep(_SLOW_S)
    write_line(f"{child.role} ended")
    return 0

