"""Pull (spec/http.md §3.9, spec/realtime.md §1.4).

Each pull writes a cursor hint before its response leaves, so that the socket that the client opens
next begins at the first cursor of the pull. The last cursor would not do: the response may be
lost on its way, and a published client connects all the same. The client drops events that it has.
For a client that is many pages behind, the hint is the end of each page; otherwise the hub would
send it all pages again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Final

import falcon

from pylon.api.data.query_cache import version_of
from pylon.api.http.body import decode_raw, read_body
from pylon.api.http.callers import (
    address_of,
    caller_of,
    subject_of,
    while_caller_lasts,
)
from pylon.api.http.parameters import read_text
from pylon.api.services import DataServices, SyncServices
from pylon.api.sync.bodies import PULL
from pylon.auth_context import AuthContext
from pylon.changelog.hints import hint_key
from pylon.changelog.pull import Pulled, build_delta, stream_snapshot
from pylon.changelog.scope import Scope, parse_entities, parse_scope, scope_of_key
from pylon.errors import InvalidData, PylonError, ResyncRequired, SnapshotCursorInvalid
from pylon.values import INT_MAX, decode_query

_SINCE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_PIECE_BYTES: Final = 64 * 1024
_SMALL_BYTES: Final = 256 * 1024


class Pull:
    """``/api/sync/pull``: GET, with ``?entities=`` for a scope; POST for a scope with filters."""

    def __init__(self, services: DataServices, sync: SyncServices) -> None:
        self._services = services
        self._sync = sync

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        if read_text(req, "snapshot_after"):
            # A snapshot is one response, so this server never issues such a token.
            raise SnapshotCursorInvalid(
                "snapshot_after is not a cursor of this server",
                hint="Pull again with since=0 and without snapshot_after",
            )
        app = self._services.app
        scope = parse_entities(app.rules, app.manifest, read_text(req, "entities"))
        self._answer(req, resp, _parse_cursor(read_text(req, "since")), scope)

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        raw = read_body(req)
        body = PULL.convert(decode_raw(req, services.requests, raw, decode_query))
        app = services.app
        scope = parse_scope(app.rules, app.manifest, body.entities, body.scope)
        self._answer(req, resp, _check_cursor(body.since), scope)

    def _answer(
        self, req: falcon.Request, resp: falcon.Response, since: int, scope: Scope | None
    ) -> None:
        services = self._services
        caller = caller_of(req, services.requests)
        scope = scope_of_key(services.app.rules, services.app.manifest, caller.auth, scope)
        key = hint_key(caller.family, address_of(req, services.requests))
        app = services.app
        if since == 0:
            head = services.store.point(lambda reader: reader.head_seq())
            subject = subject_of(req, services.requests)
            snapshot = stream_snapshot(
                services.store, app.manifest, app.rules, caller.auth, subject, scope
            )
            pieces = while_caller_lasts(
                req, services.requests, services.turns.paced(snapshot, subject)
            )
            first = _read_beginning(pieces)
            self._sync.hints.publish(key, head)
            if len(first) < _SMALL_BYTES:
                services.requests.compression.send(req, resp, first)
            else:
                # Published again at the end: a slow download outlives a hint.
                again = self._publish_hint(key, head)
                services.requests.compression.stream(
                    req, resp, chain((first,), pieces, again)
                )
            return
        try:
            pulled = self._read_delta(caller.auth, since, scope)
        except ResyncRequired:
            raise
        except PylonError:
            self._sync.hints.publish(key, since)
            raise
        if len(pulled.body) > _PIECE_BYTES:
            # This pull took long: other callers, and their long pulls, come before the next one
            # of this caller.
            services.turns.wait(subject_of(req, services.requests))
        self._sync.hints.publish(key, pulled.cursor if pulled.has_more else since)
        services.requests.compression.send(req, resp, pulled.body)

    def _publish_hint(self, key: int, cursor: int) -> Iterator[bytes]:
        """Yield nothing, but publish that the client has the whole response."""
        self._sync.hints.publish(key, cursor)
        yield from ()

    def _read_delta(self, auth: AuthContext, since: int, scope: Scope | None) -> Pulled:
        """Return the changes after a cursor. Every follower asks for them after each change, so
        the pull cache keeps them until the next commit."""
        services = self._services
        rules = services.app.rules if scope is None else scope.rules
        cache = self._sync.pull_cache
        # A filter is its client's own, and would take more memory in the cache than its answer.
        if (scope is not None and scope.filters) or not cache.should_probe():
            return build_delta(self._sync.feed, rules, auth, since)
        names = () if scope is None else scope.entities
        # Admins also see changes of entities that the manifest no longer has.
        key = (auth if auth.is_admin or not rules.is_open else None, since, names)
        version = version_of(services.store)
        pulled = cache.find(version, key)
        if pulled is None:
            pulled = build_delta(self._sync.feed, rules, auth, since)
            cache.keep(version, key, pulled, len(pulled.body))
        return pulled


def _parse_cursor(raw: str | None) -> int:
    """Return `since` as a number; 0 if it is missing or unreadable (§1.4)."""
    return int(raw) if raw is not None and _SINCE.fullmatch(raw) else 0


def _check_cursor(value: object) -> int:
    """Return `since` of a body.

    Raises:
        InvalidData: it is no cursor.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT_MAX:
        raise InvalidData(
            "since must be a whole number from 0: the last_seq of the cursor of the last answer"
        )
    return value


def _read_beginning(pieces: Iterator[bytes]) -> bytes:
    """Return the first _SMALL_BYTES of the response, or all of it.

    A failure before these bytes are sent can still become an error response, and a short response
    gets its Content-Length.
    """
    parts: list[bytes] = []
    size_bytes = 0
    for piece in pieces:
        parts.append(piece)
        size_bytes += len(piece)
        if size_bytes >= _SMALL_BYTES:
            break
    return b"".join(parts)
