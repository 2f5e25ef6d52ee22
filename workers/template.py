"""The template process: imports everything that a worker needs, once, and forks the workers.

It is forked from the supervisor before that has threads, SQLite or ZeroMQ sockets, or is executed
(`supervisor.template` says when). The template applies gevent's patches, imports the module of each
role (`pylon.roles`), and freezes the garbage collector. Then it waits for requests
(`pylon.bus.fork_requests`), and forks twice for each. The process in between ends at once, so the
kernel makes the supervisor, a subreaper, the parent of the worker. So the supervisor reaps its
workers, and no worker depends on the life of the template.

A new worker first waits on a pipe, the *gate*. The template opens the gate after it has sent the
pid to the supervisor. So no worker runs that the supervisor does not know.

Invariants: the template opens no bus socket, database or listener, has one thread and no event loop
of gevent, and keeps no descriptor of a request. A worker has the descriptors 0 to 2 and its
listener only, if it has one. The template dies with the supervisor (`parent_death`). CPython seeds
`random` again after a fork; a worker makes its own ids, tokens and ZeroMQ contexts.

PERF: imports take 0.6 s, a fork 0.01 s. Figures of memory are in `bench/processes.py`. Called by
`pylon.cli.start` in a fork, or run as ``python -m workers.template FD SUPERVISOR_PID`` by
`supervisor.template`.
"""

# ruff: noqa: E402  (gevent patches the standard library before any other import)
from __future__ import annotations

from pylon.runtime.gevent_patch import patch, patch_queues

patch()

import _socket
import errno
import importlib
import mimetypes
import os
import posix
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from pylon import log, metrics
from pylon.bus import fork_requests
from pylon.bus.child import ChildEnv
from pylon.bus.fork_requests import ForkReply, ForkRequest, unpack_environ
from pylon.bus.runtime import Runtime
from pylon.roles import ROLE_BY_NAME, ROLES
from pylon.runtime import fd_budget
from pylon.runtime.interpreter import freeze_template
from pylon.runtime.parent_death import die_with_parent
from pylon.runtime.title import find_title, set_title
from workers.boot import preload_app, preloaded_config

_PID_BYTES: Final = 8
_OPEN_GATE: Final = b"1"
# Modules that workers import while they serve; the roles' modules do not import them at once.
_LATE_MODULES: Final = (
    "asyncio", "gevent.libev.corecext", "gevent.queue", "gevent.resolver.thread", "gevent.signal",
    "gevent.subprocess", "gevent.threadpool", "loro", "prometheus_client", "pylon.openapi.document",
    "pylon.storage.sqlite.backend", "pylon.storage.sqlite.pool", "ssl", "zmq.green",
)

# The environment and the runtime folder of the last request.
_adopted: tuple[bytes, str] | None = None


def import_all() -> None:
    """Import what workers need. Makes no event loop, thread, ZeroMQ context or descriptor."""
    for module in (*_LATE_MODULES, *(role.module for role in ROLES)):
        importlib.import_module(module)
    patch_queues()
    _fill_caches()


def _fill_caches() -> None:
    """Run once the code that each worker runs at its start and in each heartbeat.

    PERF: the first run fills caches of CPython in memory pages that each worker would copy: 0.3 MiB
    for falcon's app, 0.4 MiB for a snapshot of the metrics.
    """
    # PERF: each falcon app copies the table of media types for its static routes. Pylon has none,
    # and with the 1,500 types of a system the copy took 25 ms and 1.3 MiB in each HTTP worker.
    # With `inited` set, falcon copies only the table that Python has built in. A call such as
    # `mimetypes.guess_type` still loads the types of the system.
    mimetypes.inited = True
    importlib.import_module("falcon").App()
    metrics.return_changes(metrics.take_changes())
    find_title()


def serve(
    sock: _socket.socket, supervisor_pid: int
) -> tuple[ForkRequest, list[int]] | None:
    """Fork a worker for each request, until the supervisor closes the socket.

    Returns:
        In a worker: its request and descriptors. In the template, at its end: None.
    """
    fork_requests.send_reply(sock, ForkReply(os.getpid()))
    os.kill(supervisor_pid, signal.SIGCHLD)  # wakes the supervisor's loop, which reads the reply
    while (found := fork_requests.receive_request(sock)) is not None:
        request, fds = found
        adopt_settings(request)
        try:
            forked = _fork()
        except OSError as ex:  # no memory, or too many processes
            _close(fds)
            fork_requests.send_reply(sock, ForkReply(0, ex.strerror or str(ex)))
            continue
        if forked is None:
            sock.close()
            return request, fds
        pid, gate = forked
        _close(fds)
        fork_requests.send_reply(sock, ForkReply(pid))
        with suppress(BrokenPipeError):  # the worker was killed meanwhile
            os.write(gate, _OPEN_GATE)
        posix.close(gate)
    return None


def adopt_settings(request: ForkRequest) -> None:
    """Take over the environment of a request, and load the app with it, once for all workers.

    PERF: each worker copied 0.6 MiB of pages when it exchanged the environment itself.
    """
    global _adopted
    key = (request.environ, request.runtime_dir)
    if _adopted == key and preloaded_config() is not None:
        return
    environ = unpack_environ(request.environ)
    os.environ.clear()
    os.environ.update(environ)
    # Not at the top: `import_all` imports it, when the log can tell what fails.
    from workers.http.process import prepare

    runtime = Runtime(Path(request.runtime_dir))
    app = preload_app(environ, runtime)
    if app is not None:
        prepare(app, runtime)
        freeze_template()
    _adopted = key


def _fork() -> tuple[int, int] | None:
    """Fork a process whose parent is the supervisor.

    Returns:
        In the template: the pid of the new process, and the descriptor of its gate.
        In the new process, when its gate is open: None.

    Raises:
        OSError: no process could be forked.
    """
    pid_read, pid_write = os.pipe()
    gate_read, gate_write = os.pipe()
    between = posix.fork()
    if between == 0:
        try:
            worker = posix.fork()
        except OSError:
            os._exit(1)  # the template reads no pid
        if worker:
            os.write(pid_write, worker.to_bytes(_PID_BYTES, "big"))
            os._exit(0)
        posix.close(gate_write)
        if os.read(gate_read, 1) != _OPEN_GATE:
            os._exit(1)  # the template has died, and the supervisor does not know this process
        _close((pid_read, pid_write, gate_read))
        return None
    _close((pid_write, gate_read))
    posix.waitpid(between, 0)
    pid = int.from_bytes(os.read(pid_read, _PID_BYTES), "big")
    posix.close(pid_read)
    if not pid:
        posix.close(gate_write)
        raise OSError(errno.EAGAIN, "the second fork has failed")
    return pid, gate_write


# `posix.close` everywhere here: where an event loop exists, gevent's `os.close` waits for its next
# turn. No loop runs here, and a gate that stays open keeps its worker waiting for ever.
def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        posix.close(fd)


def set_up_worker(request: ForkRequest, fds: list[int], supervisor_pid: int) -> None:
    """Give this fork the state of an executed process: group, environment, folder, umask, title.

    Raises:
        SystemExit: the supervisor has ended.
        OSError: the working directory was removed.
    """
    die_with_parent(supervisor_pid)
    os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the supervisor only, which drains
    child = ChildEnv(
        request.role, request.worker, Path(request.runtime_dir), fds[0] if fds else None,
        supervisor_pid,
    )
    os.environ.update(child.to_environ())
    os.chdir(request.cwd)
    os.umask(request.umask)
    set_title(f"workers.{request.role}")


def run_role(role: str) -> None:
    """Run a worker of the role until its end."""
    importlib.import_module(ROLE_BY_NAME[role].module).run()


def main(run: Callable[[str], None] = run_role) -> None:
    """Be an executed template. Arguments and errors as for `serve_forks`."""
    serve_forks(int(sys.argv[1]), int(sys.argv[2]), run)


def serve_forks(
    fd: int, supervisor_pid: int, run: Callable[[str], None] = run_role
) -> None:
    """Import, freeze and serve. In a forked worker: run its role and end the process.

    Args:
        fd: the descriptor of a socket, connected with the supervisor.
        run: runs a worker of the role with the given name.

    Raises:
        SystemExit: the supervisor has ended.
    """
    die_with_parent(supervisor_pid)
    log.configure("json", "info", "template", "")
    fd_budget.raise_limit()
    os.set_inheritable(fd, False)
    set_title("workers.template")
    import_all()
    freeze_template()
    sock = _socket.socket(fileno=fd)
    found = serve(sock, supervisor_pid)
    if found is not None:
        set_up_worker(*found, supervisor_pid)
        _exit_at_once(_run_to_exit_code(run, found[0].role))
    sock.close()


def _run_to_exit_code(run: Callable[[str], None], role: str) -> int:
    """Run a worker until its end, and return its exit code."""
    try:
        run(role)
    except SystemExit as ex:
        return ex.code if isinstance(ex.code, int) else int(ex.code is not None)
    except BaseException as ex:  # noqa: BLE001  (as the interpreter does)
        sys.excepthook(type(ex), ex, ex.__traceback__)
        return 1
    return 0


def _exit_at_once(code: int) -> NoReturn:
    """End this process without the interpreter's clean-up.

    PERF: the clean-up would free all imported modules, and so copy each page that they are in.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
