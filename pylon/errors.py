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
    """A defect of Pylon: the request met an exception that nobody expected. The details are in the
    log, not in the answer.

    Remedy: look for the request id of the hint (or of X-Request-Id) in the server's log and report
    what it says.
    """

    code = "INTERNAL"
    status = 500


# --- Requests that cannot be understood -------------------------------------------------


class InvalidRequest(PylonError):
    """What arrived is not HTTP/1.1 as RFC 9112 has it, or breaks a limit of the HTTP server.
    The status says which: 400, 405, 414, 417, 431, 501 or 505; the connection is closed.

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


class MissingField(PylonError):
    """A new row, or a request, lacks a field that it must have. The error names it.

    Remedy: send the field, or make it optional in the manifest.
    """

    code = "MISSING_FIELD"
    status = 400


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


# --- Who may -----------------------------------------------------------------------------


class AuthRequired(PylonError):
    """The route needs a session, and the request carries no token.

    Remedy: sign in and send Authorization: Bearer <token>.
    """

    code = "AUTH_REQUIRED"
    status = 401


class Unauthorized(PylonError):
    """The token is not one that this route takes.

    Remedy: send the token that the message names.
    """

    code = "UNAUTHORIZED"
    status = 401


class SessionExpired(PylonError):
    """The token to refresh is unknown, has expired, or has been signed out.

    Remedy: sign in again.
    """

    code = "SESSION_EXPIRED"
    status = 401


class Forbidden(PylonError):
    """The route is for admins, and the caller is not one.

    Remedy: send PYLON_ADMIN_TOKEN as the bearer token, from a server and never from a browser.
    """

    code = "FORBIDDEN"
    status = 403


class PolicyDenied(PylonError):
    """The manifest's policies do not allow the action to this caller. Without a policy for an
    action it is denied.

    Remedy: check the token that was sent, then the entity's policies in the manifest; the hint says
    what is missing where no policy is declared.
    """

    code = "POLICY_DENIED"
    status = 403


class CsrfRejected(PylonError):
    """A write without a bearer token from a page whose origin is not trusted: it might ride on a
    cookie.

    Remedy: add the origin to PYLON_CSRF_ORIGINS or to auth.trustedOrigins in the manifest, or send
    a bearer token.
    """

    code = "CSRF_REJECTED"
    status = 403


class ResetRefused(PylonError):
    """The test reset is open only in dev mode, for an in-memory database, from this machine.

    Remedy: start a test server with PYLON_DEV_MODE=true and PYLON_IN_MEMORY=true.
    """

    code = "RESET_REFUSED"
    status = 403


class SocketLimit(PylonError):
    """Too many sockets from one address.

    Remedy: close sockets that are not used; an operator raises PYLON_SOCKETS_PER_IP, or sets
    PYLON_TRUST_PROXY_HOPS where a proxy stands in front.
    """

    code = "SOCKET_LIMIT"
    status = 429
    retryable = True


# --- What is not there, or is in the way ---------------------------------------------------


class NotFound(PylonError):
    """No such route, or no such row for this caller: a row that the caller may not read is treated
    as one that does not exist.

    Remedy: check the path and the id, and whether the caller may read the row.
    """

    code = "NOT_FOUND"
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


class ResyncRequired(PylonError):
    """The cursor points outside the retained change log, or at history that a restore has replaced;
    oldest_seq says where the log begins.

    Remedy: drop the local copy and pull with since=0; the official clients do so by themselves.
    """

    code = "RESYNC_REQUIRED"
    status = 410


# --- Not now -------------------------------------------------------------------------------


class Unavailable(PylonError):
    """Something that this needs is not up at the moment. The message says what.

    Remedy: try again after Retry-After; if it stays so, see pylonctl status and /readyz.
    """

    code = "UNAVAILABLE"
    status = 503
    retryable = True


class WriteQueueFull(PylonError):
    """Too many writes in flight from this worker. Nothing was written.

    Remedy: try again after Retry-After, and send fewer writes at once.
    """

    code = "WRITE_QUEUE_FULL"
    status = 503
    retryable = True


class WriterUnavailable(PylonError):
    """The writer did not answer in time. The write may or may not have happened.

    Remedy: send it again with the same Idempotency-Key or op_id, which carries it out once; without
    one, read first.
    """

    code = "WRITER_UNAVAILABLE"
    status = 503
    retryable = True


class StoreUnavailable(PylonError):
    """The database refused the whole batch (full disk, I/O error) or cannot be read. Nothing was
    written.

    Remedy: make room on the disk or mend it; the server goes on by itself.
    """

    code = "STORE_UNAVAILABLE"
    status = 503
    retryable = True


class QueryTimeout(PylonError):
    """A statement, or the wait for a database connection, took longer than limits.READ_TIMEOUT_S
    and was stopped.

    Remedy: narrow the query, ask for smaller pages, or add an index on what it compares.
    """

    code = "QUERY_TIMEOUT"
    status = 503
    retryable = True


class Draining(PylonError):
    """This server is shutting down.

    Remedy: connect again: another server, or this one after its restart, will answer.
    """

    code = "DRAINING"
    status = 503
    retryable = True


# --- Start-up and operation (never over HTTP) ------------------------------------------------


class StartRefused(PylonError):
    """Start-up refuses what is unsafe or impossible: one line that names the setting or file, and
    exit code 78 (EX_CONFIG).

    Remedy: mend what the line names; pylonctl check-config lists everything at once.
    """

    code = "START_REFUSED"
    status = 500


class SchemaRefused(StartRefused):
    """The live schema cannot be brought to the manifest by additive steps. The plan is shown.

    Remedy: undo the change in the manifest, or make a backup and run pylonctl schema apply
    --allow-destructive.
    """

    code = "SCHEMA_REFUSED"


class BackupInvalid(PylonError):
    """A bundle is incomplete, or its contents do not match its checksums.

    Remedy: use another bundle; pylonctl backup verify DIR says what is wrong with this one.
    """

    code = "BACKUP_INVALID"
    status = 500


class BackupRefused(PylonError):
    """A backup or a restore that would overwrite something, or that has nothing to copy.

    Remedy: name an empty folder; stop the server before a restore.
    """

    code = "BACKUP_REFUSED"
    status = 409


class ServerRunning(PylonError):
    """A verb that needs the database for itself, while a server has it.

    Remedy: stop the server first (pylonctl stop).
    """

    code = "SERVER_RUNNING"
    status = 409


class NotRunning(PylonError):
    """No supervisor answers for this data directory.

    Remedy: start the server, or point PYLON_DB_PATH and PYLON_RUNTIME_DIR at the one that runs.
    """

    code = "NOT_RUNNING"
    status = 503
