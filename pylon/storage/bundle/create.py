"""Bundle creation: makes a bundle around the data that a store copies.

Invariants: the target appears complete or not at all (temporary name, fsync, rename). A folder that
is not empty is never written to. Called by the backups of each store.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from pylon import __version__
from pylon.clock import Clock, SystemRandom
from pylon.data_dir import KEY_FILE, sync_path
from pylon.errors import BackupInvalid, BackupRefused
from pylon.storage.backups import BackupReport
from pylon.storage.bundle.contents import (
    APP_MANIFEST,
    CONTENTS,
    FORMAT,
    VERSION_FILE,
    Contents,
    Facts,
    FileEntry,
    read_contents,
)

_CHUNK_BYTES: Final = 1024 * 1024


def create_bundle(
    target: Path, manifest_path: Path | None, clock: Clock, copy_data: Callable[[Path], Facts],
    key_file: Path | None = None,
) -> BackupReport:
    """Write a bundle to the folder `target`, which must be missing or empty.

    Args:
        manifest_path: the app's manifest; the bundle has none if the path is None or missing.
        copy_data: writes the data file into a folder, checks it, and returns its facts.
        key_file: the file with the secret key; the bundle has none if it is None or missing.

    Raises:
        BackupRefused: the target exists and is not empty.
        BackupInvalid: the bundle is not under its final name as it was written.
        OSError: the disk failed; the temporary folder has been removed.
    """
    started_s = clock.monotonic_s()
    target = target.absolute()
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f"{target.name}.tmp-{SystemRandom().token_hex(4)}")
    folder.mkdir(mode=0o700)
    try:
        created_at = datetime.fromtimestamp(clock.wall_ns() // 10**9, UTC).isoformat()
        facts = copy_data(folder)
        if key_file is not None and key_file.is_file():
            shutil.copyfile(key_file, folder / KEY_FILE)
        contents = _fill(folder, manifest_path, created_at, facts)
        try:
            folder.rename(target)  # replaces an empty folder, fails on one that is not
        except OSError as ex:
            raise BackupRefused(f"{target} came into being meanwhile: {ex.strerror}") from None
        sync_path(target.parent)
    except BaseException:  # Ctrl-C too must leave no partial bundle behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _check_sizes(target)
    return BackupReport(
        target=str(target),
        manifest=APP_MANIFEST in contents.files,
        seq=contents.seq,
        lineage=contents.lineage,
        schema_hash=contents.schema_hash,
        version=contents.version,
        created_at=contents.created_at,
        size_bytes=contents.size_bytes,
        duration_s=round(clock.monotonic_s() - started_s, 3),
        secret_key=KEY_FILE in contents.files,
    )


def check_target(target: Path) -> None:
    """Check that a bundle can be made at `target`.

    Raises:
        BackupRefused: it exists, and is not an empty folder.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise BackupRefused(
            f"{target} exists and is not an empty folder: "
            "name a new one, for example with a date in it"
        )


def entry_of(path: Path) -> FileEntry:
    """Return size and hash of a file."""
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return FileEntry(size_bytes, digest.hexdigest())


def _fill(folder: Path, manifest_path: Path | None, created_at: str, facts: Facts) -> Contents:
    (folder / VERSION_FILE).write_text(__version__ + "\n")
    if manifest_path is not None and manifest_path.is_file():
        shutil.copyfile(manifest_path, folder / APP_MANIFEST)
    contents = Contents(
        format=FORMAT,
        version=__version__,
        created_at=created_at,
        seq=facts.seq,
        lineage=facts.lineage,
        schema_hash=facts.schema_hash,
        files={path.name: entry_of(path) for path in sorted(folder.iterdir())},
        store=facts.store,
        server_version=facts.server_version,
        history_id=facts.history_id,
        schema=facts.schema,
        tables=facts.tables,
    )
    text = msgspec.json.format(msgspec.json.encode(contents), indent=2)
    (folder / CONTENTS).write_bytes(text + b"\n")
    for path in folder.iterdir():
        path.chmod(0o600)
        sync_path(path)
    sync_path(folder)
    return contents


def _check_sizes(target: Path) -> None:
    """Check the sizes of the files under the final name, before the backup is reported."""
    for name, entry in read_contents(target).files.items():
        if (target / name).stat().st_size != entry.size_bytes:
            raise BackupInvalid(f"{target / name} is not there as it was written")
