"""SQLite bundle check: verifies the bundle, and integrity, head and counts of its database.

Invariant: the bundle is only read. Called by `manager`, for `pylonctl backup verify` and `pylonctl
restore`, and by `restore` before its first change.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apsw

from pylon.errors import BackupInvalid, SchemaRefused
from pylon.storage.backups import VerifyReport
from pylon.storage.bundle.contents import CONTENTS, SQLITE, Facts
from pylon.storage.bundle.verify import check_bundle, report_of
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.schema.history import refuse_newer


def verify_backup(source: Path) -> VerifyReport:
    """Check every byte of the bundle in `source`.

    Raises:
        BackupInvalid: the text names the file and the problem.
    """
    contents = check_bundle(source, SQLITE)
    try:
        with bundle.open_unchanging(source / bundle.DATABASE) as conn:
            bundle.check_integrity(conn)
            refuse_newer(conn)
            facts = bundle.read_facts(conn)
            counts = bundle.count_rows(conn)
    except apsw.Error as ex:
        raise BackupInvalid(
            f"{source / bundle.DATABASE} cannot be opened: {error_text(ex)}"
        ) from None
    except SchemaRefused as ex:
        raise BackupInvalid(f"{source / bundle.DATABASE}: {ex.message}") from None
    stated = Facts(contents.seq, contents.lineage, contents.schema_hash)
    if facts != stated:
        raise BackupInvalid(f"the database is {_text(facts)}, {CONTENTS} says {_text(stated)}")
    # A bundle of an earlier version has no counts.
    for name, entry in contents.tables.items():
        if counts.get(name) != entry.rows:
            raise BackupInvalid(
                f"the table {name} has {counts.get(name)} rows, {CONTENTS} says {entry.rows}"
            )
    return replace(report_of(source, contents), rows=sum(counts.values()))


def _text(facts: Facts) -> str:
    return f"seq {facts.seq}, lineage {facts.lineage!r}, schema {facts.schema_hash}"
