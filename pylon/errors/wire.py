"""The wire form of a `PylonError`: how a refusal travels from one process to another.

Called by the writer, the calls between processes and the merge sandbox.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pylon.errors.base import PylonError


class WireError(msgspec.Struct, frozen=True, array_like=True):
    """A `PylonError` on its way to the process that asked."""

    code: str
    message: str
    hint: str | None
    details: dict[str, Any]

    @classmethod
    def from_error(cls, error: PylonError) -> WireError:
        """Return the error as it travels between processes."""
        return cls(*error.to_wire())

    def to_exception(self) -> PylonError:
        return PylonError.from_wire(self.code, self.message, self.hint, self.details)
