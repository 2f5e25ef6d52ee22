"""The template process: imports everything that a worker needs, once, and forks the workers.

The supervisor executes it before it has threads, SQLite or ZeroMQ sockets. It is patched by
gevent, imports the module of each role (`pylon.roles`), freezes the collector, and then waits for
requests (`pylon.bus.fork_requests`). For each it forks twice: the process in between ends at once,
so that the supervisor, a subreaper, becomes the parent of the worker. The supervisor so reaps its
workers as if it had started them itself, and the end of the template does not concern them.

Invariants: this process opens no bus socket, database or listener, has one thread and no gevent
hub, and keeps no descriptor of a request. A worker has the descriptors 0 to 2 and its listener
only. It dies with the supervisor (`parent_death`). CPython seeds `random` again after a fork; ids,
tokens and contexts of ZeroMQ are made by the worker.

PERF: imports take 0.6 s, a fork 0.01 s. Figures of memory are in `bench/processes.py`. Run as
``python -m workers.template FD SUPERVISOR_PID`` by `supervisor.template`.
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
from pylon.roles import ROLE_BY_NAME, ROLES
from pylon.runtime import fd_budget
from pylon.runtime.interpreter import freeze_template
from pylon.runtime.parent_death import die_with_parent
from pylon.runtime.title import set_title
from workers.boot import prepare

_PID_BYTES: Final = 8
_GO: Final = b"1"
# Libraries that workers load while they serve, beside those that the roles' modules import.
_LATE: Final = (
    "asyncio", "gevent.libev.corecext", "gevent.queue", "gevent.resolver.thread", "gevent.signal",
    "gevent.subprocess", "gevent.threadpool", "loro", "prometheus_client", "pylon.openapi.document",
    "pylon.storage.sqlite.backend", "pylon.storage.sqlite.pool", "ssl", "zmq.green",
)


def import_all() -> None:
    """Import what workers need. Makes no hub, thread, context or descriptor."""
    for module in (*_LATE, *(role.module for role in ROLES)):
        importlib.import_module(module)
    patch_queues()
    _rehearse()


def _rehearse() -> None:
    """Run once what each worker runs at its start and in each heartbeat.

    PERF: the first run fills caches of types and of classes, in pages that each worker would copy:
    0.3 MiB for falcon's app, 0.4 MiB for a snapshot of the metrics.
    """
    # Each falcon app copies the table of media types, for static routes that Pylon has none of:
    # with the 1,500 types of the system that took 25 ms and 1.3 MiB in each HTTP worker. Code
    # that asks `mimetypes` for a type loads them all the same.
    mimetypes.inited = True
    importlib.import_module("falcon").App()
    metrics.return_changes(metrics.take_changes())


def serve(
    sock: _socket.socket, supervisor_pid: int
) -> tuple[ForkRequest, list[int]] | None:
    """Fork a worker for each request, until the supervisor closes the socket.

    Returns:
        In a worker: its request and descriptors. In the template, at its end: None.
    """
    fork_requests.send_reply(sock, ForkReply(os.getpid()))
    os.kill(supervisor_pid, signal.SIGCHLD)  # wakes its loop, which reads the reply
    while (found := fork_requests.receive_request(sock)) is not None:
        request, fds = found
        prepare(unpack_environ(request.environ), Path(request.runtime_dir))
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
        with suppress(BrokenPipeError):  # it was killed meanwhile
            os.write(gate, _GO)  # not before the supervisor knows the pid
        os.close(gate)
    return None


def _fork() -> tuple[int, int] | None:
    """Fork a process whose parent is the supervisor.

    Returns:
        In the template: the pid, and the descriptor by which the process is let go.
        In that process, when it is let go: None.

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
        os.close(gate_write)
        if os.read(gate_read, 1) != _GO:
            os._exit(1)  # the template has died, and the supervisor knows nothing of this process
        _close((pid_read, pid_write, gate_read))
        return None
    _close((pid_write, gate_read))
    posix.waitpid(between, 0)
    pid = int.from_bytes(os.read(pid_read, _PID_BYTES), "big")
    os.close(pid_read)
    if not pid:
        os.close(gate_write)
        raise OSError(errno.EAGAIN, "the second fork has failed")
    return pid, gate_write


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def become(request: ForkRequest, fds: list[int], supervisor_pid: int) -> None:
    """Make this fork what an executed process would be.

    Raises:
        SystemExit: the supervisor is gone.
        OSError: its working directory is gone.
    """
    die_with_parent(supervisor_pid)
    os.setpgid(0, 0)  # Ctrl-C in a terminal is for the supervisor, which drains
    child = ChildEnv(
        request.role, request.worker, Path(request.runtime_dir), fds[0], supervisor_pid
    )
    os.environ.clear()
    os.environ.update(unpack_environ(request.environ) | child.to_environ())
    os.chdir(request.cwd)
    os.umask(request.umask)
    set_title(f"workers.{request.role}")


def run_role(role: str) -> None:
    """Be a worker of the role until it ends."""
    importlib.import_module(ROLE_BY_NAME[role].module).run()


def main(run: Callable[[str], None] = run_role) -> None:
    """Import, freeze, serve; in a worker, run its role.

    Args:
        run: the life of a worker, given the name of its role.

    Raises:
        SystemExit: the supervisor is gone.
    """
    fd, supervisor_pid = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(supervisor_pid)
    log.configure("json", "info", "template", "")
    fd_budget.raise_limit()
    os.set_inheritable(fd, False)
    import_all()
    freeze_template()
    sock = _socket.socket(fileno=fd)
    found = serve(sock, supervisor_pid)
    if found is not None:
        become(*found, supervisor_pid)
        _leave(_live(run, found[0].role))


def _live(run: Callable[[str], None], role: str) -> int:
    """Be a worker until it ends; its exit code."""
    try:
        run(role)
    except SystemExit as ex:
        return ex.code if isinstance(ex.code, int) else int(ex.code is not None)
    except BaseException as ex:  # noqa: BLE001  (as the interpreter does)
        sys.excepthook(type(ex), ex, ex.__traceback__)
        return 1
    return 0


def _leave(code: int) -> NoReturn:
    """End this process at once.

    PERF: the interpreter would free what the template has imported, and copy each page for that.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
