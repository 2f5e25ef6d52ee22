"""Operations of rows' documents (spec/realtime.md §6.4)."""

from __future__ import annotations

from typing import Final

from pylon import errors, limits
from pylon.manifest.model import Manifest
from pylon.openapi.parts import (
    ROW_ERRORS,
    WRITE_ERRORS,
    ErrorClass,
    Paths,
    Schema,
    answer,
    obj,
    operation,
    path,
)

_SIGNED_IN: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}, {"CookieAuth": []}]
_ERRORS: Final[tuple[ErrorClass, ...]] = (
    *WRITE_ERRORS, *ROW_ERRORS, errors.AuthRequired, errors.PolicyDenied, errors.EntityNotFound,
    errors.NotFound, errors.NotSupported, errors.BadPath, errors.MissingUpdate,
    errors.InvalidHex, errors.CrdtDecodeFailed, errors.CrdtApplyFailed,
    errors.CrdtHistoryMissing, errors.LimitExceeded, errors.UniqueViolation, errors.Unavailable,
    errors.RateLimited,
)
_BODY: Final[Schema] = obj(
    {"update": {
        "type": "string", "pattern": "^([0-9a-fA-F]{2})*$",
        "maxLength": 2 * limits.DOCUMENT_UPDATE_BYTES,
        "description": "What loro-crdt exports, an update or a snapshot, as hex",
    }},
    ("update",), more=True,
)


def document_paths(manifest: Manifest) -> Paths:
    """The paths under /api/crdt."""
    return {
        f"/api/crdt/{entity.name}/{{row_id}}": operation(
            "post", f"pushDocument{entity.name}", entity.name,
            "Merge an update into the row's document, and the document into the row",
            {200: answer("Merged, or known already", obj({"ok": {"const": True}}))},
            fails=_ERRORS, parameters=[path("row_id", "The row's id")], body=_BODY,
            security=_SIGNED_IN,
        )
        for entity in manifest.entities
    }
