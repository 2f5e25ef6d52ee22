"""Redaction: finds removed content in a document's history, and blanks it for some readers.

A reader from whom a row was hidden gets the same changes, under the same ids, as all others. So a
copy of any age merges them, and later edits merge into every other copy. Content that was written
while the row was hidden, and removed before the row came into view, is blank: characters are
U+FFFD, values are null. (A shallow snapshot has no such history, but an older copy cannot import
it: its changes would stay pending for ever.)

It works on Loro's JSON updates (schema 1). Each character, list item and value has the id of the
change that made it (peer and counter), and a deletion contains the ids that it removes.

Invariants: ids, positions and lengths do not change, nor do the fields that the document shows. The
same changes and ids give the same blanks, because Loro refuses a copy of a change with other
content. Clients may put other containers into a document (movable lists, trees, marks). Of these
the module blanks too much rather than too little.

PERF: about 1 ms for each KiB of history. Called by `pylon.crdt.document`, in the merge sandbox.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import field

Id = tuple[str, int]  # index of the peer in the JSON's list, and counter
Spans = dict[int, list[tuple[int, int]]]  # counters of each peer: first, and last + 1
Stamp = tuple[int, int]  # Lamport time and peer: the later of two writes is the larger
Slot = tuple[str, str]  # container and key, or movable list and item

_BLANK: Final = "\ufffd"
_CONTAINER: Final = "🦜:cid:"
_ROOT: Final = "cid:root-"


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Changes that were hidden from a reader: those after the version `begin`, up to `end`.

    `shown` is the version at which the row came into view. Versions are encoded as in
    `Document.encoded_version`. An empty `end` or `shown` means the newest version.
    """

    begin: bytes
    end: bytes
    shown: bytes


class _Found(msgspec.Struct):
    """The results of a walk over all changes."""

    removed: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # spans, by peer
    winners: dict[Slot, tuple[Stamp, Id]] = field(default_factory=dict)
    slot_by_id: dict[Id, Slot] = field(default_factory=dict)
    item_by_id: dict[Id, Slot] = field(default_factory=dict)  # list items, by insertion
    place_by_item: dict[Slot, tuple[Stamp, Id]] = field(default_factory=dict)  # inserted or moved
    node_by_id: dict[Id, Slot] = field(default_factory=dict)
    is_shown: dict[str, bool] = field(default_factory=dict)


def removed_ids(updates: dict[str, Any]) -> Spans:
    """Return the ids of characters, items and values that the document no longer shows."""
    found = _Found()
    peers = [int(peer) for peer in updates["peers"]]
    for change in updates["changes"]:
        for identity, stamp, op in _ops(change, peers):
            _collect(found, identity, stamp, op["container"], op["content"])
    for peer, spans in found.removed.items():
        found.removed[peer] = join_spans(spans)
    removed: Spans = {}
    for change in updates["changes"]:
        for (peer, counter), _, op in _ops(change, peers):
            spans = list(_removed_by(found, (peer, counter), op["container"], op["content"]))
            if spans:
                removed.setdefault(peers[int(peer)], []).extend(spans)
    return {peer: join_spans(spans) for peer, spans in removed.items()}


def blank_ids(updates: dict[str, Any], ids: Spans) -> None:
    """Blank the characters, items and values of `ids` in place, and their changes' messages."""
    peers = [int(peer) for peer in updates["peers"]]
    for change in updates["changes"]:
        peer = peers[int(_id(change["id"])[0])]
        spans = ids.get(peer)
        if not spans:
            continue
        change["msg"] = None
        for identity, _, op in _ops(change, peers):
            _blank(identity, op["content"], spans)


def clip_spans(ids: Spans, peer: int, begin: int, end: int) -> list[tuple[int, int]]:
    """Return the spans of a peer's ids from `begin` to below `end`."""
    return [
        (max(first, begin), min(stop, end)) for first, stop in ids.get(peer, ())
        if first < end and stop > begin
    ]


def _ops(change: dict[str, Any], peers: list[int]) -> Iterator[tuple[Id, Stamp, dict[str, Any]]]:
    peer, first = _id(change["id"])
    for op in change["ops"]:
        counter = op["counter"]
        stamp = (change["lamport"] + counter - first, peers[int(peer)])
        yield (peer, counter), stamp, op


def _id(text: str) -> Id:
    counter, _, peer = text.partition("@")
    return peer, int(counter)


def _collect(found: _Found, identity: Id, stamp: Stamp, container: str, content: Any) -> None:
    kind = content["type"]
    if "start_id" in content:
        peer, first = _id(content["start_id"])
        found.removed.setdefault(peer, []).append((first, first + abs(content["len"])))
    elif "key" in content:
        _compete(found, (container, content["key"]), stamp, identity)
    elif kind == "set":
        _compete(found, (container, content["elem_id"]), stamp, identity)
    elif kind == "move" and "elem_id" in content:
        _place(found, (container, content["elem_id"]), stamp, identity)
    elif "target" in content:
        slot = (container, content["target"])
        _compete(found, slot, stamp, identity)
        if kind == "create":
            found.node_by_id[_id(content["target"])] = slot
        elif kind == "delete":
            found.slot_by_id.pop(identity, None)  # a node with this last change does not exist
    elif kind == "insert" and isinstance(content.get("value"), list):
        peer, counter = identity
        for number in range(len(content["value"])):
            # Movable lists name an item by the Lamport time of its insertion.
            item = (container, f"L{stamp[0] + number}@{peer}")
            found.item_by_id[peer, counter + number] = item
            _place(found, item, (stamp[0] + number, stamp[1]), (peer, counter + number))


def _place(found: _Found, item: Slot, stamp: Stamp, identity: Id) -> None:
    known = found.place_by_item.get(item)
    if known is None or stamp > known[0]:
        found.place_by_item[item] = (stamp, identity)


def _compete(found: _Found, slot: Slot, stamp: Stamp, identity: Id) -> None:
    found.slot_by_id[identity] = slot
    winner = found.winners.get(slot)
    if winner is None or stamp > winner[0]:
        found.winners[slot] = (stamp, identity)


def _removed_by(
    found: _Found, identity: Id, container: str, content: Any
) -> Iterator[tuple[int, int]]:
    is_shown = _is_shown(found, container)
    peer, counter = identity
    if "text" in content:
        end = counter + len(content["text"])
        if is_shown:
            yield from clip_spans({0: found.removed.get(peer, [])}, 0, counter, end)
        else:
            yield counter, end
    elif "style_value" in content:
        if not (is_shown and isinstance(content["style_value"], bool)):
            yield counter, counter + 1
    elif content["type"] == "insert" and "key" not in content:
        for number in range(counter, counter + len(content.get("value", ()))):
            if not (is_shown and _shows(found, peer, number)):
                yield number, number + 1
    elif "value" in content and content["type"] in ("insert", "set"):
        slot = found.slot_by_id[identity]
        wins = found.winners[slot][1] == identity and not _is_item_removed(found, slot)
        if not (is_shown and wins):
            yield counter, counter + 1


def _blank(identity: Id, content: Any, spans: list[tuple[int, int]]) -> None:
    counter = identity[1]
    if "text" in content:
        content["text"] = _without(content["text"], counter, spans)
    elif "style_value" in content:
        if _holds(spans, counter):
            content["style_value"] = None
    elif content["type"] == "insert" and "key" not in content:
        content["value"] = [
            _kept(value, (identity[0], number)) if _holds(spans, number) else value
            for number, value in enumerate(content.get("value", ()), counter)
        ]
    elif "value" in content and content["type"] in ("insert", "set") and _holds(spans, counter):
        content["value"] = _kept(content["value"], identity)


def _shows(found: _Found, peer: str, counter: int) -> bool:
    """Whether a list item is in the final list, with the value of its insertion."""
    item = found.item_by_id[peer, counter]
    return item not in found.winners and not _is_item_removed(found, item)


def _is_item_removed(found: _Found, item: Slot) -> bool:
    """Whether a list item was removed from its last position."""
    place = found.place_by_item.get(item)
    return place is not None and _is_removed(found, *place[1])


def _is_removed(found: _Found, peer: str, counter: int) -> bool:
    return _holds(found.removed.get(peer, []), counter)


def _holds(spans: list[tuple[int, int]], counter: int) -> bool:
    index = bisect_right(spans, (counter, 1 << 62)) - 1
    return index >= 0 and counter < spans[index][1]


def _kept(value: Any, identity: Id) -> Any:
    """Return what replaces a blanked value: a container stays, as its content has own ids."""
    own = f"{_CONTAINER}{identity[1]}@{identity[0]}:"
    return value if isinstance(value, str) and value.startswith(own) else None


def _is_shown(found: _Found, container: str) -> bool:
    """Whether a container belongs to the final document."""
    chain: list[str] = []
    verdict = True
    parent = container
    while not parent.startswith(_ROOT):
        known = found.is_shown.get(parent)
        if known is not None:
            verdict = known
            break
        chain.append(parent)
        made_by = _id(parent.removeprefix("cid:").rpartition(":")[0])
        slot = found.slot_by_id.get(made_by)
        if made_by in found.node_by_id:  # the data of a tree's node
            slot = found.node_by_id[made_by]
            verdict = found.winners[slot][1] in found.slot_by_id
            parent = slot[0]
        elif slot is not None:
            verdict = found.winners[slot][1] == made_by and not _is_item_removed(found, slot)
            parent = slot[0]
        elif made_by in found.item_by_id:
            verdict = _shows(found, *made_by)
            parent = found.item_by_id[made_by][0]
        else:
            verdict = False
        if not verdict:
            break
    for name in chain:
        found.is_shown[name] = verdict
    return verdict


def _without(text: str, first: int, spans: list[tuple[int, int]]) -> str:
    """Return `text`, whose characters have the counters from `first` on, with `spans` blank."""
    end = first + len(text)
    start = max(bisect_right(spans, (first, 1 << 62)) - 1, 0)
    parts: list[str] = []
    done = first
    for begin, stop in spans[start:]:
        if begin >= end:
            break
        begin, stop = max(begin, done), min(stop, end)
        if begin < stop:
            parts += (text[done - first : begin - first], _BLANK * (stop - begin))
            done = stop
    return "".join((*parts, text[done - first :])) if parts else text


def join_spans(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same counters in order, without overlaps."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            if end > joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined
