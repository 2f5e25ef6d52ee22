"""What is wrong with a manifest, and where (spec/http.md §2.5).

Made by the manifest's validation and by the policy compiler, printed by `pylonctl`, carried by
`ManifestInvalid`. Lines and columns count from 1, columns in characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pylon.errors import StartRefused

_MESSAGE_CHARS = 400

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding. Without a line it concerns the file as a whole."""

    severity: Severity
    code: str
    message: str
    file: str
    line: int | None = None
    column: int | None = None
    hint: str | None = None

    @property
    def place(self) -> str:
        """``file:line:column``, as editors understand it."""
        return ":".join(str(p) for p in (self.file, self.line, self.column) if p is not None)

    def render(self) -> str:
        """For a terminal: ``file:line:col: error CODE: message (hint)``.

        A hint of several lines (an expression with a caret) stands below, indented.
        """
        text = f"{self.place}: {self.severity} {self.code}: {self.message}"
        if self.hint is None:
            return text
        if "\n" in self.hint:
            return text + "".join(f"\n    {line}" for line in self.hint.split("\n"))
        return f"{text} ({self.hint})"

    def to_json(self) -> dict[str, Any]:
        """The diagnostic object of spec/http.md §2.5."""
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
    """A message that quotes foreign text, fit for one line of a terminal or a log."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message[:_MESSAGE_CHARS])
    return shown if len(message) <= _MESSAGE_CHARS else shown + "…"


class ManifestInvalid(StartRefused):
    """The manifest has errors; `diagnostics` has all of them, in the order of the file.

    Remedy: mend each place; pylonctl explain CODE explains its code.
    """

    code = "MANIFEST_INVALID"

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        first = diagnostics[0]
        more = f" (and {len(diagnostics) - 1} more)" if len(diagnostics) > 1 else ""
        super().__init__(f"{first.place}: {first.code}: {first.message}{more}")
        self.diagnostics = tuple(diagnostics)
