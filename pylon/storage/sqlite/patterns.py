"""Patterns: writes `Like` conditions in SQL, and implements the SQL functions for hard patterns.

SQLite's own LIKE and instr() serve every pattern that is not hard (`pylon.query.patterns`). The
functions `pylon_like` and `pylon_contains` serve the others, in time linear in text and pattern.
The results are the same: LIKE folds ASCII letters only, and SQLite has no escape character unless
ESCAPE names one.

Bound: each process caches 64 compiled patterns of each kind. Called by `predicate_sql` and
`shapes`; `reader` registers the functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Literal

import apsw

from pylon.query.patterns import LikePattern, Meter, MeterExpired, is_plain_text
from pylon.query.predicate import Like
from pylon.storage.sqlite.functions import add_value_functions

LIKE: Final = "pylon_like"  # (blob, pattern)
CONTAINS: Final = "pylon_contains"
Form = Literal["instr", "LIKE", "LIKE ESCAPE", "pylon_like", "pylon_contains"]
_TEXT_BY_FORM: Final[dict[Form, str]] = {
    "instr": "instr({column}, ?) > 0",
    "LIKE": "{column} LIKE ?",
    "LIKE ESCAPE": "{column} LIKE ? ESCAPE '\\'",
    "pylon_like": f"{LIKE}(CAST({{column}} AS BLOB), ?)",
    "pylon_contains": f"{CONTAINS}(CAST({{column}} AS BLOB), ?)",
}


def like_parts(like: Like) -> tuple[Form, str]:
    """Return the form of SQL for a pattern, and its parameter."""
    pattern = like.pattern
    if like.is_hard:
        return (LIKE if like.has_wildcards else CONTAINS), pattern
    if like.has_wildcards:
        return "LIKE", f"%{pattern}%"
    if is_plain_text(pattern):
        return "instr", pattern  # PERF: for short texts it takes two thirds of the time of LIKE
    escaped = re.sub(r"[\\%_]", r"\\\g<0>", pattern)
    return "LIKE ESCAPE", f"%{escaped}%"


def like_text(form: Form, column: str) -> str:
    """Return the SQL of a form.

    Args:
        column: quoted.
    """
    return _TEXT_BY_FORM[form].format(column=column)


def add_functions(conn: apsw.Connection, meter: Meter) -> None:
    """Register the functions of values, and those that hard patterns call. These raise
    apsw.InterruptError when the meter has expired."""

    def register(name: str, compiled: Callable[[str], LikePattern]) -> None:
        def is_match(*values: Any) -> bool | None:
            text, pattern = values
            meter.calls += 1
            if text is None:
                return None
            try:
                return compiled(pattern).matches(text.decode(errors="replace"), meter)
            except MeterExpired as error:
                raise apsw.InterruptError("a pattern took too long") from error

        conn.create_scalar_function(name, is_match, 2, deterministic=True)

    add_value_functions(conn)
    register(LIKE, _compiled_like)
    register(CONTAINS, _compiled_text)


@lru_cache(maxsize=64)
def _compiled_like(pattern: str) -> LikePattern:
    return LikePattern(pattern)


@lru_cache(maxsize=64)
def _compiled_text(text: str) -> LikePattern:
    return LikePattern(text, wildcards=False)
