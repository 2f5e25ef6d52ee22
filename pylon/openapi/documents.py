"""Operations on the documents of rows (spec/realtime.md §6.4)."""

from __future__ import annotations

from typing import Final

from pylon import errors
from pylon.api.sync.bodies import DocumentUpdateBody
from pylon.manifest.model import Manifest
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    ROW_ERRORS,
    WRITE_ERRORS,
    ErrorClass,
    Paths,
    obj,
    operation,
    path,
    response,
)

_SIGNED_IN: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}, {"CookieAuth": []}]
_ERRORS: Final[tuple[ErrorClass, ...]] = (
    *WRITE_ERRORS, *ROW_ERRORS, errors.AuthRequired, errors.PolicyDenied, errors.EntityNotFound,
    errors.NotFound, errors.NotSupported, errors.BadPath, errors.MissingUpdate,
    errors.InvalidHex, errors.CrdtDecodeFailed, errors.CrdtApplyFailed,
    errors.CrdtHistoryMissing, errors.LimitExceeded, errors.UniqueViolation, errors.FieldFixed,
    errors.ReadonlyField, errors.ReferenceNotFound, errors.Unavailable,
    errors.RateLimited,
)

def document_paths(manifest: Manifest) -> Paths:
    """Return the paths under /api/crdt."""
    return {
        f"/api/crdt/{entity.name}/{{row_id}}": operation(
            "post", f"pushDocument{entity.name}", entity.name,
            "Merge an update into the row's document, and the document into the row",
            {200: response("Merged, or known already", obj({"ok": {"const": True}}))},
            raises=_ERRORS, parameters=[path("row_id", "The row's id")],
            body=body_schema(DocumentUpdateBody), security=_SIGNED_IN,
        )
        for entity in manifest.entities
    }
