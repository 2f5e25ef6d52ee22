"""Channels over HTTP, for admins (spec/realtime.md §5.3): publish, list, read the history.

No socket subscribes to a channel: an admin's program publishes, and others read the history again
and again. The rooms service (`supervisor.rooms`) keeps the newest messages of each channel in
memory.

Bounds: limits.CHANNEL_NAME_CHARS, limits.CHANNEL_MESSAGE_BYTES, limits.CHANNEL_MESSAGES_MAX. Called
by `pylon.api.application`.
"""

from __future__ import annotations

import falcon

from pylon import limits
from pylon.api.http.body import read_typed
from pylon.api.http.callers import caller_of
from pylon.api.http.parameters import read_number
from pylon.api.http.responses import send_text
from pylon.api.realtime.bodies import PUBLISH
from pylon.api.services import RealtimeServices
from pylon.bus.rooms_messages import GetChannels, GetHistory, Publish
from pylon.errors import Forbidden, LimitExceeded


class ChannelPublish:
    """``POST /api/pubsub/publish``."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        _require_admin(self._services, req)
        body = read_typed(req, self._services.requests, PUBLISH)
        if len(body.message.encode()) > limits.CHANNEL_MESSAGE_BYTES:
            raise LimitExceeded(
                f"message is larger than {limits.CHANNEL_MESSAGE_BYTES} bytes in UTF-8"
            )
        command = Publish(body.channel, body.message)
        send_text(resp, self._services.rooms.submit(command).body)


class ChannelList:
    """``GET /api/pubsub/channels``."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        _require_admin(self._services, req)
        send_text(resp, self._services.rooms.submit(GetChannels()).body)

    on_head = on_get


class ChannelHistory:
    """``GET /api/pubsub/history/{channel}?limit=``."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response, channel: str) -> None:
        _require_admin(self._services, req)
        _check_channel_name(channel)
        given = read_number(req, "limit")
        limit = limits.CHANNEL_MESSAGES_DEFAULT if given is None else given
        command = GetHistory(channel, min(limit, limits.CHANNEL_MESSAGES_MAX))
        send_text(resp, self._services.rooms.submit(command).body)

    on_head = on_get


def _require_admin(services: RealtimeServices, req: falcon.Request) -> None:
    if not caller_of(req, services.requests).auth.is_admin:
        raise Forbidden("Pub/sub requires admin auth")


def _check_channel_name(channel: str) -> None:
    if len(channel) > limits.CHANNEL_NAME_CHARS:
        raise LimitExceeded(
            f"channel has {len(channel)} characters (limit {limits.CHANNEL_NAME_CHARS})"
        )
