"""The spool: the folder `<data path>.spool` with captured segments that wait for their upload.

`state.json` tells where the capture stands. A restart after a crash goes on from there, if the log
of the database still fits. A restart after a clean end goes on if the database file is the one that
the end left (`SpoolState.closed`).

Invariants: a segment is complete at its name (temporary name, rename) before the state counts it.
So a crash between both makes the same segment once more, with the same number. Nothing is synced:
after a loss of power a new generation begins, and `drop_torn` removes what the disk has lost. Only
the owner of the data may read the folder. A restore does not bring it back. Called by the capture
of a store and by `supervisor.shipper`, which deletes uploaded segments.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pylon.errors import BackupInvalid
from pylon.storage.shipping.names import SegmentName, is_generation, parse_segment
from pylon.storage.shipping.segment import read_segment

_STATE: Final = "state.json"
_FOLDER_MODE: Final = 0o700


class SpoolState(msgspec.Struct, frozen=True):
    """The state of the capture: the last captured frame of the log, and how to recognise it.

    `number`: of the next segment. `wal_number`: of the first segment of this life of the log.
    `salts`: of this life, in hex; "" before its first frame. `check`: the checksum of the last
    captured frame, in hex. `seq`, `at_ms`: of the last captured commit. `is_complete`: all of this
    life was captured while nobody could write, so the next one may have begun. `closed`: a
    fingerprint of the database file that a clean end has left; "" while the server runs. `boot_id`:
    of the machine, "" if the kernel does not tell. `broken`: why the chain has ended; "" while it
    goes on.
    """

    generation: str
    number: int = 1
    wal: int = 1
    wal_number: int = 1
    frame: int = 0
    salts: str = ""
    check: str = ""
    seq: int = 0
    at_ms: int = 0
    is_complete: bool = False
    closed: str = ""
    boot_id: str = ""
    broken: str = ""


@dataclass(frozen=True, slots=True)
class SpooledSegment:
    """A segment that waits."""

    generation: str
    name: SegmentName
    path: Path
    size_bytes: int


class Spool:
    """The folder. One capture and one shipper use it, in the supervisor's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Make the folder, and remove temporary files of a killed server.

        Raises:
            OSError
        """
        self.folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def read_state(self) -> SpoolState | None:
        """Return the state; None if there is none, or if it cannot be read."""
        try:
            return msgspec.json.decode((self.folder / _STATE).read_bytes(), type=SpoolState)
        except (OSError, msgspec.MsgspecError):
            return None

    def write_state(self, state: SpoolState) -> None:
        """Replace the state.

        Raises:
            OSError
        """
        path = self.folder / _STATE
        copy = path.with_name(f".tmp-{_STATE}")
        copy.write_bytes(msgspec.json.encode(state) + b"\n")
        copy.rename(path)

    def put(self, generation: str, name: SegmentName, data: bytes) -> None:
        """Add a segment, in place of one with the same number.

        Raises:
            OSError
        """
        folder = self.folder / generation
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        for path in folder.glob(f"{name.number:010d}-*"):
            path.unlink()
        self._write(folder / str(name), data)

    def list_segments(self) -> list[SpooledSegment]:
        """Return the segments that wait, oldest first.

        Raises:
            OSError
        """
        found: list[SpooledSegment] = []
        for folder in sorted(self.folder.iterdir()):
            if not is_generation(folder.name):
                continue
            for path in sorted(folder.iterdir()):
                name = parse_segment(path.name)
                if name is not None:
                    found.append(
                        SpooledSegment(folder.name, name, path, path.stat().st_size)
                    )
        return found

    def remove(self, segment: SpooledSegment) -> None:
        """Remove an uploaded segment.

        Raises:
            OSError
        """
        segment.path.unlink(missing_ok=True)

    def drop_torn(self) -> int:
        """Remove segments that are damaged, and those after them in their generation. Return how
        many were removed.

        Raises:
            OSError
        """
        torn: set[str] = set()
        dropped = 0
        for each in self.list_segments():
            if each.generation not in torn:
                try:
                    read_segment(each.path, str(each.path))
                    continue
                except BackupInvalid:
                    torn.add(each.generation)
            self.remove(each)
            dropped += 1
        return dropped

    def _write(self, path: Path, data: bytes) -> None:
        # PERF: without fsync. It kept the journal of the file system busy once in a second, for
        # which commits waited up to 190 ms on a busy disk.
        copy = path.with_name(f".tmp-{path.name[:40]}")
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        copy.rename(path)


def spool_folder(data_path: Path) -> Path:
    """Return the spool of the store with this `Backend.data_path`."""
    return data_path.with_name(data_path.name + ".spool")
