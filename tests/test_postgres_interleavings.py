"""Two writers on one PostgreSQL database that write the same rows: no change is lost, and any
interleaving is that of one writer, against a model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import loro
import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace as changed

from pylon.storage.ops import (
    DeleteRow,
    InsertRow,
    OpenDocument,
    Transact,
    UpdateRow,
    WriteOp,
)
from tests.support.examples import count_examples
from tests.support.postgres import drop_schema, make_schema
from tests.support.storage import (
    delete,
    insert,
    row_id,
    task,
    update,
)
from tests.support.two_writers import Writers


@pytest.fixture
def writers(postgres_url: str) -> Iterator[Writers]:
    made = Writers(postgres_url)
    yield made
    made.close()


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
