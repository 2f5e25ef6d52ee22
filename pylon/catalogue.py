"""Error catalogue: every error code of Pylon, with its meaning and its remedy.

It is made from the docstrings of the error classes and from the table of manifest diagnostics. So
it cannot name a code that does not exist. `pylonctl explain` prints it; docs/errors.md is generated
from it.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any, Final

import msgspec

from pylon.errors import PylonError, StartRefused
from pylon.manifest.codes import DIAGNOSTICS
from pylon.manifest.diagnostics import ManifestInvalid
from pylon.policy.grammar import PolicyInvalid

_REMEDY: Final = "Remedy: "
# Error classes outside `pylon.errors`. Naming them here imports them.
_ELSEWHERE: Final[tuple[type[PylonError], ...]] = (ManifestInvalid, PolicyInvalid)


class Entry(msgspec.Struct, frozen=True):
    """One code. `status` is None for an error that no HTTP response has."""

    code: str
    explanation: str
    remedy: str
    status: int | None
    retryable: bool
    kind: str  # "error" or "manifest"

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``pylonctl explain --json`` prints."""
        return {
            "code": self.code, "kind": self.kind, "status": self.status,
            "retryable": self.retryable, "explanation": self.explanation, "remedy": self.remedy,
        }


def entries() -> list[Entry]:
    """Return the whole catalogue, sorted by code."""
    found = {cls.code: _of_class(cls) for cls in (*PylonError.classes(), *_ELSEWHERE)}
    for code, (explanation, remedy) in DIAGNOSTICS.items():
        found[code] = Entry(code, explanation, remedy, None, retryable=False, kind="manifest")
    return [found[code] for code in sorted(found)]


def entry(code: str) -> Entry | None:
    """Return the entry of a code, whatever its case, or None."""
    wanted = code.strip().upper().replace("-", "_")
    return next((e for e in entries() if e.code == wanted), None)


def nearest(code: str) -> str | None:
    """Return the most similar code, or None."""
    close = get_close_matches(code.strip().upper(), [e.code for e in entries()], n=1, cutoff=0.5)
    return close[0] if close else None


def _of_class(cls: type[PylonError]) -> Entry:
    text = inspect.getdoc(cls) or ""
    explanation, _, remedy = text.partition(_REMEDY)
    start_only = issubclass(cls, StartRefused)
    return Entry(
        cls.code, " ".join(explanation.split()), " ".join(remedy.split()),
        None if start_only else cls.status, cls.retryable,
        kind="manifest" if cls in _ELSEWHERE else "error",
    )
