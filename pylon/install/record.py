"""Record of an installation: `/etc/pylon/installed.json`, the hash of each file that was written.

A file whose hash differs from the record was edited since, so neither a later installation nor
`uninstall` touches it. Called by `pylon.install.apply` and `pylon.install.removal`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

RECORD: Final = "etc/pylon/installed.json"


class InstallRecord(msgspec.Struct):
    """The files that an installation has written: SHA-256 by path below the root."""

    user: str
    proxy: str
    hash_by_path: dict[str, str] = {}
    precious: list[str] = []  # paths that only --delete-data removes
    links: dict[str, str] = {}  # target by path of a symlink


def read_record(root: Path) -> InstallRecord | None:
    """Return the record below `root`; None: nothing was installed there."""
    try:
        return msgspec.json.decode((root / RECORD).read_bytes(), type=InstallRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def write_record(root: Path, record: InstallRecord) -> None:
    """Replace the record.

    Raises:
        OSError: it cannot be written.
    """
    path = root / RECORD
    copy = path.with_name(f".{path.name}.new")
    copy.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    copy.chmod(0o644)
    copy.rename(path)


def hash_text(text: str) -> str:
    """Return the hash of a text, as the record has it."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_edited(record: InstallRecord | None, root: Path, path: str) -> bool:
    """Whether a file that is there differs from what was written. True if nobody wrote it."""
    if record is None or path not in record.hash_by_path:
        return True
    return hash_text((root / path).read_text(errors="replace")) != record.hash_by_path[path]
