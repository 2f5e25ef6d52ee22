"""Room watch: finds the subscribers of rooms who may no longer join them, and removes them.

A rule of rooms may ask other rows (``exists(Member, roomId == room.id, userId == auth.userId)``).
For each published change of an asked row the watch marks the callers whom it concerns. A greenlet
judges their rooms anew by the store, and gives those that are denied to `remove`. So a member is
out of a room soon after the commit that ends the membership.

Invariants: `on_published` neither blocks nor switches greenlets. A caller is judged after each
change that concerns them; one judgement may serve several changes. If the store cannot be read, the
callers stay marked, and the greenlet tries again. Bounds: a mark for each caller with subscriptions
(`limits.ROOMS_OF_USER` rooms each). Metric: pylon_room_members_removed_total. Called by
`workers.ws.rooms`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import gevent

from pylon import log, metrics
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.errors import PylonError
from pylon.policy.related import RelatedRows
from pylon.policy.related_changes import AuthKey
from pylon.policy.room_rules import RoomRules
from workers.hub.connection import Connection

_TURN_VERDICTS: Final = 64
_PAUSE_S: Final = 0.000_1  # as in `workers.ws.conversation`
_RETRY_S: Final = 0.5

_log = log.get_logger("rooms")


class RoomWatch:
    """The callers of one worker who are in rooms."""

    def __init__(
        self, rules: RoomRules, related: RelatedRows, remove: Callable[[Connection, str], None]
    ) -> None:
        """
        Args:
            related: the rows that the rules ask, as stored.
            remove: ends the membership of a connection's user in a room.
        """
        self._rules = rules
        self._related = related
        self._remove = remove
        self._rooms: dict[AuthContext, dict[Connection, set[str]]] = {}
        self._by_attribute: dict[tuple[str, str], set[AuthContext]] = {}
        self._marked: dict[AuthContext, None] = {}
        self._judging = False

    def add(self, connection: Connection, room: str) -> None:
        """Watch a connection's subscription."""
        if not self._rules.asked:
            return
        auth = connection.caller.auth
        if auth not in self._rooms:
            self._rooms[auth] = {}
            for key in _attributes(auth):
                self._by_attribute.setdefault(key, set()).add(auth)
        self._rooms[auth].setdefault(connection, set()).add(room)

    def end(self, connection: Connection, room: str) -> None:
        """Watch a subscription no longer. The connection has the caller of `add`."""
        auth = connection.caller.auth
        by_connection = self._rooms.get(auth)
        rooms = None if by_connection is None else by_connection.get(connection)
        if by_connection is None or rooms is None:
            return
        rooms.discard(room)
        if rooms:
            return
        del by_connection[connection]
        if by_connection:
            return
        del self._rooms[auth]
        for key in _attributes(auth):
            auths = self._by_attribute[key]
            auths.discard(auth)
            if not auths:
                del self._by_attribute[key]

    def on_published(self, changes: Sequence[Change]) -> None:
        """Mark the callers whom the changes concern (`Hub.on_published`)."""
        if not self._rooms:
            return
        for change in changes:
            entity = change.event.entity
            if entity not in self._rules.asked:
                continue
            auth_keys = self._rules.auth_keys(entity)
            for image in (change.prev_row, change.row):
                if image is not None:
                    for auth in self._candidates(auth_keys, image):
                        if auth not in self._marked and self._rules.concerns(auth, entity, image):
                            self._marked[auth] = None
        if self._marked and not self._judging:
            self._judging = True
            gevent.spawn(self._judge_marked)

    def _candidates(
        self, auth_keys: Sequence[AuthKey] | None, image: Mapping[str, Any]
    ) -> Iterator[AuthContext]:
        if auth_keys is None:
            yield from self._rooms
            return
        for field, attribute in auth_keys:
            value = image.get(field)
            if isinstance(value, str):
                yield from self._by_attribute.get((attribute, value), ())

    def _judge_marked(self) -> None:
        try:
            while self._marked:
                auth = next(iter(self._marked))
                del self._marked[auth]
                try:
                    self._judge(auth)
                except PylonError as ex:
                    self._marked[auth] = None
                    _log.warning("rooms.not_judged", why=ex.message)
                    gevent.sleep(_RETRY_S)
        finally:
            self._judging = False

    def _judge(self, auth: AuthContext) -> None:
        subscribed = self._rooms.get(auth, {})
        rooms = {room for rooms in subscribed.values() for room in rooms}
        for count, room in enumerate(sorted(rooms), 1):
            if not self._rules.may("join", auth, room, self._related):
                members = _subscribers(self._rooms.get(auth, {}), room)
                for connection in members:
                    self._remove(connection, room)
                metrics.ROOM_MEMBERS_REMOVED.inc(bool(members))
            if count % _TURN_VERDICTS == 0:
                gevent.sleep(_PAUSE_S)
        gevent.sleep(_PAUSE_S)


def _subscribers(
    subscribed: Mapping[Connection, Collection[str]], room: str
) -> list[Connection]:
    return [connection for connection, rooms in subscribed.items() if room in rooms]


def _attributes(auth: AuthContext) -> Iterator[tuple[str, str]]:
    if auth.user_id is not None:
        yield "user_id", auth.user_id
    if auth.tenant_id is not None:
        yield "tenant_id", auth.tenant_id
