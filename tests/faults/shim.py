"""The shim below the processes of a node: compiles `shim.c`, and sets what it does.

A node whose environment has `Shim.env` meets the faults that `Shim` sets, in all of its processes,
from the next system call on. Used by `node_faults`.
"""

from __future__ import annotations

import enum
import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_SOURCE: Final = Path(__file__).with_name("shim.c")
_CONTROL: Final = struct.Struct("qq")
_NS_PER_S: Final = 1_000_000_000


class Disk(enum.IntEnum):
    """What writes to the database's files meet."""

    SOUND = 0
    WRITE_FAILS = 1  # EIO
    FULL = 2  # ENOSPC
    SHORT_WRITES = 3  # half of each write
    SYNC_FAILS = 4  # EIO of fsync


class Shim:
    """The shim of one node.

    Attributes:
        env: the variables that load it.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler (cc) for the shim that makes faults (Debian: gcc)")
        library, control = folder / "shim.so", folder / "control"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library),
             str(_SOURCE), "-ldl"], check=True, timeout=60,
        )
        control.write_bytes(bytes(_CONTROL.size))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _CONTROL.size)
        self.env: Mapping[str, str] = {"LD_PRELOAD": str(library), "FAULT_CONTROL": str(control)}

    @contextmanager
    def clock_off_by(self, seconds: float) -> Iterator[None]:
        """Move the wall clock, and back at the end."""
        _CONTROL.pack_into(self._map, 0, int(seconds * _NS_PER_S), Disk.SOUND)
        try:
            yield
        finally:
            _CONTROL.pack_into(self._map, 0, 0, Disk.SOUND)

    @contextmanager
    def disk(self, disk: Disk) -> Iterator[None]:
        """Let the disk fail while the block runs."""
        _CONTROL.pack_into(self._map, 0, 0, disk)
        try:
            yield
        finally:
            _CONTROL.pack_into(self._map, 0, 0, Disk.SOUND)
