"""The folder of files: bytes arrive in `.incoming`, and complete files lie in `<2 hex>/<key>`.

A file is written, synced, and renamed to its final path; then the folder is synced. So a file at
its final path is complete, whatever is killed and whenever. `Incoming` is one file while its bytes
come.

All functions block: the callers run them in the thread pool. Names are keys of `names`, so no path
of a client reaches the disk; no symlink is followed, and only plain files are opened.

Invariants: files have the mode 0600, folders 0700. Bound: `free_bytes` against
limits.FILES_FREE_BYTES, checked by the callers. Called by `pylon.api.files` and `pylonctl`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pylon.data_dir import sync_path
from pylon.errors import StorageFull, UploadLocked
from pylon.files.names import is_key

INCOMING: Final = ".incoming"
_READ_BYTES: Final = 1_048_576
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Incoming:
    """A file whose bytes are arriving. One request at a time has it open."""

    __slots__ = ("_fd", "hash", "path", "size_bytes")

    def __init__(self, fd: int, path: Path, size_bytes: int) -> None:
        self._fd = fd
        self.path = path
        self.size_bytes = size_bytes
        self.hash = hashlib.sha256()  # of the bytes that this object has written

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            StorageFull: the disk is full.
            OSError: it failed.
        """
        self.hash.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view):]
        except OSError as ex:
            if ex.errno in _FULL:
                raise StorageFull("The disk of the files is full; nothing was stored") from ex
            raise
        self.size_bytes += len(data)

    def cut(self, size_bytes: int) -> None:
        """Drop all bytes behind `size_bytes`."""
        os.ftruncate(self._fd, size_bytes)
        self.size_bytes = size_bytes

    def sync(self) -> None:
        """Sync the bytes to the disk."""
        os.fsync(self._fd)

    def read_head(self, size: int) -> bytes:
        """Return the first bytes."""
        return os.pread(self._fd, size, 0)

    def digest(self) -> str:
        """Return the SHA-256 of the whole file, read from the disk."""
        found, position = hashlib.sha256(), 0
        while piece := os.pread(self._fd, _READ_BYTES, position):
            found.update(piece)
            position += len(piece)
        return found.hexdigest()

    def close(self) -> None:
        """Close the file, and end its lock."""
        os.close(self._fd)


class FileFolder:
    """The files of one server."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make the folder, if it is missing."""
        folder = self.path / INCOMING
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_path(self.path)
            sync_path(self.path.parent)

    def free_bytes(self) -> int:
        """Return the free space of the disk. Makes the folder, if it is missing."""
        self.make()
        return shutil.disk_usage(self.path).free

    def begin(self, name: str) -> Incoming:
        """Make an incoming file.

        Args:
            name: a key, or a key with a suffix.

        Raises:
            FileExistsError: there is one of this name.
        """
        path = self.path / INCOMING / name
        try:
            fd = os.open(path, _FLAGS | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:
            self.make()
            fd = os.open(path, _FLAGS | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        return Incoming(fd, path, 0)

    def resume(self, name: str) -> Incoming:
        """Open an incoming file behind its last byte, and lock it.

        Raises:
            FileNotFoundError: there is none.
            UploadLocked: another request has it open.
        """
        path = self.path / INCOMING / name
        fd = _open_plain(path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UploadLocked("Another request is sending bytes of this upload") from None
        incoming = Incoming(fd, path, os.fstat(fd).st_size)
        marked = _read_mark(path)
        if marked is not None:  # a request with a checksum was cut off
            incoming.cut(min(marked, incoming.size_bytes))
            incoming.sync()
            _mark_of(path).unlink()
        return incoming

    def offset(self, name: str) -> int | None:
        """Return the bytes of an incoming file that count; None if there is none."""
        path = self.path / INCOMING / name
        try:
            size_bytes = path.lstat().st_size
        except FileNotFoundError:
            return None
        marked = _read_mark(path)
        return size_bytes if marked is None else min(marked, size_bytes)

    def mark(self, incoming: Incoming) -> None:
        """Note the size of an incoming file: the next `resume` goes back to it, until `unmark`."""
        path = _mark_of(incoming.path)
        fd = os.open(path, _FLAGS | os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(fd, str(incoming.size_bytes).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_path(path.parent)

    def unmark(self, incoming: Incoming) -> None:
        """Let all bytes of an incoming file count. They are synced."""
        _mark_of(incoming.path).unlink()

    def keep_incoming(self, incoming: Incoming, name: str) -> None:
        """Sync an incoming file and rename it, in place of the file that has this name."""
        incoming.sync()
        path = incoming.path.with_name(name)
        incoming.path.rename(path)
        incoming.path = path
        sync_path(path.parent)

    def publish(self, incoming: Incoming, key: str) -> None:
        """Sync an incoming file and move it to its final path. It is complete then."""
        incoming.sync()
        path = self.final_path(key)
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            sync_path(self.path)  # else a loss of power takes the new folder with its file
        incoming.path.rename(path)
        sync_path(path.parent)

    def open(self, key: str) -> int:
        """Return a descriptor of a complete file, for reading.

        Raises:
            FileNotFoundError: there is none.
        """
        return _open_plain(self.final_path(key), os.O_RDONLY)

    def size_of(self, key: str) -> int:
        """Return the size of a complete file."""
        return self.final_path(key).stat().st_size

    def has(self, key: str) -> bool:
        """Whether there is a complete file."""
        return self.final_path(key).is_file()

    def remove(self, key: str) -> None:
        """Delete a complete file and what has arrived of it, if they are there."""
        with contextlib.suppress(FileNotFoundError):
            self.final_path(key).unlink()
        self.drop_incoming(key)

    def drop_incoming(self, name: str) -> None:
        """Delete an incoming file, if it is there."""
        path = self.path / INCOMING / name
        for each in (path, _mark_of(path)):
            with contextlib.suppress(FileNotFoundError):
                each.unlink()

    def final_path(self, key: str) -> Path:
        """Return the path of a complete file. The last characters of a key are random."""
        return self.path / key[-2:] / key

    def keys(self) -> Iterator[str]:
        """Yield the keys of all complete files."""
        for folder in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if len(folder.name) == 2 and folder.is_dir() and not folder.is_symlink():
                for path in folder.iterdir():
                    if is_key(path.name) and path.name.endswith(folder.name):
                        yield path.name

    def incoming_names(self) -> Iterator[tuple[str, float]]:
        """Yield the name of each incoming file, and the Unix time of its last write."""
        folder = self.path / INCOMING
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                yield path.name, path.lstat().st_mtime


def read_piece(fd: int, size: int, position: int) -> bytes:
    """Return bytes of an open file."""
    return os.pread(fd, size, position)


def _mark_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.mark")


def _read_mark(path: Path) -> int | None:
    """Return the size that is noted beside an incoming file; 0 if the note was cut off."""
    try:
        text = _mark_of(path).read_text()
    except FileNotFoundError:
        return None
    return int(text) if text.isdigit() else 0


def _open_plain(path: Path, flags: int) -> int:
    try:
        fd = os.open(path, flags | _FLAGS)
    except OSError as ex:
        if ex.errno in (errno.ELOOP, errno.ENXIO):
            raise FileNotFoundError(str(path)) from ex
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(str(path))
    return fd
