"""One row's Loro document: its fields in the root map `row` (spec/realtime.md §6.1).

Text fields (richtext, or `crdt: "text"`) are LoroText containers, all others plain values, and
whole numbers are kept as floats. Null is an absent key. Projection goes the other way: absent is
null, a text is its string, any other container null; a value that no row could hold is refused.

Loro tells of undecodable bytes with a bare `BaseException`, and pyo3 of a defect in Loro with a
`PanicException` (which cannot be imported). Both are turned into errors of ours here, and only
around Loro's own calls.

Invariants: a document that raised is in an unknown state and must be thrown away, never stored;
each object has a peer id of its own, so a change that was never stored cannot be taken for
another one later. One thread at a time. Used by the writer, by HTTP workers (`check`) and by ws
workers (`merged`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import loro
import orjson

from pylon import limits
from pylon.crdt.redaction import Run, Spans, blank, gone_ids, joined, within
from pylon.errors import CrdtApplyFailed, CrdtDecodeFailed, CrdtHistoryMissing, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType

Version = loro.VersionVector

_ROOT: Final = "row"
_RESERVED: Final = frozenset({"counter", "list", "movable-list", "tree"})
_NUMBERS: Final = frozenset({FieldType.INT, FieldType.FLOAT})


class Document:
    """See the module."""

    __slots__ = ("_doc", "_fields", "_map")

    def __init__(self, entity: Entity, parts: Sequence[bytes] = ()) -> None:
        """
        Args:
            parts: what is stored of it: a snapshot, then updates. None: an empty document.

        Raises:
            CrdtDecodeFailed: they are no whole document.
        """
        self._fields = entity.by_name
        with _loro():
            self._doc = loro.LoroDoc()
            if parts:
                status = self._doc.import_batch(parts)
                if status.pending is not None:
                    raise CrdtDecodeFailed("the stored document is not whole")
            self._map = self._doc.get_map(_ROOT)

    def encoded_version(self) -> bytes:
        """`version` as bytes."""
        with _loro():
            return self._doc.oplog_vv.encode()

    @property
    def version(self) -> Version:
        """Which changes it has. Equal versions are equal documents."""
        return self._doc.oplog_vv

    def take(self, update: bytes) -> None:
        """Merge an update or a snapshot.

        Raises:
            CrdtDecodeFailed: it cannot be decoded, or not be merged.
            CrdtHistoryMissing: it builds on changes that are not here.
        """
        with _loro():
            status = self._doc.import_(update)
        if status.pending is not None:
            raise CrdtHistoryMissing(
                "The update builds on changes that this document does not have",
                hint="Push the whole document, or take a new copy of it with crdt-subscribe",
            )

    def differing(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields in which the document says something else than `row`, as it has them.

        Raises:
            CrdtApplyFailed: a field has what no row can hold.
        """
        found: dict[str, Any] = {}
        with _loro():
            for field in self._fields.values():
                value = self._projected(field)
                if not _same(field, value, row.get(field.name)):
                    found[field.name] = value
        return found

    def assign(self, values: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> None:
        """Set fields, as a change of the server's. Of a text only the part that differs, from
        the first differing character to the last, is replaced, so that what others type
        elsewhere in it at the same time stays where it was typed.

        Args:
            known: the row that the document says now, if somebody knows it: a text that was
                edited often takes long to put together.
        """
        with _loro():
            for name, value in values.items():
                self._set(self._fields[name], value, None if known is None else known.get(name))
            self._doc.commit()

    def changes_since(self, version: Version) -> bytes:
        """What came after `version`, for those who have that."""
        with _loro():
            return self._doc.export(loro.ExportMode.Updates(version))

    def snapshot(self) -> bytes:
        """The whole document, with its history."""
        with _loro():
            return self._doc.export(loro.ExportMode.Snapshot())

    def _projected(self, field: Field) -> Any:
        found = self._map.get(field.name)
        if found is None:
            return None
        if isinstance(found, loro.ValueOrContainer.Container):
            container = found.container
            return container.to_string() if isinstance(container, loro.LoroText) else None
        value = found.value if isinstance(found, loro.ValueOrContainer.Value) else None
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise CrdtApplyFailed(
                f"field {field.name}: expected {field.type.value}, got {type(value).__name__}",
                field=field.name,
            )
        return value

    def _set(self, field: Field, value: Any, known: Any) -> None:
        if value is None:
            if field.name in self._map:
                self._map.delete(field.name)
        elif is_text(field):
            found = self._map.get(field.name)
            container = (
                found.container if isinstance(found, loro.ValueOrContainer.Container) else None
            )
            if isinstance(container, loro.LoroText):
                _replace(container, value, known)
            else:
                new = self._map.insert_container(field.name, loro.LoroText())
                assert isinstance(new, loro.LoroText)
                new.insert(0, value)
        else:
            self._map.insert(field.name, _loro_value(field, value))


def refuse_reserved(entity: Entity) -> None:
    """
    Raises:
        CrdtApplyFailed: the entity has a field of a kind that is only reserved.
    """
    for field in entity.fields:
        if field.crdt in _RESERVED:
            raise CrdtApplyFailed(
                f"{entity.name}.{field.name}: the CRDT kind {field.crdt} is reserved",
                entity=entity.name, field=field.name,
            )


def is_text(field: Field) -> bool:
    """Whether the field is a text container."""
    return field.crdt == "text" or (field.type is FieldType.RICHTEXT and field.crdt != "lww")


def check(update: bytes) -> None:
    """Merge an update into nothing, to see that it can be done at all: what makes Loro fail, or
    swells beyond all bounds, does so in the process that calls this, and not in the writer.
    The value as a whole is never asked for, here or elsewhere: Loro puts it together by
    recursion, and ten thousand containers within each other overrun the stack.

    Raises:
        CrdtDecodeFailed: it cannot be decoded.
        LimitExceeded: the document would be larger than `limits.DOCUMENT_BYTES`.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_(update)
        # All content as an update is not compressed: it is as large as the document is.
        size_bytes = len(doc.export(loro.ExportMode.Updates(loro.VersionVector())))
    if size_bytes > limits.DOCUMENT_BYTES:
        raise too_large()


def check_merge(parts: Sequence[bytes], update: bytes) -> None:
    """Merge an update into what is stored of a document, as the writer will.

    Raises:
        CrdtDecodeFailed: it cannot be done.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_batch(parts)
        before = doc.oplog_vv
        doc.import_(update)
        doc.export(loro.ExportMode.Updates(before))


def too_large() -> LimitExceeded:
    """The error for a document, or an update, that is too large."""
    return LimitExceeded(
        f"The document would be larger than {limits.DOCUMENT_BYTES} bytes, or its history than "
        f"{limits.DOCUMENT_HISTORY_BYTES}",
        hint="Start a new row: all that was ever written or deleted counts",
    )


def merged(parts: Sequence[bytes]) -> bytes:
    """One snapshot of a snapshot and updates.

    Raises:
        CrdtDecodeFailed: they are no document.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_batch(parts)
        return doc.export(loro.ExportMode.Snapshot())


def shown(parts: Sequence[bytes], runs: Sequence[Run]) -> bytes:
    """The document of `parts` for a reader from whom `runs` of it were hidden
    (`pylon.crdt.redaction`).

    Raises:
        CrdtDecodeFailed: they are no document.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_batch(parts)
        until = doc.oplog_vv
        hidden: Spans = {}
        for run in runs:
            until = _version(run.shown, doc)
            updates = _json_updates(doc, until)
            gone = gone_ids(updates)
            begin, end = _version(run.begin, None), _version(run.end, doc)
            for peer in map(int, updates["peers"]):
                spans = within(gone, peer, _count(begin, peer), _count(end, peer))
                hidden[peer] = joined(hidden.get(peer, []) + spans)
        updates = _json_updates(doc, until)
        blank(updates, hidden)
        made = loro.LoroDoc()
        made.import_json_updates(orjson.dumps(updates).decode())
        made.import_(doc.export(loro.ExportMode.Updates(until)))
        if made.oplog_vv == doc.oplog_vv and _fields_of(made) == _fields_of(doc):
            return made.export(loro.ExportMode.Snapshot())
        # Redaction has erred: then without any history, which an older copy cannot merge.
        return doc.export(loro.ExportMode.ShallowSnapshot(doc.oplog_frontiers))


def without_known(parts: Sequence[bytes], update: bytes) -> bytes:
    """The changes of a client's whole history that are not stored. Stored ones may be blank in it.

    Raises:
        CrdtDecodeFailed: it is no whole history.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_batch(parts)
        theirs = loro.LoroDoc()
        status = theirs.import_(update)
        if status.pending is not None:
            raise CrdtDecodeFailed("The update cannot be merged")
        return theirs.export(loro.ExportMode.Updates(doc.oplog_vv))


def _version(encoded: bytes, doc: loro.LoroDoc | None) -> Version:
    """A version; for no bytes that of `doc`, or of an empty document."""
    if encoded:
        return loro.VersionVector.decode(encoded)
    return loro.VersionVector() if doc is None else doc.oplog_vv


def _json_updates(doc: loro.LoroDoc, until: Version) -> Any:
    return orjson.loads(doc.export_json_updates(loro.VersionVector(), until))


def _count(version: loro.VersionVector, peer: int) -> int:
    """How many of a peer's ids a version has."""
    last = version.get_last(peer)
    return 0 if last is None else last + 1


def _fields_of(doc: loro.LoroDoc) -> dict[str, object]:
    """The row that the document shows."""
    fields: dict[str, object] = {}
    root = doc.get_map(_ROOT)
    for name in root.keys():  # noqa: SIM118  (a LoroMap is no dict)
        found = root.get(name)
        if isinstance(found, loro.ValueOrContainer.Container):
            container = found.container
            fields[name] = container.to_string() if isinstance(container, loro.LoroText) else None
        elif isinstance(found, loro.ValueOrContainer.Value):
            fields[name] = found.value
    return fields


@contextmanager
def _loro() -> Iterator[None]:
    """Turns what Loro raises into `CrdtDecodeFailed`, and lets all else pass."""
    try:
        yield
    except BaseException as error:
        kind = type(error)
        if kind is not BaseException and kind.__module__ != "pyo3_runtime":
            raise
        raise CrdtDecodeFailed(f"The update cannot be decoded: {_words(error)}") from None


def _words(error: BaseException) -> str:
    text = str(error).replace("\n", " ")
    return text if len(text) <= 100 else text[:100] + "..."


def _loro_value(field: Field, value: Any) -> Any:
    return float(value) if field.type in _NUMBERS else value


def _same(field: Field, value: Any, wanted: Any) -> bool:
    """Whether the document's value is what it would be for the row's."""
    if wanted is None or value is None:
        return wanted is value
    if field.type in _NUMBERS:
        return not isinstance(value, (bool, str)) and float(value) == float(wanted)
    return type(value) is type(wanted) and bool(value == wanted)


def _replace(text: loro.LoroText, wanted: str, known: Any) -> None:
    """Make `text` say `wanted`, by one deletion and one insertion between what both share."""
    current = known
    if not isinstance(current, str) or len(current) != text.len_unicode:
        current = text.to_string()
    if current == wanted:
        return
    start = _shared(current, wanted, from_end=False)
    most = min(len(current), len(wanted)) - start
    end = min(_shared(current, wanted, from_end=True), most)
    gone = len(current) - start - end
    if gone:
        text.delete(start, gone)
    added = wanted[start : len(wanted) - end]
    if added:
        text.insert(start, added)


def _shared(one: str, other: str, *, from_end: bool) -> int:
    """How many characters both begin (or end) with: found by halving, which compares in C."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if (
            one[len(one) - middle :] == other[len(other) - middle :]
            if from_end else one[:middle] == other[:middle]
        ):
            low = middle
        else:
            high = middle - 1
    return low
