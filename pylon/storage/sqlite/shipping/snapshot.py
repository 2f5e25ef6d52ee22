"""Snapshot: copies the database of a read transaction into a bundle.

The process of the server copies a small database itself. For a large one it starts another process
(`main`), because its threads and the writer would wait for each other: on a machine without a free
core a write waited up to 560 ms beside a copy of 500 MB. The transaction stays open meanwhile. So
SQLite writes back no frame behind it, and the copy consists of two files:

- the database file, in which pages may be torn that a checkpoint is writing;
- the frames of the WAL up to the transaction, which have each of these pages. SQLite recovers them
  in the copy. If the WAL has begun anew, the file has all of them, and the copy needs no frame.

The server and the process exchange lines of JSON: a request, then `copied` once the transaction may
end, then the report or an error. The kernel ends the process with its server.

Bound: limits.SNAPSHOT_PROCESS_BYTES. Called by `capture`.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw
import msgspec

from pylon import limits
from pylon.clock import Clock, SystemClock
from pylon.data_dir import sync_path
from pylon.disk_errors import describe_os_error
from pylon.errors import BackupInvalid, PylonError
from pylon.runtime.parent_death import die_with_parent
from pylon.storage.backups import BackupReport, Progress
from pylon.storage.bundle.contents import Facts
from pylon.storage.bundle.create import create_bundle
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.backup.create import copy_connection
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.shipping.wal_file import HEADER_BYTES, read_header, wal_path

_LOOK_S: Final = 0.1
_PIECE_BYTES: Final = 16 * 1024 * 1024  # written back one after another, see `backup.create`
_NICE: Final = 5
_COMMAND: Final = (sys.executable, "-P", "-m", "pylon.storage.sqlite.shipping.snapshot")


class SnapshotRequest(msgspec.Struct, frozen=True):
    """The bundle to make. `frames`: of the WAL with the salts `salts`, up to the transaction."""

    database: str
    frames: int
    salts: str
    target: str
    manifest: str | None
    key_file: str | None
    parent_pid: int = 0


class _Line(msgspec.Struct, omit_defaults=True):
    """A message of the process."""

    copied: bool = False
    report: BackupReport | None = None
    error: str = ""


def write_snapshot(
    source: apsw.Connection, request: SnapshotRequest, clock: Clock, on_progress: Progress | None
) -> BackupReport:
    """Write the bundle of the read transaction that `source` has begun, and end the transaction.

    Args:
        on_progress: called now and then; the copy ends with what it raises.

    Raises:
        BackupInvalid: the copy fails, or does not pass the check.
        PylonError, OSError: nothing half made stays in `request.target`.
        apsw.Error
    """
    if Path(request.database).stat().st_size >= limits.SNAPSHOT_PROCESS_BYTES:
        return _write_elsewhere(source, request, on_progress)

    def copy_data(folder: Path) -> Facts:
        copy_connection(source, folder / bundle.DATABASE, on_progress)
        source.execute("ROLLBACK")
        return bundle.check_copy(folder / bundle.DATABASE)

    return _create(request, clock, copy_data)


def _create(
    request: SnapshotRequest, clock: Clock, copy_data: Callable[[Path], Facts]
) -> BackupReport:
    manifest = None if request.manifest is None else Path(request.manifest)
    key_file = None if request.key_file is None else Path(request.key_file)
    return create_bundle(Path(request.target), manifest, clock, copy_data, key_file)


# --- In the server --------------------------------------------------------------------------


def _write_elsewhere(
    source: apsw.Connection, request: SnapshotRequest, on_progress: Progress | None
) -> BackupReport:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("PYLON_")}
    environ["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
    process = subprocess.Popen(  # nosec B603 # our own module
        _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    )
    assert process.stdin is not None and process.stdout is not None
    request = msgspec.structs.replace(request, parent_pid=os.getpid())
    try:
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
        return _follow(process.stdout.fileno(), source, on_progress)
    except BrokenPipeError:
        raise BackupInvalid("the process that copies the database did not start") from None
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _follow(fd: int, source: apsw.Connection, on_progress: Progress | None) -> BackupReport:
    received = b""
    while True:
        if on_progress is not None:
            on_progress(0, 0)
        if not select.select([fd], [], [], _LOOK_S)[0]:
            continue
        chunk = os.read(fd, 65_536)
        if not chunk:
            raise BackupInvalid("the process that copies the database has died")
        *lines, received = (received + chunk).split(b"\n")
        for raw in lines:
            line = msgspec.json.decode(raw, type=_Line)
            if line.copied:
                source.execute("ROLLBACK")
            elif line.report is not None:
                return line.report
            else:
                raise BackupInvalid(line.error)


# --- In the process -------------------------------------------------------------------------


def main() -> int:
    """Read a request from stdin, make the bundle, and write the report to stdout."""
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=SnapshotRequest)
    die_with_parent(request.parent_pid)
    os.nice(_NICE)

    def copy_data(folder: Path) -> Facts:
        copy_files(request, folder / bundle.DATABASE)
        _say(_Line(copied=True))
        recover(folder / bundle.DATABASE)
        return bundle.check_copy(folder / bundle.DATABASE)

    try:
        report = _create(request, SystemClock(), copy_data)
    except apsw.Error as ex:
        _say(_Line(error=f"{request.database} cannot be copied: {error_text(ex)}"))
    except PylonError as ex:
        _say(_Line(error=ex.message))
    except OSError as ex:
        _say(_Line(error=describe_os_error(ex, request.target)))
    else:
        _say(_Line(report=report))
        return 0
    return 1


def _say(line: _Line) -> None:
    os.write(sys.stdout.fileno(), msgspec.json.encode(line) + b"\n")


def copy_files(request: SnapshotRequest, target: Path) -> None:
    """Copy the database file, and the frames of the WAL that belong to the transaction.

    Raises:
        OSError
    """
    _copy_bytes(Path(request.database), target, None)
    wal = wal_path(Path(request.database))
    header = read_header(wal) if request.frames else None
    if header is None or header.salts != request.salts:
        return  # all frames are in the file
    copied = wal_path(target)
    _copy_bytes(wal, copied, HEADER_BYTES + request.frames * header.frame_bytes)
    after = read_header(wal)
    if after is None or after.salts != request.salts:
        copied.unlink()  # it began anew meanwhile: then all frames were in the file before


def _copy_bytes(source: Path, target: Path, size_bytes: int | None) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        left = os.fstat(reader.fileno()).st_size if size_bytes is None else size_bytes
        while left and (sent := os.copy_file_range(
            reader.fileno(), writer.fileno(), min(left, _PIECE_BYTES)
        )):
            left -= sent
            os.fdatasync(writer.fileno())


def recover(target: Path) -> None:
    """Take the frames of the copied WAL into the copied file, which is a single file afterwards.

    Raises:
        apsw.Error
    """
    conn = apsw.Connection(os.fspath(target))
    try:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        conn.execute("PRAGMA journal_mode = DELETE").fetchall()
    finally:
        conn.close()
    sync_path(target)


if __name__ == "__main__":
    sys.exit(main())
