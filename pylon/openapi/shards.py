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
    listed,
    nullable,
    obj,
    operation,
    path,
    query,
    ref,
    response,
)

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_YES: Final[Schema] = {"type": "boolean"}
_SIGNED_IN: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}, {"CookieAuth": []}]
_ID: Final = path(
    "shard_id", "The shard's id, e.g. arena:42",
    {"type": "string", "minLength": 1, "maxLength": limits.SHARD_ID_CHARS},
)
_ERRORS: Final[tuple[ErrorClass, ...]] = (
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
    """Return the schemas of a shard and of the status of a player."""
    return {
        "Shard": obj({**_PUBLIC, **_INNER}, tuple(_PUBLIC)),
        "MatchStatus": {"oneOf": [
            obj({"status": {"const": "idle"}}),
            obj({"status": {"const": "queued"}, "position": _COUNT, "waiting_secs": _COUNT}),
            obj(
                {"status": {"const": "matched"}, "shard_id": _TEXT, "url": _TEXT},
                ("status", "shard_id"),
            ),
        ]},
    }


def shard_paths() -> Paths:
    """Return the paths under /api/shards and /api/matchmaking."""
    one = (*_ERRORS, errors.ShardNotFound)
    admin = (*_ERRORS, errors.Forbidden)
    return {
        "/api/shards": {
            **operation(
                "get", "shards", "shards", "Every shard",
                {200: response(
                    "The shards of the workers that answered", listed(ref("Shard")),
                    headers=("X-Pylon-Missing-Workers",),
                )},
                raises=admin,
                security=ADMIN_ONLY,
            ),
            **operation(
                "post", "makeShard", "shards", "Make a shard, unless it exists",
                {200: response("The shard", ref("Shard"))},
                raises=(*admin, errors.ShardNotFound, errors.SubscribeFailed),
                security=ADMIN_ONLY,
                body=body_schema(MakeShardBody),
            ),
        },
        "/api/shards/{shard_id}": {
            **operation(
                "get", "shard", "shards", "One shard; admins see why it has stopped",
                {200: response("The shard", ref("Shard"))}, raises=one, parameters=[_ID],
                security=ANYBODY,
            ),
            **operation(
                "delete", "endShard", "shards", "Stop a shard and forget its saved state",
                {200: response("Done", obj({"ended": _TEXT}))},
                raises=(*admin, *WRITE_ERRORS, errors.ShardNotFound), parameters=[_ID],
                security=ADMIN_ONLY,
            ),
        },
        "/api/shards/{shard_id}/input": operation(
            "post", "submitInput", "shards", "Queue an input for the next tick",
            {200: response("Queued", obj({"accepted": {"const": True}, "seq": _COUNT}))},
            raises=(
                *one, errors.SubscribeRefused, errors.InputRejected, errors.InputQueueFull,
                errors.SubscribeFailed,
            ),
            parameters=[_ID, query("sid", _TEXT, "For callers without a user: anon_<sid>")],
            body=body_schema(ShardInputBody),
            security=ANYBODY,
        ),
        "/api/shards/{shard_id}/move": operation(
            "post", "moveShard", "shards", "Move a shard to another worker",
            {200: response("Done; whether the shard was running", obj({"released": _YES}))},
            raises=(*admin, *WRITE_ERRORS), parameters=[_ID], security=ADMIN_ONLY,
            body=body_schema(MoveShardBody),
        ),
        "/api/shards/{shard_id}/connect": operation(
            "get", "watchShard", "shards", "The shard's snapshots as an event stream",
            {200: _stream()},
            raises=(
                *one, errors.AuthRequired, errors.SubscribeRefused, errors.SubscribeFailed,
                errors.Draining, errors.SocketLimit,
            ),
            parameters=[_ID, query("sid", _TEXT, "The subscriber; the caller's user if not given")],
            security=_SIGNED_IN, has_head=False,
        ),
        **_match_paths(),
    }


def _stream() -> Schema:
    """Return the one response that a shards worker sends, without the headers of HTTP workers."""
    described = response("A snapshot for each tick", _TEXT, media="text/event-stream")
    del described["headers"]
    return described


def _match_paths() -> Paths:
    status = {200: response("The status of the player", ref("MatchStatus"))}
    raises = (*_ERRORS, errors.AuthRequired)
    player = [query("player", _TEXT, "For admins: of this player")]

    def describe(
        method: str, name: str, summary: str, responses: Any, **keywords: Any
    ) -> dict[str, Any]:
        return operation(
            method, name, "matchmaking", summary, responses, parameters=player,
            security=_SIGNED_IN, **keywords,
        )

    return {
        "/api/matchmaking": {
            **describe("get", "matchStatus", "The status of the caller", status, raises=raises),
            **describe(
                "post", "enqueue", "Wait for a match", status,
                raises=(*raises, errors.MatchQueueFull, errors.RateLimited),
                body=body_schema(EnqueueBody),
            ),
            **describe(
                "delete", "dequeue", "Leave the queue",
                {200: response("Whether the caller waited", obj({"dequeued": _YES}))},
                raises=raises,
            ),
        },
        "/api/matchmaking/ack": describe(
            "post", "acknowledgeMatch", "Take the match that was found",
            {200: response(
                "Its shard; the next request gets null", obj({"shard_id": nullable(_TEXT)}),
            )},
            raises=raises,
        ),
    }
