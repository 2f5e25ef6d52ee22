"""Problems of a saved app, for the pages of a developer: what is wrong, where, and what mends it.

`pylonctl dev` checks the app after each change. If the app has an error, it writes the problems to
a file of the runtime folder. The server runs the version from before, and its HTTP workers read the
file for the pages below /app/ (`pylon.api.dev`). A frame has the lines of the source around a
place.

Invariants: no file means no problem. A new file replaces the old one in one step, so a reader sees
a whole one. The folder ends with the server, so no problem outlives it. Frames are of the manifest
and of Python files, not of env files. Bounds: `limits.DEV_PROBLEMS` problems,
`limits.DEV_FRAME_CHARS` characters of a line. Called by `pylon.cli.dev` and
`pylon.api.dev.overlay`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from pylon import limits
from pylon.errors import StartRefused
from pylon.manifest.diagnostics import Diagnostic

_LINES_AROUND: Final = 2  # of a place, above and below
# A trial of the app says so (`pylon.realtime.app_module`).
_APP_LINE: Final = re.compile(r"PYLON_APP is (.+?): line (\d+): (.+)", re.DOTALL)


class DevProblem(msgspec.Struct, frozen=True):
    """One problem as a page shows it. `place` is ``file:line:column``; `hint` is the remedy."""

    code: str
    message: str
    place: str | None = None
    frame: str | None = None
    hint: str | None = None


def problems_of(error: StartRefused) -> tuple[DevProblem, ...]:
    """Return the problems of a refused app: one, or one for each diagnostic or setting."""
    found = [
        _problem(each) for each in getattr(error, "diagnostics", ())  # of `ManifestInvalid`
    ] or [
        DevProblem(error.code, text, hint=error.hint)
        for text in getattr(error, "problems", ())  # of `SettingsRefused`
    ]
    in_app = _APP_LINE.fullmatch(error.message)
    if not found and in_app is not None:
        file, line, why = in_app[1], int(in_app[2]), in_app[3]
        found = [
            DevProblem(error.code, why, f"{file}:{line}", code_frame(file, line, None), error.hint)
        ]
    found = found or [DevProblem(error.code, error.message, hint=error.hint)]
    return tuple(found[:limits.DEV_PROBLEMS])


def _problem(diagnostic: Diagnostic) -> DevProblem:
    frame = code_frame(diagnostic.file, diagnostic.line, diagnostic.column)
    hint = diagnostic.hint
    if frame is not None and hint is not None and "\n" in hint:
        hint = None  # an expression with a caret, which the frame has
    return DevProblem(diagnostic.code, diagnostic.message, diagnostic.place, frame, hint)


def code_frame(file: str, line: int | None, column: int | None) -> str | None:
    """Return the lines around a place, with a mark at the line and a caret below the column.

    Args:
        line, column: from 1, columns in characters.

    Returns:
        None: the place has no line, or the file has no such line or cannot be read.
    """
    if line is None:
        return None
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return None
    if lines[-1] == "" and line < len(lines):
        lines.pop()
    if not 1 <= line <= len(lines):
        return None
    first = max(1, line - _LINES_AROUND)
    last = min(len(lines), line + _LINES_AROUND)
    width = len(str(last))
    frame = []
    for number in range(first, last + 1):
        text = lines[number - 1].rstrip().replace("\t", " ")[:limits.DEV_FRAME_CHARS]
        mark = ">" if number == line else " "
        frame.append(f"{mark} {number:>{width}} | {text}".rstrip())
        if number == line and column is not None and column <= len(text) + 1:
            frame.append(f"  {'':>{width}} | {' ' * (column - 1)}^")
    return "\n".join(frame)


def write_problems(path: Path, problems: Sequence[DevProblem]) -> None:
    """Replace the file by these problems.

    Raises:
        OSError: the folder is gone, or cannot be written to.
    """
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(msgspec.json.encode(problems))
    new.replace(path)


def read_problems(path: Path) -> tuple[DevProblem, ...]:
    """Return the problems of the file; none if it does not exist."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[DevProblem, ...])
    except FileNotFoundError:
        return ()
