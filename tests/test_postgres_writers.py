"""Several writers on one PostgreSQL database: one order of commits, no lost change, true answers.

Each test has two engines on real connections. A batch that another one overtakes runs again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import loro
import orjson
import pytest
from msgspec.structs import replace as changed

from pylon import limits, metrics
from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy
from pylon.storage.ops import (
    DropSession,
    InsertRow,
    OpenDocument,
    PutSession,
)
from pylon.storage.records import LogRetention, SessionNote
from pylon.values import EntityCodec
from tests.support.storage import (
    BOB,
    NOTE,
    delete,
    insert,
    row_id,
    task,
    update,
)
from tests.support.two_writers import Writers

PARENT = Entity("Parent", (Field("name", FieldType.STRING, True, False),))
CHILD = Entity("Child", (Field("parent", FieldType.ID, True, False, target="Parent"),))
FAMILY = Manifest("family", "1", (PARENT, CHILD), references="check")


@pytest.fixture
def writers(postgres_url: str) -> Iterator[Writers]:
    made = Writers(postgres_url)
    yield made
    made.close()


def add(entity: Entity, number: int, **fields: Any) -> InsertRow:
    encoded = EntityCodec(entity).insert(fields, row_id(number))
    return InsertRow(entity.name, row_id(number), encoded.values, encoded.row_json)


# --- Batches that are overtaken ------------------------------------------------------------------


def test_batches_of_both_share_one_order_of_seqs(writers: Writers) -> None:
    first = writers.commit(writers.a, task(1), task(2))
    second = writers.commit(writers.b, task(3))
    third = writers.commit(writers.a, update("Task", 3, {"rank": 1}), delete("Task", 1))
    assert [r.seq for x in (first, second, third) for r in x.replies] == [1, 2, 3, 4, 5]
    assert [x.batch.prev_seq for x in (first, second, third) if x.batch] == [0, 2, 3]
    assert writers.events() == [e for x in (first, second, third) for e in x.batch.events]
    assert (writers.a.head, writers.b.head) == (5, 3)


def test_update_of_a_row_that_changed_meanwhile_runs_on_the_new_row(writers: Writers) -> None:
    writers.apply(writers.a, task(1, title="old"), task(2))
    before = metrics.BATCHES_OVERTAKEN.collect()[0].samples[0].value
    changed_row = orjson.dumps(
        {**(writers.row("Task", row_id(1)) or {}), "title": "new"}, option=orjson.OPT_SORT_KEYS
    ).decode()
    mine = (update("Task", 1, {"rank": 7}), update("Task", 2, {"rank": 8}), task(3))
    with writers.overtaken(writers.a, *mine) as batch:
        writers.sql.execute(
            'UPDATE "Task" SET title = %s, _json = %s, _seq = 50 WHERE id = %s',
            ("new", changed_row, row_id(1)),
        )
    assert batch.codes == [None, None, None]
    row = writers.row("Task", row_id(1))
    assert row is not None and (row["title"], row["rank"]) == ("new", 7)
    events = writers.events(2)
    assert [e.row_id for e in events] == [row_id(n) for n in (1, 2, 3)]
    assert orjson.loads(events[0].prev_data or b"")["title"] == "new"
    assert metrics.BATCHES_OVERTAKEN.collect()[0].samples[0].value == before + 1


def test_row_that_was_deleted_meanwhile_is_not_found(writers: Writers) -> None:
    writers.apply(writers.a, task(1), task(2))
    mine = (update("Task", 1, {"rank": 7}), update("Task", 2, {"rank": 8}))
    with writers.overtaken(writers.a, *mine) as batch:
        writers.sql.execute('DELETE FROM "Task" WHERE id = %s', (row_id(1),))
    assert batch.codes == ["NOT_FOUND", None]
    assert [e.row_id for e in writers.events(2)] == [row_id(2)]


def test_unique_value_that_was_taken_meanwhile_is_one_requests_conflict(writers: Writers) -> None:
    with writers.overtaken(writers.a, task(1, slug="x"), task(2, slug="y"), task(3)) as batch:
        writers.sql.execute(
            'INSERT INTO "Task" (id, title, done, slug, _json) VALUES (%s, %s, false, %s, %s)',
            (row_id(9), "t", "x", "{}"),
        )
    assert batch.codes == ["UNIQUE_VIOLATION", None, None]
    assert batch.result.replies[0].error is not None
    assert batch.result.replies[0].error.details["value"] == "x"
    assert [e.row_id for e in writers.events()] == [row_id(2), row_id(3)]


def test_operation_that_the_other_node_executed_meanwhile_is_replayed(writers: Writers) -> None:
    with writers.overtaken(writers.a, task(1, op="once"), task(2)) as batch:
        writers.sql.execute(
            "INSERT INTO _pylon_op_ids (identity, op_id, seq, row_id, at) "
            "VALUES ('', 'once', 40, %s, 1)", (row_id(8),)
        )
    once, other = batch.result.replies
    assert (once.replayed, once.seq, once.row_id) == (True, 40, row_id(8))
    assert other.error is None and writers.row("Task", row_id(1)) is None


def test_reference_to_a_row_that_was_deleted_meanwhile_is_refused(postgres_url: str) -> None:
    writers = Writers(postgres_url, FAMILY)
    try:
        writers.apply(writers.a, add(PARENT, 1), add(PARENT, 2))
        mine = (add(CHILD, 11, parent=row_id(1)), add(CHILD, 12, parent=row_id(2)))
        with writers.overtaken(writers.a, *mine) as batch:
            writers.sql.execute('DELETE FROM "Parent" WHERE id = %s', (row_id(1),))
        assert batch.codes == ["REFERENCE_NOT_FOUND", None]
    finally:
        writers.close()


def test_document_that_the_other_node_made_meanwhile_follows_the_row(writers: Writers) -> None:
    writers.apply(writers.a, insert("Note", 1, {"text": "a"}))
    with writers.overtaken(writers.a, update("Note", 1, {"text": "b"})) as batch:
        # As another node does: it reads the row, and stores its document.
        document = loro.LoroDoc()
        document.get_map("row").get_or_create_container("text", loro.LoroText()).insert(0, "a")
        document.commit()
        writers.sql.execute(
            "INSERT INTO _pylon_crdt_snapshots VALUES ('Note', %s, %s, '')",
            (row_id(1), document.export(loro.ExportMode.Snapshot())),
        )
    assert batch.codes == [None]
    assert document_text(writers) == "b"


def test_cached_document_is_not_used_after_the_other_node_changed_it(writers: Writers) -> None:
    writers.apply(writers.a, insert("Note", 1, {"text": "a"}), OpenDocument("Note", row_id(1)))
    for number in range(4):
        engine = (writers.b, writers.a)[number % 2]
        assert writers.codes(engine, update("Note", 1, {"text": f"{number}"})) == [None]
        assert document_text(writers) == f"{number}"
    # The row is deleted and made again by the other node: its document is another one.
    writers.apply(writers.b, delete("Note", 1), insert("Note", 1, {"text": "z"}),
                  OpenDocument("Note", row_id(1)))
    assert writers.codes(writers.a, update("Note", 1, {"text": "zz"})) == [None]
    assert document_text(writers) == "zz"


def document_text(writers: Writers) -> str:
    """The text of the stored document of note 1."""
    document = loro.LoroDoc()
    for (part,) in [
        *writers.sql.execute("SELECT snapshot FROM _pylon_crdt_snapshots"),
        *writers.sql.execute("SELECT data FROM _pylon_crdt_updates ORDER BY number"),
    ]:
        if part:
            document.import_(bytes(part))
    return str(document.get_map("row").get_deep_value()["text"])


def test_sessions_leave_marks_for_the_other_nodes(writers: Writers) -> None:
    (made,) = writers.apply(writers.a, PutSession("s", "ada", False, 1, 0, "phone"))
    (ended,) = writers.apply(writers.b, DropSession("s"))
    assert (made.count, ended.count) == (1, 1)
    marks = writers.sql.execute("SELECT kind, key FROM _pylon_marks ORDER BY number").fetchall()
    assert marks == [("session_made", "s"), ("session_ended", "s")]
    assert [r.count for r in writers.apply(writers.a, DropSession("s"))] == [0]


def reads_of_batches() -> float:
    return metrics.BATCH_READS.collect()[0].samples[0].value


def test_only_the_first_change_of_all_leaves_no_seqs_free(postgres_url: str) -> None:
    member = Entity(
        "Member", (Field("userId", FieldType.STRING, False, False),),
        (Index("by_userId", ("userId",), False),),
    )
    manifest = Manifest(
        "asked", "1", (NOTE, member), references="none",
        policies=(
            Policy("notes", entity="Note", allow="exists(Member, userId == auth.userId)"),
            Policy("members", entity="Member", allow="true"),
        ),
    )
    writers = Writers(postgres_url, manifest)
    try:
        assert [r.seq for r in writers.apply(writers.a, add(member, 1, userId="ada"))] == [1]
        (second,) = writers.apply(writers.b, add(member, 2, userId="bob"))
        assert second.seq == 1 + limits.RELATED_SEQS
        note = changed(add(NOTE, 3, text="x"), auth=BOB)
        refused = changed(add(NOTE, 4, text="x"), auth=AuthContext(user_id="eve"))
        (third, denied) = writers.apply(writers.a, note, refused)
        assert third.seq == second.seq + 1 and third.error is None
        assert denied.error is not None and denied.error.code == "POLICY_DENIED"
        # What the policy asks is read ahead, and asked again after a change of the asked rows.
        before = reads_of_batches()
        notes = [changed(add(NOTE, n, text="x"), auth=BOB) for n in range(10, 20)]
        assert writers.codes(writers.a, *notes) == [None] * 10
        assert reads_of_batches() == before
        # A value that the server takes in no statement concerns its own request only.
        odd = changed(notes[0], row_id=row_id(40), auth=AuthContext(user_id="a\0b"))
        assert writers.codes(writers.a, odd, changed(notes[0], row_id=row_id(41))) == [
            "POLICY_DENIED", None,
        ]
        before = reads_of_batches()
        late = changed(add(NOTE, 20, text="x"), auth=AuthContext(user_id="eve"))
        assert writers.codes(
            writers.a, changed(late, row_id=row_id(21), row_json=b"{}"),
            add(member, 3, userId="eve"), late,
            delete("Member", 2), changed(note, row_id=row_id(30)),
        ) == ["POLICY_DENIED", None, None, None, "POLICY_DENIED"]
        assert reads_of_batches() == before + 1  # bob may have had another membership
    finally:
        writers.close()


# --- Maintenance ---------------------------------------------------------------------------------


def test_retention_counts_the_events_of_all_nodes(writers: Writers) -> None:
    writers.apply(writers.a, *(task(n) for n in range(1, 6)))
    writers.apply(writers.b, *(task(n) for n in range(6, 11)))
    prune = writers.b.maintenance.prune_log
    assert prune(LogRetention(4, 2**40, 3)) == 3
    assert prune(LogRetention(4, 2**40, 100)) == 3
    assert prune(LogRetention(4, 2**40, 100)) == 0
    assert [e.seq for e in writers.events()] == [7, 8, 9, 10]
    assert prune(LogRetention(0, 2**40, 100)) == 3 and [e.seq for e in writers.events()] == [10]
    facts = writers.a.maintenance.measure_log()
    assert (facts.head_seq, facts.oldest_seq) == (10, 10) and facts.size_bytes > 100
    assert writers.a.maintenance.sizes().data_bytes > 0


def test_young_events_stay(writers: Writers) -> None:
    writers.apply(writers.a, *(task(n) for n in range(1, 6)))
    assert writers.a.maintenance.prune_log(LogRetention(1, 0, 100)) == 0
    assert writers.a.maintenance.prune_log(LogRetention(1, 0, 100, drop_to_seq=2)) == 2
    assert writers.a.maintenance.prune_log(LogRetention(1, 0, 100, old_seq=4)) == 2


def test_sessions_are_pruned_with_marks(writers: Writers) -> None:
    writers.apply(
        writers.a,
        PutSession("old", "ada", False, 1, 5, ""), PutSession("new", "ada", False, 1, 0, ""),
        PutSession("guest", "g", True, 1, 0, ""), PutSession("used", "h", True, 1, 0, ""),
    )
    upkeep = writers.b.maintenance
    assert upkeep.note_sessions_used(["used", "new"], SessionNote(0, -1, 0, 0)) == 1
    assert upkeep.prune_sessions(10, 100) == 2
    assert upkeep.prune_sessions(10, 100) == 0
    ended = writers.sql.execute("SELECT key FROM _pylon_marks WHERE kind = 'session_ended'")
    assert sorted(key for (key,) in ended) == ["guest", "old"]
    assert upkeep.count_sessions() == {"guest": 1, "user": 1}
