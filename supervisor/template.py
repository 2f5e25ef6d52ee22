"""The supervisor's end of the template process (`workers.template`), which forks the workers.

`Template` starts the process, asks it for workers, and starts another one when it has died.
`pylonctl start` forks the first template from itself, when it has imported what the supervisor
needs and has no thread, SQLite connection or ZeroMQ context yet. So both processes share the memory
of these imports (6 MiB), and import them once: a start takes a third less CPU time. A supervisor
cannot fork once it has threads, so it executes each later template. An executed template imports
the same modules itself.

The workers are children of the supervisor: the template forks twice, and this process is a
subreaper (PR_SET_CHILD_SUBREAPER), so orphans below it become its children. The end of the
template therefore concerns no living worker.

Invariants: one template at a time; only the main thread calls these methods (the kernel ties the
template's life to the thread that has started it). A template that ends before it was ever ready
cannot import Pylon, which no restart mends: `is_broken` then ends the supervisor.
Made by `supervisor.main`, used by `supervisor.children`.
"""

from __future__ import annotations

import _socket
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import pylon
from pylon import limits, log
from pylon.bus import fork_requests
from pylon.bus.fork_requests import ForkReply, ForkRequest
from pylon.clock import Clock, RandomSource, SystemClock, SystemRandom
from pylon.runtime.interpreter import freeze_template

Run = Callable[[int, int], None]

_PR_SET_CHILD_SUBREAPER: Final = 36
_FORK_S: Final = 5.0  # a fork takes 0.01 s; a template that takes longer is replaced

_log = log.get_logger("template")


class ForkFailed(Exception):
    """The template is gone, takes too long, or could not fork."""


class Fork:
    """A child that was forked, with the attributes of `subprocess.Popen` that `Template` uses."""

    __slots__ = ("pid", "returncode")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None  # once it was reaped

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Reap the process, unless that is done. Return its exit code."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class Template:
    """The present template process, and the start of its successors."""

    def __init__(self, clock: Clock, random: RandomSource) -> None:
        """Make this process the parent of the orphans below it.

        Raises:
            OSError: the kernel refused.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._clock = clock
        self._random = random
        self._process: subprocess.Popen[bytes] | Fork | None = None
        self._sock: _socket.socket | None = None
        self._poll = select.poll()
        self._is_ready = False
        self._was_ready = False
        self._failures = 0  # lives in a row that ended early
        self._started_s = 0.0
        self.start_at_s = 0.0  # when to execute the next one, where none runs

    @property
    def pid(self) -> int | None:
        """The process that runs, if any."""
        return None if self._process is None else self._process.pid

    @property
    def is_broken(self) -> bool:
        """Return whether no template was ever ready and the last one has ended.

        Then Pylon cannot be imported.
        """
        return self._process is None and self._failures > 0 and not self._was_ready

    def start(self) -> None:
        """Execute a template process, which is ready after some 0.6 s of imports."""
        ours, theirs = socket.socketpair()
        with theirs:
            # In a process group of its own: Ctrl-C in a terminal is for the supervisor alone.
            self._process = subprocess.Popen(
                [*template_command(), str(theirs.fileno()), str(os.getpid())],
                env={**os.environ, "PYTHONPATH": _python_path(os.environ.get("PYTHONPATH", ""))},
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, process_group=0,
            )
        self._begin(ours)

    def start_fork(self, run: Run) -> None:
        """Fork a template process from this one, which must have one thread.

        Args:
            run: what the new process does (`fork_template`).
        """
        ours, theirs = socket.socketpair()
        with theirs:
            supervisor_pid = os.getpid()
            freeze_template()
            pid = os.fork()
            if pid == 0:
                _be_template(run, theirs.fileno(), supervisor_pid)
        self._process = Fork(pid)
        self._begin(ours)

    def _begin(self, ours: socket.socket) -> None:
        self._sock = _socket.socket(fileno=ours.detach())
        self._sock.settimeout(_FORK_S)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._started_s = self._clock.monotonic_s()

    def is_ready(self) -> bool:
        """Return whether it takes requests. It sends SIGCHLD when that becomes true."""
        if not self._is_ready and self._sock is not None and self._poll.poll(0):
            try:
                fork_requests.receive_reply(self._sock)
            except (EOFError, OSError):  # it is ending, and will be reaped
                return False
            self._is_ready = self._was_ready = True
            _log.info("template.ready", pid=self.pid,
                      took_s=round(self._clock.monotonic_s() - self._started_s, 3))
        return self._is_ready

    def fork(self, request: ForkRequest, listen_fd: int | None) -> int:
        """Fork a worker, and return its pid.

        Args:
            listen_fd: the descriptor of its listening socket; None for a role without a port.

        Raises:
            ForkFailed: no worker was forked. A template that did not answer was killed.
        """
        if self._sock is None:
            raise ForkFailed("the template has ended")
        try:
            fds = [] if listen_fd is None else [listen_fd]
            fork_requests.send_request(self._sock, request, fds)
            reply = fork_requests.receive_reply(self._sock)
        except (EOFError, OSError) as ex:
            reply = self._last_reply() or ForkReply(0, f"the template did not answer: {ex}")
        if not reply.pid:
            raise ForkFailed(reply.error)
        return reply.pid

    def _last_reply(self) -> ForkReply | None:
        """Kill the template, and return the reply that it sent before its end, if any.

        Such a reply names a worker that lives.
        """
        sock, process = self._sock, self._process
        if sock is None or process is None:
            return None
        process.kill()
        code = process.wait()
        try:
            reply = fork_requests.receive_reply(sock)
        except (EOFError, OSError):
            reply = None
        self._note_end(code)
        return reply

    def reaped(self, status: int) -> None:
        """Note that the process has ended, with its wait status."""
        self._note_end(os.waitstatus_to_exitcode(status))

    def _note_end(self, code: int) -> None:
        pid = self.pid
        if self._process is not None:
            self._process.returncode = code  # it has been reaped
        self._close()
        now_s = self._clock.monotonic_s()
        up_s = now_s - self._started_s
        self._failures = 1 if up_s >= limits.RESTART_RESET_S else self._failures + 1
        longest_s = min(
            limits.RESTART_DELAY_MAX_S, limits.RESTART_DELAY_FIRST_S * 2.0 ** (self._failures - 1)
        )
        delay_s = self._random.uniform(0.0, longest_s)
        self.start_at_s = now_s + delay_s
        _log.warning("template.died", pid=pid, exit=exit_text(code), up_s=round(up_s, 1),
                     restart_in_s=round(delay_s, 2), hint="workers that live are not concerned")

    def stop(self) -> None:
        """Kill the template, and wait for its end."""
        process = self._process
        self._close()
        if process is not None:
            process.kill()
            process.wait()

    def _close(self) -> None:
        self._process = None
        self._is_ready = False
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def start_template() -> Template:
    """Execute the first template process. Call it before this process has threads."""
    template = Template(SystemClock(), SystemRandom())
    template.start()
    return template


def fork_template(run: Run) -> Template:
    """Fork the first template process. Call it before this process has threads.

    Args:
        run: is called in the new process, with the descriptor of its socket and the supervisor's
            pid, and returns at its end (`workers.template.serve_forks`).
    """
    template = Template(SystemClock(), SystemRandom())
    template.start_fork(run)
    return template


def _be_template(run: Run, fd: int, supervisor_pid: int) -> NoReturn:
    """Give this fork the state of an executed process, run it, and end it."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        run(fd, supervisor_pid)
        code = 0
    except SystemExit as ex:
        code = ex.code if isinstance(ex.code, int) else int(ex.code is not None)
    except BaseException as ex:  # noqa: BLE001  (as the interpreter does)
        sys.excepthook(type(ex), ex, ex.__traceback__)
    finally:
        os._exit(code)


def exit_text(code: int) -> str:
    """Return an exit code as log lines show it; negative codes are signals."""
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def template_command() -> list[str]:
    """Return the command of the template, without its descriptor and the supervisor's pid."""
    # -P: Python must not import a folder named "workers" in the app's directory.
    return [sys.executable, "-P", "-m", "workers.template"]


def _python_path(inherited: str) -> str:
    """Return PYTHONPATH for the template, which needs it if Pylon runs from a source tree."""
    root = Path(pylon.__file__).resolve().parent.parent
    if root.name in ("site-packages", "dist-packages"):
        return inherited
    return os.pathsep.join([str(root), *([inherited] if inherited else [])])
