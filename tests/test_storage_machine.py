"""Any sequence of batches against a plain dict: the engine, the log and a reopened file agree.

After every batch the database file and its WAL are copied as a crash would leave them, and the
copy is opened and checked.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import apsw
import orjson
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from pylon.storage.ops import OpKey, Transact
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.examples import count_examples
from tests.support.storage import (
    CODECS,
    apply,
    code,
    delete,
    open_engine,
    open_reader,
    row_id,
    rows_of,
    task,
    update,
)

Rows = dict[str, dict[str, Any]]
NUMBERS = st.integers(1, 6)
SLUGS = st.sampled_from(["a", "b", None])
OPS = st.none() | st.sampled_from(["o1", "o2", "o3"])
STEPS = st.one_of(
    st.tuples(st.just("insert"), NUMBERS, SLUGS, OPS),
    st.tuples(st.just("update"), NUMBERS, SLUGS, OPS),
    st.tuples(st.just("delete"), NUMBERS, SLUGS, OPS),
)


def replay(reader: SqliteReader, rows: Rows, since: int) -> Rows:
    """`rows` as they were at `since`, brought to the head by the log alone."""
    for event in reader.events_after(since, 10_000):
        before = orjson.loads(event.prev_data) if event.prev_data else None
        assert rows.get(event.row_id) == before
        if event.data is None and before is None:  # came and went within one commit
            assert event.kind == "delete"
        elif event.data is None:
            del rows[event.row_id]
        else:
            rows[event.row_id] = orjson.loads(event.data)
    return rows


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pylon-test-"))
        self.path = self.folder / "a.db"
        self.engine = open_engine(self.path, boot_id="one")
        self.reader = open_reader(self.path)
        self.rows: Rows = {}
        self.done: dict[str, tuple[int, str]] = {}
        self.history: dict[int, Rows] = {0: {}}
        self.transacted: dict[str, tuple[str, list[str]]] = {}

    def teardown(self) -> None:
        self.engine.close()
        self.reader.close()
        shutil.rmtree(self.folder)

    @rule(steps=st.lists(STEPS, min_size=1, max_size=8))
    def batch(self, steps: list[tuple[str, int, str | None, str | None]]) -> None:
        ops = []
        for kind, number, slug, op in steps:
            if kind == "insert":
                ops.append(task(number, slug=slug, op=op))
            elif kind == "update":
                ops.append(update("Task", number, {"slug": slug}, op=op))
            else:
                ops.append(delete("Task", number, op=op))
        replies = apply(self.engine, *ops)
        head = max(self.history)
        seq_by_row: dict[str, int] = {}  # one for each row and commit
        for (kind, number, slug, op), reply in zip(steps, replies, strict=True):
            # Inserts name nobody, the others the admin: their op_ids are apart.
            key = None if op is None else ("" if kind == "insert" else "admin") + op
            wanted = self._expect(kind, row_id(number), slug, key)
            assert (code(reply) or ("replayed" if reply.replayed else None)) == wanted
            if wanted is None:
                head += row_id(number) not in seq_by_row
                assert reply.seq == seq_by_row.setdefault(row_id(number), head)
                if key is not None:
                    self.done[key] = (reply.seq, reply.row_id)
            elif wanted == "replayed" and key is not None:
                assert (reply.seq, reply.row_id) == self.done[key]
        assert self.engine.head == head
        self.history[head] = {k: dict(v) for k, v in self.rows.items()}

    def _expect(self, kind: str, rid: str, slug: str | None, key: str | None) -> str | None:
        if key is not None and key in self.done:
            return "replayed"
        if kind == "insert":
            if rid in self.rows or self._taken(rid, slug):
                return "UNIQUE_VIOLATION"
            body = {"title": f"task {int(rid, 16)}", "done": False, "ownerId": "ada",
                    "slug": slug}
            self.rows[rid] = CODECS["Task"].insert(body, rid).row
        elif rid not in self.rows:
            return "NOT_FOUND"
        elif kind == "update":
            if self._taken(rid, slug):
                return "UNIQUE_VIOLATION"
            self.rows[rid] = {**self.rows[rid], "slug": slug}
        else:
            del self.rows[rid]
        return None

    def _taken(self, rid: str, slug: str | None) -> bool:
        return slug is not None and any(
            r["slug"] == slug for k, r in self.rows.items() if k != rid
        )

    @rule(steps=st.lists(STEPS, max_size=5), op=OPS, reopen=st.booleans())
    def transact(
        self, steps: list[tuple[str, int, str | None, str | None]], op: str | None, reopen: bool
    ) -> None:
        """All of the steps or none; the same key answers the same again, also after a start."""
        key = None if op is None else OpKey("t", op, repr(steps))
        request = Transact([self._op(*step[:3]) for step in steps], key)
        (reply,) = apply(self.engine, request)
        known = self.transacted.get(op or "")
        if known is not None and known[0] != repr(steps):
            assert code(reply) == "IDEMPOTENCY_KEY_REUSED"
            return
        if known is not None:
            assert reply.replayed and reply.count == 0
            assert [r.row_id for r in reply.results or []] == known[1]
            return
        before, head = {k: dict(v) for k, v in self.rows.items()}, max(self.history)
        assert not reply.replayed and reply.error is None and reply.results is not None
        for position, (kind, number, slug, _) in enumerate(steps):
            wanted = self._expect(kind, row_id(number), slug, None)
            assert code(reply.results[position]) == wanted
            if wanted is not None:
                assert len(reply.results) == position + 1
                assert (reply.seq, reply.count) == (0, 0)
                self.rows = before
                return
        numbers = list(dict.fromkeys(number for _, number, _, _ in steps))
        assert [r.seq for r in reply.results] == [
            head + 1 + numbers.index(number) for _, number, _, _ in steps]
        changed = len(numbers)
        assert (reply.count, reply.seq) == (len(steps), head + changed if steps else 0)
        if op is not None:
            self.transacted[op] = (repr(steps), [r.row_id for r in reply.results])
        self.history[head + changed] = {k: dict(v) for k, v in self.rows.items()}
        if reopen:
            self.reopen()

    @rule(kind=st.sampled_from(["update", "delete"]), number=NUMBERS, slug=SLUGS,
          behind=st.integers(0, 2))
    def with_version(self, kind: str, number: int, slug: str | None, behind: int) -> None:
        """A write that names the version of its row happens only if it is that version."""
        rid, head = row_id(number), max(self.history)
        found = self.reader.get_version("Task", rid)
        version = 1 if found is None else found[1]
        assert version is not None
        op = self._op(kind, number, slug)
        (reply,) = apply(self.engine, replace(op, if_match=version - behind))
        if rid in self.rows and behind:
            assert code(reply) == "PRECONDITION_FAILED"
            return
        assert code(reply) == self._expect(kind, rid, slug, None)
        if reply.error is None:
            assert reply.seq == head + 1
            self.history[head + 1] = {k: dict(v) for k, v in self.rows.items()}

    @staticmethod
    def _op(kind: str, number: int, slug: str | None) -> Any:
        if kind == "insert":
            return task(number, slug=slug)
        return update("Task", number, {"slug": slug}) if kind == "update" else delete(
            "Task", number)

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self.engine = open_engine(self.path, boot_id="one")
        assert self.engine.head == max(self.history)

    @rule(data=st.data())
    @precondition(lambda self: len(self.history) > 1)
    def replay_from_any_point(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.history)))
        start = {k: dict(v) for k, v in self.history[seq].items()}
        assert replay(self.reader, start, seq) == self.rows

    @invariant()
    def the_tables_are_the_model(self) -> None:
        assert rows_of(self.reader, "Task") == self.rows
        seqs = [e.seq for e in self.reader.events_after(0, 10_000)]
        assert seqs == list(range(1, self.engine.head + 1))
        assert self.reader.head_seq() == self.engine.head
        last: dict[str, int] = {e.row_id: e.seq for e in self.reader.events_after(0, 10_000)}
        for rid in self.rows:
            found = self.reader.get_version("Task", rid)
            assert found is not None and found[1] == last[rid]

    @invariant()
    def a_crash_here_loses_nothing(self) -> None:
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in ("a.db", "a.db-wal"):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, copy / name)
        conn = apsw.Connection(str(copy / "a.db"))
        assert conn.pragma("integrity_check") == "ok"
        columns = conn.execute("SELECT id, slug, title FROM Task ORDER BY id").fetchall()
        assert columns == sorted((k, r["slug"], r["title"]) for k, r in self.rows.items())
        conn.close()
        engine = open_engine(copy / "a.db", boot_id="one")
        reader = open_reader(copy / "a.db")
        assert engine.head == self.engine.head
        assert rows_of(reader, "Task") == replay(reader, {}, 0) == self.rows
        engine.close()
        reader.close()


EngineMachine.TestCase.settings = settings(
    max_examples=count_examples(15), stateful_step_count=10
)
TestEngine = EngineMachine.TestCase
