"""Bounds a JSON text before it is decoded: its nesting, and its number of values.

A decoder creates an object for each value and blocks the interpreter meanwhile: 10 MB of
`[[],[],…]` are 3.5 million lists. So `check_bounds` scans the bytes first. The scan removes strings
with operations on whole byte strings, in windows of `_WINDOW_BYTES`, and counts brackets and commas
in the rest.

Invariants: a JSON text that passes has at most `limits.JSON_DEPTH` levels and `nodes` values. Keys
do not count, an empty container counts as two. A JSON text within these bounds always passes,
whatever its strings contain. Invalid JSON may pass or not: its decoder refuses it. Bounds:
`limits.JSON_DEPTH`, `limits.JSON_NODES`. Called by `pylon.values`, the API and `workers.ws` for
every JSON text of a client.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

from pylon import limits
from pylon.errors import InvalidJson, LimitExceeded

_WINDOW_BYTES: Final = 65_536
_STRUCTURE: Final = b'"[]{},'
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(_STRUCTURE))
_STEP_BY_BRACKET: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_COLLAPSES: Final = 8


def check_bounds(
    raw: bytes, nodes: int = limits.JSON_NODES, depth: int | None = None
) -> None:
    """Raise if a JSON text is nested too deeply or has too many values.

    Args:
        nodes: the largest number of values, with containers and without keys.
        depth: the largest number of levels; None means `limits.JSON_DEPTH`.

    Raises:
        InvalidJson: the text has more than `depth` levels (spec/http.md §6).
        LimitExceeded: the text has more than `nodes` values.
    """
    if depth is None:
        depth = limits.JSON_DEPTH
    # A value takes at least two bytes, with its comma. PERF: nearly all bodies return here, after
    # 0.1 us for each KB; the scan takes 1 to 5 us for each KB.
    if raw.count(b"[") + raw.count(b"{") <= depth and len(raw) <= 2 * nodes:
        return
    scan = _Scan(nodes, depth)
    begin = 0
    while begin < len(raw):
        window = raw[begin : begin + _WINDOW_BYTES]
        begin += len(window)
        if (len(window) - len(window.rstrip(b"\\"))) & 1:  # add the escaped character
            window += raw[begin : begin + 1]
            begin += 1
        scan.take(window)


class _Scan:
    """The state of the scan at the current position."""

    __slots__ = ("_depth", "_in_string", "_max_depth", "_max_nodes", "_nodes")

    def __init__(self, max_nodes: int, max_depth: int) -> None:
        self._depth = 0
        self._max_depth = max_depth
        self._nodes = 1
        self._max_nodes = max_nodes
        self._in_string = False

    def take(self, window: bytes) -> None:
        """Count the next window, which must not end between a backslash and its character."""
        if b"\\" in window:
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        text = window.translate(None, _NOT_STRUCTURE)
        if self._in_string:
            text = b'"' + text
        self._in_string = bool(text.count(b'"') & 1)
        # Two adjacent quotes open and close a string, or close and open one. Without them, the
        # other bytes stay inside or outside of a string.
        text = text.replace(b'""', b"")
        if b'"' in text:
            text = b"".join(text.split(b'"')[::2])
        brackets = text.translate(_SQUARE, b",")
        opened = brackets.count(b"[")
        # Each value is the first of its container or has a comma before it.
        self._nodes += len(text) - len(brackets) + opened
        if self._nodes > self._max_nodes:
            raise LimitExceeded(
                f"The JSON has more than {self._max_nodes} values (JSON_NODES)",
                hint="Send it in several requests",
            )
        if brackets:
            self._descend(brackets, opened)

    def _descend(self, brackets: bytes, opened: int) -> None:
        closed = len(brackets) - opened
        left, levels = brackets, 0
        while levels < _COLLAPSES and self._depth + levels + left.count(b"[") > self._max_depth:
            inner = left.replace(b"[]", b"")
            if len(inner) == len(left):
                break
            left, levels = inner, levels + 1
        if self._depth + levels + left.count(b"[") > self._max_depth:
            steps = memoryview(brackets.translate(_STEP_BY_BRACKET)).cast("b")
            if max(accumulate(steps, initial=self._depth)) > self._max_depth:
                raise InvalidJson(
                    f"JSON is nested deeper than {self._max_depth} levels (JSON_DEPTH)"
                )
        self._depth += opened - closed
