"""Generated files: writes them in one step, or compares them.

Called by the verbs that generate files: `manifest`, `codegen`.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import click

from pylon.cli.output import ERROR, note, result
from pylon.errors import StartRefused


def write_if_changed(target: Path, text: str) -> None:
    """Write a generated file unless it has this text already, and say so.

    Raises:
        StartRefused: it cannot be written.
    """
    try:
        if target.read_text(encoding="utf-8") == text:
            return
    except (OSError, ValueError):
        pass
    write_whole(target, text)
    note(f"wrote {target}")


def put_generated(ctx: click.Context, target: Path, text: str, *, check: bool) -> None:
    """Write a generated file, or compare it. Exit 1 with the difference if it is not current."""
    try:
        present = target.read_text(encoding="utf-8")
    except FileNotFoundError:
        present = None
    except (OSError, ValueError) as ex:
        raise StartRefused(f"{target} cannot be read: {ex}") from ex
    is_current = present == text
    if check:
        if not is_current:
            lines = difflib.unified_diff(
                (present or "").splitlines(), text.splitlines(), f"{target}", "generated",
                lineterm="",
            )
            note("\n".join(lines))
        result(
            {"file": str(target), "current": is_current},
            f"{target} is {'current' if is_current else 'not current'}",
        )
        if not is_current:
            ctx.exit(ERROR)
        return
    if not is_current:
        write_whole(target, text)
    result({"file": str(target), "written": not is_current},
           f"{target} {'is current' if is_current else 'was written'}")


def write_whole(target: Path, text: str) -> None:
    """Replace a file in one step, so that nobody reads a part of it.

    Raises:
        StartRefused: it cannot be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except OSError as ex:
        part.unlink(missing_ok=True)
        raise StartRefused(f"{target} cannot be written: {ex.strerror or ex}") from ex
