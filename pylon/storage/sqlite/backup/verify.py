"""Bundle check: verifies version, names, sizes, hashes, the integrity and the head of a bundle.

Invariant: the bundle is only read. Called by `manager`, for `pylonctl backup verify` and `pylonctl
restore`, and by `restore` before its first change.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import apsw

from pylon import __version__
from pylon.errors import BackupInvalid, SchemaRefused
from pylon.storage.backups import VerifyReport
from pylon.storage.sqlite.backup import bundle
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.schema.history import refuse_newer

_RELEASE: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){1,3}")


def verify_backup(source: Path) -> VerifyReport:
    """Check every byte of the bundle in `source`.

    Raises:
        BackupInvalid: the text names the file and the problem.
    """
    if not source.is_dir():
        raise BackupInvalid(f"{source} is not a folder")
    contents = bundle.read_contents(source)
    _refuse_newer_version(source, contents.version)
    present = {path.name for path in source.iterdir()} - {bundle.CONTENTS}
    for name in sorted(present ^ contents.files.keys()):
        what = "is missing" if name in contents.files else "does not belong to the bundle"
        raise BackupInvalid(f"{source / name} {what}")
    for name, wanted in contents.files.items():
        _check_file(source / name, wanted)
    if bundle.VERSION_FILE in contents.files:
        text = (source / bundle.VERSION_FILE).read_text(errors="replace").strip()
        _refuse_newer_version(source, text)
    try:
        with bundle.open_unchanging(source / bundle.DATABASE) as conn:
            bundle.check_integrity(conn)
            refuse_newer(conn)
            facts = bundle.read_facts(conn)
    except apsw.Error as ex:
        raise BackupInvalid(
            f"{source / bundle.DATABASE} cannot be opened: {error_text(ex)}"
        ) from None
    except SchemaRefused as ex:
        raise BackupInvalid(f"{source / bundle.DATABASE}: {ex.message}") from None
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


def _refuse_newer_version(source: Path, version: str) -> None:
    """Refuse a bundle of a newer Pylon: this one may not understand its data.

    Raises:
        BackupInvalid: the version is higher than ours, or is not a version.
    """
    found = _RELEASE.match(version)
    if found is None:
        raise BackupInvalid(f"{source} says that Pylon {version[:40]!r} made it, which is none")
    if _numbers(found.group()) > _numbers(__version__):
        raise BackupInvalid(
            f"{source} was made by Pylon {version[:40]}, this is Pylon {__version__}: "
            f"use version {found.group()} or a newer one"
        )


def _numbers(version: str) -> tuple[int, ...]:
    found = _RELEASE.match(version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


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
