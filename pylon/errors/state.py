"""Errors about what is not there, or is in the way: rows, routes, cursors.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class NotFound(PylonError):
    """No such route, or no such row for this caller: a row that the caller may not read is treated
    as one that does not exist.

    Remedy: check the path and the id, and whether the caller may read the row.
    """

    code = "NOT_FOUND"
    status = 404


class RoleMissing(PylonError):
    """The request is for a role that other nodes of this server run (PYLON_ROLES).

    Remedy: connect to the URL that the message names; an operator sets it (PYLON_WS_URL), or has
    the load balancer send the path to the nodes of that role.
    """

    code = "ROLE_NOT_HERE"
    status = 404


class EntityNotFound(PylonError):
    """The manifest declares no entity of that name. Only admins are told; others get POLICY_DENIED.

    Remedy: correct the name: upper and lower case matter.
    """

    code = "ENTITY_NOT_FOUND"
    status = 404


class MethodNotAllowed(PylonError):
    """The route exists and does not take this method. The header Allow lists those that it takes.

    Remedy: use one of the methods in Allow.
    """

    code = "METHOD_NOT_ALLOWED"
    status = 405


class UniqueViolation(PylonError):
    """Another row has the same value in a unique field or index. The error names entity, fields and
    value.

    Remedy: choose another value, or update the row that has it.
    """

    code = "UNIQUE_VIOLATION"
    status = 409


class ReferenceNotFound(PylonError):
    """A field of type id(Entity) names a row that does not exist. The error has entity, field and
    value.

    Remedy: insert the other row first, or in the same transaction; or send null if the field is
    optional.
    """

    code = "REFERENCE_NOT_FOUND"
    status = 422


class ReferenceInUse(PylonError):
    """Other rows refer to the row that was to be deleted. The error has the entity and the field of
    these rows, and their number up to a bound if the caller may read all rows of that entity.

    Remedy: delete or change these rows first, or in the same transaction; or let the manifest say
    onDelete cascade or setNull.
    """

    code = "REFERENCE_IN_USE"
    status = 409


class OptimisticIdConflict(PylonError):
    """The id that the client made for its new row is taken.

    Remedy: make a new id; if the first attempt may have succeeded, read the row.
    """

    code = "OPTIMISTIC_ID_CONFLICT"
    status = 409


class PreconditionFailed(PylonError):
    """The row has changed since the version that If-Match names.

    Remedy: read the row again, apply the change to what it is now, and send its new ETag.
    """

    code = "PRECONDITION_FAILED"
    status = 412


class IdempotencyKeyReused(PylonError):
    """The Idempotency-Key was used before, for another request.

    Remedy: make a new key for each new operation; repeat a key only with the very same request.
    """

    code = "IDEMPOTENCY_KEY_REUSED"
    status = 422


class MissingOperations(PylonError):
    """A batch without its array of operations.

    Remedy: send {"operations": [{"op": "insert", "entity": "...", "data": {}}]}.
    """

    code = "MISSING_OPERATIONS"
    status = 400


class ActionNotFound(PylonError):
    """The manifest declares no action of that name. The hint lists those that there are.

    Remedy: correct the name, or declare the action.
    """

    code = "ACTION_NOT_FOUND"
    status = 404


class ActionMissingInput(PylonError):
    """An input that the action requires is missing or null. The hint lists what it requires.

    Remedy: send every required input.
    """

    code = "ACTION_MISSING_INPUT"
    status = 400


class RecordExists(PylonError):
    """A record of sign-in was to be made, and there is one with its key already. The error names
    the table. Clients see the error of the route in its place.

    Remedy: none is necessary; the route reads again and decides anew.
    """

    code = "RECORD_EXISTS"
    status = 409


class RecordConflict(PylonError):
    """Records of sign-in are no longer as the route has read them: another request has used up the
    token, or changed the account. Clients see the error of the route in its place.

    Remedy: none is necessary; the route reads again and decides anew.
    """

    code = "RECORD_CONFLICT"
    status = 409


class ResyncRequired(PylonError):
    """The cursor points outside the retained change log, or at history that a restore has replaced;
    oldest_seq says where the log begins.

    Remedy: drop the local copy and pull with since=0; the official clients do so by themselves.
    """

    code = "RESYNC_REQUIRED"
    status = 410
