"""Matchmaking over HTTP: enter the queue, read the status, take the match, leave the queue.

    POST   /api/matchmaking      {"criteria": {"mode": "duel"}}   the status
    GET    /api/matchmaking                                      the status
    DELETE /api/matchmaking                                      {"dequeued": bool}
    POST   /api/matchmaking/ack                                  {"shard_id": "..." | null}

A player is the caller's user; an admin may name another one with ``?player=``. spec/realtime.md
§4.5 has the statuses. The matchmaker runs in a shards worker.
"""

from __future__ import annotations

import falcon

from pylon.api.http.body import read_typed
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.responses import send_text
from pylon.api.realtime.bodies import ENQUEUE
from pylon.api.services import RealtimeServices
from pylon.bus.shards import AcknowledgeMatch, Dequeue, Enqueue, MatchCommand, MatchStatus
from pylon.errors import AuthRequired
from pylon.rates import MATCHES_BY_ADDRESS, MATCHES_BY_USER, address_subject, user_subject


class Match:
    """``/api/matchmaking``."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        _send_command(self._services, resp, MatchStatus(_player(self._services, req)))

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        player = _player(self._services, req)
        if not caller_of(req, self._services.requests).auth.is_admin:
            requests = self._services.requests
            address = address_of(req, requests)
            requests.limiter.require(MATCHES_BY_USER, user_subject(player))
            requests.limiter.require(MATCHES_BY_ADDRESS, address_subject(address))
        body = read_typed(req, self._services.requests, ENQUEUE)
        _send_command(self._services, resp, Enqueue(player, body.criteria))

    def on_delete(self, req: falcon.Request, resp: falcon.Response) -> None:
        _send_command(self._services, resp, Dequeue(_player(self._services, req)))


class MatchAck:
    """``POST /api/matchmaking/ack``."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        _send_command(self._services, resp, AcknowledgeMatch(_player(self._services, req)))


def _send_command(services: RealtimeServices, resp: falcon.Response, command: MatchCommand) -> None:
    send_text(resp, services.shards.for_matchmaker(command))


def _player(services: RealtimeServices, req: falcon.Request) -> str:
    auth = caller_of(req, services.requests).auth
    if auth.user_id is None:
        raise AuthRequired("Authentication required")
    named = req.get_param("player") if auth.is_admin else None
    return named or auth.user_id
