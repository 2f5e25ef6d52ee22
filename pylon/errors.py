"""The one error tree: every failure that a client, an operator or another process may see.

Each class has a stable `code` (part of the wire, spec/http.md §3.0), the HTTP `status` it
answers with, and `retryable`: whether the same request may succeed if it is sent again.
An error carries a `message` for people, an optional `hint` that says how to mend it, and
`details`, which become further members of the error object.

Invariants: codes are unique; an error survives the bus (`to_wire` and `from_wire`), so that
what the writer refuses reads the same at the client. Raised everywhere, rendered by
`pylon.api` and the socket workers, printed by `pylonctl`.
"""

from __future__ import annotations

from typing import Any, ClassVar

_BY_CODE: dict[str, type[PylonError]] = {}


class PylonError(Exception):
    """Base of all errors of Pylon. Not raised itself."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            known = _BY_CODE.setdefault(cls.code, cls)
            if known is not cls:
                raise TypeError(f"error code {cls.code} is used by {known} and {cls}")

    def body(self) -> dict[str, Any]:
        """The wire form: ``{"error": {"code", "message", "hint"?, ...details}}``."""
        error: dict[str, Any] = {"code": self.code, "message": self.message, **self.details}
        if self.hint is not None:
            error["hint"] = self.hint
        return {"error": error}

    def to_wire(self) -> tuple[str, str, str | None, dict[str, Any]]:
        """What the bus carries: code, message, hint, details."""
        return self.code, self.message, self.hint, self.details

    @staticmethod
    def classes() -> list[type[PylonError]]:
        """Every class with a code that has been loaded, by code."""
        return [_BY_CODE[code] for code in sorted(_BY_CODE)]

    @staticmethod
    def from_wire(
        code: str, message: str, hint: str | None, details: dict[str, Any]
    ) -> PylonError:
        """The error that `to_wire` described; an unknown code becomes an `InternalError`."""
        cls = _BY_CODE.get(code, InternalError)
        return cls(message, hint=hint, **details)


class InternalError(PylonError):
    """A defect of Pylon. The details are in the log, not in the answer."""

    code = "INTERNAL"
    status = 500


# --- Requests that cannot be understood -------------------------------------------------


class InvalidJson(PylonError):
    code = "INVALID_JSON"
    status = 400


class InvalidData(PylonError):
    code = "INVALID_DATA"
    status = 400


class InvalidQuery(PylonError):
    code = "INVALID_QUERY"
    status = 400


class InvalidColumn(PylonError):
    """A field that the entity does not have."""

    code = "INVALID_COLUMN"
    status = 400


class InvalidValue(PylonError):
    """A value of the wrong type: names entity, field, value and what was expected."""

    code = "INVALID_VALUE"
    status = 400


class NullNotAllowed(PylonError):
    code = "NULL_NOT_ALLOWED"
    status = 400


class MissingField(PylonError):
    code = "MISSING_FIELD"
    status = 400


class MissingUserId(PylonError):
    code = "MISSING_USER_ID"
    status = 400


class InvalidId(PylonError):
    code = "INVALID_ID"
    status = 400


class LimitExceeded(PylonError):
    """A named limit was passed; the message names the limit and its setting."""

    code = "LIMIT_EXCEEDED"
    status = 400


class SnapshotCursorInvalid(PylonError):
    code = "SNAPSHOT_CURSOR_INVALID"
    status = 400


class PayloadTooLarge(PylonError):
    code = "PAYLOAD_TOO_LARGE"
    status = 413


class RequestTimeout(PylonError):
    """The request's body did not arrive in time."""

    code = "REQUEST_TIMEOUT"
    status = 408
    retryable = True


class BadUpgrade(PylonError):
    code = "BAD_UPGRADE"
    status = 400


# --- Who may -----------------------------------------------------------------------------


class AuthRequired(PylonError):
    code = "AUTH_REQUIRED"
    status = 401


class Unauthorized(PylonError):
    code = "UNAUTHORIZED"
    status = 401


class SessionExpired(PylonError):
    """The token to refresh is unknown or has expired."""

    code = "SESSION_EXPIRED"
    status = 401


class Forbidden(PylonError):
    code = "FORBIDDEN"
    status = 403


class PolicyDenied(PylonError):
    code = "POLICY_DENIED"
    status = 403


class CsrfRejected(PylonError):
    code = "CSRF_REJECTED"
    status = 403


class ResetRefused(PylonError):
    code = "RESET_REFUSED"
    status = 403


class SocketLimit(PylonError):
    """Too many sockets from one address."""

    code = "SOCKET_LIMIT"
    status = 429
    retryable = True


# --- What is not there, or is in the way ---------------------------------------------------


class NotFound(PylonError):
    code = "NOT_FOUND"
    status = 404


class EntityNotFound(PylonError):
    code = "ENTITY_NOT_FOUND"
    status = 404


class ShardNotFound(PylonError):
    code = "SHARD_NOT_FOUND"
    status = 404


class MethodNotAllowed(PylonError):
    code = "METHOD_NOT_ALLOWED"
    status = 405


class UniqueViolation(PylonError):
    code = "UNIQUE_VIOLATION"
    status = 409


class OptimisticIdConflict(PylonError):
    """A client-made row id that is taken."""

    code = "OPTIMISTIC_ID_CONFLICT"
    status = 409


class PreconditionFailed(PylonError):
    """The row is not the version that `If-Match` asks for."""

    code = "PRECONDITION_FAILED"
    status = 412


class IdempotencyKeyReused(PylonError):
    """The key stands for another request, which was carried out."""

    code = "IDEMPOTENCY_KEY_REUSED"
    status = 422


class MissingOperations(PylonError):
    code = "MISSING_OPERATIONS"
    status = 400


class ActionNotFound(PylonError):
    code = "ACTION_NOT_FOUND"
    status = 404


class ActionMissingInput(PylonError):
    code = "ACTION_MISSING_INPUT"
    status = 400


class ResyncRequired(PylonError):
    """The cursor points outside the retained change log; carries `oldest_seq`."""

    code = "RESYNC_REQUIRED"
    status = 410


# --- Not now -------------------------------------------------------------------------------


class Unavailable(PylonError):
    """Something that this needs is not up at the moment."""

    code = "UNAVAILABLE"
    status = 503
    retryable = True


class WriteQueueFull(PylonError):
    """Too many writes in flight from this worker."""

    code = "WRITE_QUEUE_FULL"
    status = 503
    retryable = True


class WriterUnavailable(PylonError):
    """The writer did not answer in time. The write may or may not have happened."""

    code = "WRITER_UNAVAILABLE"
    status = 503
    retryable = True


class StoreUnavailable(PylonError):
    """The database refused the whole batch (full disk, I/O error). Nothing was written."""

    code = "STORE_UNAVAILABLE"
    status = 503
    retryable = True


class QueryTimeout(PylonError):
    code = "QUERY_TIMEOUT"
    status = 503
    retryable = True


class Draining(PylonError):
    code = "DRAINING"
    status = 503
    retryable = True


# --- Start-up and operation (never over HTTP) ------------------------------------------------


class StartRefused(PylonError):
    """Start-up refuses what is unsafe or impossible: one line, exit code 78 (EX_CONFIG)."""

    code = "START_REFUSED"
    status = 500


class SchemaRefused(StartRefused):
    """The live schema cannot be brought to the manifest by additive steps."""

    code = "SCHEMA_REFUSED"


class BackupInvalid(PylonError):
    code = "BACKUP_INVALID"
    status = 500


class BackupRefused(PylonError):
    """A backup or a restore that would overwrite something, or that has nothing to copy."""

    code = "BACKUP_REFUSED"
    status = 409


class NotRunning(PylonError):
    """No supervisor answers for this data directory."""

    code = "NOT_RUNNING"
    status = 503
