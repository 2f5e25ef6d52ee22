"""Shards over HTTP (spec/realtime.md §4.4): each resource sends a command to the shards workers.

The list has the shards of the workers that answered; a header names the other workers, if any.
Only an admin may act for others: the `subscriber_id` of an input must be the caller's own user id.
``GET /api/shards/<id>/connect`` is an event stream. The HTTP server passes its socket to a shards
worker without calling the app; the resource here gets the requests that no worker accepts.
"""

from __future__ import annotations

from typing import Final

import falcon
import msgspec

from pylon.api.http.body import read_typed
from pylon.api.http.callers import caller_of
from pylon.api.http.responses import send_text
from pylon.api.realtime.bodies import MAKE_SHARD, MOVE_SHARD, SHARD_INPUT
from pylon.api.services import RealtimeServices
from pylon.auth_context import AuthContext
from pylon.bus.shards import (
    DescribeAll,
    DescribeShard,
    EndShard,
    MakeShard,
    PlaceShard,
    ShardAnswers,
    ShardCommand,
    SubmitInput,
)
from pylon.errors import (
    Forbidden,
    InvalidData,
    ShardsNotAvailable,
    SubscribeRefused,
    Unauthorized,
    Unavailable,
)

# A header, because published clients read the answer as an array of shards.
_MISSING_WORKERS: Final = "X-Pylon-Missing-Workers"

# The members of a shard that every caller may read (spec/realtime.md §4.4).
_PUBLIC: Final = ("id", "running", "tick", "subscribers", "input_queue")


class ShardList:
    """``GET`` and ``POST /api/shards``, for admins."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        _require_admin(self._services, req)
        try:
            answers = self._services.shards.broadcast(DescribeAll())
        except ShardsNotAvailable:
            answers = ShardAnswers([], [])
        shards = [shard for text in answers.texts for shard in msgspec.json.decode(text)]
        shards.sort(key=lambda shard: str(shard["id"]))
        send_text(resp, msgspec.json.encode(shards))
        if answers.missing:
            resp.set_header(_MISSING_WORKERS, ", ".join(sorted(answers.missing)))

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make a shard, unless it exists: ``{"id", "params"?}``."""
        _require_admin(self._services, req)
        body = read_typed(req, self._services.requests, MAKE_SHARD)
        send_text(resp, self._services.shards.for_shard(MakeShard(body.id, body.params)))


class ShardDetail:
    """``GET`` and ``DELETE /api/shards/{shard_id}``."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response, shard_id: str) -> None:
        is_admin = caller_of(req, self._services.requests).auth.is_admin
        answer = self._services.shards.for_shard(DescribeShard(shard_id))
        if not is_admin:
            shard = msgspec.json.decode(answer)
            answer = msgspec.json.encode({name: shard[name] for name in _PUBLIC})
        send_text(resp, answer)

    on_head = on_get

    def on_delete(self, req: falcon.Request, resp: falcon.Response, shard_id: str) -> None:
        """Stop the shard and delete its saved state; for admins."""
        _require_admin(self._services, req)
        send_text(resp, self._services.shards.for_shard(EndShard(shard_id)))


class ShardInput:
    """``POST /api/shards/{shard_id}/input``: ``{"input", "subscriber_id"?, "client_seq"?}``."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response, shard_id: str) -> None:
        auth = caller_of(req, self._services.requests).auth
        body = read_typed(req, self._services.requests, SHARD_INPUT)
        sid = _resolve_subscriber(auth, body.subscriber_id, req.get_param("sid"))
        raw = msgspec.json.encode(body.input)
        command = SubmitInput(shard_id, sid, auth, raw, body.client_seq)
        send_text(resp, _submit_input(self._services, command))


class ShardMove:
    """``POST /api/shards/{shard_id}/move``: ``{"worker": "2"}``, for admins.

    The old worker saves the shard and ends its connections; the shard continues at the new one.
    """

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response, shard_id: str) -> None:
        services = self._services
        _require_admin(services, req)
        worker = read_typed(req, services.requests, MOVE_SHARD).worker
        is_known = isinstance(worker, str) and services.shards.has_worker(worker)
        if worker is not None and not is_known:
            raise InvalidData(
                f"worker is {worker!r}, which is no shards worker of this server: they have "
                'numbers from "1" to PYLON_SHARD_WORKERS, behind the name of their node if it is '
                'one of several ("node/1")',
                hint="null moves the shard to where its id says",
            )
        send_text(resp, services.shards.for_shard(PlaceShard(shard_id, worker)))


class ShardConnect:
    """``GET /api/shards/{shard_id}/connect`` that no shards worker accepts."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response, shard_id: str) -> None:
        if not self._services.app.config.workers_of("shards"):
            raise _no_shards_error()
        raise Unavailable("No shards worker is up", hint="Try again in a moment")


def _no_shards_error() -> ShardsNotAvailable:
    return ShardsNotAvailable(
        "This server runs no shards", hint="Set PYLON_SHARD_WORKERS to 1 or more"
    )


def _submit_input(services: RealtimeServices, command: ShardCommand) -> bytes:
    try:
        return services.shards.for_shard(command)
    except Unauthorized as ex:  # both errors have one code, and the bus carries the code
        raise SubscribeRefused(ex.message, hint=ex.hint) from ex


def _resolve_subscriber(auth: AuthContext, named: str | None, sid: str | None) -> str:
    """Return the subscriber: the body's `subscriber_id`, else the caller, else `anon_<sid>`."""
    if named is None:
        return auth.user_id if auth.user_id is not None else f"anon_{sid or '0'}"
    if not auth.is_admin and named != auth.user_id:
        raise SubscribeRefused(
            f'subscriber_id "{named}" is not the caller', hint="Leave it out, or send your user id"
        )
    return named


def _require_admin(services: RealtimeServices, req: falcon.Request) -> None:
    if not caller_of(req, services.requests).auth.is_admin:
        raise Forbidden("Admin access required")
