"""Retention of bundles: which folders below one folder may go.

Invariants: only finished bundles count, encrypted ones too; nothing else is ever named. The newest
bundle stays. Called by `pylonctl backup prune`.
"""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import msgspec

from pylon.errors import BackupInvalid, BackupRefused
from pylon.setting_values import KeepRules
from pylon.storage.bundle.contents import CONTENTS, read_contents
from pylon.storage.bundle.encrypted import ARCHIVE
from pylon.storage.shipping.retention import choose_kept


class BundlePlan(msgspec.Struct, frozen=True):
    """The bundles that stay and that go, oldest first."""

    kept: tuple[Path, ...]
    dropped: tuple[Path, ...]


def plan_bundles(folder: Path, rules: KeepRules, now_ms: int) -> BundlePlan:
    """Decide which bundles right below a folder go.

    Raises:
        BackupRefused: the folder has no bundle.
        OSError
    """
    found = sorted(
        (made_ms, path) for path in folder.iterdir() if (made_ms := _made_ms(path)) is not None
    )
    if not found:
        raise BackupRefused(f"{folder} has no bundle of `pylonctl backup`")
    times = [(str(path), made_ms) for made_ms, path in found]
    kept = choose_kept(times, rules, now_ms)
    return BundlePlan(
        tuple(path for _, path in found if str(path) in kept),
        tuple(path for _, path in found if str(path) not in kept),
    )


def drop_bundle(path: Path) -> None:
    """Delete a bundle: first the file that makes it one, so that a cut leaves none.

    Raises:
        OSError
    """
    for name in (CONTENTS, ARCHIVE):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path)


def _made_ms(path: Path) -> int | None:
    """Return when a bundle was made (Unix, ms); None: the folder is none."""
    if path.is_symlink() or not path.is_dir() or ".tmp-" in path.name:
        return None
    if (path / ARCHIVE).is_file():
        return (path / ARCHIVE).stat().st_mtime_ns // 1_000_000
    if not (path / CONTENTS).is_file():
        return None
    try:
        return int(datetime.fromisoformat(read_contents(path).created_at).timestamp() * 1000)
    except (BackupInvalid, ValueError):  # of a newer version, or damaged: leave it alone
        return None
