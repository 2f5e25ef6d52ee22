"""Pull (spec/http.md §3.9, spec/realtime.md §1.4).

Each pull writes a cursor note before its answer leaves, so that the socket that the client
opens next begins at the pull's first cursor. The pull's last cursor would not do: the answer may
be lost on its way, and a published client connects all the same. It drops events that it has. For
a client that is many pages behind, the note is the end of each page; otherwise the hub would send
it all pages again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Final

import falcon

from pylon.api.data.query_cache import version_of
from pylon.api.http.callers import address_of, caller_of, subject_of
from pylon.api.http.parameters import text_value
from pylon.api.http.responses import send_raw
from pylon.api.services import DataServices, SyncServices
from pylon.auth_context import AuthContext
from pylon.changelog.hints import note_key
from pylon.changelog.pull import Pulled, delta, snapshot
from pylon.errors import PylonError, ResyncRequired, SnapshotCursorInvalid

_SINCE: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_PIECE_BYTES: Final = 64 * 1024
_SMALL_BYTES: Final = 256 * 1024


class Pull:
    """``GET /api/sync/pull``."""

    def __init__(self, services: DataServices, sync: SyncServices) -> None:
        self._services = services
        self._sync = sync

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        if text_value(req, "snapshot_after"):
            # A snapshot is answered whole, so none of these tokens was ever given out.
            raise SnapshotCursorInvalid(
                "snapshot_after is not a cursor of this server",
                hint="Pull again with since=0 and without snapshot_after",
            )
        services = self._services
        caller = caller_of(req, services.requests)
        key = note_key(caller.session_id, address_of(req, services.requests))
        since = _cursor(text_value(req, "since"))
        app = services.app
        if since == 0:
            head = services.store.point(lambda reader: reader.head_seq())
            subject = subject_of(req, services.requests)
            pieces = services.turns.paced(
                snapshot(services.store, app.manifest, app.rules, caller.auth, subject), subject
            )
            first = _leading(pieces)
            self._sync.hints.publish(key, head)
            if len(first) < _SMALL_BYTES:
                send_raw(resp, first)
            else:
                # Said again at the end: a slow download outlives a note.
                again = self._noted(key, head)
                resp.stream = chain((first,), pieces, again)
            return
        try:
            pulled = self._delta(caller.auth, since)
        except ResyncRequired:
            raise
        except PylonError:
            self._sync.hints.publish(key, since)
            raise
        if len(pulled.body) > _PIECE_BYTES:
            # It took long and is paid for now: others, and then other callers' long ones, come
            # before this caller's next.
            services.turns.wait(subject_of(req, services.requests))
        self._sync.hints.publish(key, pulled.cursor if pulled.has_more else since)
        send_raw(resp, pulled.body)

    on_head = on_get

    def _noted(self, key: int, cursor: int) -> Iterator[bytes]:
        """No more of an answer, but a note that its client has all of it."""
        self._sync.hints.publish(key, cursor)
        yield from ()

    def _delta(self, auth: AuthContext, since: int) -> Pulled:
        """What all who follow the changes ask for after each of them."""
        services = self._services
        rules, answers = services.app.rules, self._sync.pull_cache
        if not answers.should_probe():
            return delta(self._sync.feed, rules, auth, since)
        # Admins also see what is left of entities that are no more.
        key = (auth if auth.is_admin or not rules.is_open else None, since)
        version = version_of(services.store)
        pulled = answers.find(version, key)
        if pulled is None:
            pulled = delta(self._sync.feed, rules, auth, since)
            answers.keep(version, key, pulled, len(pulled.body))
        return pulled


def _cursor(raw: str | None) -> int:
    """`since`; what is missing or unreadable means 0 (§1.4)."""
    return int(raw) if raw is not None and _SINCE.fullmatch(raw) else 0


def _leading(pieces: Iterator[bytes]) -> bytes:
    """The beginning of the answer; all of it where it is short. A failure before this many
    bytes can still be answered as an error, and a short answer gets its Content-Length."""
    parts: list[bytes] = []
    size_bytes = 0
    for piece in pieces:
        parts.append(piece)
        size_bytes += len(piece)
        if size_bytes >= _SMALL_BYTES:
            break
    return b"".join(parts)
