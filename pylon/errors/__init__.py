"""The one error tree: every failure that a client, an operator or another process may see.

Each class has a stable `code` (part of the wire, spec/http.md §3.0), the HTTP `status` it
answers with, and `retryable`: whether the same request may succeed if it is sent again.
An error carries a `message` for people, an optional `hint` that says how to mend it, and
`details`, which become further members of the error object.

Invariants: codes are unique; an error survives the bus (`to_wire` and `from_wire`), so that
what the writer refuses reads the same at the client. Raised everywhere, rendered by
`pylon.api` and the socket workers, printed by `pylonctl`.

A family of errors has a module of its own; all are imported from here. Importing the package
loads every family, so that `from_wire` and the catalogue know every code.
"""

from pylon.errors.availability import (
    Draining,
    QueryTimeout,
    RateLimited,
    StoreUnavailable,
    Unavailable,
    WriteQueueFull,
    WriterUnavailable,
)
from pylon.errors.base import (
    InternalError,
    PylonError,
)
from pylon.errors.documents import (
    BadPath,
    CrdtApplyFailed,
    CrdtDecodeFailed,
    CrdtHistoryMissing,
    InvalidHex,
    MissingUpdate,
    NotSupported,
)
from pylon.errors.identity import (
    AuthRequired,
    CsrfRejected,
    Forbidden,
    IdentityChanged,
    PolicyDenied,
    ResetRefused,
    SessionExpired,
    SocketLimit,
    Unauthorized,
)
from pylon.errors.operation import (
    BackupInvalid,
    BackupRefused,
    NotRunning,
    SchemaRefused,
    SettingsRefused,
    StartRefused,
)
from pylon.errors.request import (
    BadUpgrade,
    InvalidColumn,
    InvalidData,
    InvalidId,
    InvalidJson,
    InvalidQuery,
    InvalidRequest,
    InvalidValue,
    LimitExceeded,
    MissingField,
    MissingUserId,
    NullNotAllowed,
    PayloadTooLarge,
    RelationNotFound,
    RequestTimeout,
    SearchNotConfigured,
    SnapshotCursorInvalid,
)
from pylon.errors.rooms import (
    MissingChannel,
    MissingMessage,
    MissingRoom,
    MissingTopic,
    NotInRoom,
    RoomFull,
    RoomLimitReached,
)
from pylon.errors.shards import (
    InputQueueFull,
    InputRejected,
    MatchQueueFull,
    RecordingInvalid,
    ShardNotFound,
    ShardsNotAvailable,
    SubscribeFailed,
    SubscribeRefused,
)
from pylon.errors.state import (
    ActionMissingInput,
    ActionNotFound,
    EntityNotFound,
    IdempotencyKeyReused,
    MethodNotAllowed,
    MissingOperations,
    NotFound,
    OptimisticIdConflict,
    PreconditionFailed,
    ResyncRequired,
    UniqueViolation,
)

__all__ = [
    "ActionMissingInput",
    "ActionNotFound",
    "AuthRequired",
    "BackupInvalid",
    "BackupRefused",
    "BadPath",
    "BadUpgrade",
    "CrdtApplyFailed",
    "CrdtDecodeFailed",
    "CrdtHistoryMissing",
    "CsrfRejected",
    "Draining",
    "EntityNotFound",
    "Forbidden",
    "IdempotencyKeyReused",
    "IdentityChanged",
    "InputQueueFull",
    "InputRejected",
    "InternalError",
    "InvalidColumn",
    "InvalidData",
    "InvalidHex",
    "InvalidId",
    "InvalidJson",
    "InvalidQuery",
    "InvalidRequest",
    "InvalidValue",
    "LimitExceeded",
    "MatchQueueFull",
    "MethodNotAllowed",
    "MissingChannel",
    "MissingField",
    "MissingMessage",
    "MissingOperations",
    "MissingRoom",
    "MissingTopic",
    "MissingUpdate",
    "MissingUserId",
    "NotFound",
    "NotInRoom",
    "NotRunning",
    "NotSupported",
    "NullNotAllowed",
    "OptimisticIdConflict",
    "PayloadTooLarge",
    "PolicyDenied",
    "PreconditionFailed",
    "PylonError",
    "QueryTimeout",
    "RateLimited",
    "RecordingInvalid",
    "RelationNotFound",
    "RequestTimeout",
    "ResetRefused",
    "ResyncRequired",
    "RoomFull",
    "RoomLimitReached",
    "SchemaRefused",
    "SearchNotConfigured",
    "SessionExpired",
    "SettingsRefused",
    "ShardNotFound",
    "ShardsNotAvailable",
    "SnapshotCursorInvalid",
    "SocketLimit",
    "StartRefused",
    "StoreUnavailable",
    "SubscribeFailed",
    "SubscribeRefused",
    "Unauthorized",
    "Unavailable",
    "UniqueViolation",
    "WriteQueueFull",
    "WriterUnavailable",
]
