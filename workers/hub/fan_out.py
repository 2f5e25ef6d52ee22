"""Fan-out: which groups of connections see a change, and the frames that each of them gets.

The routing plan of an entity (`pylon.policy.routing`) says how. A change for everyone needs no
decision. A change keyed by an attribute of the session touches only the groups with that value.
Only general rules are judged once for each group. `pylon.changelog.change.encode_for` always judges
whether a group sees the row, its leaving, or nothing; routing only names groups that need no
judgement.

A batch becomes one write for each connection, of frames that all receivers share. A delivery costs
that system call, so the loop around it (`_deliver`) holds nothing that can be done once for all, or
only for connections with an outbox.

Invariant: nothing here blocks or switches greenlets, and no group or connection joins meanwhile.
Called by `hub`, which has the groups; replays encode changes with `view`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from os import write

from pylon import metrics
from pylon.auth_context import AuthContext
from pylon.changelog.change import Change, encode_for
from pylon.changelog.scope import Scope
from pylon.policy.entity_rules import EntityRules
from pylon.policy.routing import ByAuth, Everyone, Nobody
from workers.hub.connection import Connection, Transport
from workers.hub.groups import Group, Groups
from workers.hub.memberships import Memberships

_Frames = list[tuple[int, bytes]]  # (seq, frame)


class FanOut:
    """Encodes changes for groups of connections, and sends them."""

    __slots__ = ("_groups", "_memberships", "_rules", "_transport")

    def __init__(
        self, rules: Mapping[str, EntityRules], transport: Transport, groups: Groups,
        memberships: Memberships,
    ) -> None:
        """
        Args:
            rules: those of each entity of the manifest.
        """
        self._rules = rules
        self._transport = transport
        self._groups = groups
        self._memberships = memberships

    def view(
        self, change: Change, auth: AuthContext, scope: Scope | None = None
    ) -> bytes | None:
        """Return the event as `auth` sees it in a scope, or None (spec/realtime.md §1.4)."""
        if scope is not None:
            rules = scope.find_rules(change.event.entity)
        elif auth.is_admin:
            return change.wire
        else:
            rules = self._rules.get(change.event.entity)
        return None if rules is None else encode_for(change, rules, auth, self._memberships)

    def judged_entities(self, changes: Iterable[Change]) -> set[str]:
        """Those of the changes' entities whose rows not all clients but admins see alike."""
        found = set()
        for entity in {change.event.entity for change in changes}:
            rules = self._rules.get(entity)
            if rules is not None and not isinstance(rules.routing, Everyone | Nobody):
                found.add(entity)
        return found

    def send_to_groups(self, changes: Sequence[Change]) -> int:
        """Deliver changes, in seq order, to the connections of all groups.

        Returns:
            The number of frames that were sent.
        """
        common, own, everything = self._partition_changes(changes)
        # The groups that get other frames than the common ones.
        special: set[Group] = set(own)
        if len(common) < len(everything):
            special |= self._groups.admins
        compressed: dict[tuple[bytes, int], bytes] = {}  # by frame and deflate window
        sent_frames = 0
        if common:
            for deflate_window in self._groups.deflate_windows:
                rest = [
                    group.connections for group in self._groups
                    if group.deflate_window == deflate_window and group.scope is None
                    and group not in special
                ]
                if rest:
                    frames = self._compress_frames(common, deflate_window, compressed)
                    sent_frames += _deliver(chain.from_iterable(rest), frames)
        for group in special:
            if group.scope is not None:
                frames = own[group]
            elif group.auth.is_admin:
                frames = everything
            else:
                frames = sorted(common + own[group]) if common else own[group]
            frames = self._compress_frames(frames, group.deflate_window, compressed)
            sent_frames += _deliver(group.connections, frames)
        return sent_frames

    def send_to(self, connection: Connection, changes: Sequence[Change]) -> None:
        """Deliver those of the changes that a connection has not had."""
        for change in changes:
            if change.seq > connection.last_seq:
                wire = self.view(change, connection.caller.auth, connection.scope)
                if wire is None:
                    continue
                frame = self._transport.frame(change.seq, wire)
                if connection.send(self._transport.compress(frame, connection.deflate_window)):
                    metrics.MESSAGES_SENT.inc()

    def _compress_frames(
        self, frames: _Frames, deflate_window: int, compressed: dict[tuple[bytes, int], bytes]
    ) -> _Frames:
        """Return the frames compressed. `compressed` keeps each for the other groups."""
        if not deflate_window:
            return frames
        result: _Frames = []
        for seq, frame in frames:
            found = compressed.get((frame, deflate_window))
            if found is None:
                found = self._transport.compress(frame, deflate_window)
                compressed[frame, deflate_window] = found
            result.append((seq, found))
        return result

    def _partition_changes(
        self, changes: Sequence[Change]
    ) -> tuple[_Frames, dict[Group, _Frames], _Frames]:
        """Return the frames for everyone, those for single groups, and all frames."""
        common: _Frames = []
        own: dict[Group, _Frames] = {}
        everything: _Frames = []
        for change in changes:
            seq = change.seq
            whole = self._transport.frame(seq, change.wire)
            everything.append((seq, whole))
            made: dict[bytes, bytes] = {change.wire: whole}
            for group in self._groups.scoped_admins:
                self._add_own(own, group, seq, self.view(change, group.auth, group.scope), made)
            rules = self._rules.get(change.event.entity)
            if rules is None:  # the manifest no longer has this entity: admins only
                continue
            routing = rules.routing
            if isinstance(routing, Everyone):
                common.append((seq, whole))
                candidates: Iterable[Group] = self._groups.find_scoped(change)
            elif isinstance(routing, ByAuth):
                for group in self._groups.find_allowed(change.event.entity, rules):
                    own.setdefault(group, []).append((seq, whole))
                candidates = self._groups.find_scoped(change)
            else:
                candidates = self._groups.find_candidates(change, routing, self._memberships)
            for group in candidates:
                if group.auth.is_admin:
                    continue
                if group.scope is None:
                    wire = encode_for(change, rules, group.auth, self._memberships)
                else:
                    wire = self.view(change, group.auth, group.scope)
                self._add_own(own, group, seq, wire, made)
        return common, own, everything

    def _add_own(
        self, own: dict[Group, _Frames], group: Group, seq: int, wire: bytes | None,
        made: dict[bytes, bytes],
    ) -> None:
        """Add an event to the frames of a group. `made` keeps the frames of its texts."""
        if wire is None:
            return
        frame = made.get(wire)
        if frame is None:
            frame = made[wire] = self._transport.frame(seq, wire)
        own.setdefault(group, []).append((seq, frame))


def _deliver(connections: Iterable[Connection], frames: _Frames) -> int:
    """Send frames to each connection in one write, and return how many frames were sent in all.

    The loop must not change `connections`, and `send` may close one. So connections that did not
    take all bytes get their `send` after the loop.
    """
    data = frames[0][1] if len(frames) == 1 else b"".join([frame for _, frame in frames])
    size_bytes, count = len(data), len(frames)
    reached = 0
    behind: list[Connection] = []
    partly: list[tuple[Connection, int]] = []
    for connection in connections:
        fd = connection.direct_fd
        if fd < 0:
            behind.append(connection)
            continue
        try:
            taken_bytes = write(fd, data)
        except OSError:  # `Connection.send` handles the error
            behind.append(connection)
            continue
        reached += 1
        if taken_bytes != size_bytes:
            partly.append((connection, taken_bytes))
    for connection, taken_bytes in partly:
        connection.wrote(data, taken_bytes, count)
    for connection in behind:
        if connection.send(data, count):
            reached += 1
    return reached * count
