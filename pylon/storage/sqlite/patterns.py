"""Patterns of `$like` and substrings, in time linear in text and pattern, in Python and in SQL.

A pattern is split at each `%` into pieces. The search finds each piece behind the one before;
its first place is as good as any, because a `%` stands on both sides of every filter's pattern.
`str.find` finds a piece without `_`, in a form for which CPython guarantees linear time. For a
piece with `_`, the search looks for its longest run of literal characters. If too many of these
places do not match, one pass of shift-and over a Python integer decides.

SQLite's own LIKE and instr() are faster, and quadratic. `like_clause` and `contains_clause` use
them for patterns whose form bounds the work at `_OVERLAPS` comparisons for each character, and
the functions `pylon_like` and `pylon_contains` for all others. The verdict is SQLite's: LIKE
folds ASCII letters only. It differs in one place: to SQLite's LIKE the non-characters U+FFFE and
U+FFFF are U+FFFD.

Invariants: `LikePattern.matches` never raises but for its meter; it looks at the clock whenever
it has looked at `Meter.GRAIN` characters. A statement with such a clause has `Work.PATTERN`, so
that no reader runs it inline against long texts. Bounds: a compiled piece with `_` takes a
quarter of a MiB at most (`limits.LIKE_WILD_CHARS`); each process keeps 64 patterns of each kind.
Called by `conditions`, `search` and `matching`; `reader` registers the functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import apsw

from pylon.storage.clause import SqlClause, Work
from pylon.storage.where import NOTHING

LIKE: Final = "pylon_like"  # (blob, pattern)
CONTAINS: Final = "pylon_contains"
_OVERLAPS: Final = 16  # partial matches of one piece that SQLite may follow at a time
_NATIVE_BYTES: Final = 64  # of a substring, where its beginning may overlap with itself
# A substring that LIKE compares as it is: without wildcards, and without letters of two cases.
_EXACT: Final = re.compile(r"[^%_A-Za-z]*")
_REPLACED: Final = re.compile("[\ufffd-\uffff]")
_WINDOW: Final = 65_536  # characters that one call of str.find looks at
# CPython's str.find takes linear time for every needle in a text of so many characters, and for
# a shorter needle in every text (Objects/stringlib/fastsearch.h). NULs make a text long enough.
_LINEAR_TEXT: Final = 30_000
_LINEAR_NEEDLE: Final = 6
_SMALL: Final = 32_768  # text x needle that are not worth it
_STEPS: Final = 4_096  # characters that shift-and takes between two looks at the meter
_CALL: Final = 64  # what a call costs, in characters


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
            apsw.InterruptError: the time is over.
        """
        self.characters += characters
        self._left -= characters
        if self._left < 0:
            self._left = self.GRAIN
            if self._is_late():
                raise apsw.InterruptError("a pattern took too long")


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
            apsw.InterruptError: by the meter.
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
        """Where the first occurrence from `start` on ends; -1 if there is none.

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


# --- As SQL -------------------------------------------------------------------------------------


def like_clause(column: str, pattern: str) -> SqlClause:
    """The rows whose text in `column` has `pattern` somewhere; `%` and `_` are wildcards.

    Args:
        column: quoted.
    """
    if "\0" in pattern:  # no row has it, and SQLite's patterns end there
        return NOTHING
    if _EXACT.fullmatch(pattern):
        return contains_clause(column, pattern)
    if _REPLACED.search(pattern) is None and _is_cheap(pattern):
        return SqlClause(f"{column} LIKE ?", (f"%{pattern}%",), Work.PATTERN)
    return _own_clause(column, LIKE, pattern)


def contains_clause(column: str, text: str) -> SqlClause:
    """The rows whose text in `column` has `text` somewhere, whatever the case of its ASCII
    letters; it has no wildcards.

    Args:
        column: quoted.
        text: without NUL.
    """
    if _EXACT.fullmatch(text):
        size_bytes = len(text.encode())
        if size_bytes <= _NATIVE_BYTES or _overlaps(text) <= _OVERLAPS:
            # Of short texts the same rows in two thirds of the time (measured).
            return SqlClause(f"instr({column}, ?) > 0", (text,), Work.PATTERN)
    elif _REPLACED.search(text) is None and _overlaps(fold(text)) <= _OVERLAPS:
        escaped = re.sub(r"[\\%_]", r"\\\g<0>", text)
        return SqlClause(f"{column} LIKE ? ESCAPE '\\'", (f"%{escaped}%",), Work.PATTERN)
    return _own_clause(column, CONTAINS, text)


def weigh_pattern(pattern: str) -> int:
    """The worst cost of `LikePattern` for one character, as a multiple of the least cost."""
    pieces = fold(pattern).split("%")
    if any("_" in piece for piece in pieces):
        return 8 + max(map(len, pieces)) // 16
    return 1 if all(_overlaps(piece) <= _OVERLAPS for piece in pieces) else 4


def is_hard(clause: SqlClause) -> bool:
    """Whether a clause of this module calls a function of this module."""
    return clause.sql.startswith((LIKE, CONTAINS))


def _own_clause(column: str, function: str, pattern: str) -> SqlClause:
    return SqlClause(f"{function}(CAST({column} AS BLOB), ?)", (pattern,), Work.PATTERN)


def _is_cheap(pattern: str) -> bool:
    return all(_overlaps(piece) <= _OVERLAPS for piece in fold(pattern).split("%"))


def _overlaps(piece: str) -> int:
    """At most so many partial matches of a piece can be under way at one place of a text: each
    begins where the piece's first character is, in a part that an earlier one matches."""
    piece = piece.lstrip("_")
    return piece.count(piece[0]) + piece.count("_") if piece else 0


def add_functions(conn: apsw.Connection, meter: Meter) -> None:
    """Register the functions that the clauses of this module call."""

    def register(name: str, compiled: Callable[[str], LikePattern]) -> None:
        def is_match(*values: Any) -> bool | None:
            text, pattern = values
            meter.calls += 1
            if text is None:
                return None
            return compiled(pattern).matches(text.decode(errors="replace"), meter)

        conn.create_scalar_function(name, is_match, 2, deterministic=True)

    register(LIKE, _compiled_like)
    register(CONTAINS, _compiled_text)


@lru_cache(maxsize=64)
def _compiled_like(pattern: str) -> LikePattern:
    return LikePattern(pattern)


@lru_cache(maxsize=64)
def _compiled_text(text: str) -> LikePattern:
    return LikePattern(text, wildcards=False)
