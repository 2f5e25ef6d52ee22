"""Memberships: the rows that ``exists(...)`` finds for the callers who are connected, as sets.

For a check like ``exists(Member, roomId == data.roomId, userId == auth.userId)`` the worker keeps,
for each caller, the set of keys for which the check holds: the ids of the caller's rooms. So a
verdict costs no read, and a change of a message finds the callers of its room in a dictionary. The
sets are read from the store when the first connection of a caller joins the hub.

A related change (`pylon.policy.related_changes`) makes the sets of its callers void. The hub takes
their connections out of the fan-out, and `workers.hub.replay` brings each up to date by a
difference before it joins again, with new sets. Sets that are held are never changed.

Checks that compare the judged row otherwise than by equality, and callers with more than
`limits.MEMBERSHIP_KEYS` keys, have no set. Their connections leave the fan-out at each change that
such a check judges, and catch up from the log. That is slower, and right.

Invariants: a held set is true for the moment at which its caller joined and for every moment since.
`has_row` never switches greenlets. Metrics: pylon_membership_keys, pylon_membership_changes_total.
Called by the hub, its groups and replays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import orjson
from msgspec.structs import replace

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.policy import expression as e
from pylon.policy.related import CheckValues, ExistsCheck, RelatedRows
from pylon.policy.related_changes import (
    AuthKey,
    KeyFields,
    RelatedChanges,
    comparable,
    key_fields,
)
from pylon.query.predicate import FALSE
from pylon.query.rows import Query
from pylon.storage.interface import Reader

Key = tuple[Any, ...]
_NONE: Final[frozenset[AuthContext]] = frozenset()


class _Form(NamedTuple):
    """How a check splits into a part of the caller and a key of the judged row."""

    check: ExistsCheck
    asked: ExistsCheck  # without its comparisons with the judged row
    pairs: tuple[KeyFields, ...]  # of the asked and the judged row; they make the key
    of_caller: tuple[int, ...]  # the positions of the caller's values
    of_key: tuple[int, ...]  # the positions of the key's values


class _SharedSet(NamedTuple):
    """The keys for which a check holds, and the callers for whom it does."""

    keys: frozenset[Key]
    holders: set[AuthContext]


class KeySets(msgspec.Struct, frozen=True):
    """The sets of one caller, by check. None: the check has no set for this caller."""

    by_check: Mapping[ExistsCheck, frozenset[Key] | None]


class Memberships:
    """The sets of one hub's callers."""

    def __init__(self, related: Mapping[str, RelatedChanges], stored: RelatedRows) -> None:
        """
        Args:
            related: by the entity whose read rule asks.
            stored: answers the checks that have no set; never switches greenlets.
        """
        self._stored = stored
        self._related = related
        self._asked: dict[str, list[RelatedChanges]] = {}
        for changes in related.values():
            for entity in changes.entities:
                self._asked.setdefault(entity, []).append(changes)
        checks = dict.fromkeys(check for changes in related.values() for check in changes.checks)
        self._forms = {check: _form_of(check) for check in checks}
        self._holders: dict[AuthContext, int] = {}
        self._sets: dict[AuthContext, KeySets] = {}
        # By check and the caller's values: callers with equal values have equal sets.
        self._by_values: dict[tuple[ExistsCheck, CheckValues], _SharedSet] = {}
        self._by_key: dict[ExistsCheck, dict[Key, set[AuthContext]]] = {}
        self._by_attribute: dict[str, dict[str, set[AuthContext]]] = {}
        self._unset: dict[str, set[AuthContext]] = {}  # by entity: callers without a set
        self._count = 0

    def __bool__(self) -> bool:
        """Whether any read rule asks other rows."""
        return bool(self._related)

    # --- Callers -------------------------------------------------------------------------

    def read(self, reader: Reader, auth: AuthContext, max_keys: int) -> KeySets | None:
        """Read the sets of a caller at the reader's commit.

        Args:
            max_keys: how many keys this call may read.

        Returns:
            None if there are more than `max_keys`, and `max_keys` is not the limit itself.
        """
        found: dict[ExistsCheck, frozenset[Key] | None] = {}
        read: dict[tuple[ExistsCheck, tuple[str, ...]], frozenset[Key] | None] = {}
        left = max_keys
        for check, form in self._forms.items():
            if form is None:
                found[check] = None
                continue
            shared = self._by_values.get((check, _caller_values(form, auth)))
            if shared is not None:  # a change that made it void would have dropped it
                found[check] = shared.keys
                continue
            name = form.asked, tuple([pair.asked for pair in form.pairs])
            if name not in read:
                keys = read[name] = _read_keys(reader, form, auth, left)
                if keys is None and max_keys < limits.MEMBERSHIP_KEYS:
                    return None
                left -= len(keys or ())
            found[check] = read[name]
        return KeySets(found)

    def hold(self, auth: AuthContext, sets: KeySets | None) -> None:
        """Count one more holder of a caller.

        Args:
            sets: the caller's sets, if the holder has read them; they are kept if there are none.
        """
        holders = self._holders.get(auth, 0)
        self._holders[auth] = holders + 1
        if not holders:
            for attribute, value in _attributes(auth):
                self._by_attribute.setdefault(attribute, {}).setdefault(value, set()).add(auth)
        if sets is not None and auth not in self._sets:
            self._keep(auth, sets)

    def release(self, auth: AuthContext) -> None:
        """Count one holder less; without a holder the sets go."""
        holders = self._holders[auth] - 1
        if holders:
            self._holders[auth] = holders
            return
        del self._holders[auth]
        for attribute, value in _attributes(auth):
            auths = self._by_attribute[attribute]
            auths[value].discard(auth)
            if not auths[value]:
                del auths[value]
        self._drop(auth)

    def holds(self, auth: AuthContext) -> bool:
        """Whether a caller has a holder."""
        return auth in self._holders

    def has_sets(self, auth: AuthContext) -> bool:
        """Whether the sets of a caller are held."""
        return auth in self._sets

    def renew(self, auth: AuthContext, sets: KeySets) -> None:
        """Keep sets of a caller that has holders and no sets."""
        if auth in self._holders and auth not in self._sets:
            self._keep(auth, sets)

    def is_concerned(self, auth: AuthContext, changes: Iterable[Change]) -> bool:
        """Whether changes make the sets of one caller void."""
        return any(
            related.may_turn(change.event.entity, change.prev_row, change.row) and any(
                related.concerns(auth, change.event.entity, image)
                for image in (change.prev_row, change.row) if image is not None
            )
            for change in changes for related in self._asked.get(change.event.entity, ())
        )

    def lacks_set(
        self, auth: AuthContext, changes: Iterable[Change], sets: KeySets | None
    ) -> bool:
        """Whether a change is to be judged by a check for which the caller has no set.

        Args:
            sets: of the caller; None: those that are held.
        """
        found = (self._sets[auth] if sets is None else sets).by_check
        return any(
            found[check] is None
            for change in changes if change.event.entity in self._related
            for check in self._related[change.event.entity].checks
        )

    # --- Answers -------------------------------------------------------------------------

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        """See `pylon.policy.related.RelatedRows`."""
        form = self._forms.get(check)
        if form is None:
            return self._stored.has_row(check, values)
        shared = self._by_values.get((check, tuple([values[at] for at in form.of_caller])))
        if shared is None:
            return self._stored.has_row(check, values)
        return tuple([values[at] for at in form.of_key]) in shared.keys

    def holders_of(self, check: ExistsCheck, row: Mapping[str, Any]) -> Collection[AuthContext]:
        """Return the callers for whom the check holds for a row, as far as they have sets."""
        form = self._forms.get(check)
        if form is None:
            return _NONE
        key = tuple([comparable(row, each.judged, each.judged_notation) for each in form.pairs])
        return self._by_key.get(check, {}).get(key, _NONE)

    def find_concerned(self, changes: Iterable[Change]) -> set[AuthContext]:
        """Return the callers for whom the changes may open or close other rows. Drop their sets."""
        found: set[AuthContext] = set()
        for change in changes:
            entity = change.event.entity
            found |= self._unset.get(entity, _NONE)
            for related in self._asked.get(entity, ()):
                if not related.may_turn(entity, change.prev_row, change.row):
                    continue
                auth_keys = related.auth_keys(entity)
                for image in (change.prev_row, change.row):
                    if image is None:
                        continue
                    for auth in self._candidates(auth_keys, image):
                        if auth not in found and related.concerns(auth, entity, image):
                            found.add(auth)
        for auth in found:
            self._drop(auth)
        metrics.MEMBERSHIP_CHANGES.inc(len(found))
        return found

    def _candidates(
        self, auth_keys: Sequence[AuthKey] | None, image: Mapping[str, Any]
    ) -> Iterator[AuthContext]:
        if auth_keys is None:
            yield from list(self._holders)
            return
        for field, attribute in auth_keys:
            value = image.get(field)
            if isinstance(value, str):
                yield from self._by_attribute.get(attribute, {}).get(value, _NONE)

    # --- Sets ----------------------------------------------------------------------------

    def _keep(self, auth: AuthContext, sets: KeySets) -> None:
        self._sets[auth] = sets
        for check, keys in sets.by_check.items():
            form = self._forms[check]
            if keys is None or form is None:
                continue
            name = check, _caller_values(form, auth)
            self._by_values.setdefault(name, _SharedSet(keys, set())).holders.add(auth)
            self._count += len(keys)
            if form.of_caller:  # else no routing asks who holds a key
                by_key = self._by_key.setdefault(check, {})
                for key in keys:
                    by_key.setdefault(key, set()).add(auth)
        for entity, related in self._related.items():
            if any(sets.by_check[check] is None for check in related.checks):
                self._unset.setdefault(entity, set()).add(auth)
        metrics.MEMBERSHIP_KEYS.set(self._count)

    def _drop(self, auth: AuthContext) -> None:
        sets = self._sets.pop(auth, None)
        if sets is None:
            return
        for check, keys in sets.by_check.items():
            form = self._forms[check]
            if keys is None or form is None:
                continue
            name = check, _caller_values(form, auth)
            holders = self._by_values[name].holders
            holders.discard(auth)
            if not holders:
                del self._by_values[name]
            self._count -= len(keys)
            by_key = self._by_key.get(check, {})
            for key in keys if form.of_caller else ():
                auths = by_key[key]
                auths.discard(auth)
                if not auths:
                    del by_key[key]
        for auths in self._unset.values():
            auths.discard(auth)
        metrics.MEMBERSHIP_KEYS.set(self._count)


def _form_of(check: ExistsCheck) -> _Form | None:
    """Return how a check splits; None if its keys are not compared by equality alone."""
    pairs = key_fields(check)
    if pairs is None:
        return None
    is_key = [isinstance(value, e.Column) for value in check.values]
    kept = tuple(
        part for part in check.exists.comparisons
        if not any(isinstance(option, e.Column) for option in part.options)
    )
    return _Form(
        check,
        ExistsCheck(replace(check.exists, comparisons=kept)),
        pairs,
        tuple(at for at, key in enumerate(is_key) if not key),
        tuple(at for at, key in enumerate(is_key) if key),
    )


def _read_keys(
    reader: Reader, form: _Form, auth: AuthContext, max_keys: int
) -> frozenset[Key] | None:
    where = form.asked.predicate(_caller_values(form, auth))
    if where is FALSE:
        return frozenset()
    if not form.pairs:
        return frozenset([()]) if reader.has_row(form.asked.entity, where) else frozenset()
    rows = reader.rows(form.asked.entity, Query(where, max_keys + 1))
    if len(rows) > max_keys:
        return None
    keys = [
        tuple([comparable(row, each.asked, each.asked_notation) for each in form.pairs])
        for row in map(orjson.loads, rows)
    ]
    return frozenset(key for key in keys if None not in key)


def _caller_values(form: _Form, auth: AuthContext) -> CheckValues:
    return tuple([
        getattr(auth, value.attribute)
        for value in form.check.values if isinstance(value, e.Auth)
    ])


def _attributes(auth: AuthContext) -> Iterator[tuple[str, str]]:
    if auth.user_id is not None:
        yield "user_id", auth.user_id
    if auth.tenant_id is not None:
        yield "tenant_id", auth.tenant_id
