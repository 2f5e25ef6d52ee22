"""Bundle check: verifies version, names, sizes and hashes of a bundle, whatever store it is of.

Invariant: the bundle is only read. Called by the backups of each store, which check the data
themselves.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pylon import __version__
from pylon.data_dir import KEY_FILE
from pylon.errors import BackupInvalid
from pylon.storage.backups import VerifyReport
from pylon.storage.bundle.contents import (
    CONTENTS,
    VERSION_FILE,
    Contents,
    FileEntry,
    read_contents,
    require_store,
)
from pylon.storage.bundle.create import entry_of

_RELEASE: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){1,3}")


def check_bundle(source: Path, store: str) -> Contents:
    """Check every byte of the bundle in `source` against its `MANIFEST.json`, and return that.

    Args:
        store: the only store whose bundles are accepted.

    Raises:
        BackupInvalid: the text names the file and the problem.
    """
    if not source.is_dir():
        raise BackupInvalid(f"{source} is not a folder")
    contents = read_contents(source)
    require_store(source, contents, store)
    _refuse_newer_version(source, contents.version)
    present = {path.name for path in source.iterdir()} - {CONTENTS}
    for name in sorted(present ^ contents.files.keys()):
        what = "is missing" if name in contents.files else "does not belong to the bundle"
        raise BackupInvalid(f"{source / name} {what}")
    for name, wanted in contents.files.items():
        _check_file(source / name, wanted)
    if VERSION_FILE in contents.files:
        text = (source / VERSION_FILE).read_text(errors="replace").strip()
        _refuse_newer_version(source, text)
    return contents


def report_of(source: Path, contents: Contents) -> VerifyReport:
    """Return the report of a bundle that has passed every check."""
    return VerifyReport(
        source=str(source),
        seq=contents.seq,
        lineage=contents.lineage,
        schema_hash=contents.schema_hash,
        version=contents.version,
        created_at=contents.created_at,
        files=len(contents.files),
        size_bytes=contents.size_bytes,
        secret_key=KEY_FILE in contents.files,
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


def _check_file(path: Path, wanted: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise BackupInvalid(f"{path} is not a plain file")
    found = entry_of(path)
    if found.size_bytes != wanted.size_bytes:
        raise BackupInvalid(
            f"{path} has {found.size_bytes} bytes, {CONTENTS} says {wanted.size_bytes}"
        )
    if found.sha256 != wanted.sha256:
        raise BackupInvalid(f"{path} has another SHA-256 than {CONTENTS} says")
