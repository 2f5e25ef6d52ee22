"""Findings: what a check of the doctor has found, why it matters, and the remedy.

Each check yields one `Finding` at least, so that the operator sees what was looked at. Called by
the other modules of this package and by `pylonctl doctor`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

OK: Final = "ok"
NOTE: Final = "note"  # a fact that may help; no trouble
WARNING: Final = "warning"
ERROR: Final = "error"
_EXIT_CODES: Final = {OK: 0, NOTE: 0, WARNING: 1, ERROR: 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check. `check`: its name, for example `disk.space`."""

    level: str
    check: str
    what: str
    why: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding for `--json`."""
        return asdict(self)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 2 with an error among the findings, else 1 with a warning, else 0."""
    return max((_EXIT_CODES[finding.level] for finding in findings), default=0)


def size_text(size_bytes: float) -> str:
    """Return a size for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1_024 or unit == "GiB":
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1_024
    raise AssertionError("the last unit returns")
