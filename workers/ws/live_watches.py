"""Live watches: the registry of all live queries of a worker; sends them their diffs.

Each change goes to the watches that the index of its entity finds (`live_index`). Each watch judges
it once for all its subscriptions. An entity has at most `limits.LIVE_SCANNED` watches that no term
finds.

The cost of $like patterns grows with the text that they search. If the texts of a change, times the
patterns of the affected queries, exceed `limits.LIVE_PATTERN_BYTES`, the index ends queries: first
those of the network with the most patterns. Their clients may subscribe again, which costs a read
in the pool.

Invariants: `on_published` neither blocks nor switches greenlets, and never raises because of a row.
A subscription receives the diffs of all changes after its `after_seq`, in seq order; those of one
call in one write. Metrics: pylon_live_query_*. Called by `workers.ws.live_queries` and, for each
batch, by the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pylon import limits, metrics
from pylon.auth.forwarded import network_of
from pylon.changelog.change import Change
from pylon.clock import Clock
from pylon.errors import LimitExceeded, PylonError
from workers.hub.connection import Transport
from workers.ws.live_diffs import Diffs, diff_body
from workers.ws.live_index import EntityWatches
from workers.ws.live_subscriptions import Subscription, Watch, WatchKey


class Watches:
    """All live queries of one worker."""

    def __init__(
        self, transport: Transport, clock: Clock,
        refuse: Callable[[Subscription, PylonError], None],
        take: Callable[[Watch, Change, Diffs], None],
    ) -> None:
        """
        Args:
            refuse: ends a subscription and sends its client the error.
            take: adds the diffs of a change for a watch that has a window.
        """
        self._refuse = refuse
        self._take = take
        self._transport = transport
        self._clock = clock
        self._by_key: dict[WatchKey, Watch] = {}
        self._by_entity: dict[str, EntityWatches] = {}

    def __len__(self) -> int:
        """Return the number of watches with an active subscription."""
        return len(self._by_key)

    def find(self, key: WatchKey) -> Watch | None:
        """Return the watch of this key, or None if it has no active subscription."""
        return self._by_key.get(key)

    def check(self, watch: Watch) -> None:
        """Check that the index may hold the watch.

        Raises:
            LimitExceeded: the entity has `limits.LIVE_SCANNED` watches without a term.
        """
        if watch.field is not None or watch.key in self._by_key:
            return
        entity_watches = self._by_entity.get(watch.key[0])
        if entity_watches is not None and len(entity_watches.scanned) >= limits.LIVE_SCANNED:
            raise LimitExceeded(
                f"There are {limits.LIVE_SCANNED} different live queries of {watch.key[0]} "
                "without an equality already",
                hint='compare a field with a value, for example {"listId": "x"}',
            )

    def activate(self, subscription: Subscription, after_seq: int) -> None:
        """Send the subscription the diffs of changes after `after_seq` from now on.

        Raises:
            LimitExceeded: as `check`; the index is unchanged.
        """
        watch = self._by_key.get(subscription.watch.key)
        if watch is None:
            self.check(subscription.watch)
            watch = subscription.watch
            entity = watch.key[0]
            entity_watches = self._by_entity.get(entity)
            if entity_watches is None:
                entity_watches = self._by_entity[entity] = EntityWatches()
            entity_watches.add(watch)
            self._by_key[watch.key] = watch
        subscription.watch = watch
        subscription.after_seq = after_seq
        watch.members.add(subscription)

    def end(self, subscription: Subscription) -> None:
        """Stop sending to the subscription. Do nothing if it is not active."""
        watch = subscription.watch
        watch.members.discard(subscription)
        if watch.members or self._by_key.get(watch.key) is not watch:
            return
        del self._by_key[watch.key]
        entity_watches = self._by_entity[watch.key[0]]
        entity_watches.remove(watch)
        if not entity_watches.count:
            del self._by_entity[watch.key[0]]

    def on_published(self, changes: Sequence[Change]) -> None:
        """Send each subscription its diffs (`Hub.on_published`)."""
        if not self._by_key:
            return
        started_s = self._clock.monotonic_s()
        diffs = Diffs(self._transport)
        failed: dict[Watch, PylonError] = {}
        for change in changes:
            entity_watches = self._by_entity.get(change.event.entity)
            if entity_watches is None:
                continue
            if entity_watches.weight * text_bytes(change) > limits.LIVE_PATTERN_BYTES:
                self._shed(entity_watches, change)
            diffs.begin_change()
            bodies: dict[str, bytes] = {}
            for watch in entity_watches.find_affected(change):
                if watch in failed:
                    continue
                try:
                    if watch.window is not None:
                        self._take(watch, change, diffs)
                        continue
                    kind = watch.diff_kind(change)
                except PylonError as error:  # a related row cannot be read now
                    failed[watch] = error
                    continue
                if kind is not None:
                    body = bodies.get(kind)
                    if body is None:
                        body = bodies[kind] = diff_body(change, kind)
                    for member in watch.members:
                        # A result that was read ahead of the feed has the change already.
                        if change.seq > member.after_seq:
                            diffs.add(body, member)
        metrics.LIVE_EVALUATION.observe(self._clock.monotonic_s() - started_s)
        diffs.send()
        for watch, reason in failed.items():
            for member in list(watch.members):
                self._refuse(member, reason)

    def _shed(self, entity_watches: EntityWatches, change: Change) -> None:
        """End subscriptions until the affected patterns times the texts are within the limit."""
        members = [
            member for watch in entity_watches.find_affected(change) if watch.weight
            for member in watch.members
        ]
        weight = sum({member.watch: member.watch.weight for member in members}.values())
        max_weight = limits.LIVE_PATTERN_BYTES // max(text_bytes(change), 1)
        by_network: dict[str, list[Subscription]] = {}
        for member in members:
            network = network_of(member.connection.address)
            by_network.setdefault(network, []).append(member)
        by_weight = sorted(
            by_network.values(), key=lambda own: sum(m.watch.weight for m in own)
        )
        while weight > max_weight and by_weight:
            for member in by_weight.pop():
                self._refuse(member, pattern_limit_error())
                metrics.LIVE_QUERIES_SHED.inc()
                if not member.watch.members:
                    weight -= member.watch.weight
                    if weight <= max_weight:
                        return


def text_bytes(change: Change) -> int:
    """Return the size of the row before and after, which a pattern may search."""
    event = change.event
    return len(event.data or b"") + len(event.prev_data or b"")


def pattern_limit_error() -> LimitExceeded:
    """Return the error for a live query that ends because of its patterns."""
    return LimitExceeded(
        "The $like conditions of live queries met more text than may be looked through for one "
        f"change ({limits.LIVE_PATTERN_BYTES} bytes x patterns)",
        hint="subscribe again, with fewer $like conditions, or compare a field with a value too",
    )
