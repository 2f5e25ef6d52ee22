"""Deep check of a SQLite bundle: restores it into a scratch place as a server would get it.

Invariant: the bundle is only read, and the scratch place is removed. Called by `manager`, for
`pylonctl backup verify --deep` and `pylonctl backup drill`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import apsw

from pylon.clock import Clock
from pylon.errors import BackupInvalid
from pylon.private_folders import collect_dead_folders, make_private_folder, remove_private_folder
from pylon.storage.backups import VerifyReport
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.backup.restore import restore_backup
from pylon.storage.sqlite.backup.verify import verify_backup
from pylon.storage.sqlite.error_text import error_text

_PREFIX: Final = "pylon-verify-"
_PATTERNS: Final = ("*",)
_OWN_TABLES: Final = frozenset({"_pylon_epochs", "_pylon_meta"})  # a restore writes to these


def verify_deeply(source: Path, clock: Clock) -> VerifyReport:
    """Check the bundle, restore it, check the restored database, and compare its counts and seq.

    Raises:
        BackupInvalid: the text says what differs.
        OSError: the scratch place has no room.
    """
    report = verify_backup(source)
    collect_dead_folders(_PREFIX, _PATTERNS)
    folder = make_private_folder(_PREFIX)
    try:
        restored = restore_backup(source, folder / "app.db", folder / "manifest.json", clock)
        if restored.seq != report.seq:
            raise BackupInvalid(f"the restored seq is {restored.seq}, not {report.seq}")
        _compare(source / bundle.DATABASE, folder / "app.db", report.seq)
    finally:
        remove_private_folder(folder, _PATTERNS)
    return report


def _compare(made: Path, restored: Path, seq: int) -> None:
    try:
        with bundle.open_unchanging(made) as one, bundle.open_unchanging(restored) as two:
            bundle.check_integrity(two)
            before, after = bundle.count_rows(one), bundle.count_rows(two)
            ((void_from,),) = two.execute(
                "SELECT void_from FROM _pylon_epochs ORDER BY first_seq DESC LIMIT 1"
            ).fetchall()
    except apsw.Error as ex:
        raise BackupInvalid(f"the restored database cannot be read: {error_text(ex)}") from None
    for name, rows in before.items():
        if name not in _OWN_TABLES and after.get(name) != rows:
            raise BackupInvalid(f"the table {name} has {after.get(name)} rows, not {rows}")
    if void_from != seq:
        raise BackupInvalid(f"the restored epoch begins at seq {void_from}, not {seq}")
