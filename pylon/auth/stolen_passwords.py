"""Stolen passwords: a sorted file of SHA-1 hashes that an operator downloaded (PYLON_PWNED_FILE).

Each line has 40 hexadecimal digits, and may go on with `:` and a count, as the file "ordered by
hash" of Have I Been Pwned does. A search reads about log2(size) short pieces, so the file may have
any size; nothing is kept in memory.

Invariants: `open_list` refuses a file whose first or last line is no hash, or that is not sorted
there. Called by `pylon.auth.password_rules`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pylon.errors import PwnedPassword, StartRefused, Unavailable

_LINE_BYTES: Final = 64  # a hash, a colon, a count of up to 20 digits, CR LF
_HASH: Final = re.compile(rb"[0-9A-Fa-f]{40}(?::[0-9]{1,20})?\r?")


@dataclass(frozen=True, slots=True)
class StolenPasswords:
    """An open file of hashes, sorted."""

    descriptor: int
    size_bytes: int

    def check(self, normal: str) -> None:
        """Refuse a password that is in the file.

        Raises:
            PwnedPassword: it is.
            Unavailable: the file cannot be read.
        """
        try:
            is_stolen = self.has_hash(hashlib.sha1(normal.encode(), usedforsecurity=False).digest())
        except OSError as ex:
            raise Unavailable(
                f"The list of stolen passwords cannot be read: {ex.strerror}",
                hint="An operator corrects PYLON_PWNED_FILE, or its disk",
            ) from ex
        if is_stolen:
            raise stolen_password()

    def has_hash(self, digest: bytes) -> bool:
        """Whether the file has a line with the digest."""
        wanted = digest.hex().upper().encode()
        low, high = 0, self.size_bytes  # the line that is wanted begins in this range
        while low < high:
            middle = (low + high) // 2
            start, line = self._line_from(middle)
            if start >= high or not line:
                high = middle
                continue
            found = line[:40].upper()
            if found == wanted:
                return True
            if found < wanted:
                low = start + len(line)
            else:
                high = middle
        return False

    def _line_from(self, offset: int) -> tuple[int, bytes]:
        """Return the first line that begins at the offset or after it, with where it begins."""
        before = max(0, offset - 1)
        piece = os.pread(self.descriptor, 2 * _LINE_BYTES + 1, before)
        begin = 0 if offset == 0 else piece.find(b"\n") + 1
        if offset and begin == 0:
            return self.size_bytes, b""
        end = piece.find(b"\n", begin)
        line = piece[begin:] if end < 0 else piece[begin:end + 1]
        return before + begin, line


def stolen_password() -> PwnedPassword:
    """Return the error of a password that is in a list of stolen ones."""
    return PwnedPassword(
        "The password is in a list of passwords that were stolen elsewhere",
        hint="Use another password, and change it wherever else you use it",
    )


def open_list(path: Path) -> StolenPasswords:
    """Open the file of PYLON_PWNED_FILE.

    Raises:
        StartRefused: it cannot be read, or is no sorted list of SHA-1 hashes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size_bytes = os.fstat(descriptor).st_size
        first = os.pread(descriptor, _LINE_BYTES, 0).partition(b"\n")[0]
        tail = os.pread(descriptor, 2 * _LINE_BYTES, max(0, size_bytes - 2 * _LINE_BYTES))
    except OSError as ex:
        raise StartRefused(f"PYLON_PWNED_FILE: {path} cannot be read: {ex.strerror}") from ex
    last = tail.rstrip(b"\r\n").rpartition(b"\n")[2]
    if not (_HASH.fullmatch(first) and _HASH.fullmatch(last)):
        os.close(descriptor)
        raise StartRefused(
            f"PYLON_PWNED_FILE: {path} is no list of SHA-1 hashes, one on each line",
            hint="use the file of Have I Been Pwned that is ordered by hash",
        )
    if first[:40].upper() > last[:40].upper():
        os.close(descriptor)
        raise StartRefused(
            f"PYLON_PWNED_FILE: {path} is not sorted",
            hint=f"sort it: LC_ALL=C sort -o {path} {path}",
        )
    return StolenPasswords(descriptor, size_bytes)
