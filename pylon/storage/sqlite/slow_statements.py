"""Slow statements: those that were interrupted inline and therefore start in the thread pool.

`add` records the key of a statement that has passed its inline time limit. `should_skip` then
returns True the next `_SKIPS` times. After that the entry is gone and the reader tries the
statement inline again, because values and tables change.

Bound: `limits.SLOW_STATEMENTS` keys; one more empties the memory. Called by `reader`.
"""

from __future__ import annotations

from typing import Final

from pylon import limits

_SKIPS: Final = 63


class SlowStatements:
    """See the module; for one connection."""

    __slots__ = ("_skips_left",)

    def __init__(self) -> None:
        self._skips_left: dict[str, int] = {}

    def add(self, key: str) -> None:
        """Record that the statement `key` has passed its inline limit."""
        if len(self._skips_left) >= limits.SLOW_STATEMENTS:
            self._skips_left.clear()
        self._skips_left[key] = _SKIPS

    def should_skip(self, key: str) -> bool:
        """Return whether not to run `key` inline this time; each True uses up one skip."""
        left = self._skips_left.get(key)
        if left is None:
            return False
        if left == 0:
            del self._skips_left[key]
            return False
        self._skips_left[key] = left - 1
        return True
