"""Import order: rows of an import that refer to each other, those that are named first.

A file may have a row before the row that it names, and rows that name each other in a circle.
Called by `import_` for the rows that the writer has refused with REFERENCE_NOT_FOUND.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from pylon.manifest.model import Manifest
from pylon.storage.ops import InsertRow

Numbered = tuple[int, InsertRow]  # the row's number in the import


def in_order_of_references(
    manifest: Manifest, rows: Sequence[Numbered]
) -> tuple[list[Numbered], list[Numbered]]:
    """Return the rows that can be inserted one after another, and those of circles.

    The second list also has the rows that name a row of a circle, directly or not.
    """
    by_key = {(op.entity, op.row_id): place for place, (_, op) in enumerate(rows)}
    waiting: list[int] = []  # by place: how many rows must come before
    followers: dict[int, list[int]] = {}
    for place, (_, op) in enumerate(rows):
        named = {
            by_key[key] for key in _references(manifest, op) if key in by_key
        } - {place}
        waiting.append(len(named))
        for other in named:
            followers.setdefault(other, []).append(place)
    ready = deque(place for place, count in enumerate(waiting) if not count)
    ordered: list[Numbered] = []
    while ready:
        place = ready.popleft()
        ordered.append(rows[place])
        for follower in followers.get(place, ()):
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    return ordered, [rows[place] for place, count in enumerate(waiting) if count]


def _references(manifest: Manifest, op: InsertRow) -> list[tuple[str, str]]:
    """Return the rows that a row names: entity and id."""
    fields = manifest.by_name[op.entity].fields
    return [
        (field.target, value) for field, value in zip(fields, op.values, strict=True)
        if field.target is not None and isinstance(value, str)
    ]
