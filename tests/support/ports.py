"""Reserve TCP ports for servers that tests start, across all test processes of the machine.

A block is four ports in a row, one for each role. A process reserves a block by a lock on one
byte of a shared file; the kernel frees the lock when the process ends. So two workers of
pytest-xdist, two checkouts, or two users never start servers on the same ports.

Invariants: blocks lie below 32,768, where the kernel takes no ports for outgoing connections; a
process gets each block once. Bound: 5,500 blocks. Used by `tests.support.server` and by tests
that start a program on a port of its own.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

_FIRST_PORT: Final = 10_000
_BLOCK_PORTS: Final = 4
_BLOCKS: Final = 5_500
_FILE: Final = "pylon-test-ports.lock"

_taken_blocks: set[int] = set()  # by this process: its own locks do not hold it up


def reserve_base_port() -> int:
    """Return a port P such that P to P+3 are free, and nobody else's until this process ends."""
    first = os.getpid() * 64  # neighbours begin apart, so that they try few locks of each other
    for block in ((first + step) % _BLOCKS for step in range(_BLOCKS)):
        if block not in _taken_blocks and _lock_block(block):
            _taken_blocks.add(block)
            base_port = _FIRST_PORT + block * _BLOCK_PORTS
            if _are_free(base_port):
                return base_port
    raise AssertionError("no four free ports in a row")


def _lock_block(block: int) -> bool:
    file = _lock_file(os.getpid())
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block)
    except OSError:
        return False
    return True


@cache
def _lock_file(_pid: int) -> int:
    """Return a descriptor that stays open: closing it would drop every lock of the process.

    All users of the machine share the file. Linux may refuse O_CREAT for a file of another user in
    /tmp (`fs.protected_regular`), so an existing file is opened without it.
    """
    path = Path(tempfile.gettempdir()) / _FILE
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with suppress(FileExistsError):  # another process was quicker
            made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            os.fchmod(made, 0o666)  # whatever the umask is
            os.close(made)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _are_free(base_port: int) -> bool:
    for port in range(base_port, base_port + _BLOCK_PORTS):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
