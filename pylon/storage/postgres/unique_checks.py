"""Unique checks: whether a stored row of one entity already has the values of a unique key.

The overlay knows the owners of the values that this batch has asked for, read ahead or changed; a
read finds the others. Made by `table`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from pylon.storage.core.transaction import ConstraintFailed
from pylon.storage.postgres.batch import Batch
from pylon.storage.postgres.unique_keys import UniqueKey, Values

_UNKNOWN: Final = object()


class UniqueChecks:
    """See the module."""

    __slots__ = ("_batch", "_name", "_overlay", "_uniques")

    def __init__(self, batch: Batch, name: str, uniques: Sequence[UniqueKey]) -> None:
        """Args: `name`: of the entity. `uniques`: its unique keys without that of `id`."""
        self._batch = batch
        self._overlay = batch.overlay
        self._name = name
        self._uniques = uniques

    def free_keys(self, row: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Return the unique keys of a new row, none of which a stored row has.

        Raises:
            ConstraintFailed
        """
        owned = []
        for unique in self._uniques:
            values = unique.values_of(row)
            if values is not None:
                self.check_free(unique, values, None)
                owned.append((unique, values))
        return owned

    def check_free(self, unique: UniqueKey, values: Values, row_id: str | None) -> None:
        """
        Args:
            row_id: of the row that is to have the values; None: a new one.

        Raises:
            ConstraintFailed: another row has the values.
        """
        known: Any = self._overlay.owners.get((unique, values), _UNKNOWN)
        if known is _UNKNOWN:
            known = self._read_owner(unique, values)
        if known is not None and known != row_id:
            raise ConstraintFailed("unique", unique.fields)

    def _read_owner(self, unique: UniqueKey, values: Values) -> str | None:
        found = self._batch.read(unique.find, values)
        for n in range(found.ntuples):
            if unique.where is None or unique.where(orjson.loads(found.get_value(n, 1) or b"{}")):
                owner = (found.get_value(n, 0) or b"").decode()
                known: Any = self._overlay.rows.get((self._name, owner), _UNKNOWN)
                if known is _UNKNOWN or (known is not None and (
                    known[0] is None or unique.values_of(orjson.loads(known[0])) == values
                )):
                    return owner  # else this transaction has changed or deleted it
        return None
