"""Replaced files: keeps what a restore replaces under a new name, `<name>.replaced-<time>`.

Invariant: a restore deletes nothing. Called by the restores of each store.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pylon.clock import Clock, SystemRandom
from pylon.data_dir import give_to_owner, sync_path

_MANIFEST_MODE: Final = 0o644


def find_free_stamp(is_taken: Callable[[str], bool], clock: Clock) -> str:
    """Return a time stamp for the names of kept things that no earlier restore has used."""
    stamp = datetime.fromtimestamp(clock.wall_ns() // 10**9, UTC).strftime("%Y%m%dT%H%M%SZ")
    tried, number = stamp, 1
    while is_taken(tried):
        number += 1
        tried = f"{stamp}-{number}"
    return tried


def kept_path(path: Path, stamp: str) -> Path:
    """Return the name under which a replaced file is kept."""
    return path.with_name(f"{path.name}.replaced-{stamp}")


def put_key_file(new: Path, path: Path, stamp: str) -> list[str]:
    """Replace the file with the secret key by that of a bundle. Return the names of kept files.

    Raises:
        OSError: the disk failed; the old file is still in its place.
    """
    text = new.read_bytes()
    replaced: list[str] = []
    copy = path.with_name(f".{path.name}.{SystemRandom().token_hex(4)}")
    fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            file.flush()
            give_to_owner(fd, path)
            os.fsync(fd)
        if path.is_file():
            if path.read_bytes() == text:
                return []
            kept = kept_path(path, stamp)
            os.link(path, kept)
            replaced.append(str(kept))
        copy.rename(path)
    finally:
        copy.unlink(missing_ok=True)
    sync_path(path.parent)
    return replaced


def put_manifest(new: Path, manifest_path: Path, stamp: str) -> list[str]:
    """Replace the app's manifest by that of a bundle. Return the names of kept files.

    Raises:
        OSError: the disk failed; the old manifest is still in its place.
    """
    text = new.read_bytes()
    replaced: list[str] = []
    mode = _MANIFEST_MODE
    if manifest_path.exists():
        if manifest_path.read_bytes() == text:
            return []
        mode = stat.S_IMODE(manifest_path.stat().st_mode)
        kept = kept_path(manifest_path, stamp)
        shutil.copy2(manifest_path, kept)
        replaced.append(str(kept))
    manifest_path.parent.mkdir(parents=True, exist_ok=True)
    copy = manifest_path.with_name(f".{manifest_path.name}.{SystemRandom().token_hex(4)}")
    copy.write_bytes(text)
    copy.chmod(mode)  # the server, which is not root, must read it
    sync_path(copy)
    copy.rename(manifest_path)
    sync_path(manifest_path.parent)
    return replaced
