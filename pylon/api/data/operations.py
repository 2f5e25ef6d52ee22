"""Operations: the inserts, updates and deletes that a push, a batch or a transaction lists.

The three requests differ in their envelopes (`push`, `batch`); this module does what they share.
`read_entry` takes an operation as it was sent. `prepare` turns it into an op of the writer, judged
like the same change by its own route, or notes why not. `OperationRun` has prepared ops written in
order, in portions, and notes each reply.

Invariants: ops reach the writer in the order sent; one that fails stops no other. Bounds:
limits.OPERATIONS_PORTION ops of one request are in flight at once, so that a long list leaves room
for other requests; the envelopes bound the length of a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from pylon import limits
from pylon.api.data import changes
from pylon.api.data.access import entity_named
from pylon.api.data.conflicts import Address, submit_all
from pylon.api.http.unreadable import problem_of, replace_halves
from pylon.api.services import DataServices
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.errors import InvalidData, PylonError
from pylon.manifest.model import Entity
from pylon.storage.ops import OpKey, RowOp, WriteReply

KINDS: Final = ("insert", "update", "delete")


class WireOperation(Protocol):
    """An operation as a client sends it: `Operation` or `PushedChange`. Nothing of it is checked.

    Each member is None where the client left it out.
    """

    @property
    def kind(self) -> Any: ...

    @property
    def entity(self) -> Any: ...

    @property
    def row_id(self) -> Any: ...

    @property
    def data(self) -> Any: ...


Op = TypeVar("Op", bound=WireOperation)


class Envelope(msgspec.Struct, Generic[Op], frozen=True):
    """How a request names the parts of its operations, in its body and in its errors.

    Args:
        operation: the msgspec struct of an operation; all of its members have defaults.
        noun: an operation in words, such as ``A change``.
        row_id: the member with the id of the row, in words.
        unknown_kind, unknown_kind_hint: the error of a kind that does not exist.
    """

    operation: type[Op]
    noun: str
    row_id: str
    unknown_kind: str
    unknown_kind_hint: str | None = None


class Entry(msgspec.Struct, Generic[Op]):
    """One operation: as it was sent, the op that the writer gets, and the outcome."""

    sent: Op
    write: RowOp | None = None
    error: PylonError | None = None
    reply: WriteReply | None = None


class References(Protocol):
    """Texts that stand for the ids of rows which earlier operations of the request insert."""

    def resolve(self, text: str) -> str:
        """Return the row id that `text` stands for, or `text` where it is no reference.

        Raises:
            InvalidData: the text is a reference, but there is no such row.
        """

    def may_stand_in(self, entity: Entity, name: str) -> bool:
        """Return whether the value of this field may be a reference."""


def read_entry(
    sent: object, envelope: Envelope[Op], *, is_doubtful: bool = False
) -> Entry[Op]:
    """Return the entry of an operation.

    Args:
        sent: the decoded JSON value.
        is_doubtful: it may hold texts that UTF-8 cannot (`pylon.api.http.unreadable`).
    """
    if not isinstance(sent, dict):
        return Entry(
            envelope.operation(), error=InvalidData(f"{envelope.noun} must be an object")
        )
    if not is_doubtful:
        return Entry(msgspec.convert(sent, envelope.operation))
    return Entry(_read_doubtful(sent, envelope.operation), error=problem_of(sent))


def _read_doubtful(sent: Mapping[str, Any], struct: type[Op]) -> Op:
    """Return the operation with each half of a surrogate pair in its texts replaced. msgspec
    refuses a dict of which a key holds such a half."""
    readable = {replace_halves(name): replace_halves(value) for name, value in sent.items()}
    return msgspec.convert(readable, struct)


def prepare(
    entry: Entry[Op], app: App, auth: AuthContext, envelope: Envelope[Op], key: OpKey | None = None,
    references: References | None = None,
) -> None:
    """Set the `write` of the entry, or its `error` if it can have none.

    Raises:
        PylonError: status 429 or 503: the request as a whole may be sent again later.
    """
    if entry.error is not None:
        return
    try:
        entry.write = _make_write(entry.sent, app, auth, envelope, key, references)
    except PylonError as error:
        if error.status in (429, 503):
            raise
        entry.error = error


def _make_write(
    sent: Op, app: App, auth: AuthContext, envelope: Envelope[Op],
    key: OpKey | None, references: References | None,
) -> RowOp:
    kind, row_id, data = sent.kind, sent.row_id, sent.data
    if kind not in KINDS:
        raise InvalidData(envelope.unknown_kind, hint=envelope.unknown_kind_hint)
    entity = entity_named(app, sent.entity, auth, "delete" if kind == "delete" else "write")
    if kind != "delete" and data is None:
        raise InvalidData(f"An {kind} needs data")
    if references is not None:
        data = _resolve_data(entity, data, references)
    if kind == "insert":
        return changes.make_insert(app, entity, auth, data, key)
    if not isinstance(row_id, str) or not row_id:
        raise InvalidData(f"{envelope.noun} of kind {kind} needs {envelope.row_id}")
    if references is not None:
        row_id = references.resolve(row_id)
    if kind == "update":
        return changes.make_update(app, entity, auth, row_id, data, key)
    return changes.make_delete(entity, auth, row_id, key)


def _resolve_data(entity: Entity, data: object, references: References) -> object:
    if not isinstance(data, dict):
        return data
    return {
        name: references.resolve(value)
        if isinstance(value, str) and references.may_stand_in(entity, name)
        else value
        for name, value in data.items()
    }


class OperationRun(Generic[Op]):
    """Writes the operations of one request, each by itself."""

    __slots__ = (
        "_address", "_auth", "_envelope", "_portion", "_raises", "_services", "_unavailable",
        "entries",
    )

    def __init__(
        self, services: DataServices, auth: AuthContext, address: Address,
        envelope: Envelope[Op], *, raises_unavailable: bool,
    ) -> None:
        """
        Args:
            raises_unavailable: raise the error of a writer that is not reached, or that has no
                room, rather than note it at each entry.
        """
        self._services = services
        self._auth = auth
        self._address = address
        self._envelope: Envelope[Op] = envelope
        self._raises = raises_unavailable
        self._unavailable: PylonError | None = None
        self._portion: list[tuple[Entry[Op], RowOp]] = []
        self.entries: list[Entry[Op]] = []

    def add(
        self, entry: Entry[Op], key: OpKey | None = None, references: References | None = None
    ) -> None:
        """Prepare an entry, and write it with its portion.

        Raises:
            PylonError: as `flush` and `prepare`.
        """
        self.entries.append(entry)
        # This may flush: a reference to a row may have to wait for the id of its insert.
        prepare(entry, self._services.app, self._auth, self._envelope, key, references)
        if entry.write is not None:
            self._portion.append((entry, entry.write))
        if len(self._portion) == limits.OPERATIONS_PORTION:
            self.flush()

    def flush(self) -> None:
        """Have the writer execute what is prepared, in order, and note each outcome.

        Raises:
            PylonError: the writer was not reached or has no room, or a rate of the caller is
                spent; only where the run raises what is unavailable.
        """
        portion, self._portion = self._portion, []
        if not portion:
            return
        error = self._unavailable
        if error is None:
            try:
                self._write(portion)
            except PylonError as raised:
                if self._raises:
                    raise
                error = self._unavailable = raised
        if error is not None:
            for entry, _ in portion:
                if entry.reply is None and entry.error is None:
                    entry.error = error

    def _write(self, portion: list[tuple[Entry[Op], RowOp]]) -> None:
        rates = self._services.requests.app_rates
        admitted = rates.admit_writes(self._auth, self._address, [op for _, op in portion])
        portion = portion[: admitted.count]
        ops = [op for _, op in portion]
        replies = submit_all(self._services, self._auth, self._address, ops) if ops else []
        for (entry, _), reply in zip(portion, replies, strict=True):
            if reply.error is None:
                entry.reply = reply
                continue
            entry.error = reply.error.to_exception()
            if self._raises and entry.error.status == 503:
                # The operation is not at fault: the official client sends it again after every
                # response that is not a success, and gives it up after one that names it.
                raise entry.error
        if admitted.error is not None:
            raise admitted.error

    @property
    def answered(self) -> int:
        """How many entries in front have their outcome."""
        return next(
            (n for n, e in enumerate(self.entries) if e.reply is None and e.error is None),
            len(self.entries),
        )

    @property
    def replayed(self) -> int:
        """How many operations had been executed before."""
        return sum(1 for e in self.entries if e.reply is not None and e.reply.replayed)
