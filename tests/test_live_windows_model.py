"""Live windows: rows and diffs together are always what a fresh query answers, in its order."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pylon import limits, metrics
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from tests.support.examples import count_examples
from tests.support.live import LiveClient, LiveStage
from tests.support.live_windows import ADA, BOB, WINDOWS_APP, settle
from tests.support.measured import total
from tests.support.storage import row_id
from workers.ws import live_range_reads

pytestmark = pytest.mark.stores

ENTITIES = ["Public", "Mine", "Note", "Chat", "Open"]
WRITTEN = [*ENTITIES, "Member", "Member"]  # a Member opens rows of Chat and closes rows of Open
CONTEXTS = [ANONYMOUS, ADMIN, ADA, BOB, ADA]
VALUES: dict[str, list[Any]] = {
    "text": ["a", "b", "ab", None], "rank": [1, 2, 3, None], "ownerId": ["ada", "bob", None],
    "shared": [True, False, None],
    "at": [None, "2026-01-01T00:00:00.000000Z", "2026-01-02T00:00:00.000000Z"],
}
FILTERS: list[dict[str, Any]] = [
    {}, {"text": "a"}, {"text": {"$in": ["a", "b"]}}, {"shared": None}, {"rank": {"$gte": 2}},
    {"text": {"$like": "A"}}, {"$or": [{"text": "b"}, {"shared": False}]}, {"id": row_id(1)},
    {"text": {"$in": []}}, {"shared": True, "at": {"$gt": "2026-01-01T01:00:00+01:00"}},
]
ROWS = 14
ORDER = st.lists(
    st.tuples(st.sampled_from([*VALUES, "id"]), st.sampled_from(["asc", "desc"])), max_size=3,
    unique_by=lambda pair: pair[0],
)
WRITE = st.tuples(
    st.sampled_from(WRITTEN), st.integers(1, ROWS),
    st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(some) for name, some in VALUES.items()}
    ) | st.none(),  # a delete
)
VALUES_OF_ROWS = st.lists(
    st.fixed_dictionaries({name: st.sampled_from(some) for name, some in VALUES.items()}),
    min_size=ROWS, max_size=ROWS,
)
WRITES = st.lists(WRITE, min_size=1, max_size=6)
Writes = list[tuple[str, int, dict[str, Any] | None]]


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A filter with an order, a limit and a place to begin."""
    body = dict(draw(st.sampled_from(FILTERS)))
    order = dict(draw(ORDER))
    if order:
        body["$order"] = order
    body["$limit"] = draw(st.integers(1, 6))
    place = draw(st.sampled_from([None, None, "$after", "$before"]))
    if place is not None:
        body[place] = {
            "id": row_id(draw(st.integers(0, ROWS + 1))),
            **{name: draw(st.sampled_from(VALUES[name])) for name in order if name != "id"},
        }
        for name in list(order)[list(order).index("id") + 1 :] if "id" in order else ():
            del body[place][name]
    return body


class Machine(RuleBasedStateMachine):
    """Random writes; clients with random windows, and a feed that lags as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(limits, "LIVE_WINDOW_SPARE_ROWS", 2)
        self.patch.setattr(live_range_reads, "_FEED_STEPS", 0)
        self.folder = TemporaryDirectory()
        self.world = LiveStage(Path(self.folder.name), WINDOWS_APP)
        self.there: set[tuple[str, int]] = set()
        self.clients = [LiveClient(self.world, auth) for auth in CONTEXTS]

    def teardown(self) -> None:
        self.world.close()
        self.folder.cleanup()
        self.patch.undo()

    def commit(self, writes: Writes) -> None:
        ops: list[Any] = []
        for entity, number, body in writes:
            place = entity, number
            if body is None and place in self.there:
                ops.append(self.world.delete(entity, row_id(number)))
                self.there.discard(place)
            elif body is not None and place in self.there:
                ops.append(self.world.update(entity, row_id(number), **body))
            elif body is not None:
                ops.append(self.world.insert(entity, row_id(number), **body))
                self.there.add(place)
        if ops:
            self.world.write(*ops)

    @rule(writes=WRITES, publish=st.booleans())
    def write(self, writes: Writes, publish: bool) -> None:
        self.commit(writes)
        if publish:
            self.world.publish()

    def write_meanwhile(self, entity: str, writes: Writes | None, publish: bool) -> None:
        """Commit between the next read and its answer, most of it to rows of `entity`."""
        if writes is not None:
            own = [
                (name if name == "Member" else entity, number, body)
                for name, number, body in writes
            ]
            self.world.store.meanwhile = lambda: self.write(own, publish)

    @initialize(values=VALUES_OF_ROWS, asked=st.lists(
        st.tuples(st.integers(0, len(CONTEXTS) - 1), st.sampled_from(ENTITIES), bodies()),
        min_size=3, max_size=6,
    ))
    def begin(
        self, values: list[dict[str, Any]], asked: list[tuple[int, str, dict[str, Any]]]
    ) -> None:
        for entity in ENTITIES:
            self.fill(entity, values)
        self.write([("Member", n, body) for n, body in enumerate(values[:3], 1)], True)
        for who, entity, body in asked:
            self.subscribe(who, "1", entity, body, None, False)

    @rule(entity=st.sampled_from(ENTITIES), values=VALUES_OF_ROWS)
    def fill(self, entity: str, values: list[dict[str, Any]]) -> None:
        self.write([(entity, n, body) for n, body in enumerate(values, 1)], True)

    @rule(
        who=st.integers(0, len(CONTEXTS) - 1), sub_id=st.sampled_from(["1", "2", "drei"]),
        entity=st.sampled_from(ENTITIES), body=bodies(), meanwhile=WRITES | st.none(),
        publish=st.booleans(),
    )
    def subscribe(
        self, who: int, sub_id: str, entity: str, body: Any, meanwhile: Writes | None,
        publish: bool,
    ) -> None:
        self.write_meanwhile(entity, meanwhile, publish)
        self.clients[who].subscribe_window(sub_id, entity, body)
        self.world.store.meanwhile = None
        assert sub_id in self.clients[who].windows

    @rule(
        who=st.integers(0, len(CONTEXTS) - 1), sub_id=st.sampled_from(["1", "2", "drei"]),
        count=st.integers(1, 4), meanwhile=WRITES | st.none(), publish=st.booleans(),
    )
    def widen(
        self, who: int, sub_id: str, count: int, meanwhile: Writes | None, publish: bool
    ) -> None:
        client = self.clients[who]
        if sub_id not in client.windows:
            return
        self.write_meanwhile(client.asked[sub_id][0], meanwhile, publish)
        client.widen(sub_id, count)
        self.world.store.meanwhile = None

    @rule(
        who=st.integers(0, len(CONTEXTS) - 1), other=st.integers(0, len(CONTEXTS) - 1),
        sub_id=st.sampled_from(["1", "2", "drei"]), limit=st.integers(1, 6),
    )
    def share(self, who: int, other: int, sub_id: str, limit: int) -> None:
        """Subscribe another client to the same window, perhaps with another limit."""
        if sub_id in self.clients[who].windows:
            entity, body = self.clients[who].asked[sub_id]
            self.subscribe(other, "2", entity, {**body, "$limit": limit}, None, False)

    @rule(who=st.integers(0, len(CONTEXTS) - 1), sub_id=st.sampled_from(["1", "2", "none"]))
    def unsubscribe(self, who: int, sub_id: str) -> None:
        self.clients[who].say(type="unsubscribe", sub_id=sub_id)
        assert sub_id not in self.clients[who].windows

    @rule(
        entity=st.sampled_from(ENTITIES), first=st.integers(1, ROWS), publish=st.booleans()
    )
    def delete_some(self, entity: str, first: int, publish: bool) -> None:
        """Delete rows, so that windows lose rows at their edges."""
        self.write([(entity, n, None) for n in range(first, min(first + 5, ROWS + 1))], publish)

    @rule(who=st.integers(0, len(CONTEXTS) - 1))
    def reconnect(self, who: int) -> None:
        client = self.clients[who]
        client.connection.abort()
        self.clients[who] = LiveClient(self.world, client.connection.caller.auth)

    @rule(who=st.sampled_from([ADA, BOB]), entity=st.sampled_from(ENTITIES))
    def refresh(self, who: AuthContext, entity: str) -> None:
        self.world.live._windows.refresh(who, entity)

    @rule(who=st.sampled_from([ADA, BOB, ANONYMOUS]))
    def hold_sets(self, who: AuthContext) -> None:
        self.world.hold_sets(who)

    @rule(local=st.booleans())
    def reads_by_key(self, local: bool) -> None:
        """Whether the store answers reads by key without a switch of greenlets."""
        self.world.store.local_reads = local

    @rule()
    def publish(self) -> None:
        self.world.publish()

    @rule(writes=WRITES)
    def write_and_deliver(self, writes: Writes) -> None:
        self.commit(writes)
        self.world.deliver()

    @invariant()
    def every_client_has_what_a_query_answers(self) -> None:
        settle(self.world)
        for client in self.clients:
            client.listen()
            assert client.errors == []
            assert client.connection.is_open
            if self.world.is_current:
                for sub_id, held in client.windows.items():
                    assert held.complete
                    entity, body = client.asked[sub_id]
                    wanted = self.world.query_window(
                        entity, body, held.limit, client.connection.caller.auth
                    )
                    assert held.rows == wanted, (sub_id, entity, body)
        count = sum(len(client.windows) for client in self.clients)
        assert total(metrics.LIVE_QUERIES) == count


def test_each_window_is_what_a_query_answers() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine, settings=settings(max_examples=count_examples(100), stateful_step_count=25),
    )
