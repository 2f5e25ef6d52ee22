"""The diagnostics collected while a manifest is looked at, and the tolerant reading of nodes.

Validation goes on after the first error so that a person sees all of them at once; therefore the
readers here give nothing for a value of the wrong shape, which has been reported already.
"""

from __future__ import annotations

from pylon.manifest.diagnostics import Diagnostic, Severity, one_line
from pylon.manifest.document import Node, line_and_column, offset_in_string


class Findings:
    """Collects diagnostics about one file."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._found: dict[tuple[int, str, str], Diagnostic] = {}

    def place_in_string(self, node: Node, index: int) -> int:
        """The offset in the file of a character of a string."""
        return offset_in_string(self._text, node, index)

    def shape(self, node: Node, message: str) -> None:
        """Report a value of the wrong JSON shape."""
        self.error("MANIFEST_PARSE_ERROR", message, node.at)

    def error(self, code: str, message: str, at: int, hint: str | None = None) -> None:
        """Report an error at an offset of the file."""
        self._report("error", code, message, at, hint)

    def warning(self, code: str, message: str, at: int, hint: str | None = None) -> None:
        """Report something that does not stop a start."""
        self._report("warning", code, message, at, hint)

    def touch(self, node: Node) -> bool:
        """Whether an error has been reported at the node or inside it."""
        return any(
            node.at <= at < node.end
            for (at, _, _), found in self._found.items() if found.severity == "error"
        )

    def in_order(self, severity: Severity) -> list[Diagnostic]:
        """The diagnostics of a severity in the order of the file."""
        found = [self._found[key] for key in sorted(self._found)]
        return [diagnostic for diagnostic in found if diagnostic.severity == severity]

    def _report(
        self, severity: Severity, code: str, message: str, at: int, hint: str | None
    ) -> None:
        line, column = line_and_column(self._text, at)
        self._found[at, code, message] = Diagnostic(
            severity, code, one_line(message), self._file, line, column, hint
        )


def text_of(node: Node, key: str) -> Node | None:
    """The member, if the node is an object that has it and it is a string."""
    found = node.value.get(key) if isinstance(node.value, dict) else None
    return found if found is not None and isinstance(found.value, str) else None


def items_of(node: Node, key: str) -> list[Node]:
    """The items of a member that is an array; none otherwise."""
    found = node.value.get(key) if isinstance(node.value, dict) else None
    return found.value if found is not None and isinstance(found.value, list) else []


def texts_of(node: Node, key: str) -> list[Node]:
    """The items of a member that is an array, as far as they are strings."""
    return [item for item in items_of(node, key) if isinstance(item.value, str)]
