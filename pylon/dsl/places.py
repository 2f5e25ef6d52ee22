"""Places: the line and the column of each part of a declaration in the app's source.

A declaring call notes where it stands (`call_place`), which costs no parsing. `Source` finds its
arguments in the syntax tree when a document is built. A text that is written as several literals,
with escapes or over several lines, has a place for each of its characters.

Lines and columns count from 1, columns in characters, like those of `pylon.manifest.diagnostics`.
Called by `fields`, `declarations` and `document`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

_ESCAPE: Final = re.compile(
    r"\\(?:\n|N\{[^}]*\}|U[0-9A-Fa-f]{8}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[0-7]{1,3}|.)", re.DOTALL
)
_PREFIX: Final = re.compile(r"""([A-Za-z]*)(\"\"\"|'''|"|')""")

# A run of characters of a text that stand side by side: index of the first, line, column.
Run = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class CallPlace:
    """The place of a call: its file, and its span as the interpreter numbers it."""

    file: str
    span: tuple[int, int, int, int]  # first line, last line, first byte, byte behind the last


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file. `runs` has the characters of a text."""

    file: str
    line: int
    column: int
    runs: tuple[Run, ...] = ()


def call_place(depth: int = 2) -> CallPlace | None:
    """Return the place of the call of the function that calls this one."""
    frame = sys._getframe(depth)
    positions = frame.f_code.co_positions()
    span = next(islice(positions, frame.f_lasti // 2, None), None)
    if span is None or None in span:
        return None
    first, last, start, end = span
    return CallPlace(frame.f_code.co_filename, (first or 0, last or 0, start or 0, end or 0))


@lru_cache(maxsize=64)
def source_of(file: str) -> Source | None:
    """Return the source of a file; None if it cannot be read."""
    try:
        return Source(file, Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


class Source:
    """One Python file: its syntax tree, searched by place and by name."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._lines = text.splitlines(keepends=True)
        tree = ast.parse(text)
        self._calls = {
            (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset): node
            for node in ast.walk(tree) if isinstance(node, ast.Call)
        }
        self._classes: dict[str, ast.ClassDef] = dict(_classes(tree, ""))

    def call(self, place: CallPlace) -> ast.Call | None:
        """Return the call at a place."""
        return self._calls.get(place.span)

    def class_named(self, qualname: str) -> ast.ClassDef | None:
        """Return the last class statement of this name."""
        return self._classes.get(qualname)

    def place(self, node: ast.expr | ast.stmt | ast.keyword) -> Place:
        """Return the place of a node; of a text with the places of its characters."""
        runs: tuple[Run, ...] = ()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            runs = tuple(self._runs(node))
        return Place(
            self._file, node.lineno, self._column(node.lineno, node.col_offset), runs
        )

    def class_name_place(self, node: ast.ClassDef) -> Place:
        """Return the place of the name in a class statement."""
        line = self._lines[node.lineno - 1]
        at = line.find(node.name, line.find("class", node.col_offset) + len("class"))
        return Place(self._file, node.lineno, at + 1)

    def _column(self, line: int, byte: int) -> int:
        return len(self._lines[line - 1].encode()[:byte].decode(errors="replace")) + 1

    def _runs(self, node: ast.Constant) -> Iterator[Run]:
        """Yield the runs of a text's characters, over the literals that make it."""
        first = self._column(node.lineno, node.col_offset) - 1
        lines = self._lines[node.lineno - 1 : node.end_lineno]
        text = "".join(lines)
        end = text.rfind("\n", 0, len(text) - len(lines[-1])) + 1 if len(lines) > 1 else 0
        end += self._column(node.end_lineno or node.lineno, node.end_col_offset or 0) - 1
        index = 0
        # The tokenizer needs no complete statement, only closed literals.
        piece = "(" + text[first:end] + ")"
        for token in tokenize.generate_tokens(io.StringIO(piece).readline):
            if token.type != tokenize.STRING:
                continue
            line = node.lineno + token.start[0] - 1
            column = token.start[1] + (first if token.start[0] == 1 else 1)
            for run in _literal_runs(token.string, line, column):
                yield (index + run[0], run[1], run[2])
            index += len(ast.literal_eval(token.string))


def _classes(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, child
            yield from _classes(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _classes(child, prefix)


def _literal_runs(literal: str, line: int, column: int) -> Iterator[Run]:
    """Yield the runs of one literal that begins at `line` and `column`."""
    found = _PREFIX.match(literal)
    if found is None:
        return
    is_raw = "r" in found[1].lower()
    at, index, end = found.end(), 0, len(literal) - len(found[2])
    column += at
    is_new = True
    while at < end:
        if is_new:
            yield index, line, column
            is_new = False
        escape = None if is_raw or literal[at] != "\\" else _ESCAPE.match(literal, at)
        width = 1 if escape is None else escape.end() - at
        is_newline = literal[at + width - 1] == "\n"
        index += 0 if escape is not None and is_newline else 1
        at += width
        if is_newline:
            line, column = line + 1, 1
        else:
            column += width
        is_new = is_newline or width != 1
