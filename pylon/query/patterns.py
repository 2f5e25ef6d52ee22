"""Patterns of `$like` and substrings, in time linear in text and pattern.

A pattern is split at each `%` into pieces. The search finds each piece behind the one before;
its first place is as good as any, because a `%` stands on both sides of every filter's pattern.
`str.find` finds a piece without `_`, in a form for which CPython guarantees linear time. For a
piece with `_`, the search looks for its longest run of literal characters. If too many of these
places do not match, one pass of shift-and over a Python integer decides.

A database's own operator (LIKE and instr() of SQLite) is faster for most patterns, but takes
quadratic time for some. `is_hard_pattern` finds these by their form: it allows more than
`_OVERLAPS` comparisons for each character. A backend uses `LikePattern` for hard patterns and its
own operator for all others. The case of ASCII letters does not matter; that of other letters does.

Invariants: `LikePattern.matches` raises only the errors of its meter. It reads the clock once for
each `Meter.GRAIN` characters. Bounds: a compiled piece with `_` takes 0.25 MiB at most
(`limits.LIKE_WILD_CHARS`). Called by `predicate` (the form), `evaluate` and
`storage.sqlite.patterns` (the matches). PostgreSQL takes hard patterns as regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_OVERLAPS: Final = 16  # partial matches of one piece that a usual matcher may follow at a time
_NATIVE_BYTES: Final = 64  # of a substring, where its beginning may overlap with itself
# A text that a comparison of bytes finds: without wildcards, and without letters of two cases.
_EXACT: Final = re.compile(r"[^%_A-Za-z]*")
_REPLACED: Final = re.compile("[\ufffd-\uffff]")  # SQLite's LIKE takes U+FFFE for U+FFFD
_WINDOW: Final = 65_536  # characters that one call of str.find looks at
# CPython's str.find takes linear time for every needle in a text of so many characters, and for
# a shorter needle in every text (Objects/stringlib/fastsearch.h). NULs make a text long enough.
_LINEAR_TEXT: Final = 30_000
_LINEAR_NEEDLE: Final = 6
_SMALL: Final = 32_768  # text x needle that are not worth it
_STEPS: Final = 4_096  # characters that shift-and takes between two looks at the meter
_CALL: Final = 64  # what a call costs, in characters


class MeterExpired(Exception):
    """A pattern took too long."""


class Meter:
    """Counts the characters that patterns have looked at, and asks now and then whether to go
    on. `calls` and `characters` are for tests and metrics."""

    GRAIN: Final = 16_384

    __slots__ = ("_is_late", "_left", "calls", "characters")

    def __init__(self, is_late: Callable[[], bool]) -> None:
        self._is_late = is_late
        self._left = self.GRAIN
        self.calls = 0
        self.characters = 0

    def spend(self, characters: int) -> None:
        """
        Raises:
            MeterExpired: the time is over.
        """
        self.characters += characters
        self._left -= characters
        if self._left < 0:
            self._left = self.GRAIN
            if self._is_late():
                raise MeterExpired


UNMETERED: Final = Meter(lambda: False)


class LikePattern:
    """A pattern between two `%`, compiled. Without `wildcards` it is one piece as it stands."""

    __slots__ = ("_longest", "_pieces")

    def __init__(self, pattern: str, wildcards: bool = True) -> None:
        folded = fold(pattern)
        pieces = folded.split("%") if wildcards else [folded]
        pieces = [piece for piece in pieces if piece]
        self._longest = max(map(len, pieces), default=0)
        self._pieces = tuple([
            _Wild(piece) if wildcards and "_" in piece else _Literal(piece) for piece in pieces
        ])

    def matches(self, text: str, meter: Meter = UNMETERED) -> bool:
        """Whether the pattern is found in `text`.

        Raises:
            MeterExpired: by the meter.
        """
        meter.spend(len(text) + _CALL * (1 + len(self._pieces)))
        if not self._pieces:
            return True
        text, end, at = fold(text), len(text), 0
        is_slow = end < _LINEAR_TEXT and self._longest >= _LINEAR_NEEDLE
        if is_slow and end * self._longest > _SMALL:
            text += "\0" * _LINEAR_TEXT
        for piece in self._pieces:
            at = piece.find_end(text, at, end, meter)
            if at < 0:
                return False
        return True


def fold(text: str) -> str:
    """`text` with ASCII capitals made small, and no others."""
    if text.isascii():
        return text.lower()
    return text.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


class _Literal:
    """A piece without `_`."""

    __slots__ = ("_piece",)

    def __init__(self, piece: str) -> None:
        self._piece = piece

    def find_end(self, text: str, start: int, end: int, meter: Meter) -> int:
        """Return the end of the first occurrence from `start` on, or -1.

        Args:
            end: of the text; NULs may follow, which no piece has.
        """
        at = _find(text, self._piece, start, meter)
        return at if at < 0 else at + len(self._piece)


class _Wild:
    """A piece with `_`, each of which is any one character."""

    __slots__ = ("_anchor", "_anchor_at", "_masks", "_piece", "_runs", "_size")

    def __init__(self, piece: str) -> None:
        self._piece = piece
        self._size = len(piece)
        runs = [(found.start(), found[0]) for found in re.finditer("[^_]+", piece)]
        self._anchor_at, self._anchor = max(runs, key=lambda run: len(run[1]), default=(0, ""))
        self._runs = tuple([run for run in runs if run[0] != self._anchor_at])
        self._masks: tuple[dict[str, int], int] | None = None

    def find_end(self, text: str, start: int, end: int, meter: Meter) -> int:
        """As `_Literal.find_end`."""
        last = end - self._size  # the last place where it may begin
        if not self._anchor:
            return start + self._size if start <= last else -1
        credit = 2 * (end - start) + self._size
        while start <= last:
            begin = _find(text, self._anchor, start + self._anchor_at, meter) - self._anchor_at
            if begin < start or begin > last:
                return -1
            cost = len(self._anchor) + 1  # to look for it once more
            for offset, run in self._runs:
                cost += len(run) + 1
                if not text.startswith(run, begin + offset):
                    break
            else:
                return begin + self._size
            start = begin + 1
            credit -= cost
            meter.spend(cost)
            if credit < 0:
                return self._scan(text, start, end, meter)
        return -1

    def _scan(self, text: str, start: int, end: int, meter: Meter) -> int:
        """Shift-and: bit i of `state` says that the first i + 1 characters match here."""
        if self._masks is None:
            self._masks = self._make_masks()
        masks, anything = self._masks
        found = 1 << (self._size - 1)
        step_cost = 8 + self._size // 64
        mask_of = masks.get
        state = 0
        for begin in range(start, end, _STEPS):
            part = text[begin:min(begin + _STEPS, end)]
            meter.spend(len(part) * step_cost)
            for at, character in enumerate(part, begin + 1):
                state = (state << 1 | 1) & mask_of(character, anything)
                if state & found:
                    return at
        return -1

    def _make_masks(self) -> tuple[dict[str, int], int]:
        """For each character of the piece the places that take it, and those that take any."""
        places: dict[str, list[int]] = {}
        for at, character in enumerate(self._piece):
            places.setdefault(character, []).append(at)
        masks = {character: _bits(at, self._size) for character, at in places.items()}
        anything = masks.pop("_")
        return {character: mask | anything for character, mask in masks.items()}, anything


def _bits(places: list[int], size: int) -> int:
    digits = bytearray((size >> 3) + 1)
    for at in places:
        digits[at >> 3] |= 1 << (at & 7)
    return int.from_bytes(digits, "little")


def _find(text: str, piece: str, start: int, meter: Meter) -> int:
    """As `str.find`, a window at a time."""
    size, end = len(piece), len(text)
    while end - start > _WINDOW + size:
        stop = start + _WINDOW + size
        at = text.find(piece, start, stop)
        if at >= 0:
            return at
        start = stop - size + 1
        meter.spend(_WINDOW)
    return text.find(piece, start)


# --- The form of a pattern ----------------------------------------------------------------------


def is_plain_text(pattern: str) -> bool:
    """Whether a comparison of bytes finds the pattern: it has no wildcard and no ASCII letter."""
    return _EXACT.fullmatch(pattern) is not None


def is_hard_pattern(pattern: str, has_wildcards: bool) -> bool:
    """Whether a usual matcher may take time that grows with the text's size times the pattern's,
    or has another verdict (a pattern with U+FFFD to U+FFFF)."""
    if not has_wildcards and _EXACT.fullmatch(pattern):
        return len(pattern.encode()) > _NATIVE_BYTES and _overlaps(pattern) > _OVERLAPS
    if _REPLACED.search(pattern) is not None:
        return True
    folded = fold(pattern)
    pieces = folded.split("%") if has_wildcards else (folded,)
    return any(_overlaps(piece) > _OVERLAPS for piece in pieces)


def weigh_pattern(pattern: str) -> int:
    """The worst cost of `LikePattern` for one character, as a multiple of the least cost."""
    pieces = fold(pattern).split("%")
    if any("_" in piece for piece in pieces):
        return 8 + max(map(len, pieces)) // 16
    return 1 if all(_overlaps(piece) <= _OVERLAPS for piece in pieces) else 4


def _overlaps(piece: str) -> int:
    """At most so many partial matches of a piece can be under way at one place of a text: each
    begins where the piece's first character is, in a part that an earlier one matches."""
    piece = piece.lstrip("_")
    return piece.count(piece[0]) + piece.count("_") if piece else 0
