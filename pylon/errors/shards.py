"""Errors of shards: what a simulation, or the one that runs it, refuses.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError
from pylon.errors.identity import Unauthorized


class ShardNotFound(PylonError):
    """There is no shard of this id, and none may be made by subscribing to it.

    Remedy: name a shard that GET /api/shards lists, or one of a registered kind that is made on
    demand ("arena:42" of the kind "arena").
    """

    code = "SHARD_NOT_FOUND"
    status = 404


class ShardsNotAvailable(PylonError):
    """The server runs no shards workers.

    Remedy: set PYLON_SHARD_WORKERS to 1 or more.
    """

    code = "SHARDS_NOT_AVAILABLE"
    status = 503
    retryable = True


class SubscribeRefused(Unauthorized):
    """The simulation does not let this caller in under this subscriber id. Raised by
    `SimState.authorize_subscribe`."""

    status = 403  # and a WebSocket is closed with 1008


class InputRejected(PylonError):
    """The simulation does not take this input: it is not of the declared type, or the rules of
    the simulation forbid it.

    Remedy: send what the message asks for.
    """

    code = "INPUT_REJECTED"
    status = 400


class InputQueueFull(PylonError):
    """More inputs wait for the shard's next tick than its `max_input_queue`.

    Remedy: send fewer inputs between two ticks, or raise `max_input_queue` of the kind.
    """

    code = "SHARD_INPUT_QUEUE_FULL"
    status = 503
    retryable = True


class SubscribeFailed(PylonError):
    """The shard takes no subscriber now: it has `max_subscribers`, or it has stopped.

    Remedy: come again later, or join another shard.
    """

    code = "SUBSCRIBE_FAILED"
    status = 429
    retryable = True


class ShardLeaseLost(PylonError):
    """A worker was to store the state of a shard that another one has claimed since. Clients never
    see it: the worker stops its copy of the shard.

    Remedy: none is necessary. If it happens often, look for nodes that cannot reach the database
    for seconds, or that have one name.
    """

    code = "SHARD_LEASE_LOST"
    status = 409


class RecordingInvalid(PylonError):
    """A file is no recording of a shard, or not one of this app.

    Remedy: name a file that a shard with `record_bytes` has written, and load the same app.
    """

    code = "RECORDING_INVALID"
    status = 400


class MatchQueueFull(PylonError):
    """As many players wait for a match as the server keeps (MATCH_TICKETS).

    Remedy: come again later.
    """

    code = "MATCH_QUEUE_FULL"
    status = 503
    retryable = True
