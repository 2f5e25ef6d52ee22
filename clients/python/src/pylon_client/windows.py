"""A live window: the rows of a query as the server keeps them up to date.

The server sends the rows, and then each difference (docs/realtime.md, Live windows). `Window` keeps
the list. It does no IO; `links` gives it messages, and the shells wait for its changes.

Two ways to read it: states (the newest list; states in between are skipped), and differences, each
of them. Differences wait in a queue of 1,000; when it is full, it is replaced by one difference of
kind ``reset`` with all rows. So a slow reader never misses a change, and a reset also follows each
reconnection.

Called by `links` and both shells, always under the lock of the link.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from pylon_client.entities import encode
from pylon_client.errors import PylonError, RowMismatch, SocketRefused
from pylon_client.queries import Query

T = TypeVar("T")
State = Literal["loading", "live", "stale", "offline", "error"]

QUEUED_DIFFS: Final = 1_000
WINDOW_ROWS: Final = 1_000
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Diff(Generic[T]):
    """One difference.

    `kind` is insert, update, delete, or reset: then `rows` are all rows, and replace what was
    known. `row_id` is the row's id and `row` its new content. `index` is its place in the list
    after the difference; for a delete its place before. `seq` is that of the change.
    """

    kind: Literal["insert", "update", "delete", "reset"]
    seq: int
    row_id: str = ""
    row: T | None = None
    index: int = -1
    rows: tuple[T, ...] = ()


class Incoming(msgspec.Struct):
    """A message of the server on the shared socket. Members of other types are left out."""

    type: str = ""
    sub_id: str | None = None
    seq: int = 0
    rows: list[msgspec.Raw] = []
    last: bool = True
    kind: str = ""
    row_id: str = ""
    after: str | UnsetType | None = UNSET
    data: msgspec.Raw | UnsetType = UNSET
    about: str | None = msgspec.field(default=None, name="for")
    code: str | None = None
    message: str | None = None
    hint: str | None = None
    room: str | None = None
    members: list[dict[str, Any]] = []
    member: dict[str, Any] = {}
    action: str = ""
    topic: str | None = None
    event: str | None = None
    sender: str | None = msgspec.field(default=None, name="from")
    user_id: str | None = None

    def json_data(self) -> Any:
        """Return `data` decoded, or None."""
        return None if self.data is UNSET else msgspec.json.decode(self.data)

    def refusal(self) -> dict[str, Any]:
        """Return the error that the message is."""
        said = {"code": self.code, "message": self.message, "hint": self.hint}
        return {name: value for name, value in said.items() if value is not None}


class _Id(msgspec.Struct):
    id: str


_READ_ID: Final = msgspec.json.Decoder(_Id)


class Window(Generic[T]):
    """The rows of one live query. `notify` is called after each change."""

    def __init__(self, query: Query[T], notify: Callable[[], None]) -> None:
        self.query = query
        self.sub_id = f"w{next(_numbers)}"
        self.notify = notify
        self.state: State = "loading"
        self.error: PylonError | None = None
        self.version = 0  # counts the changes of the rows
        self.is_complete = False
        self.more_answer: int | None = None  # rows that the last `more` brought
        self.more_error: PylonError | None = None
        # The server keeps an order for windows; other live queries are kept by id.
        self.is_window = bool(
            query.order or query.limit is not None or query.after or query.before
        )
        self._ids: list[str] = []
        self._rows: dict[str, T] = {}
        self._loading: tuple[list[str], dict[str, T]] = ([], {})
        self._more: list[msgspec.Raw] = []
        self._diffs: deque[Diff[T]] | None = None
        self._seq = 0

    def rows(self) -> list[T]:
        """Return the rows in order."""
        rows = self._rows
        return [rows[row_id] for row_id in self._ids]

    def subscribe_text(self) -> bytes:
        """Return the message that subscribes."""
        return encode({
            "type": "subscribe", "sub_id": self.sub_id, "entity": self.query.entity.name,
            "filter": self.query.body(),
        })

    # --- Differences --------------------------------------------------------------------------

    def open_diffs(self) -> None:
        """Begin to keep differences: first a reset, once the rows are there."""
        self._diffs = deque()
        if self.is_complete:
            self._reset_diffs()

    def has_diffs(self) -> bool:
        """Return whether differences wait."""
        return bool(self._diffs)

    def take_diffs(self) -> list[Diff[T]]:
        """Return the differences since the last call."""
        taken = [*self._diffs] if self._diffs else []
        if self._diffs:
            self._diffs.clear()
        return taken

    def _add_diff(self, diff: Diff[T]) -> None:
        if self._diffs is None:
            return
        if len(self._diffs) >= QUEUED_DIFFS:
            self._reset_diffs()  # it includes this difference
        else:
            self._diffs.append(diff)

    def _reset_diffs(self) -> None:
        if self._diffs is not None:
            self._diffs.clear()
            self._diffs.append(Diff("reset", self._seq, rows=tuple(self.rows())))

    # --- Messages -----------------------------------------------------------------------------

    def begin(self) -> None:
        """A new subscription begins. The old rows stay visible until its result is complete."""
        self._loading = ([], {})
        self._more = []
        if self.state != "loading":
            self._set_state("stale")

    def lose(self, *, is_reachable: bool) -> None:
        """The connection has ended; the rows may be old.

        Args:
            is_reachable: it had opened; otherwise the server could not be reached.
        """
        if self.is_complete and self.state != "error":
            self._set_state("stale" if is_reachable else "offline")
        if self.more_answer is None:
            self.more_error = SocketRefused(
                {"code": "CONNECTION_LOST", "message": "the connection ended before the answer"}
            )

    def fail(self, error: PylonError) -> None:
        """The window has ended with an error."""
        self.error = error
        self._set_state("error")

    def receive(self, message: Incoming) -> None:
        """Apply a message of the server.

        Raises:
            RowMismatch: a row does not fit the class of the query.
        """
        kind = message.type
        if kind == "diff":
            self._receive_diff(message)
        elif kind == "subscribed":
            self._receive_rows(message)
        elif kind == "more":
            self._more.extend(message.rows)
            if message.last:
                self._receive_more(message)

    def _receive_rows(self, message: Incoming) -> None:
        ids, rows = self._loading
        for raw in message.rows:
            row_id = _READ_ID.decode(raw).id
            ids.append(row_id)
            rows[row_id] = self._read(raw)
        if message.last:
            self._loading = ([], {})
            self._seq = message.seq
            self._finish_load(ids, rows)

    def _finish_load(self, ids: list[str], rows: dict[str, T]) -> None:
        is_same = self.is_complete and ids == self._ids and rows == self._rows
        self._ids, self._rows = ids, rows
        if not is_same:
            self.is_complete = True
            self.version += 1
            self._reset_diffs()
        self._set_state("live")

    def _receive_more(self, message: Incoming) -> None:
        raws, self._more = self._more, []
        known = self._rows
        place = 0 if self.query.before is not None else len(self._ids)
        for raw in raws:
            row_id = _READ_ID.decode(raw).id
            if row_id in known:
                continue
            known[row_id] = self._read(raw)
            self._ids.insert(place, row_id)
            self._add_diff(Diff("insert", message.seq, row_id, known[row_id], place))
            place += 1
        if self.query.limit is not None:  # the next subscription asks for as many rows
            limit = min(max(self.query.limit, len(self._ids)), WINDOW_ROWS)
            self.query = replace(self.query, limit=limit)
        self.more_answer = len(raws)
        self._changed()

    def _receive_diff(self, message: Incoming) -> None:
        row_id, seq = message.row_id, message.seq
        self._seq = seq
        rows, ids = self._rows, self._ids
        if message.kind == "delete":
            if rows.pop(row_id, None) is not None:
                place = self._place_of(row_id)
                del ids[place]
                self._add_diff(Diff("delete", seq, row_id, None, place))
                self._changed()
            return
        data = message.data
        if data is UNSET:
            return
        row = self._read(data)
        known = row_id in rows
        rows[row_id] = row
        if known and message.after is UNSET:
            if self._diffs is not None:
                self._add_diff(Diff("update", seq, row_id, row, self._place_of(row_id)))
        else:
            if known:
                del ids[self._place_of(row_id)]
            place = self._place_after(message.after, row_id)
            ids.insert(place, row_id)
            kind: Literal["insert", "update"] = "update" if known else "insert"
            self._add_diff(Diff(kind, seq, row_id, row, place))
        self._changed()

    def _place_of(self, row_id: str) -> int:
        return self._ids.index(row_id) if self.is_window else bisect_left(self._ids, row_id)

    def _place_after(self, after: str | UnsetType | None, row_id: str) -> int:
        if after is None:
            return 0
        if isinstance(after, str):
            return self._place_of(after) + 1 if after in self._rows else len(self._ids)
        return len(self._ids) if self.is_window else bisect_left(self._ids, row_id)

    # --- Without a WebSocket ------------------------------------------------------------------

    def replace_rows(self, raws: Sequence[msgspec.Raw]) -> bool:
        """Take the whole result of a read. Return whether anything has changed."""
        ids = [_READ_ID.decode(raw).id for raw in raws]
        rows = {row_id: self._read(raw) for row_id, raw in zip(ids, raws, strict=True)}
        before_ids, before = self._ids, self._rows
        if self.is_complete and ids == before_ids and rows == before:
            if self.state != "live":
                self._set_state("live")
            return False
        kept = [row_id for row_id in before_ids if row_id in rows]
        if not self.is_complete or kept != [row_id for row_id in ids if row_id in before]:
            self._finish_load(ids, rows)
            return True
        self._ids, self._rows = ids, rows
        self.version += 1
        for row_id in reversed(before_ids):
            if row_id not in rows:
                self._add_diff(Diff("delete", self._seq, row_id, None, before_ids.index(row_id)))
        for place, row_id in enumerate(ids):
            if row_id not in before:
                self._add_diff(Diff("insert", self._seq, row_id, rows[row_id], place))
            elif rows[row_id] != before[row_id]:
                self._add_diff(Diff("update", self._seq, row_id, rows[row_id], place))
        self._set_state("live")
        return True

    # --- Within -------------------------------------------------------------------------------

    def _read(self, raw: msgspec.Raw) -> T:
        try:
            return self.query.entity.decode(raw)
        except (msgspec.ValidationError, TypeError, ValueError) as ex:
            raise RowMismatch(
                f"a row of {self.query.entity.name} does not fit its class: {ex}"
            ) from ex

    def _set_state(self, state: State) -> None:
        self.state = state
        self.notify()

    def _changed(self) -> None:
        self.version += 1
        self.notify()
