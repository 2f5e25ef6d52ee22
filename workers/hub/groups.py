"""Groups: the connections that see the same changes, found by the attributes of their session.

Connections with equal auth contexts and equal scopes see the same. Those with the same deflate
window share compressed frames too, and form groups of their own. `scope_index` finds the groups
with a scope. `pylon.policy.routing` tells which changes
everyone sees, and which are keyed by an attribute of the session; those find their groups in a
dictionary.

Invariants: every group has connections. A connection is in one group at most, that of its caller.
Nothing here sends. Called by `hub`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from pylon import metrics
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change
from pylon.changelog.scope import Scope
from pylon.policy.entity_rules import EntityRules
from pylon.policy.routing import General, Keyed, Nobody, Related, Union
from workers.hub.connection import Connection
from workers.hub.memberships import Memberships
from workers.hub.scope_index import ScopeIndex

_Key = tuple[AuthContext, int, Scope | None]  # context, deflate window, scope
_NONE: Final[frozenset[Group]] = frozenset()


class Group:
    """The connections of one auth context, one deflate window and one scope."""

    __slots__ = ("auth", "connections", "deflate_window", "scope", "verdicts")

    def __init__(self, auth: AuthContext, deflate_window: int, scope: Scope | None = None) -> None:
        self.auth = auth
        self.deflate_window = deflate_window
        self.scope = scope
        self.connections: set[Connection] = set()
        # By entity: whether the context may read it, where that does not depend on the row.
        self.verdicts: dict[str, bool] = {}


class Groups:
    """All groups of a hub. `admins` has the groups of administrators without a scope, and
    `scoped_admins` those with one."""

    __slots__ = (
        "_by_attribute", "_by_auth", "_known", "_scoped", "_window_uses", "admins",
        "scoped_admins",
    )

    def __init__(self) -> None:
        self.admins: set[Group] = set()
        self.scoped_admins: set[Group] = set()
        self._scoped: ScopeIndex[Group] = ScopeIndex()
        self._known: dict[_Key, Group] = {}
        self._window_uses: dict[int, int] = {}  # the number of groups by deflate window
        self._by_attribute: dict[str, dict[object, set[Group]]] = {}
        self._by_auth: dict[AuthContext, set[Group]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._known.values())

    @property
    def deflate_windows(self) -> list[int]:
        """Return the deflate windows that connections use; 0 stands for no compression."""
        return list(self._window_uses)

    @property
    def contexts(self) -> int:
        """Return the number of distinct auth contexts."""
        return len(self._by_auth)

    def join(self, connection: Connection) -> None:
        """Add a connection to the group of its present caller."""
        auth, deflate_window, scope = key = _key_of(connection)
        group = self._known.get(key)
        if group is None:
            group = self._known[key] = Group(auth, deflate_window, scope)
            self._window_uses[deflate_window] = self._window_uses.get(deflate_window, 0) + 1
            self._by_auth.setdefault(auth, set()).add(group)
            if auth.is_admin:
                (self.admins if scope is None else self.scoped_admins).add(group)
            if scope is not None:
                self._scoped.add(group, scope)
                metrics.SYNC_SCOPES.set(len(self._scoped))
            for attribute, value in _attributes(auth):
                self._by_attribute.setdefault(attribute, {}).setdefault(value, set()).add(group)
        group.connections.add(connection)

    def leave(self, connection: Connection) -> bool:
        """Remove a connection, before its caller changes; False if it is in no group."""
        auth, deflate_window, scope = key = _key_of(connection)
        group = self._known.get(key)
        if group is None or connection not in group.connections:
            return False
        group.connections.discard(connection)
        if not group.connections:
            del self._known[key]
            self.admins.discard(group)
            self.scoped_admins.discard(group)
            if scope is not None:
                self._scoped.remove(group, scope)
                metrics.SYNC_SCOPES.set(len(self._scoped))
            self._by_auth[auth].discard(group)
            if not self._by_auth[auth]:
                del self._by_auth[auth]
            self._window_uses[deflate_window] -= 1
            if not self._window_uses[deflate_window]:
                del self._window_uses[deflate_window]
            for attribute, value in _attributes(auth):
                groups = self._by_attribute[attribute]
                groups[value].discard(group)
                if not groups[value]:
                    del groups[value]
        return True

    def has_joined(self, connection: Connection) -> bool:
        """Return whether a connection is in its group."""
        group = self._known.get(_key_of(connection))
        return group is not None and connection in group.connections

    def check_scope(self, scope: Scope) -> None:
        """Check that a group of this scope may be made. Raises as `ScopeIndex.check`."""
        self._scoped.check(scope)

    def find_scoped(self, change: Change) -> Iterator[Group]:
        """Yield the groups whose scope may include a change, each once."""
        return self._scoped.find(change)

    def find_allowed(self, entity: str, rules: EntityRules) -> Iterator[Group]:
        """Yield the groups whose context alone lets them read `entity`, without admins and
        without those that have a scope."""
        for group in self._known.values():
            if group.auth.is_admin or group.scope is not None:
                continue
            verdict = group.verdicts.get(entity)
            if verdict is None:
                verdict = group.verdicts[entity] = rules.may_read(group.auth, {})
            if verdict:
                yield group

    def find_of_auth(self, auth: AuthContext) -> Collection[Group]:
        """Return the groups of one auth context."""
        return self._by_auth.get(auth, _NONE)

    def find_candidates(
        self, change: Change, routing: Nobody | Keyed | Related | Union | General,
        memberships: Memberships,
    ) -> Collection[Group]:
        """Return the groups that may see the row before the change or after it."""
        if isinstance(routing, Nobody):
            return ()
        if isinstance(routing, General):
            if not self._scoped:
                return self._known.values()
            unscoped = [group for group in self._known.values() if group.scope is None]
            return [*unscoped, *self._scoped.find(change)]
        if isinstance(routing, Union):
            return {
                group for plan in routing.plans
                for group in self.find_candidates(change, plan, memberships)
            }
        if isinstance(routing, Related):
            return {
                group for row in (change.row, change.prev_row) if row is not None
                for auth in memberships.holders_of(routing.check, row)
                for group in self.find_of_auth(auth)
            }
        groups = self._by_attribute.get(routing.attribute)
        if groups is None:
            return ()
        found: set[Group] = set()
        for row in (change.row, change.prev_row):
            value = None if row is None else row.get(routing.field)
            if isinstance(value, str):
                found |= groups.get(value, _NONE)
        return found


def _key_of(connection: Connection) -> _Key:
    return connection.caller.auth, connection.deflate_window, connection.scope


def _attributes(auth: AuthContext) -> Iterable[tuple[str, str]]:
    """Yield the attributes of a context that are not null; `Keyed` routing finds it by them."""
    if auth.user_id is not None:
        yield "user_id", auth.user_id
    if auth.tenant_id is not None:
        yield "tenant_id", auth.tenant_id
