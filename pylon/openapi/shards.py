"""Operations of shards and of the matchmaker (spec/realtime.md §4.4, §4.5)."""

from __future__ import annotations

from typing import Any, Final

from pylon import errors, limits
from pylon.api.realtime.bodies import (
    EnqueueBody,
    MakeShardBody,
    MoveShardBody,
    ShardInputBody,
)
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    ADMIN_ONLY,
    ANYBODY,
    STORE_ERRORS,
    WRITE_ERRORS,
    ErrorClass,
    Paths,
    Schema,
    answer,
    listed,
    nullable,
    obj,
    operation,
    path,
    query,
    ref,
)

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_YES: Final[Schema] = {"type": "boolean"}
_SIGNED_IN: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}, {"CookieAuth": []}]
_ID: Final = path(
    "shard_id", "The shard's id, e.g. arena:42",
    {"type": "string", "minLength": 1, "maxLength": limits.SHARD_ID_CHARS},
)
_FAILS: Final[tuple[ErrorClass, ...]] = (
    *STORE_ERRORS, errors.ShardsNotAvailable, errors.Unavailable,
)
_PUBLIC: Final[dict[str, Schema]] = {
    "id": _TEXT, "running": _YES, "tick": _COUNT, "subscribers": _COUNT, "input_queue": _COUNT,
}
_INNER: Final[dict[str, Schema]] = {
    "seats_taken": _COUNT, "worker": _TEXT, "stopped_because": nullable(_TEXT),
    "traceback": _TEXT,
}


def shard_schemas() -> dict[str, Schema]:
    """A shard, and where a player stands."""
    return {
        "Shard": obj({**_PUBLIC, **_INNER}, tuple(_PUBLIC)),
        "MatchStatus": {"oneOf": [
            obj({"status": {"const": "idle"}}),
            obj({"status": {"const": "queued"}, "position": _COUNT, "waiting_secs": _COUNT}),
            obj({"status": {"const": "matched"}, "shard_id": _TEXT}),
        ]},
    }


def shard_paths() -> Paths:
    """The paths under /api/shards and /api/matchmaking."""
    one = (*_FAILS, errors.ShardNotFound)
    admin = (*_FAILS, errors.Forbidden)
    return {
        "/api/shards": {
            **operation(
                "get", "shards", "shards", "Every shard",
                {200: answer("The shards", listed(ref("Shard")))}, fails=admin,
                security=ADMIN_ONLY,
            ),
            **operation(
                "post", "makeShard", "shards", "Make a shard, unless it is there",
                {200: answer("The shard", ref("Shard"))},
                fails=(*admin, errors.ShardNotFound, errors.SubscribeFailed),
                security=ADMIN_ONLY,
                body=body_schema(MakeShardBody),
            ),
        },
        "/api/shards/{shard_id}": {
            **operation(
                "get", "shard", "shards", "One shard; admins see why it has stopped",
                {200: answer("The shard", ref("Shard"))}, fails=one, parameters=[_ID],
                security=ANYBODY,
            ),
            **operation(
                "delete", "endShard", "shards", "Stop a shard and forget its saved state",
                {200: answer("Done", obj({"ended": _TEXT}))},
                fails=(*admin, *WRITE_ERRORS, errors.ShardNotFound), parameters=[_ID],
                security=ADMIN_ONLY,
            ),
        },
        "/api/shards/{shard_id}/input": operation(
            "post", "submitInput", "shards", "Queue an input for the next tick",
            {200: answer("Queued", obj({"accepted": {"const": True}, "seq": _COUNT}))},
            fails=(
                *one, errors.SubscribeRefused, errors.InputRejected, errors.InputQueueFull,
                errors.SubscribeFailed,
            ),
            parameters=[_ID, query("sid", _TEXT, "For callers without a user: anon_<sid>")],
            body=body_schema(ShardInputBody),
            security=ANYBODY,
        ),
        "/api/shards/{shard_id}/move": operation(
            "post", "moveShard", "shards", "Have a shard live at another worker",
            {200: answer("Done; whether it ran", obj({"released": _YES}))},
            fails=(*admin, *WRITE_ERRORS), parameters=[_ID], security=ADMIN_ONLY,
            body=body_schema(MoveShardBody),
        ),
        "/api/shards/{shard_id}/connect": operation(
            "get", "watchShard", "shards", "The shard's snapshots as an event stream",
            {200: _stream()},
            fails=(
                *one, errors.AuthRequired, errors.SubscribeRefused, errors.SubscribeFailed,
                errors.Draining, errors.SocketLimit,
            ),
            parameters=[_ID, query("sid", _TEXT, "The subscriber, the caller's user unless told")],
            security=_SIGNED_IN, has_head=False,
        ),
        **_match_paths(),
    }


def _stream() -> Schema:
    """The one answer that is not an HTTP worker's, and so has none of its headers."""
    out = answer("A snapshot for each tick", _TEXT, media="text/event-stream")
    del out["headers"]
    return out


def _match_paths() -> Paths:
    status = {200: answer("Where the player stands", ref("MatchStatus"))}
    fails = (*_FAILS, errors.AuthRequired)
    player = [query("player", _TEXT, "For admins: of this player")]

    def verb(method: str, name: str, summary: str, answers: Any, **more: Any) -> dict[str, Any]:
        return operation(
            method, name, "matchmaking", summary, answers, parameters=player,
            security=_SIGNED_IN, **more,
        )

    return {
        "/api/matchmaking": {
            **verb("get", "matchStatus", "Where the caller stands", status, fails=fails),
            **verb(
                "post", "enqueue", "Wait for a match", status,
                fails=(*fails, errors.MatchQueueFull, errors.RateLimited),
                body=body_schema(EnqueueBody),
            ),
            **verb(
                "delete", "dequeue", "Wait no more",
                {200: answer("Whether the caller waited", obj({"dequeued": _YES}))}, fails=fails,
            ),
        },
        "/api/matchmaking/ack": verb(
            "post", "acknowledgeMatch", "Take the match that was found",
            {200: answer("Its shard, told once", obj({"shard_id": nullable(_TEXT)}))},
            fails=fails,
        ),
    }
