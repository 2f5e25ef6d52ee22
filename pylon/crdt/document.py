"""One row's Loro document: its fields in the root map `row` (spec/realtime.md §6.1).

Text fields (richtext, or `crdt: "text"`) are LoroText containers. All other fields are plain
values: whole numbers are floats, and JSON values texts of JSON. Null is an absent key. The
projection of a document to a row does the reverse: an absent key is null, a text is its string, any
other container is null. It refuses a value that no row can hold.

Loro raises a bare `BaseException` for undecodable bytes, and pyo3 raises a `PanicException`, which
cannot be imported, for a defect in Loro. This module turns both into errors of Pylon, and only
around Loro's own calls.

Invariants: a document that raised is in an unknown state; its caller must drop it and never store
it. Each object has its own peer id, so no later change has the id of one that was never stored.
Used from one thread at a time. Called by the writer, by the merge sandbox (`check`, `check_merge`,
`redact_document`, `find_new_changes`) and by `workers.ws.documents` (`merge_parts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import loro
import orjson

from pylon import limits
from pylon.crdt.redaction import Run, Spans, blank_ids, clip_spans, join_spans, removed_ids
from pylon.errors import CrdtApplyFailed, CrdtDecodeFailed, CrdtHistoryMissing, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType

Version = loro.VersionVector

_ROOT: Final = "row"
_RESERVED: Final = frozenset({"counter", "list", "movable-list", "tree"})
_NUMBERS: Final = frozenset({FieldType.INT, FieldType.FLOAT})


class Document:
    """A Loro document and the fields of its entity."""

    __slots__ = ("_doc", "_fields", "_map")

    def __init__(self, entity: Entity, parts: Sequence[bytes] = ()) -> None:
        """
        Args:
            parts: the stored snapshot, then updates. Without parts the document is empty.

        Raises:
            CrdtDecodeFailed: the parts are no complete document.
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
        """Return `version` as bytes."""
        with _loro():
            return self._doc.oplog_vv.encode()

    @property
    def version(self) -> Version:
        """Return the version vector of its changes. Equal versions are equal documents."""
        return self._doc.oplog_vv

    def merge(self, update: bytes) -> None:
        """Merge an update or a snapshot.

        Raises:
            CrdtDecodeFailed: Loro cannot decode or merge the update.
            CrdtHistoryMissing: the update builds on changes that this document lacks.
        """
        with _loro():
            status = self._doc.import_(update)
        if status.pending is not None:
            raise CrdtHistoryMissing(
                "The update builds on changes that this document does not have",
                hint="Push the whole document, or take a new copy of it with crdt-subscribe",
            )

    def find_differences(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the document's values of the fields in which it differs from `row`.

        Raises:
            CrdtApplyFailed: a field has a value that no row can hold.
        """
        found: dict[str, Any] = {}
        with _loro():
            for field in self._fields.values():
                value = self._projected(field)
                if not _same(field, value, row.get(field.name)):
                    found[field.name] = value
        return found

    def assign(self, values: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> None:
        """Set fields, as a change of the server.

        In a text it replaces only the part from the first to the last differing character. So
        concurrent edits elsewhere in the text keep their positions.

        Args:
            known: the present projection of the document, if the caller has it. It avoids
                `to_string`, which is slow for a text with many edits.
        """
        with _loro():
            for name, value in values.items():
                self._set(self._fields[name], value, None if known is None else known.get(name))
            self._doc.commit()

    def changes_since(self, version: Version) -> bytes:
        """Return the changes after `version` as an update."""
        with _loro():
            return self._doc.export(loro.ExportMode.Updates(version))

    def snapshot(self) -> bytes:
        """Return the whole document, with its history."""
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
        if _is_json(field):
            return _parsed(field, value)
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
    """Raise if the entity has a field of a reserved CRDT kind.

    Raises:
        CrdtApplyFailed: a field has such a kind.
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
    """Merge an update into an empty document, to see whether Loro can merge it.

    An update that makes Loro fail, or that expands without bound, does so in the calling process
    and not in the writer. No caller reads the value as a whole: Loro builds it by recursion, and
    ten thousand nested containers overrun the stack.

    Raises:
        CrdtDecodeFailed: Loro cannot decode the update.
        LimitExceeded: the document would be larger than `limits.DOCUMENT_BYTES`.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_(update)
        # An update with all content is uncompressed, so its size is that of the document.
        size_bytes = len(doc.export(loro.ExportMode.Updates(loro.VersionVector())))
    if size_bytes > limits.DOCUMENT_BYTES:
        raise too_large()


def check_merge(parts: Sequence[bytes], update: bytes) -> None:
    """Merge an update into the stored parts of a document, as the writer will.

    Raises:
        CrdtDecodeFailed: Loro cannot merge them.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_batch(parts)
        before = doc.oplog_vv
        doc.import_(update)
        doc.export(loro.ExportMode.Updates(before))


def too_large() -> LimitExceeded:
    """Return the error for a document or an update that is too large."""
    return LimitExceeded(
        f"The document would be larger than {limits.DOCUMENT_BYTES} bytes, or its history than "
        f"{limits.DOCUMENT_HISTORY_BYTES}",
        hint="Start a new row: all that was ever written or deleted counts",
    )


def merge_parts(parts: Sequence[bytes]) -> bytes:
    """Return one snapshot of a snapshot and updates.

    Raises:
        CrdtDecodeFailed: the parts are no document.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_batch(parts)
        return doc.export(loro.ExportMode.Snapshot())


def redact_document(parts: Sequence[bytes], runs: Sequence[Run]) -> bytes:
    """Return a snapshot for a reader from whom `runs` of the document were hidden.

    `pylon.crdt.redaction` blanks the content.

    Raises:
        CrdtDecodeFailed: the parts are no document.
    """
    with _loro():
        doc = loro.LoroDoc()
        doc.import_batch(parts)
        until = doc.oplog_vv
        hidden: Spans = {}
        for run in runs:
            until = _version(run.shown, doc)
            updates = _json_updates(doc, until)
            removed = removed_ids(updates)
            begin, end = _version(run.begin, None), _version(run.end, doc)
            for peer in map(int, updates["peers"]):
                spans = clip_spans(removed, peer, _count(begin, peer), _count(end, peer))
                hidden[peer] = join_spans(hidden.get(peer, []) + spans)
        updates = _json_updates(doc, until)
        blank_ids(updates, hidden)
        made = loro.LoroDoc()
        made.import_json_updates(orjson.dumps(updates).decode())
        made.import_(doc.export(loro.ExportMode.Updates(until)))
        if made.oplog_vv == doc.oplog_vv and _fields_of(made) == _fields_of(doc):
            return made.export(loro.ExportMode.Snapshot())
        # The redaction failed: send no history at all. An older copy cannot merge that.
        return doc.export(loro.ExportMode.ShallowSnapshot(doc.oplog_frontiers))


def find_new_changes(parts: Sequence[bytes], update: bytes) -> bytes:
    """Return the changes in a client's whole history that `parts` lack.

    The stored changes may be blank in the client's copy.

    Raises:
        CrdtDecodeFailed: the update is no whole history.
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
    """Decode a version. Without bytes it is that of `doc`, or of an empty document."""
    if encoded:
        return loro.VersionVector.decode(encoded)
    return loro.VersionVector() if doc is None else doc.oplog_vv


def _json_updates(doc: loro.LoroDoc, until: Version) -> Any:
    return orjson.loads(doc.export_json_updates(loro.VersionVector(), until))


def _count(version: loro.VersionVector, peer: int) -> int:
    """Return how many ids of a peer a version has."""
    last = version.get_last(peer)
    return 0 if last is None else last + 1


def _fields_of(doc: loro.LoroDoc) -> dict[str, object]:
    """Return the projection of the document, by field."""
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
    """Turn an error of Loro into `CrdtDecodeFailed`; let other errors pass."""
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


def _is_json(field: Field) -> bool:
    """Whether a row has a JSON value, which is a text of JSON in the document."""
    return field.type is FieldType.JSON and not field.is_json_text


def _parsed(field: Field, value: Any) -> Any:
    if value is None:
        return None
    try:
        return orjson.loads(value)
    except (TypeError, ValueError):
        raise CrdtApplyFailed(
            f"field {field.name}: expected a text of JSON", field=field.name
        ) from None


def _loro_value(field: Field, value: Any) -> Any:
    if _is_json(field):
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    return float(value) if field.type in _NUMBERS else value


def _same(field: Field, value: Any, wanted: Any) -> bool:
    """Whether the document has the value that `assign` would set for `wanted`."""
    if wanted is None or value is None:
        return wanted is value
    if field.type in _NUMBERS:
        return not isinstance(value, (bool, str)) and float(value) == float(wanted)
    return type(value) is type(wanted) and bool(value == wanted)


def _replace(text: loro.LoroText, wanted: str, known: Any) -> None:
    """Set `text` to `wanted` by one deletion and one insertion inside the common ends."""
    current = known
    if not isinstance(current, str) or len(current) != text.len_unicode:
        current = text.to_string()
    if current == wanted:
        return
    start = _shared(current, wanted, from_end=False)
    end = min(
        _shared(current, wanted, from_end=True), min(len(current), len(wanted)) - start
    )
    deleted = len(current) - start - end
    if deleted:
        text.delete(start, deleted)
    added = wanted[start : len(wanted) - end]
    if added:
        text.insert(start, added)


def _shared(one: str, other: str, *, from_end: bool) -> int:
    """Return the length of the common start (or end), by bisection, which compares in C."""
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
