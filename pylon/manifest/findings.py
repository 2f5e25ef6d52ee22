"""Findings: collects the diagnostics of one manifest, and reads nodes that may have errors.

Validation continues after the first error, so that a developer sees all errors at once. The
functions here therefore return nothing for a value of the wrong shape, because `shape` has reported
it already. Called by `shape`, `checks` and `pylon.manifest_loader`.
"""

from __future__ import annotations

from pylon.manifest.diagnostics import Diagnostic, Severity, one_line
from pylon.manifest.document import Node, line_and_column, offset_in_string
from pylon.manifest.places import SourcePlaces


class Findings:
    """Collects diagnostics about one file."""

    def __init__(
        self, text: str, file: str, root: Node | None = None, places: SourcePlaces | None = None
    ) -> None:
        """Begin without findings.

        Args:
            root: the document, with `places` if Python has declared it.
        """
        self._text = text
        self._file = file
        self._root = root
        self._places = places
        self._found: dict[tuple[int, str, str], Diagnostic] = {}

    def place_in_string(self, node: Node, index: int) -> int:
        """Return the offset in the file of a character of a string."""
        return offset_in_string(self._text, node, index)

    def line_of(self, node: Node) -> str:
        """Return ``file:line`` of a node."""
        file, line, _ = self._place(node.at)
        return f"{file}:{line}"

    def shape(self, node: Node, message: str) -> None:
        """Report a value of the wrong JSON shape."""
        self.error("MANIFEST_PARSE_ERROR", message, node.at)

    def error(self, code: str, message: str, at: int, hint: str | None = None) -> None:
        """Report an error at an offset of the file."""
        self._report("error", code, message, at, hint)

    def warning(self, code: str, message: str, at: int, hint: str | None = None) -> None:
        """Report a warning, which does not stop a start."""
        self._report("warning", code, message, at, hint)

    def touch(self, node: Node) -> bool:
        """Whether an error has been reported at the node or inside it."""
        return any(
            node.at <= at < node.end
            for (at, _, _), found in self._found.items() if found.severity == "error"
        )

    def in_order(self, severity: Severity) -> list[Diagnostic]:
        """Return the diagnostics of a severity in file order."""
        found = [self._found[key] for key in sorted(self._found)]
        return [diagnostic for diagnostic in found if diagnostic.severity == severity]

    def _report(
        self, severity: Severity, code: str, message: str, at: int, hint: str | None
    ) -> None:
        file, line, column = self._place(at)
        self._found[at, code, message] = Diagnostic(
            severity, code, one_line(message), file, line, column, hint
        )

    def _place(self, at: int) -> tuple[str, int, int]:
        if self._places is not None and self._root is not None:
            return self._places.locate(self._text, self._root, at)
        return (self._file, *line_and_column(self._text, at))


def text_of(node: Node, key: str) -> Node | None:
    """Return the member of an object if it is a string, or None."""
    found = node.value.get(key) if isinstance(node.value, dict) else None
    return found if found is not None and isinstance(found.value, str) else None


def items_of(node: Node, key: str) -> list[Node]:
    """Return the items of a member that is an array, or an empty list."""
    found = node.value.get(key) if isinstance(node.value, dict) else None
    return found.value if found is not None and isinstance(found.value, list) else []


def texts_of(node: Node, key: str) -> list[Node]:
    """Return the strings among the items of a member that is an array."""
    return [item for item in items_of(node, key) if isinstance(item.value, str)]
