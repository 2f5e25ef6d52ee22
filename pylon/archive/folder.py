"""An archive in a folder, `file:///var/backups/app`: a disk, or a mounted file system.

Invariants: a file at its final name is complete and synced (temporary name, fsync, rename). Only
its owner may read it. Folders that a deletion empties are removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pylon.archive.interface import ArchivedObject
from pylon.clock import SystemRandom
from pylon.disk_errors import describe_os_error
from pylon.errors import ArchiveUnavailable

_TEMPORARY: Final = ".tmp-"
_FOLDER_MODE: Final = 0o700
_PIECE_BYTES: Final = 8 * 1024 * 1024


class FolderArchive:
    """See the module, and `Archive`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.place = str(root)

    def put(self, name: str, source: Path) -> None:
        """See `Archive`."""
        path = self._path(name)
        copy = path.with_name(f"{_TEMPORARY}{SystemRandom().token_hex(4)}")
        try:
            path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            try:
                _copy(source, copy)
                copy.rename(path)
            except BaseException:
                copy.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        except OSError as ex:
            raise self._unavailable(ex) from ex

    def get(self, name: str, target: Path) -> None:
        """See `Archive`."""
        try:
            shutil.copyfile(self._path(name), target)
        except OSError as ex:
            raise self._unavailable(ex) from ex

    def list_objects(self, prefix: str = "") -> list[ArchivedObject]:
        """See `Archive`."""
        if not self._root.is_dir():
            return []
        found: list[ArchivedObject] = []
        try:
            self._walk(self._root / prefix, prefix, found)
        except OSError as ex:
            raise self._unavailable(ex) from ex
        return sorted(found, key=lambda each: each.name)

    def delete(self, names: Sequence[str]) -> None:
        """See `Archive`."""
        try:
            for name in names:
                path = self._path(name)
                path.unlink(missing_ok=True)
                self._remove_empty(path.parent)
        except OSError as ex:
            raise self._unavailable(ex) from ex

    def _walk(self, folder: Path, prefix: str, found: list[ArchivedObject]) -> None:
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:  # another process has pruned it
            return
        for entry in entries:
            if entry.name.startswith(_TEMPORARY):
                continue
            if entry.is_dir(follow_symlinks=False):
                self._walk(folder / entry.name, f"{prefix}{entry.name}/", found)
            elif entry.is_file(follow_symlinks=False):
                size_bytes = entry.stat(follow_symlinks=False).st_size
                found.append(ArchivedObject(prefix + entry.name, size_bytes))

    def _remove_empty(self, folder: Path) -> None:
        while folder != self._root and self._root in folder.parents:
            try:
                folder.rmdir()
            except OSError:  # it has files, or is gone
                return
            folder = folder.parent

    def _path(self, name: str) -> Path:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{name!r} is no name of an object")
        return self._root / name

    def _unavailable(self, error: OSError) -> ArchiveUnavailable:
        return ArchiveUnavailable(
            f"the backup folder {self._root} cannot be used: {describe_os_error(error)}"
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a file and sync it: in pieces, so that few pages wait to be written. The kernel lets all
    who write to a disk wait when they are too many."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file, source.open("rb", buffering=0) as read:
        while piece := read.read(_PIECE_BYTES):
            view = memoryview(piece)
            while view:
                view = view[file.write(view):]
            os.fdatasync(file.fileno())
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
