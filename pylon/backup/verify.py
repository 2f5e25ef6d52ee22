"""Check a bundle without changing it: names, sizes, hashes, SQLite's own check, head seq.

Called by `pylonctl backup verify`, and by `restore` before it touches anything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apsw

from pylon.backup import bundle
from pylon.errors import BackupInvalid


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A bundle that passed."""

    source: str
    seq: int
    lineage: str
    schema_hash: str
    version: str
    created_at: str
    files: int
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"ok": True, **asdict(self)}


def verify_backup(source: Path) -> VerifyReport:
    """Check every byte of the bundle in `source`.

    Raises:
        BackupInvalid: says which file, and what is wrong with it.
    """
    if not source.is_dir():
        raise BackupInvalid(f"{source} is not a folder")
    contents = bundle.read_contents(source)
    present = {path.name for path in source.iterdir()} - {bundle.CONTENTS}
    for name in sorted(present ^ contents.files.keys()):
        what = "is missing" if name in contents.files else "does not belong to the bundle"
        raise BackupInvalid(f"{source / name} {what}")
    for name, wanted in contents.files.items():
        _check_file(source / name, wanted)
    try:
        with bundle.open_unchanging(source / bundle.DATABASE) as conn:
            bundle.check_integrity(conn)
            facts = bundle.read_facts(conn)
    except apsw.Error as ex:
        raise BackupInvalid(f"{source / bundle.DATABASE} cannot be opened: {ex}") from None
    stated = bundle.Facts(contents.seq, contents.lineage, contents.schema_hash)
    if facts != stated:
        raise BackupInvalid(f"the database is {facts}, {bundle.CONTENTS} says {stated}")
    return VerifyReport(
        source=str(source),
        seq=facts.seq,
        lineage=facts.lineage,
        schema_hash=facts.schema_hash,
        version=contents.version,
        created_at=contents.created_at,
        files=len(contents.files),
        size_bytes=sum(entry.size_bytes for entry in contents.files.values()),
    )


def _check_file(path: Path, wanted: bundle.FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise BackupInvalid(f"{path} is not a plain file")
    found = bundle.entry_of(path)
    if found.size_bytes != wanted.size_bytes:
        raise BackupInvalid(
            f"{path} has {found.size_bytes} bytes, {bundle.CONTENTS} says {wanted.size_bytes}"
        )
    if found.sha256 != wanted.sha256:
        raise BackupInvalid(f"{path} has another SHA-256 than {bundle.CONTENTS} says")
