"""Several writers on one PostgreSQL database: one order of commits, no lost change, true answers.

Each test has two engines on real connections. A batch that another one overtakes runs again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import loro
import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace as changed

from pylon import limits, metrics
from pylon.auth_context import ADMIN, AuthContext
from pylon.manifest.model import Entity, Field, FieldType, Index, Manifest, Policy, Search
from pylon.storage.ops import (
    DeleteRow,
    DropSession,
    InsertRow,
    OpenDocument,
    OpKey,
    PutSession,
    Transact,
    UpdateRow,
    WriteOp,
)
from pylon.storage.records import LogRetention
from pylon.values import EntityCodec
from tests.support.examples import count_examples
from tests.support.postgres import drop_schema, make_schema
from tests.support.storage import (
    BOB,
    MANIFEST,
    NOTE,
    TASK,
    USER,
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


# --- What the server refuses ---------------------------------------------------------------------


def test_foreign_trigger_breaks_its_own_request_only(writers: Writers) -> None:
    writers.sql.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.title LIKE 'bad%%' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$;"""
        'CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON "Task" FOR EACH ROW '
        "EXECUTE FUNCTION refuse()"
    )
    writers.apply(writers.a, task(1))
    transact = Transact([task(5), task(6, title="bad too")])
    codes = writers.codes(
        writers.a, task(2), task(3, title="bad"), update("Task", 1, {"title": "bad"}), transact,
        task(4),
    )
    assert codes == [None, "INTERNAL", "INTERNAL", "INTERNAL", None]
    assert [e.row_id for e in writers.events(1)] == [row_id(2), row_id(4)]


def test_constraint_that_is_checked_at_the_commit_breaks_its_own_request_only(
    writers: Writers
) -> None:
    writers.sql.execute(
        """CREATE FUNCTION refuse_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           IF NEW.title = 'bad' THEN RAISE EXCEPTION 'no'; END IF; RETURN NULL; END $$;"""
        'CREATE CONSTRAINT TRIGGER refuse_late AFTER INSERT ON "Task" DEFERRABLE INITIALLY '
        "DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_late()"
    )
    assert writers.codes(writers.a, task(1), task(2, title="bad"), task(3)) == [
        None, "INTERNAL", None,
    ]
    assert [e.row_id for e in writers.events()] == [row_id(1), row_id(3)]


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_batch_that_the_server_asks_for_again_is_sent_again(writers: Writers, state: str) -> None:
    writers.sql.execute(
        "CREATE SEQUENCE tries; "
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF nextval('tries') < 3 THEN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END IF; "
        "RETURN NEW; END $$; "
        'CREATE TRIGGER again BEFORE INSERT ON "Task" FOR EACH ROW EXECUTE FUNCTION again()'
    )
    assert writers.codes(writers.a, task(1)) == [None]
    assert writers.one("SELECT last_value FROM tries") == 3


def test_batch_that_never_goes_through_is_refused(writers: Writers) -> None:
    writers.sql.execute(
        "CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$; "
        'CREATE TRIGGER never BEFORE INSERT ON "Task" FOR EACH ROW EXECUTE FUNCTION never()'
    )
    assert writers.codes(writers.a, task(1)) == ["STORE_UNAVAILABLE"]
    assert writers.codes(writers.a, insert("Note", 1, {})) == [None]


def test_value_that_is_too_long_for_its_index_is_refused(writers: Writers) -> None:
    writers.apply(writers.a, task(1))
    long = "x" * (limits.INDEXED_TEXT_BYTES + 1)
    codes = writers.codes(
        writers.a, task(2, title=long), update("Task", 1, {"slug": long}), task(3, slug=long[1:]),
        insert("Note", 4, {"text": long * 100}),
    )
    assert codes == ["VALUE_TOO_LONG_TO_INDEX"] * 2 + [None, None]


def test_nul_is_refused_though_it_was_not_checked_before(writers: Writers) -> None:
    row = {"id": row_id(1), "text": "a\0b"}
    raw = InsertRow("Note", row_id(1), ["a\0b"], orjson.dumps(row))
    assert writers.codes(
        writers.a, raw, update("Note", 2, {"text": "x"}), UpdateRow("Note", "a\0b", {}, ADMIN),
        DeleteRow("Note", "a\0b", ADMIN),
        changed(task(3), op=OpKey("a\0b", "x")), insert("Note", 2, {"text": "kept"}),
    ) == ["INVALID_VALUE", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "INVALID_VALUE", None]


def test_search_words_follow_the_row(postgres_url: str) -> None:
    note = replace(NOTE, search=Search(("text",), (), ()))
    writers = Writers(postgres_url, replace(MANIFEST, entities=(TASK, USER, note)))
    try:
        writers.apply(writers.a, insert("Note", 1, {"text": "Grüne 'Tee\\kanne\\' tee"}))
        assert writers.one('SELECT _words::text FROM "Note"') == "'grune':1 'kanne':3 'tee':2,4"
        writers.apply(writers.b, update("Note", 1, {"text": "x " * 20_000}))
        assert writers.one('SELECT array_length(tsvector_to_array(_words), 1) FROM "Note"') == 1
        writers.sql.execute("UPDATE \"Note\" SET _words = ''")
        assert writers.a.maintenance.renew_search("Note", "", 10) == (1, "")
        assert writers.one("SELECT _words @@ 'x' FROM \"Note\"")
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
    assert upkeep.mark_sessions_used(["used", "new"]) == 1
    assert upkeep.prune_sessions(10, 100) == 2
    assert upkeep.prune_sessions(10, 100) == 0
    ended = writers.sql.execute("SELECT key FROM _pylon_marks WHERE kind = 'session_ended'")
    assert sorted(key for (key,) in ended) == ["guest", "old"]
    assert upkeep.count_sessions() == {"guest": 1, "user": 1}


# --- Many batches at once ------------------------------------------------------------------------


def test_no_change_is_lost_when_both_write_the_same_rows(writers: Writers) -> None:
    writers.apply(writers.a, *(task(n, rank=None) for n in range(1, 5)))
    failures: list[str] = []

    def work(name: str) -> None:
        random = Random(name)
        engine = writers.a if name == "a" else writers.b
        for turn in range(25):
            ops: list[WriteOp] = [
                update("Task", random.randint(1, 4), {"title": f"{name}{turn}"}),
                update("Task", random.randint(1, 4), {"weight": float(turn)}),
                task(1_000 * (name == "b") + 100 + turn, slug=f"s{random.randint(0, 30)}"),
                task(turn + 10_000, op=f"op{turn}"),
            ]
            codes = writers.codes(engine, *ops)
            if set(codes) - {None, "UNIQUE_VIOLATION"} or codes[0] or codes[1] or codes[3]:
                failures.append(f"{name}{turn}: {codes}")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    check_log(writers)
    assert writers.one("SELECT count(*) FROM _pylon_op_ids") == 25


def check_log(writers: Writers) -> None:
    """Check that each row's events follow one another, and that the last one is the row."""
    images: dict[tuple[str, str], bytes | None] = {}
    seqs = {}
    for event in writers.events():
        key = (event.entity, event.row_id)
        assert event.prev_data == images.get(key), f"a change of {key} was lost at {event.seq}"
        images[key] = event.data
        seqs[key] = event.seq
    for entity in ("Task", "Note"):
        stored = writers.sql.execute(f'SELECT id, _json, _seq FROM "{entity}"').fetchall()
        assert {(i, j.encode(), s) for i, j, s in stored} == {
            (key[1], image, seqs[key]) for key, image in images.items()
            if key[0] == entity and image is not None
        }


# --- Any interleaving, against a model ------------------------------------------------------------

NUMBERS = st.integers(1, 4)
SLUGS = st.sampled_from([None, "a", "b"])


@st.composite
def one_op(draw: st.DrawFn) -> WriteOp:
    kind = draw(st.sampled_from(["insert", "insert", "update", "delete", "note", "open", "text"]))
    number = draw(NUMBERS)
    if kind == "insert":
        return task(number, slug=draw(SLUGS), rank=draw(st.none() | st.integers(0, 1)),
                    op=draw(st.none() | st.sampled_from(["x", "y"])))
    if kind == "update":
        return update("Task", number, draw(st.fixed_dictionaries(
            {}, optional={"slug": SLUGS, "rank": st.none() | st.integers(0, 1),
                          "title": st.sampled_from(["p", "q"])})))
    if kind == "note":
        return insert("Note", number, {"text": draw(st.sampled_from(["m", "n"]))})
    if kind == "open":
        return OpenDocument("Note", row_id(number))
    if kind == "text":
        return update("Note", number, {"text": draw(st.sampled_from(["v", "w"]))})
    return delete(draw(st.sampled_from(["Task", "Note"])), number)


# The keys of operations within a transaction do not count, and documents are not opened in one.
STEPS = one_op().filter(lambda op: not isinstance(op, OpenDocument)).map(
    lambda op: changed(op, op=None)
)
BATCHES = st.lists(
    one_op() | st.builds(Transact, st.lists(STEPS, min_size=1, max_size=3)),
    min_size=1, max_size=5,
)


class Model:
    """The rows as one writer would have them: ops in order, each whole or not at all."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.ops: set[tuple[str, str]] = set()

    def apply(self, op: WriteOp) -> bool:
        """Carry out an op; whether it is allowed."""
        if isinstance(op, Transact):
            before, keys = dict(self.rows), set(self.ops)
            if all(self._apply_row(step) for step in op.ops):
                return True
            self.rows, self.ops = before, keys
            return False
        if isinstance(op, InsertRow) and op.op is not None:
            name = (op.op.identity, op.op.op_id)
            if name in self.ops:
                return True
            if not self._apply_row(op):
                return False
            self.ops.add(name)
            return True
        return self._apply_row(op)

    def _apply_row(self, op: WriteOp) -> bool:
        assert isinstance(op, (InsertRow, UpdateRow, DeleteRow, OpenDocument))
        key = (op.entity, op.row_id)
        if isinstance(op, OpenDocument):
            return key in self.rows
        if isinstance(op, DeleteRow):
            return self.rows.pop(key, None) is not None
        if isinstance(op, InsertRow) == (key in self.rows):
            return False
        row = orjson.loads(op.row_json) if isinstance(op, InsertRow) else {
            **self.rows[key], **op.patch
        }
        for other, known in self.rows.items():
            if other == key or other[0] != op.entity or op.entity != "Task":
                continue
            if row["slug"] is not None and known["slug"] == row["slug"]:
                return False
            pair = (row["ownerId"], row["rank"])
            if None not in pair and pair == (known["ownerId"], known["rank"]):
                return False
        self.rows[key] = row
        return True


def test_any_interleaving_of_two_writers_is_that_of_one(postgres_server: Any) -> None:
    url = postgres_server.url

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.url = make_schema(url)
            self.writers = Writers(self.url)
            self.model = Model()

        @rule(batch=BATCHES, is_first=st.booleans())
        def write(self, batch: list[WriteOp], is_first: bool) -> None:
            engine = self.writers.a if is_first else self.writers.b
            replies = self.writers.apply(engine, *batch)
            for op, reply in zip(batch, replies, strict=True):
                failed = reply.error or any(r.error for r in reply.results or ())
                assert self.model.apply(op) == (not failed), (op, reply)

        @invariant()
        def rows_are_those_of_the_model(self) -> None:
            check_log(self.writers)
            for entity in ("Task", "Note"):
                stored = self.writers.sql.execute(f'SELECT id, _json FROM "{entity}"')
                assert {(entity, i): orjson.loads(j) for i, j in stored} == {
                    key: row for key, row in self.model.rows.items() if key[0] == entity
                }

        @invariant()
        def documents_are_those_of_their_rows(self) -> None:
            parts: dict[str, list[bytes]] = {}
            for table, column in (("snapshots", "snapshot"), ("updates", "data")):
                for key, part in self.writers.sql.execute(
                    f"SELECT row_id, {column} FROM _pylon_crdt_{table}"
                ):
                    parts.setdefault(key, []).append(bytes(part))
            for key, found in parts.items():
                document = loro.LoroDoc()
                for part in filter(None, found):
                    document.import_(part)
                text = document.get_map("row").get_deep_value()["text"]
                assert text == self.model.rows["Note", key]["text"]

        def teardown(self) -> None:
            self.writers.close()
            drop_schema(url, self.url)

    run_state_machine_as_test(Machine, settings=settings(  # type: ignore[no-untyped-call]
        max_examples=count_examples(25), stateful_step_count=12, deadline=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    ))
