"""Write journal: a SQLite VFS that records what is done to the database's files.

`WriteJournal.states` makes the files as the death of the process would leave them after each
operation, `torn` in the middle of one, and `files_after_power_loss` as a loss of power might: what
was synced is there, and of the rest any sectors may be.

Invariants: an operation is recorded in the order in which SQLite asks for it, before it is done.
The shared memory of the WAL's index is not recorded, since no crash keeps it. Used by
`test_crash_points` and `test_failed_commits`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import apsw

SECTOR_BYTES: Final = 512
Files = dict[str, bytearray]  # by name

_VFS: Final = "journal"
_BASE: Final = apsw.vfs_names()[0]  # the usual one


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one file. `offset`: of a write; the new size of a truncation."""

    kind: Literal["write", "truncate", "sync", "delete"]
    file: str
    offset: int = 0
    data: bytes = b""


@dataclass(slots=True)
class WriteJournal:
    """The operations on the files of one folder, in order.

    Attributes:
        failure: what each write raises; None: it succeeds.
    """

    folder: Path
    operations: list[Operation] = field(default_factory=list)
    failure: apsw.Error | None = None

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)

    def states(self, begin: int) -> Iterator[tuple[int, Files]]:
        """Yield the files after each number of operations from `begin` on, and that number."""
        files: Files = {}
        for count, operation in enumerate(self.operations):
            if count >= begin:
                yield count, files
            _carry_out(files, operation)
        yield len(self.operations), files

    def torn(self, files: Files, count: int, size_bytes: int) -> Files:
        """Return the files after `count` operations and the first bytes of the next one."""
        following = self.operations[count]
        done = {name: bytearray(content) for name, content in files.items()}
        _carry_out(done, Operation(
            "write", following.file, following.offset, following.data[:size_bytes]
        ))
        return done

    def files_after_power_loss(self, count: int, rng: random.Random) -> Files:
        """Return the files after a loss of power behind `count` operations.

        What a later sync of its file covers is there; a sector of another write is there or not.
        """
        synced = {
            operation.file: number for number, operation in enumerate(self.operations[:count])
            if operation.kind == "sync"
        }
        files: Files = {}
        keeps = rng.random()
        for number, operation in enumerate(self.operations[:count]):
            if number < synced.get(operation.file, -1):
                _carry_out(files, operation)
            elif operation.kind == "write":
                for at in range(0, len(operation.data), SECTOR_BYTES):
                    if rng.random() < keeps:
                        _carry_out(files, Operation(
                            "write", operation.file, operation.offset + at,
                            operation.data[at:at + SECTOR_BYTES],
                        ))
            elif rng.random() < keeps:
                _carry_out(files, operation)
        return files


def _carry_out(files: Files, operation: Operation) -> None:
    if operation.kind == "delete":
        files.pop(operation.file, None)
        return
    content = files.setdefault(operation.file, bytearray())
    if operation.kind == "write":
        end = operation.offset + len(operation.data)
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        content[operation.offset:end] = operation.data
    elif operation.kind == "truncate":
        del content[operation.offset:]


class _JournalFile(apsw.VFSFile):
    """A file of the database, or its WAL."""

    def __init__(self, name: Any, flags: list[int], journal: WriteJournal) -> None:
        super().__init__(_BASE, name, flags)
        path = name if isinstance(name, str) else name.filename()
        self._name = Path(path).name
        self._journal = journal

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._journal.failure is not None:
            raise self._journal.failure
        self._journal.add(Operation("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._journal.add(Operation("truncate", self._name, size))
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._journal.add(Operation("sync", self._name))


class _JournalVfs(apsw.VFS):
    """The default VFS while a journal is kept."""

    def __init__(self, journal: WriteJournal) -> None:
        super().__init__(_VFS, _BASE, makedefault=True)
        self._journal = journal

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        path = name if isinstance(name, str | None) else name.filename()
        if path is None or Path(path).parent != self._journal.folder:
            return apsw.VFSFile(_BASE, name, flags)
        return _JournalFile(name, flags, self._journal)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        if Path(filename).parent == self._journal.folder:
            self._journal.add(Operation("delete", Path(filename).name))
        super().xDelete(filename, syncdir)
        if syncdir and Path(filename).parent == self._journal.folder:
            self._journal.add(Operation("sync", Path(filename).name))


@contextmanager
def recorded(folder: Path) -> Iterator[WriteJournal]:
    """Record the operations on the files of a folder, of databases that are opened meanwhile."""
    journal = WriteJournal(folder)
    vfs = _JournalVfs(journal)
    try:
        yield journal
    finally:
        vfs.unregister()


def put_files(folder: Path, files: Files) -> Path:
    """Make a folder that has these files, and no others."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
