"""B2: history reveals no row that policy hides now, and no image that no commit showed (B20)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import ADMIN, AuthContext
from pylon.changelog.change import Change, encode_for
from pylon.changelog.feed import Feed
from pylon.changelog.pull import build_delta
from pylon.changelog.tail import Tail
from pylon.clock import ManualClock
from pylon.manifest.model import Entity, Field, FieldType, Manifest, Policy
from pylon.policy.rules import compile_rules
from pylon.query.matcher import matcher_of
from pylon.query.rows import Query
from pylon.storage.events import ChangeBatch, ChangeEvent
from pylon.storage.ops import InsertRow, Transact, WriteRequest
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.pool import ReaderPool
from pylon.values import EntityCodec
from tests.support import storage as kit
from tests.support.examples import count_examples
from tests.support.storage import apply, row_id
from workers.ws.live_subscriptions import Watch, viewer

SECRET = "a text that is not for strangers"
POST = Entity(
    "Post",
    (
        Field("text", FieldType.STRING, optional=False, unique=False),
        Field("pub", FieldType.BOOL, optional=False, unique=False),
        Field("ownerId", FieldType.STRING, optional=True, unique=False),
    ),
)
MANIFEST = Manifest(
    "posts", "1.0", (POST,),
    policies=(
        Policy("posts", entity="Post", allow_read="data.pub || auth.userId == data.ownerId",
               allow_write="true"),
    ),
)
RULES = compile_rules(MANIFEST)
CODEC = EntityCodec(POST)
OWNER, STRANGER = AuthContext(user_id="owner"), AuthContext(user_id="stranger")


class Store:
    """A database with its engine, and pulls from memory or from the log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine: SqliteEngine = kit.open_engine(path, ManualClock(), manifest=MANIFEST)
        self.pool = ReaderPool(path, MANIFEST)
        self.feed = Feed(self.pool)

    def close(self) -> None:
        self.pool.close()
        self.engine.close()

    def commit(self, *ops: Any) -> list[ChangeEvent]:
        requests = [WriteRequest(number, op) for number, op in enumerate(ops, 1)]
        result = self.engine.apply(requests)
        assert all(reply.error is None for reply in result.replies)
        return [] if result.batch is None else result.batch.events

    def pull(self, since: int, auth: AuthContext, from_log: bool = False) -> dict[str, Any]:
        feed = self.feed
        if from_log:
            feed = Feed(self.pool)
            feed._tail = Tail(self.engine.head)
        body: dict[str, Any] = orjson.loads(build_delta(feed, RULES, auth, since).body)
        return body


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "a.db")
    yield made
    made.close()


def insert(number: int, pub: bool, text: str = SECRET) -> Any:
    body = {"text": text, "pub": pub, "ownerId": "owner"}
    encoded = CODEC.insert(body, row_id(number))
    return InsertRow("Post", row_id(number), encoded.values, encoded.row_json)


def update(number: int, **patch: Any) -> Any:
    return kit.update("Post", number, patch)


def told(events: list[ChangeEvent], auth: AuthContext) -> list[bytes]:
    """What a hub delivers of a commit."""
    seen = (encode_for(Change(event), RULES.for_entity("Post"), auth) for event in events)
    return [text for text in seen if text is not None]


ONE_COMMIT = [
    pytest.param(lambda *ops: [Transact(list(ops))], id="transaction"),
    pytest.param(lambda *ops: list(ops), id="batch"),
]


@pytest.mark.parametrize("together", ONE_COMMIT)
def test_a_row_public_only_within_one_commit_is_never_told(store: Store, together: Any) -> None:
    store.commit(insert(9, pub=True, text="before"))
    events = store.commit(*together(insert(1, pub=True), update(1, pub=False)))
    assert told(events, STRANGER) == []
    (mine,) = map(orjson.loads, told(events, OWNER))
    assert (mine["kind"], mine["data"]["pub"], mine["data"]["text"]) == ("insert", False, SECRET)
    for from_log in (False, True):
        assert store.pull(1, STRANGER, from_log)["changes"] == []
        assert [c["kind"] for c in store.pull(1, OWNER, from_log)["changes"]] == ["insert"]


@pytest.mark.parametrize("together", ONE_COMMIT)
def test_a_hidden_row_shown_only_within_one_commit_is_never_told(
    store: Store, together: Any
) -> None:
    store.commit(insert(1, pub=False))
    events = store.commit(*together(update(1, pub=True), update(1, pub=False)))
    assert told(events, STRANGER) == []
    assert [event.kind for event in events] == ["update"]


@pytest.mark.parametrize("together", ONE_COMMIT)
def test_a_row_that_comes_and_goes_within_one_commit_has_no_image(
    store: Store, together: Any
) -> None:
    events = store.commit(*together(insert(1, pub=True), kit.delete("Post", 1)))
    assert [(e.seq, e.kind, e.data, e.prev_data) for e in events] == [(1, "delete", None, None)]
    assert told(events, STRANGER) == told(events, OWNER) == []
    again = store.commit(*together(insert(1, pub=True), kit.delete("Post", 1), insert(1, False)))
    assert [(e.seq, e.kind) for e in again] == [(2, "insert")]


def test_a_failed_transaction_leaves_the_event_of_the_commit_as_it_was(store: Store) -> None:
    requests = [
        insert(1, pub=False, text="kept"),
        Transact([update(1, pub=True, text="undone"), insert(1, pub=True)]),
        update(1, text="last"),
    ]
    replies = apply(store.engine, *requests)
    assert [r.error for r in (replies[1].results or [])][-1] is not None
    (event,) = store.pull(0, ADMIN)["changes"]
    assert (event["kind"], event["seq"], event["data"]["pub"], event["data"]["text"]) == (
        "insert", 1, False, "last")


@pytest.mark.parametrize("from_log", [False, True])
def test_a_pull_gives_no_image_of_a_row_that_is_private_now(store: Store, from_log: bool) -> None:
    store.commit(insert(9, pub=True, text="before"))
    store.commit(insert(1, pub=True))
    store.commit(update(1, text=SECRET + "!"))
    hidden = store.commit(update(1, pub=False))[0].seq
    store.commit(update(1, text="more"))
    body = store.pull(1, STRANGER, from_log)
    assert body["changes"] == [
        {"seq": hidden, "entity": "Post", "row_id": row_id(1), "kind": "delete",
         "timestamp": body["changes"][0]["timestamp"]}]
    assert [c["kind"] for c in store.pull(1, OWNER, from_log)["changes"]] == [
        "insert", "update", "update", "update"]
    store.commit(update(1, pub=True))
    shown = store.pull(1, STRANGER, from_log)["changes"]
    assert [c["kind"] for c in shown] == ["insert", "update", "delete", "update"]


@pytest.mark.parametrize("auth", [STRANGER, OWNER, ADMIN])
def test_a_delete_names_the_row_and_no_more(store: Store, auth: AuthContext) -> None:
    store.commit(insert(1, pub=True))
    for event in (store.commit(update(1, pub=False)), store.commit(kit.delete("Post", 1))):
        for text in told(event, auth):
            shown = orjson.loads(text)
            if shown["kind"] == "delete":
                assert sorted(shown) == ["entity", "kind", "row_id", "seq", "timestamp"]
    deletes = [c for c in store.pull(0, auth)["changes"] if c["kind"] == "delete"]
    assert deletes and not any("data" in change for change in deletes)


def test_a_live_query_that_catches_up_gets_no_image_of_a_row_that_is_private_now(
    store: Store,
) -> None:
    events = [
        *store.commit(insert(1, pub=True)), *store.commit(update(1, text="x")),
        *store.commit(update(1, pub=False)),
    ]
    rules = RULES.for_entity("Post")
    key = ("Post", b"{}", viewer(rules, STRANGER))
    watch = Watch(key, POST, matcher_of(POST, {}), rules)
    alone = [watch.diff_kind(Change(event)) for event in events]
    assert alone == ["insert", "update", "delete"]  # as each was delivered when it happened
    tail = Tail(0)
    tail.append(ChangeBatch(0, events))
    tail.relate()
    changes = tail.changes_after(0) or []
    assert [watch.diff_kind(change) for change in changes] == [None, None, "delete"]


STEP = st.tuples(st.integers(1, 3), st.sampled_from(["show", "hide", "edit", "delete"]))


@settings(max_examples=count_examples(40))
@given(
    history=st.lists(st.lists(STEP, min_size=1, max_size=4), min_size=1, max_size=12),
    page=st.integers(1, 4), from_log=st.booleans(), start=st.integers(0, 12),
)
def test_a_stranger_converges_and_gets_only_what_was_and_is_readable(
    tmp_path_factory: pytest.TempPathFactory, history: list[list[tuple[int, str]]], page: int,
    from_log: bool, start: int,
) -> None:
    store = Store(tmp_path_factory.mktemp("b2") / "a.db")
    committed: list[dict[str, dict[str, Any]]] = [{}]  # readable rows after each commit
    cursor_at: list[int] = [0]
    text = 0
    for commit in history:
        ops, now = [], {row["id"]: row for row in _rows(store)}
        present = set(now)
        for number, step in commit:
            rid = row_id(number)
            text += 1
            if rid not in present:
                ops.append(insert(number, step == "show", f"text {text}"))
                present.add(rid)
            elif step == "delete":
                ops.append(kit.delete("Post", number))
                present.discard(rid)
            else:
                patch = {"pub": step == "show"} if step != "edit" else {}
                ops.append(update(number, text=f"text {text}", **patch))
        store.commit(*ops)
        committed.append({row["id"]: row for row in _rows(store) if row["pub"]})
        cursor_at.append(store.engine.head)
    begin = min(start, len(history))
    replica, cursor = dict(committed[begin]), cursor_at[begin]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits, "PULL_PAGE_EVENTS", page)
        while True:
            body = store.pull(cursor, STRANGER, from_log)
            for change in body["changes"]:
                if change["kind"] == "delete":
                    assert "data" not in change
                    replica.pop(change["row_id"], None)
                    continue
                row = change["data"]
                assert row in [rows.get(row["id"]) for rows in committed]
                assert row["id"] in committed[-1]
                replica[row["id"]] = {**replica.get(row["id"], {}), **row}
            cursor = body["cursor"]["last_seq"]
            if not body["has_more"]:
                break
    assert replica == committed[-1]
    store.close()


def _rows(store: Store) -> list[dict[str, Any]]:
    where = RULES.for_entity("Post").readable_by(ADMIN)
    rows = store.pool.point(lambda reader: reader.rows("Post", Query(where, limit=100)))
    return [msgspec.json.decode(row) for row in rows]
