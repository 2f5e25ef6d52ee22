"""Bounds a JSON text before it is decoded: its nesting, and how many values it has.

A decoder makes an object of each value, and holds the interpreter meanwhile: 10 MB of `[[],[],…]`
are 3.5 million lists. So the bytes are scanned first. The scan removes strings with operations on
whole byte strings, in windows of `_WINDOW_BYTES`, and counts brackets and commas in the rest.

Invariants: a JSON text that passes has at most `limits.JSON_DEPTH` levels and `nodes` values. Keys
are not counted, an empty container is counted as two. A JSON text within these bounds always
passes, whatever its strings hold. A text that is no JSON may pass or not: its decoder
refuses it. Bounds: `limits.JSON_DEPTH`, `limits.JSON_NODES`. Called by `pylon.values`, for every
JSON text that a client sends.
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
    """Pass if a JSON text is neither nested too deeply nor of too many values.

    Args:
        nodes: how many values it may have, containers included and keys not.
        depth: how many levels; None: `limits.JSON_DEPTH`.

    Raises:
        InvalidJson: deeper than `depth` (spec/http.md §6).
        LimitExceeded: more than `nodes` values.
    """
    if depth is None:
        depth = limits.JSON_DEPTH
    # A value takes two bytes at the least, its comma included. PERF: nearly all bodies end here,
    # after 0.1 us a kilobyte; the scan takes 1 to 5 us a kilobyte.
    if raw.count(b"[") + raw.count(b"{") <= depth and len(raw) <= 2 * nodes:
        return
    scan = _Scan(nodes, depth)
    begin = 0
    while begin < len(raw):
        window = raw[begin : begin + _WINDOW_BYTES]
        begin += len(window)
        if (len(window) - len(window.rstrip(b"\\"))) & 1:  # the escaped character belongs to it
            window += raw[begin : begin + 1]
            begin += 1
        scan.take(window)


class _Scan:
    """The state of the scan at the current position."""

    __slots__ = ("_depth", "_in_string", "_most_depth", "_most_nodes", "_nodes")

    def __init__(self, most_nodes: int, most_depth: int) -> None:
        self._depth = 0
        self._most_depth = most_depth
        self._nodes = 1
        self._most_nodes = most_nodes
        self._in_string = False

    def take(self, window: bytes) -> None:
        """Count the next part. It does not end between a backslash and what that escapes."""
        if b"\\" in window:
            window = window.replace(b"\\\\", b"").replace(b'\\"', b"")
        text = window.translate(None, _NOT_STRUCTURE)
        if self._in_string:
            text = b'"' + text
        self._in_string = bool(text.count(b'"') & 1)
        # Two quotes in a row open and close, or close and open: what is left keeps its place
        # inside or outside of a string either way.
        text = text.replace(b'""', b"")
        if b'"' in text:
            text = b"".join(text.split(b'"')[::2])
        brackets = text.translate(_SQUARE, b",")
        opened = brackets.count(b"[")
        # Each value is the first of its container or has a comma before it.
        self._nodes += len(text) - len(brackets) + opened
        if self._nodes > self._most_nodes:
            raise LimitExceeded(
                f"The JSON has more than {self._most_nodes} values (JSON_NODES)",
                hint="Send it in several requests",
            )
        if brackets:
            self._descend(brackets, opened)

    def _descend(self, brackets: bytes, opened: int) -> None:
        closed = len(brackets) - opened
        left, levels = brackets, 0
        while levels < _COLLAPSES and self._depth + levels + left.count(b"[") > self._most_depth:
            inner = left.replace(b"[]", b"")
            if len(inner) == len(left):
                break
            left, levels = inner, levels + 1
        if self._depth + levels + left.count(b"[") > self._most_depth:
            steps = memoryview(brackets.translate(_STEP_BY_BRACKET)).cast("b")
            if max(accumulate(steps, initial=self._depth)) > self._most_depth:
                raise InvalidJson(
                    f"JSON is nested deeper than {self._most_depth} levels (JSON_DEPTH)"
                )
        self._depth += opened - closed
