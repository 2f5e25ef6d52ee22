"""JSON reader that keeps the offset of each value, so that a diagnostic can name its line.

The standard decoder does not keep offsets. This reader accepts strict JSON (RFC 8259), and refuses
what could be misread: a key that occurs twice, and half of a surrogate pair.

Invariant: any text gives a `Node` or `NotJsonError`. Bound: `limits.JSON_DEPTH` levels. Called by
`pylon.manifest_loader`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pylon import limits

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_HEX = re.compile(r"u([0-9A-Fa-f]{4})")
_ESCAPES = {
    '"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
}
_WORDS = {"true": True, "false": False, "null": None}
_NUMBER_CHARS = 400  # a longer number fits no column


class NotJsonError(ValueError):
    """The text is not JSON; `at` is the offset of the first character that does not fit."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


class Node(msgspec.Struct, frozen=True):
    """A value, its offset, and the offset behind it.

    The value of a container is a dict[str, Node] or list[Node].
    """

    value: Any
    at: int
    end: int

    def plain(self) -> Any:
        """Return the value as `json.loads` returns it."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def read_document(text: str) -> Node:
    """Parse a whole document.

    Raises:
        NotJsonError: with the offset of the first character that does not fit.
    """
    reader = _Reader(text)
    node, end = reader.value(reader.skip(0), 0)
    end = reader.skip(end)
    if end != len(text):
        raise NotJsonError("text after the end of the document", end)
    return node


def line_and_column(text: str, at: int) -> tuple[int, int]:
    """Return the line and column of an offset, both counted from 1."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def offset_in_string(text: str, node: Node, index: int) -> int:
    """Return the offset in the file of character `index` of a string node's value.

    The index behind the last character gives the closing quote.
    """
    at = node.at + 1
    for _ in range(index):
        if text[at] != "\\":
            at += 1
        elif text[at + 1] != "u":
            at += 2
        else:
            is_pair = 0xD800 <= int(text[at + 2 : at + 6], 16) <= 0xDBFF
            at += 12 if is_pair else 6
    return at


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text

    def skip(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return found.end() if found else at

    def value(self, at: int, depth: int) -> tuple[Node, int]:
        """Return the value that starts at `at`, and the offset behind it."""
        if depth > limits.JSON_DEPTH:
            raise NotJsonError(f"nested deeper than {limits.JSON_DEPTH} levels", at)
        char = self._text[at : at + 1]
        if char == "{":
            return self._object(at, depth)
        if char == "[":
            return self._array(at, depth)
        if char == '"':
            string, end = self._string(at)
            return Node(string, at, end), end
        for word, value in _WORDS.items():
            if self._text.startswith(word, at):
                return Node(value, at, at + len(word)), at + len(word)
        return self._number(at)

    def _object(self, start: int, depth: int) -> tuple[Node, int]:
        members: dict[str, Node] = {}
        at = self.skip(start + 1)
        if self._text.startswith("}", at):
            return Node(members, start, at + 1), at + 1
        while True:
            if not self._text.startswith('"', at):
                raise NotJsonError("expected a key in double quotes", at)
            key, end = self._string(at)
            if key in members:
                raise NotJsonError(f'the key "{key}" occurs twice in this object', at)
            at = self.skip(end)
            if not self._text.startswith(":", at):
                raise NotJsonError("expected ':' after the key", at)
            members[key], at = self.value(self.skip(at + 1), depth + 1)
            at = self.skip(at)
            if self._text.startswith("}", at):
                return Node(members, start, at + 1), at + 1
            if not self._text.startswith(",", at):
                raise NotJsonError("expected ',' or '}'", at)
            at = self.skip(at + 1)

    def _array(self, start: int, depth: int) -> tuple[Node, int]:
        items: list[Node] = []
        at = self.skip(start + 1)
        if self._text.startswith("]", at):
            return Node(items, start, at + 1), at + 1
        while True:
            item, at = self.value(at, depth + 1)
            items.append(item)
            at = self.skip(at)
            if self._text.startswith("]", at):
                return Node(items, start, at + 1), at + 1
            if not self._text.startswith(",", at):
                raise NotJsonError("expected ',' or ']'", at)
            at = self.skip(at + 1)

    def _number(self, at: int) -> tuple[Node, int]:
        found = _NUMBER.match(self._text, at)
        if found is None:
            what = "a value" if at < len(self._text) else "a value, but the text ends"
            raise NotJsonError(f"expected {what}", at)
        digits = found.group()
        if len(digits) > _NUMBER_CHARS:
            raise NotJsonError(f"a number of more than {_NUMBER_CHARS} characters", at)
        is_whole = found.group(1) is None and found.group(2) is None
        number: int | float = int(digits) if is_whole else float(digits)
        if abs(number) == float("inf"):
            raise NotJsonError("the number is too large", at)
        return Node(number, at, found.end()), found.end()

    def _string(self, start: int) -> tuple[str, int]:
        """Return the string that opens at `start`, and the offset behind its closing quote."""
        out: list[str] = []
        at = start + 1
        while True:
            if part := _PLAIN.match(self._text, at):
                self._no_surrogates(part.group(), at)
                out.append(part.group())
                at = part.end()
            char = self._text[at : at + 1]
            if char == '"':
                return "".join(out), at + 1
            if char in ("", "\n"):
                raise NotJsonError("the string is not closed on its line", start)
            if char != "\\":
                raise NotJsonError("a control character in a string must be escaped", at)
            piece, at = self._escape(at)
            out.append(piece)

    def _escape(self, at: int) -> tuple[str, int]:
        letter = self._text[at + 1 : at + 2]
        if letter in _ESCAPES:
            return _ESCAPES[letter], at + 2
        first = _HEX.match(self._text, at + 1)
        if first is None:
            raise NotJsonError("unknown escape in a string", at)
        unit, end = int(first.group(1), 16), first.end()
        if 0xD800 <= unit <= 0xDBFF and self._text.startswith("\\", end):
            second = _HEX.match(self._text, end + 1)
            low = int(second.group(1), 16) if second else 0
            if second and 0xDC00 <= low <= 0xDFFF:
                return chr(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)), second.end()
        if 0xD800 <= unit <= 0xDFFF:
            raise NotJsonError("half of a surrogate pair in a string", at)
        return chr(unit), end

    @staticmethod
    def _no_surrogates(part: str, at: int) -> None:
        for index, char in enumerate(part) if not part.isascii() else ():
            if "\ud800" <= char <= "\udfff":
                raise NotJsonError("half of a surrogate pair in a string", at + index)
