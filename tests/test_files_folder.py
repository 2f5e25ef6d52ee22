"""The folder of files on the disk: each new entry is synced in the folder that has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pylon.files import disk
from pylon.files.disk import INCOMING, FileFolder

FIRST, SECOND = "0" * 38 + "ab", "1" * 38 + "ab"  # keys of files in one folder


def test_new_folders_are_synced_with_the_file_that_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = disk.sync_path

    def record(path: Path) -> None:
        synced.append(path)
        sync(path)

    monkeypatch.setattr(disk, "sync_path", record)
    folder = FileFolder(tmp_path / "files")

    def publish(key: str) -> list[Path]:
        synced.clear()
        incoming = folder.begin(key)
        incoming.write(b"x")
        folder.publish(incoming, key)
        incoming.close()
        return list(synced)

    assert publish(FIRST) == [folder.path, tmp_path, folder.path, folder.path / "ab"]
    assert publish(SECOND) == [folder.path / "ab"]
    assert (folder.path / INCOMING).is_dir()
    assert list(folder.keys()) and folder.free_bytes() > 0
