"""Errors of documents: what a client pushes to a row's CRDT document (spec/realtime.md §6.4).

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class CrdtDecodeFailed(PylonError):
    """The bytes are no Loro update and no Loro snapshot, or are damaged. Nothing was changed.

    Remedy: send what `doc.export({mode: "update"})` of loro-crdt 1.x gives, as hex.
    """

    code = "CRDT_DECODE_FAILED"
    status = 400


class CrdtApplyFailed(PylonError):
    """The update is sound, but the row cannot follow: a field would hold what is no value of a
    row, or the entity has fields of a reserved CRDT kind. Nothing was changed.

    Remedy: keep to the containers that docs/realtime.md lists for each field type.
    """

    code = "CRDT_APPLY_FAILED"
    status = 400


class CrdtHistoryMissing(PylonError):
    """The update builds on changes that the server's document does not have: an earlier push was
    lost, or the document was made anew. Nothing was changed.

    Remedy: push the whole document (`doc.export({mode: "snapshot"})`); if that does not help, take
    a new copy with crdt-subscribe and make the edits there.
    """

    code = "CRDT_HISTORY_MISSING"
    status = 409


class MissingUpdate(PylonError):
    """A push to a document without its update.

    Remedy: send {"update": "<hex>"}.
    """

    code = "MISSING_UPDATE"
    status = 400


class InvalidHex(PylonError):
    """The update is not written in pairs of hex digits.

    Remedy: send two hex digits for each byte, without spaces.
    """

    code = "INVALID_HEX"
    status = 400


class NotSupported(PylonError):
    """The entity has no documents: its manifest entry says "crdt": false.

    Remedy: write its rows through /api/entities, or remove "crdt": false.
    """

    code = "NOT_SUPPORTED"
    status = 400


class BadPath(PylonError):
    """A path that lacks the entity or the row.

    Remedy: use the path that the message shows.
    """

    code = "BAD_PATH"
    status = 400
