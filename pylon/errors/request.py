"""Errors of requests that cannot be understood or that pass a limit: 4xx, not retryable.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class InvalidRequest(PylonError):
    """The request is not HTTP/1.1 (RFC 9112), or it breaks a limit of the HTTP server.
    The status says which: 400, 405, 414, 417, 431, 501 or 505. The server closes the connection.

    Remedy: send what the message asks for; see the HTTP_* limits in docs/limits.md.
    """

    code = "INVALID_REQUEST"
    status = 400


class InvalidJson(PylonError):
    """The body is empty, cut short, not JSON in UTF-8, or not of the overall form that the route
    takes.

    Remedy: send one JSON document; the route's form is in /api/openapi.json.
    """

    code = "INVALID_JSON"
    status = 400


class InvalidData(PylonError):
    """A body, parameter or header has a form that the route does not take. The message says which
    and what is expected.

    Remedy: send what the message names; the route's form is in /api/openapi.json.
    """

    code = "INVALID_DATA"
    status = 400


class InvalidQuery(PylonError):
    """A filter, graph query, aggregate, search or query parameter is malformed: an unknown
    operator, a directive of the wrong type, a number that is none.

    Remedy: use the operators that the message lists.
    """

    code = "INVALID_QUERY"
    status = 400


class UnknownParameter(PylonError):
    """The route does not take a query parameter of this name. Only dev mode refuses it; production
    ignores the parameter and counts it (pylon_http_unknown_parameters_total).

    Remedy: use the name of the hint, or leave the parameter out.
    """

    code = "UNKNOWN_PARAMETER"
    status = 400


class SearchNotConfigured(PylonError):
    """The entity has no `search` in the manifest, so there is nothing to search in.

    Remedy: add the lines that the hint shows to the entity, and restart.
    """

    code = "SEARCH_NOT_CONFIGURED"
    status = 400


class InvalidColumn(PylonError):
    """A field that the entity does not have. The message lists those that it has.

    Remedy: correct the name, or add the field to the manifest.
    """

    code = "INVALID_COLUMN"
    status = 400


class InvalidValue(PylonError):
    """A value of the wrong type. The error names entity, field, value and what was expected.

    Remedy: send a value of the field's type; nothing is converted, not even "1" to 1.
    """

    code = "INVALID_VALUE"
    status = 400


class NullNotAllowed(PylonError):
    """Null for a field that is not optional.

    Remedy: send a value, or make the field optional in the manifest.
    """

    code = "NULL_NOT_ALLOWED"
    status = 400


class ValueTooLongToIndex(PylonError):
    """A text of a field that is unique or in an index is longer than PostgreSQL can index. The
    error names the field.

    Remedy: send a shorter text, or take the field out of the index.
    """

    code = "VALUE_TOO_LONG_TO_INDEX"
    status = 400


class MissingField(PylonError):
    """A new row, or a request, lacks a field that it must have. The error names it.

    Remedy: send the field, or make it optional in the manifest.
    """

    code = "MISSING_FIELD"
    status = 400


class FieldFixed(PylonError):
    """A client has sent a field that only the server sets: the manifest says fixed or onUpdate.

    Remedy: leave the field out. Admins may set it, for imports and repairs.
    """

    code = "FIELD_FIXED"
    status = 400


class ReadonlyField(PylonError):
    """A client has sent a field that only the server and administrators write: one that sign-in
    manages (emailVerified, phone, ...), or a hidden one (serverOnly, passwordHash, ...).

    Remedy: leave the field out.
    """

    code = "READONLY_FIELD"
    status = 403


class MissingUserId(PylonError):
    """A session was asked for without saying for whom.

    Remedy: send {"user_id": "..."}.
    """

    code = "MISSING_USER_ID"
    status = 400


class InvalidId(PylonError):
    """A row id in a body that cannot be one (40 lower-case hex characters), or another id than the
    row's own.

    Remedy: make ids with generateId() of the client, or leave id out; a row keeps its id for ever.
    """

    code = "INVALID_ID"
    status = 400


class RelationNotFound(PylonError):
    """A request names a relation that the entity does not have. The error lists those it has.

    Remedy: use one of them, or declare the relation in the manifest.
    """

    code = "RELATION_NOT_FOUND"
    status = 400


class LimitExceeded(PylonError):
    """A named limit was passed. The message names the limit and, where there is one, its setting.

    Remedy: ask for less at a time; docs/limits.md has all limits, the README the settings.
    """

    code = "LIMIT_EXCEEDED"
    status = 400


class SnapshotCursorInvalid(PylonError):
    """A snapshot_after that this server did not give out: it answers a snapshot whole.

    Remedy: pull again with since=0 and without snapshot_after.
    """

    code = "SNAPSHOT_CURSOR_INVALID"
    status = 400


class PayloadTooLarge(PylonError):
    """The request's body is larger than limits.BODY_BYTES.

    Remedy: send it in several requests.
    """

    code = "PAYLOAD_TOO_LARGE"
    status = 413


class RequestTimeout(PylonError):
    """The request's body did not arrive in time. Nothing was carried out.

    Remedy: send it again, over a better connection or in smaller parts.
    """

    code = "REQUEST_TIMEOUT"
    status = 408
    retryable = True


class BadUpgrade(PylonError):
    """A request for a WebSocket on a port or in a form that does not lead to one.

    Remedy: connect to the URL in the message, or to the one of /api/client-config.
    """

    code = "BAD_UPGRADE"
    status = 400
