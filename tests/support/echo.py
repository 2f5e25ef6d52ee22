"""Serve the echo app of `tests.support.echo_server` in a process of its own, on a port of its
own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parents[2]


@contextmanager
def echo_server(
    workers: int = 1, **limits: float
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Serve the echo app under an arbiter until the block ends; give its port and process.

    Args:
        limits: values for names of `pylon.limits`.
    """
    more = [f"{name}={value}" for name, value in limits.items()]
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        fd = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.echo_server", str(fd), str(workers), *more],
            cwd=_ROOT, pass_fds=[fd], stderr=subprocess.PIPE,
        )
        port = listener.getsockname()[1]
    try:
        yield port, process
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
        sys.stderr.write(errors.decode(errors="replace"))
