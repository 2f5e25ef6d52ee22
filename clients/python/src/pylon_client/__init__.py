"""The Python client of Pylon: `Pylon` for blocking code, `AsyncPylon` for asyncio.

See docs/clients/python.md.
"""

from pylon_client.async_client import AsyncPylon
from pylon_client.async_live import AsyncLiveWindow, AsyncRoom
from pylon_client.async_rows import AsyncRawRows, AsyncRows
from pylon_client.async_shard import AsyncShard
from pylon_client.auth import Caller, SignedIn
from pylon_client.changes import Change
from pylon_client.effects import Answer, Raw
from pylon_client.entities import Row
from pylon_client.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClosedError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    PylonError,
    RateLimitError,
    ResyncRequired,
    RowMismatch,
    SocketRefused,
    TransactionFailed,
    UnprocessableEntityError,
    UnreadableRow,
)
from pylon_client.files import StoredFile
from pylon_client.rooms import Member, RoomEvent
from pylon_client.shards import Refusal
from pylon_client.sync_client import Pylon
from pylon_client.sync_live import LiveWindow, Room
from pylon_client.sync_rows import RawRows, Rows
from pylon_client.sync_shard import Shard
from pylon_client.transactions import Transaction
from pylon_client.windows import Diff

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Answer",
    "AsyncLiveWindow",
    "AsyncPylon",
    "AsyncRawRows",
    "AsyncRoom",
    "AsyncRows",
    "AsyncShard",
    "AuthenticationError",
    "BadRequestError",
    "Caller",
    "Change",
    "ClosedError",
    "ConflictError",
    "Diff",
    "InternalServerError",
    "LiveWindow",
    "Member",
    "NotFoundError",
    "PermissionDeniedError",
    "Pylon",
    "PylonError",
    "RateLimitError",
    "Raw",
    "RawRows",
    "Refusal",
    "ResyncRequired",
    "Room",
    "RoomEvent",
    "Row",
    "RowMismatch",
    "Rows",
    "Shard",
    "SignedIn",
    "SocketRefused",
    "StoredFile",
    "Transaction",
    "TransactionFailed",
    "UnprocessableEntityError",
    "UnreadableRow",
]
