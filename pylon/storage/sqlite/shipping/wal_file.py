"""The WAL file: its header, and the frames in it (https://sqlite.org/fileformat2.html#walformat).

The file has a header of 32 bytes, and frames of 24 bytes and a page each. Each time SQLite begins
the WAL anew it writes the header with other salts: the first one is one higher, the second random.
A *life* of the WAL is the time with the same salts.

Invariant: this module opens and closes the WAL file only. POSIX locks lie on the database and on
the `-shm` file, so that closing this one drops no lock of SQLite. Called by `capture` and `replay`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import msgspec

HEADER_BYTES: Final = 32
FRAME_HEADER_BYTES: Final = 24
_HEADER: Final = struct.Struct(">8xI4xI4x8x")  # page size, first salt


class WalHeader(msgspec.Struct, frozen=True):
    """The header of a WAL. `salts`: in hex."""

    raw: bytes

    @property
    def page_bytes(self) -> int:
        """Return the size of a page."""
        size: int = _HEADER.unpack(self.raw)[0]
        return size

    @property
    def frame_bytes(self) -> int:
        """Return the size of a frame."""
        return FRAME_HEADER_BYTES + self.page_bytes

    @property
    def salts(self) -> str:
        """Return the salts, in hex."""
        return self.raw[16:24].hex()


def follows(salts: str, before: str) -> bool:
    """Whether salts are those of the life right after the life with the salts `before`."""
    return int(salts[:8], 16) == (int(before[:8], 16) + 1) & 0xFFFF_FFFF


def wal_path(db_path: Path) -> Path:
    """Return the path of the WAL of a database."""
    return db_path.with_name(db_path.name + "-wal")


def read_header(path: Path) -> WalHeader | None:
    """Return the header of a WAL file; None if it has none yet.

    Raises:
        OSError
    """
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except FileNotFoundError:
        return None
    return WalHeader(raw) if len(raw) == HEADER_BYTES and raw != bytes(HEADER_BYTES) else None


def read_frames(path: Path, header: WalHeader, first: int, last: int) -> bytes:
    """Return the frames from `first` to `last`, which are counted from 1.

    Raises:
        OSError
        ValueError: the file does not have them.
    """
    size_bytes = (last - first + 1) * header.frame_bytes
    with path.open("rb") as file:
        file.seek(HEADER_BYTES + (first - 1) * header.frame_bytes)
        frames = file.read(size_bytes)
    if len(frames) != size_bytes:
        raise ValueError(f"{path} ends before frame {last}")
    return frames


def read_check(path: Path, header: WalHeader, frame: int) -> str:
    """Return the checksum in the header of a frame, in hex; "" if the file does not have it.

    It covers all frames of this life up to this one.

    Raises:
        OSError
    """
    with path.open("rb") as file:
        file.seek(HEADER_BYTES + (frame - 1) * header.frame_bytes + 16)
        return file.read(8).hex()


def find_commits(frames: bytes, page_bytes: int, first: int) -> list[int]:
    """Return the numbers of the frames that end a transaction. `first`: the number of the first."""
    # PERF: one C loop; 100,000 frames take 12 ms.
    sizes = struct.iter_unpack(f">4xI16x{page_bytes}x", frames)
    return [first + index for index, (pages,) in enumerate(sizes) if pages]
