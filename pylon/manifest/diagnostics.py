"""Diagnostics: one fault of a manifest with its line and column (spec/http.md §2.5).

Lines and columns count from 1, columns in characters. The manifest's validation and the policy
compiler make them, `ManifestInvalid` carries them, and `pylonctl` prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from pylon.errors import StartRefused

_MESSAGE_CHARS = 400

Severity = Literal["error", "warning", "info"]


class Diagnostic(msgspec.Struct, frozen=True):
    """One fault. Without a line it concerns the whole file."""

    severity: Severity
    code: str
    message: str
    file: str
    line: int | None = None
    column: int | None = None
    hint: str | None = None

    @property
    def place(self) -> str:
        """Return ``file:line:column``, which editors can open."""
        return ":".join(str(p) for p in (self.file, self.line, self.column) if p is not None)

    def render(self) -> str:
        """Return the text for a terminal: ``file:line:col: error CODE: message (hint)``.

        A hint of several lines (an expression with a caret) follows on indented lines.
        """
        text = f"{self.place}: {self.severity} {self.code}: {self.message}"
        if self.hint is None:
            return text
        if "\n" in self.hint:
            return text + "".join(f"\n    {line}" for line in self.hint.split("\n"))
        return f"{text} ({self.hint})"

    def to_json(self) -> dict[str, Any]:
        """Return the diagnostic object of spec/http.md §2.5."""
        span: dict[str, Any] = {"file": self.file}
        if self.line is not None:
            span |= {"line": self.line, "column": self.column}
        out: dict[str, Any] = {
            "severity": self.severity, "code": self.code, "message": self.message, "span": span,
        }
        if self.hint is not None:
            out["hint"] = self.hint
        return out


def one_line(message: str) -> str:
    """Return a message with foreign text as one printable line of bounded length."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message[:_MESSAGE_CHARS])
    return shown if len(message) <= _MESSAGE_CHARS else shown + "…"


class ManifestInvalid(StartRefused):
    """The manifest has errors; `diagnostics` has all of them, in file order.

    Remedy: mend each place; pylonctl explain CODE explains its code.
    """

    code = "MANIFEST_INVALID"

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        first = diagnostics[0]
        more = f" (and {len(diagnostics) - 1} more)" if len(diagnostics) > 1 else ""
        super().__init__(f"{first.place}: {first.code}: {first.message}{more}")
        self.diagnostics = tuple(diagnostics)
