"""Reads ahead of a batch on PostgreSQL: what policies ask of other rows, and what deletes take with
them, is judged without the lock, and stays true until the commit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import orjson
import pytest

from pylon import metrics
from pylon.auth_context import ADMIN, AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, OnDelete, Policy
from pylon.storage.ops import DeleteRow, InsertRow, Transact, UpdateRow, WriteOp
from pylon.storage.postgres.prefetch_cascades import CascadeReads
from pylon.values import EntityCodec
from tests.support.commit_judge import Commit, commit, judge
from tests.support.two_writers import Writers


def text(name: str) -> Field:
    return Field(name, FieldType.STRING, optional=True, unique=False)


def refers(name: str, target: str, on_delete: OnDelete) -> Field:
    return Field(
        name, FieldType.ID, optional=True, unique=False, target=target, on_delete=on_delete
    )


MINE = "exists(Member, roomId == data.roomId, userId == auth.userId)"
ENTITIES = (
    Entity("Team", (text("name"),)),
    Entity("Room", (refers("teamId", "Team", "cascade"), text("name"))),
    Entity("Member", (refers("roomId", "Room", "cascade"), text("userId")),
           (Index("by_user", ("userId", "roomId"), False),)),
    Entity("Message", (refers("roomId", "Room", "cascade"), text("body"))),
    Entity("Pin", (refers("messageId", "Message", "setNull"), text("name"))),
    Entity("Invoice", (refers("teamId", "Team", "restrict"), text("name"))),
)
MANIFEST = Manifest("rooms", "1", ENTITIES, policies=(
    Policy("messages", entity="Message", allow_read="true", allow_insert=MINE, allow_update=MINE,
           allow_delete=MINE),
    *(Policy(e.name, entity=e.name, allow="true") for e in ENTITIES if e.name != "Message"),
))
CODECS = {entity.name: EntityCodec(entity) for entity in ENTITIES}
ANN, BOB = AuthContext(user_id="ann"), AuthContext(user_id="bob")


def row_id(number: int) -> str:
    return f"{number:040x}"


def add(entity: str, number: int, auth: AuthContext | None = None, **body: Any) -> InsertRow:
    for name, value in body.items():
        body[name] = row_id(value) if isinstance(value, int) else value
    encoded = CODECS[entity].insert(body, row_id(number))
    return InsertRow(entity, row_id(number), encoded.values, encoded.row_json, True, None, auth)


def edit(number: int, body: str, auth: AuthContext = ANN, **more: int) -> UpdateRow:
    patch = {"body": body, **{name: row_id(value) for name, value in more.items()}}
    return UpdateRow("Message", row_id(number), patch, auth)


def drop(entity: str, number: int, auth: AuthContext = ADMIN) -> DeleteRow:
    return DeleteRow(entity, row_id(number), auth)


@pytest.fixture
def writers(postgres_url: str) -> Iterator[Writers]:
    """Ann is a member of room 10 of team 1, which has messages 100 to 102; bob of room 20."""
    made = Writers(postgres_url, MANIFEST)
    try:
        replies = made.codes(
            made.a, add("Team", 1), add("Team", 2), add("Room", 10, teamId=1),
            add("Room", 20, teamId=2), add("Member", 50, roomId=10, userId="ann"),
            add("Member", 51, roomId=20, userId="bob"),
            *(add("Message", n, roomId=10, body="old") for n in (100, 101, 102)),
            add("Message", 200, roomId=20, body="old"), add("Pin", 300, messageId=100, name="p"),
            add("Invoice", 400, teamId=2, name="i"),
        )
        assert set(replies) == {None}
        yield made
    finally:
        made.close()


def count_of(counter: Any) -> float:
    return float(counter.collect()[0].samples[0].value)


@contextmanager
def batches(overtaken: int = 0, locked: int = 0, reads: int = 0) -> Iterator[None]:
    """Check how many batches of the block run again, take the lock before they ask, and how often
    they ask."""
    counters = (metrics.BATCHES_OVERTAKEN, metrics.BATCHES_LOCKED, metrics.BATCH_READS)
    before = [count_of(counter) for counter in counters]
    yield
    after = [count_of(counter) for counter in counters]
    assert [b - a for a, b in zip(before, after, strict=True)] == [overtaken, locked, reads]


def ids_of(writers: Writers, entity: str) -> list[int]:
    found = writers.sql.execute(f'SELECT id FROM "{entity}" ORDER BY id').fetchall()
    return [int(found_id, 16) for (found_id,) in found]


# --- What policies ask ---------------------------------------------------------------------------


def test_policies_of_existing_rows_are_judged_without_the_lock(writers: Writers) -> None:
    with batches():
        assert writers.codes(
            writers.b, edit(100, "new"), edit(101, "new", BOB), drop("Message", 102, ANN),
            edit(200, "new", BOB), edit(100, "moved", ANN, roomId=20),
        ) == [None, "POLICY_DENIED", None, None, "POLICY_DENIED"]
    assert (writers.row("Message", row_id(100)) or {})["body"] == "new"


def test_membership_that_ends_meanwhile_counts(writers: Writers) -> None:
    with batches(overtaken=1), writers.overtaken(
        writers.a, edit(100, "new"), edit(200, "new", BOB), drop("Message", 101, ANN)
    ) as batch:
        writers.sql.execute('DELETE FROM "Member" WHERE id = %s', (row_id(50),))
    assert batch.codes == ["POLICY_DENIED", None, "POLICY_DENIED"]


def test_membership_that_a_change_does_not_rely_on_makes_no_batch_run_again(
    writers: Writers,
) -> None:
    with batches(), writers.overtaken(writers.a, edit(200, "new", BOB)) as batch:
        writers.sql.execute('DELETE FROM "Member" WHERE id = %s', (row_id(50),))
    assert batch.codes == [None]


def test_row_that_changes_meanwhile_is_judged_by_what_it_asks_then(writers: Writers) -> None:
    with batches(overtaken=1), writers.overtaken(writers.a, edit(100, "new")) as batch:
        moved = orjson.dumps({"id": row_id(100), "roomId": row_id(20), "body": "old"}).decode()
        writers.sql.execute(
            'UPDATE "Message" SET "roomId" = %s, _json = %s, _seq = 90 WHERE id = %s',
            (row_id(20), moved, row_id(100)),
        )
    assert batch.codes == ["POLICY_DENIED"]


def test_changes_of_the_same_batch_are_judged_without_a_question(writers: Writers) -> None:
    with batches():
        assert writers.codes(
            writers.a, edit(200, "a"), add("Member", 60, roomId=20, userId="ann"),
            edit(200, "b"), add("Message", 201, ANN, roomId=20, body="c"),
        ) == ["POLICY_DENIED", None, None, None]


def test_answer_that_a_change_of_the_batch_makes_uncertain_is_asked_again(
    writers: Writers,
) -> None:
    with batches(locked=1, reads=1):
        assert writers.codes(
            writers.a, edit(100, "a"), drop("Member", 50), edit(100, "b")
        ) == [None, None, "POLICY_DENIED"]
    assert (writers.row("Message", row_id(100)) or {})["body"] == "a"


def test_row_that_only_later_changes_refer_to_is_checked_when_a_batch_takes_the_lock(
    writers: Writers,
) -> None:
    with batches(overtaken=1, locked=1, reads=1), writers.overtaken(
        writers.a, edit(100, "a"), drop("Member", 50), edit(100, "b"),
        add("Member", 60, roomId=20, userId="ann"),
    ) as batch:
        writers.sql.execute('DELETE FROM "Room" WHERE id = %s', (row_id(20),))
    assert batch.codes == [None, None, "POLICY_DENIED", "REFERENCE_NOT_FOUND"]


@pytest.mark.parametrize("is_before", [True, False], ids=["before a scan", "after it"])
def test_id_that_is_taken_before_a_batch_takes_the_lock_is_found_again(
    writers: Writers, is_before: bool
) -> None:
    taken = add("Room", 30, teamId=1)
    ops: list[WriteOp] = [edit(100, "a"), drop("Member", 50), edit(100, "b")]
    ops.insert(1 if is_before else 3, taken)
    with batches(overtaken=1, locked=1, reads=2), writers.overtaken(
        writers.a, *ops
    ) as batch:
        writers.sql.execute(
            'INSERT INTO "Room" (id, _json) VALUES (%s, %s)', (row_id(30), "{}")
        )
    assert sorted(code or "" for code in batch.codes) == [
        "", "", "OPTIMISTIC_ID_CONFLICT", "POLICY_DENIED",
    ]


def test_answers_are_those_of_before_a_transaction_that_was_undone(writers: Writers) -> None:
    with batches():
        refused, done = writers.apply(writers.a, Transact([
            add("Member", 60, roomId=20, userId="ann"), edit(200, "a"), edit(999, "no such row"),
        ]), edit(100, "b"))
        assert refused.results is not None and refused.results[-1].error is not None
        assert done.error is None
    assert writers.codes(writers.a, edit(200, "c")) == ["POLICY_DENIED"]


# --- What deletes take with them -----------------------------------------------------------------


def test_cascade_over_levels_is_planned_without_the_lock(writers: Writers) -> None:
    with batches():
        (reply,) = writers.apply(writers.b, drop("Team", 1))
    assert (reply.error, reply.count) == (None, 7)
    assert [ids_of(writers, name) for name in ("Room", "Member", "Message")] == [[20], [51], [200]]
    assert (writers.row("Pin", row_id(300)) or {})["messageId"] is None


def test_delete_that_a_reference_forbids_is_refused_without_the_lock(writers: Writers) -> None:
    with batches():
        assert writers.codes(writers.a, drop("Team", 2), drop("Team", 1)) == [
            "REFERENCE_IN_USE", None,
        ]
        assert writers.codes(writers.a, drop("Invoice", 400), drop("Team", 2)) == [None, None]
    assert ids_of(writers, "Team") == ids_of(writers, "Room") == []


def test_delete_that_no_policy_allows_reads_no_rows_that_refer_to_it(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[tuple[str, str]] = []
    add_delete = CascadeReads.add

    def note(reads: CascadeReads, entity: str, found_id: str) -> None:
        added.append((entity, found_id))
        add_delete(reads, entity, found_id)

    monkeypatch.setattr(CascadeReads, "add", note)
    assert writers.codes(
        writers.a, drop("Message", 100, BOB), drop("Message", 999, ANN), drop("Message", 101, ANN)
    ) == ["POLICY_DENIED", "NOT_FOUND", None]
    assert added == [("Message", row_id(101))]


def test_row_that_comes_to_refer_meanwhile_is_deleted_too(writers: Writers) -> None:
    with batches(overtaken=1), writers.overtaken(writers.a, drop("Room", 10)) as batch:
        writers.sql.execute(
            'INSERT INTO "Message" (id, "roomId", _json, _seq) VALUES (%s, %s, %s, 90)',
            (row_id(150), row_id(10), orjson.dumps({
                "id": row_id(150), "roomId": row_id(10), "body": None,
            }).decode()),
        )
    assert batch.codes == [None]
    assert ids_of(writers, "Message") == [200]


@pytest.mark.parametrize("is_replaced", [False, True], ids=["moved", "replaced"])
def test_row_that_refers_to_another_one_meanwhile_stays(
    writers: Writers, is_replaced: bool
) -> None:
    with batches(overtaken=1), writers.overtaken(writers.a, drop("Room", 10)) as batch:
        for number, room in [(100, 20), *([(200, 10)] if is_replaced else [])]:
            moved = orjson.dumps({"id": row_id(number), "roomId": row_id(room), "body": "m"})
            writers.sql.execute(
                'UPDATE "Message" SET "roomId" = %s, _json = %s, _seq = 90 WHERE id = %s',
                (row_id(room), moved.decode(), row_id(number)),
            )
    assert batch.codes == [None]
    assert ids_of(writers, "Message") == ([100] if is_replaced else [100, 200])


def test_delete_is_refused_if_a_row_that_forbids_it_comes_meanwhile(writers: Writers) -> None:
    with batches(overtaken=1), writers.overtaken(
        writers.a, drop("Team", 1), drop("Invoice", 400)
    ) as batch:
        writers.sql.execute(
            'INSERT INTO "Invoice" (id, "teamId", _json) VALUES (%s, %s, %s)',
            (row_id(401), row_id(1), "{}"),
        )
    assert batch.codes == ["REFERENCE_IN_USE", None]
    assert ids_of(writers, "Room") == [10, 20]


def test_rows_of_the_same_batch_are_part_of_its_cascades(writers: Writers) -> None:
    with batches():
        replies = writers.apply(
            writers.a, UpdateRow("Message", row_id(100), {"roomId": row_id(20)}, ADMIN),
            UpdateRow("Pin", row_id(300), {"messageId": row_id(101)}, ADMIN),
            edit(102, "new", ADMIN), drop("Room", 10),
        )
    assert [reply.error for reply in replies] == [None] * 4
    # The room, its member, the messages 101 and 102, and the pin that is left without one.
    assert replies[3].count == 5
    assert ids_of(writers, "Message") == [100, 200]
    assert (writers.row("Pin", row_id(300)) or {})["messageId"] is None


def test_row_that_the_batch_made_is_asked_for_what_refers_to_it(writers: Writers) -> None:
    with batches(locked=1, reads=2):  # once for its pins, once for its document
        made, dropped = writers.apply(
            writers.a, add("Message", 150, roomId=20, body="x"), drop("Room", 20)
        )
    assert (made.error, dropped.error, dropped.count) == (None, None, 4)
    assert ids_of(writers, "Message") == [100, 101, 102]


def test_transaction_that_is_refused_leaves_its_cascade_undone(writers: Writers) -> None:
    refused, done = writers.apply(
        writers.a,
        Transact([drop("Room", 10), add("Pin", 301, messageId=101), drop("Invoice", 400)]),
        drop("Team", 1),
    )
    errors = [reply.error and reply.error.code for reply in refused.results or ()]
    assert "REFERENCE_NOT_FOUND" in errors
    assert (done.error, done.count) == (None, 7)
    assert ids_of(writers, "Message") == [200]


# --- Two nodes at once ---------------------------------------------------------------------------

def test_membership_that_one_batch_gives_and_takes_allows_what_is_between(
    writers: Writers,
) -> None:
    result, found = commit(
        writers, writers.a, edit(200, "a"), add("Member", 60, roomId=20, userId="ann"),
        edit(200, "b"), drop("Member", 60), edit(200, "c"),
    )
    assert [reply.error and reply.error.code for reply in result.replies] == [
        "POLICY_DENIED", None, None, None, "POLICY_DENIED",
    ]
    rows = judge(writers, [found])
    assert rows["Message", row_id(200)]["body"] == "b"


def test_judge_finds_what_nobody_might_do(writers: Writers) -> None:
    _, taken = commit(writers, writers.a, drop("Member", 50))
    _, edited = commit(writers, writers.a, edit(100, "new", ADMIN))
    judge(writers, [edited, taken])
    with pytest.raises(AssertionError, match="nobody might do"):
        judge(writers, [taken, edited._replace(ops=[edit(100, "new", ANN)])])


def test_promises_hold_while_two_nodes_write_the_same_rows(writers: Writers) -> None:
    """No message is left without its room, and each write has its membership where it stands."""
    failures: list[str] = []
    commits: list[Commit] = []

    def work(name: str) -> None:
        random, engine = Random(name), writers.a if name == "a" else writers.b
        number = 1_000 if name == "a" else 5_000
        for _ in range(60):
            ops: list[WriteOp] = []
            for _ in range(random.randint(1, 6)):
                number += 1
                room = random.randint(70, 72)
                made: list[WriteOp] = [
                    add("Room", room, teamId=1), drop("Room", room),
                    add("Member", room + 10, roomId=room, userId="ann"), drop("Member", room + 10),
                    add("Message", number, ANN, roomId=room, body="n"),
                    edit(random.randint(number - 8, number), "e"),
                    drop("Message", random.randint(number - 8, number), ANN),
                    Transact([add("Message", number, ANN, roomId=room, body="t"), edit(100, "t")]),
                ]
                ops.append(random.choice(made))
            result, found = commit(writers, engine, *ops)
            commits.append(found)
            codes = {reply.error.code if reply.error else None for reply in result.replies}
            expected = {None, "NOT_FOUND", "POLICY_DENIED", "REFERENCE_NOT_FOUND"}
            if codes - expected - {"OPTIMISTIC_ID_CONFLICT", "UNIQUE_VIOLATION"}:
                failures.append(f"{name}: {codes}")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert len(commits) == 120
    rows = judge(writers, commits)
    for entity in ("Room", "Member", "Message"):
        assert ids_of(writers, entity) == sorted(
            int(found_id, 16) for name, found_id in rows if name == entity
        )
